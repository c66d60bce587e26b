"""What each page has besides its text: previews, downloads, versions, run times."""

import json
from datetime import date
from types import SimpleNamespace

import book_extension
import page_extras
import pytest
from bs4 import BeautifulSoup
from docutils import nodes

from tests.built import HTML, PAGES, ROOT, file_of, read

ADDRESS = "https://closing-the-gap.github.io/closing-the-gap/"


def test_the_site_follows_from_the_repository(tmp_path):
    config = "repository: {url: https://github.com/Some-One/book/}"
    (tmp_path / "_config.yml").write_text(config)
    assert book_extension.site_address(tmp_path) == "https://some-one.github.io/book/"


def test_a_doi_is_looked_up_at_its_registry_and_others_stay():
    asked = book_extension.ask_the_registry(None, "https://doi.org/10.1/x")
    assert asked == "https://doi.org/api/handles/10.1/x"
    assert book_extension.ask_the_registry(None, "https://example.org/doi.org/") is None


def page_of(*children: nodes.Node) -> nodes.section:
    return nodes.section("", nodes.title("", "Title"), *children)


def test_a_description_takes_whole_sentences_outside_of_boxes():
    needs = nodes.note("", nodes.paragraph("", "You need a minute."))
    page = page_of(needs, nodes.paragraph("", "By experiment"), nodes.paragraph("", "Why\nnot?"))
    assert page_extras.description(page) == "Why not?"


def test_a_long_description_ends_with_a_word():
    text = page_extras.description(page_of(nodes.paragraph("", "word " * 100 + "end.")))
    assert len(text) <= page_extras.LONGEST + 2
    assert text.endswith("word …")


def test_previews_escape_what_html_would_read():
    tags = page_extras.social_tags('A "title"', "a < b", ADDRESS)
    found = BeautifulSoup(tags, "html.parser")
    assert found.find(property="og:title")["content"] == 'A "title"'
    assert found.find("meta", attrs={"name": "description"})["content"] == "a < b"


def test_the_foot_names_day_and_versions():
    foot = page_extras.foot(date(2026, 1, 2))
    assert "Built on 2026-01-02" in foot
    assert all(f"{name} " in foot for name in ["Python", *page_extras.SHOWN])


def test_without_git_there_is_no_commit(tmp_path):
    assert page_extras.commit(tmp_path) == ""


def test_the_notebook_of_colab_is_offered(tmp_path):
    source, out = tmp_path / "source", tmp_path / "html"
    source.mkdir()
    (source / "a.ipynb").write_text("ours")
    app = SimpleNamespace(
        builder=SimpleNamespace(name="html"),
        env=SimpleNamespace(found_docs={"a", "without"}),
        srcdir=source,
        outdir=out,
    )
    page_extras.offer_notebooks(app, None)
    assert [p.read_text() for p in out.rglob("*") if p.is_file()] == ["ours"]
    assert (out / "_sources" / "a.ipynb").exists()


CHAPTERS = [page for page in PAGES if (ROOT / f"{page}.ipynb").exists()]


@pytest.mark.browser
@pytest.mark.parametrize("name", CHAPTERS)
def test_each_chapter_can_be_downloaded_as_the_notebook_of_colab(name):
    link = read(file_of(name)).select_one(".btn-download-notebook-button")
    offered = (file_of(name).parent / link["href"]).resolve()
    assert offered.read_bytes() == (ROOT / f"{name}.ipynb").read_bytes()
    assert "notebook" in link.get_text()


@pytest.mark.browser
@pytest.mark.parametrize("name", PAGES)
def test_each_page_has_a_preview_and_versions(name):
    page = read(file_of(name))
    assert page.find(property="og:url")["content"] == f"{ADDRESS}{name}.html"
    assert "<" not in page.find(property="og:title")["content"]
    assert 20 <= len(page.find(property="og:description")["content"]) <= page_extras.LONGEST + 2
    picture = page.find(property="og:image")["content"].removeprefix(ADDRESS)
    assert (HTML / picture).exists()
    assert "mmcl_core" in page.select_one(".extra_footer").get_text()


@pytest.mark.browser
def test_the_page_of_run_times_has_each_chapter():
    seconds = json.loads((HTML.parent / "seconds.json").read_text())
    rows = read(file_of("book/reference/runs")).select("article tbody tr")
    shown = {row.a["href"]: row.find_all("td")[1].get_text() for row in rows if row.a}
    assert shown == {
        f"../{page.removeprefix('book/')}.html": f"{s:.0f}" for page, s in seconds.items()
    }
