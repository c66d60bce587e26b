"""Chapters to notebooks: what MyST becomes, what is refused, and that the same gives the same."""

import functools
import http.server
import importlib.util
import json
import re
import textwrap
import threading
from types import SimpleNamespace

import colab
import nbformat
import notebooks
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from plain_markdown import Book, Page, load_references

from mmcl_book.records import RecordError
from mmcl_book.records.reading import read_record

BIB = """
@inproceedings{one2020,
  author = {Ada One}, title = {Title {ONE}}, year = {2020}, doi = {10.1/1}
}
@article{two2021,
  author = {van der Two, Bob and Three, Cleo}, title = {T}, year = {2021}, url = {https://two.org}
}
@misc{many2022, author = {A, A and B, B and C, C}, title = {T}, year = {2022}}
"""

CONFIG = """
repository: {url: "https://github.com/o/r", branch: main}
launch_buttons: {colab_url: "https://colab.research.google.com"}
"""

TOC = """
root: book/intro
parts:
  - numbered: 1
    chapters: [{file: book/other}, {file: book/another}]
  - numbered: 1
    chapters: [{file: book/part/chapter}]
  - chapters: [{file: book/bibliography}]
"""

FRONT = """\
---
file_format: mystnb
kernelspec:
  name: python3
  display_name: Python 3
---
"""


@pytest.fixture
def book(tmp_path):
    bib = tmp_path / "references.bib"
    bib.write_text(BIB)
    return Book("https://github.com/o/r", "main", "https://colab.google", load_references(bib))


@pytest.fixture
def convert(book):
    """Convert one cell of the page book/a, both passes; problems are errors of the test."""

    def convert_(text, *, problems=None):
        text = textwrap.dedent(text).strip("\n")
        Page("book/a", book).convert(text, 1)
        page = Page("book/a", book)
        result = page.convert(text, 1)
        if problems is None:
            assert page.problems == []
        else:
            problems += page.problems
        return result

    return convert_


@pytest.fixture
def root(tmp_path):
    """A repository with one chapter and one page without code."""
    (tmp_path / "_config.yml").write_text(CONFIG)
    (tmp_path / "_toc.yml").write_text(TOC)
    (tmp_path / "book" / "part").mkdir(parents=True)
    (tmp_path / "book" / "references.bib").write_text(BIB)
    (tmp_path / "book" / "intro.md").write_text("# Welcome\n")
    (tmp_path / "book" / "part" / "chapter.md").write_text(
        FRONT + "\n(sec-top)=\n# A chapter\n\nText.\n\n```{code-cell} python\n"
        "---\ntags: [hide-input]\n---\nprint(1)\n```\n\nMore {doc}`/book/intro`.\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("myst", "plain"),
    [
        ("Plain *text* with `code`.", "Plain *text* with `code`."),
        ("`{ref}` is a role, ``{eq}`x` `` too.", "`{ref}` is a role, ``{eq}`x` `` too."),
        ("A formula $[a](b)$", "A formula $[a](b)$"),
        ("{term}`gap` {term}`gaps <gap>`", "*gap* *gaps*"),
        ("{func}`~mmcl_core.losses.info_nce`", "`info_nce`"),
        ("{class}`mmcl_core.CLIP`, {meth}`fit <a.b>`", "`mmcl_core.CLIP`, `fit`"),
        ("% a comment\nText", "Text"),
        ("[site](https://x.org) <https://y.org>", "[site](https://x.org) <https://y.org>"),
        ("{cite}`one2020`", "([One, 2020](https://doi.org/10.1/1))"),
        (
            "{cite}`two2021, many2022`",
            "([van der Two and Three, 2021](https://two.org); A et al., 2022)",
        ),
        ("{cite:t}`one2020`", "[One (2020)](https://doi.org/10.1/1)"),
        ("```python\n{ref}`x` # $a$\n```", "```python\n{ref}`x` # $a$\n```"),
        (":::{admonition} A *title*\nText.\n:::", "> **A *title*.** Text."),
        ("```{admonition} List\n- a\n- b\n```", "> **List**\n>\n> - a\n> - b"),
        (
            "````{admonition} Code\n```python\nx\n```\n````",
            "> **Code**\n>\n> ```python\n> x\n> ```",
        ),
        (
            "```{admonition} Formula\n:class: note\n$$\na\n= b\n$$\n```",
            "> **Formula**\n>\n> $$ a = b $$",
        ),
        (
            "```{admonition} More\n:class: dropdown\nText.\n```",
            "<details>\n<summary>More</summary>\n\nText.\n\n</details>",
        ),
        ("See {eq}`e`.\n\n$$ a $$ (e)", "See (1).\n\n$$ a \\tag{1}\n$$"),
        ("$$\na\n$$", "$$\na\n$$"),
        (
            "(here)=\n## A heading\n\n{ref}`here` {ref}`words <here>`",
            "## A heading\n\nA heading words",
        ),
        (
            "1. One:\n\n   ```{admonition} Note\n   Text.\n   ```\n",
            "1. One:\n\n   > **Note.** Text.",
        ),
    ],
)
def test_what_myst_becomes(convert, myst, plain):
    assert convert(myst) == plain


def test_exercise_and_solution(convert):
    text = """
    ````{exercise} Limits
    :label: ex-limits
    What is $x$?
    ```{admonition} Hint
    Small.
    ```
    ````

    ```{exercise}
    :label: ex-two
    And $y$?
    ```

    ```{solution} ex-two
    :class: dropdown
    Large. See {ref}`ex-limits`.
    ```
    """
    assert convert(text) == textwrap.dedent(
        """
        **Exercise 1. Limits**

        What is $x$?

        > **Hint.** Small.

        **Exercise 2.**

        And $y$?

        <details>
        <summary>Solution to exercise 2</summary>

        Large. See Exercise 1.

        </details>
        """
    ).strip("\n")


NOTE = "```{admonition} Note\n"


@pytest.mark.parametrize(
    ("myst", "line", "message"),
    [
        ("Text.\n\n```{mermaid}\nx\n```", 3, "the directive {mermaid} is not known"),
        ("```{note}\nx\n```", 1, "the directive {note} is not known"),
        ("```{figure} x.png\n:alt: a\nCaption\n```", 1, "the directive {figure} is not known"),
        ("```{code-cell} python\nx\n```", 1, "the directive {code-cell} is not known"),
        (f"{NOTE}:width: 3\nText\n```", 1, "the option :width: 3 is not known"),
        (f"{NOTE}:class: warning\nText\n```", 1, "the option :class: warning is not known"),
        (f"{NOTE}---\nclass: tip\n---\nText\n```", 1, "the option --- is not known"),
        ("Text with\n{eval}`x`.", 2, "the role {eval} is not known"),
        ("{numref}`x`", 1, "the role {numref} is not known"),
        (f"{NOTE}Text\n\n{{nope}}`x`\n```", 4, "the role {nope} is not known"),
        (f"{NOTE}:class: note\n\n- a\n  {{nope}}`x`\n```", 5, "the role {nope} is not known"),
        ("[x](#nowhere)", 1, "the link [x](#nowhere) is not known"),
        ("[x](data.csv)", 1, "the link [x](data.csv) is not known"),
        ("![a cat](x.png)", 1, "the link ![a cat](x.png) is not known"),
        ("![a cat](https://x.org/x.png)", 1, "is not known"),
        ("{ref}`nowhere`", 1, "nothing has the label 'nowhere'"),
        ("{eq}`nowhere`", 1, "nothing has the label 'nowhere'"),
        ("{doc}`nowhere`", 1, "no page book/nowhere.md"),
        ("[x](nowhere.md)", 1, "no page book/nowhere.md"),
        ("{cite}`nobody1999`", 1, "has no 'nobody1999'"),
        ("A {{ value }}.", 1, "would stand raw"),
        ("A note.[^1]", 1, "would stand raw"),
        (f"{NOTE}Text", 1, "never closed"),
        ("Text\n\n$$\na", 3, "never closed"),
        (":::\nText\n:::", 1, "names no directive"),
        ("```{solution} ex-none\nText\n```", 1, "no exercise has the label"),
        ("```{solution-end}\n```", 1, "without {solution-start}"),
        ("(label)=\n\nA paragraph.", 3, "without a title"),
    ],
)
def test_nothing_raw_slips_through(convert, myst, line, message):
    problems = []
    convert(myst, problems=problems)
    assert len(problems) == 1
    assert problems[0].startswith(f"book/a.md:{line}: ")
    assert message in problems[0]


def test_a_reference_to_another_chapter_is_a_link_to_its_notebook(book):
    book.notebooks.add("book/b")
    Page("book/b", book).convert("(there)=\n# B\n\n$$ x $$ (eqb)", 1)
    Page("book/c", book).convert("# C", 1)
    page = Page("book/a", book)
    text = page.convert("{ref}`there`, {eq}`eqb`, {doc}`b`, [words](b.md#x), [](c.md)", 1)
    there = "https://colab.google/github/o/r/blob/main/book/b.ipynb"
    assert text == (
        f"[B]({there}), [(1)]({there}), [B]({there}), [words]({there}), "
        "[C](https://github.com/o/r/blob/main/book/c.md)"
    )
    assert page.problems == []


def test_cells_of_a_notebook(root):
    texts, problems = notebooks.generate(root)
    assert problems == []
    assert list(texts) == [root / "book" / "part" / "chapter.ipynb"]
    notebook = nbformat.reads(next(iter(texts.values())), as_version=4)
    install, top, code, more = notebook.cells
    assert '"mmcl_core[book] @ git+https://github.com/o/r"' in install.source
    assert "fetch_record" not in install.source
    assert top.source == "# A chapter\n\nText."
    assert code.source == "print(1)"
    assert code.metadata.jupyter.source_hidden
    assert code.outputs == []
    assert more.source == "More [Welcome](https://github.com/o/r/blob/main/book/intro.md)."
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("missing", [None, "mmcl_core", "matplotlib", "umap", "ipywidgets"])
def test_the_first_cell_installs_what_is_missing_and_else_nothing(root, monkeypatch, missing):
    """The library alone is not enough: it brings nothing that draws."""
    (text,) = notebooks.generate(root)[0].values()
    code = nbformat.reads(text, as_version=4).cells[0].source
    asked = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else name)
    shell = SimpleNamespace(run_line_magic=lambda *given: asked.append(given))
    exec(TransformerManager().transform_cell(code), {"get_ipython": lambda: shell})
    command = ("pip", 'install -q "mmcl_core[book] @ git+https://github.com/o/r"')
    assert asked == ([] if missing is None else [command])


RECORD = {
    "experiment": "gap", "command": "python", "seeds": [0], "conditions": {"c": {}},
    "made": {key: "1" for key in ("date", "python", "mmcl_core", "torch", "numpy", "scikit-learn")},
    "results": {"c": {"0": {"m": 1.5}}}, "seconds": {"c": {"0": 1.0}},
}  # fmt: skip
RECORD["made"]["machines"] = ["one"]


@pytest.fixture
def fetching(root):
    """A repository on a local server, and the first cell of its chapter as code."""
    handler = functools.partial(Quiet, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield publish(root, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server of files that says nothing of each."""

    def log_message(self, format, *args):
        pass


def publish(root, address):
    """Put a record where `address` shows it; return its file, and the chapter's first cell."""
    text = CONFIG.replace("https://github.com/o/r", address)
    (root / "_config.yml").write_text(text)
    path = root / "book" / "part" / "chapter.md"
    path.write_text(path.read_text().replace("print(1)", 'print(1)\nr = read_record("gap")'))
    published = root / "raw" / "main" / "book" / "records" / "gap.json"
    published.parent.mkdir(parents=True)
    published.write_text(json.dumps(RECORD))
    (texts, problems) = notebooks.generate(root)
    assert problems == []
    cell = nbformat.reads(*texts.values(), as_version=4).cells[0].source
    return published, TransformerManager().transform_cell(cell)


def test_a_notebook_alone_fetches_the_records_that_it_reads(fetching, tmp_path, monkeypatch):
    alone = tmp_path / "alone"
    alone.mkdir()
    monkeypatch.chdir(alone)
    exec(fetching[1], {})
    assert [path.name for path in (alone / "records").iterdir()] == ["gap.json"]
    assert read_record("gap").values("c", "m") == [1.5]
    fetching[0].unlink()
    exec(fetching[1], {})  # it is there: nothing is fetched


def test_in_a_checkout_nothing_is_fetched(fetching, root, monkeypatch):
    published, code = fetching
    (root / "book" / "records").mkdir()
    published.rename(root / "book" / "records" / "gap.json")
    monkeypatch.chdir(root / "book" / "part")
    exec(code, {})
    assert [path.name for path in (root / "book" / "part").iterdir()] == ["chapter.md"]
    assert read_record("gap").values("c", "m") == [1.5]


@pytest.mark.parametrize("content", [None, "<html>Not found</html>", json.dumps(RECORD)[:-9]])
def test_what_is_no_record_is_told_and_leaves_nothing(content, fetching, tmp_path, monkeypatch):
    published, code = fetching
    published.write_text(content) if content else published.unlink()
    alone = tmp_path / "alone"
    alone.mkdir()
    monkeypatch.chdir(alone)
    with pytest.raises(RecordError, match=r"http://127.*/raw/main/book/records/gap\.json"):
        exec(code, {})
    assert not (alone / "records").exists()


def test_the_first_cell_names_each_record_once(root):
    path = root / "book" / "part" / "chapter.md"
    reads = "read_record('gap'), read_record( \"gap\" ), read_record(\n    'b-2'\n)"
    path.write_text(path.read_text().replace("print(1)", reads))
    (text,), problems = notebooks.generate(root)[0].values(), notebooks.generate(root)[1]
    assert problems == []
    lines = nbformat.reads(text, as_version=4).cells[0].source.splitlines()
    of = "https://github.com/o/r/raw/main/book/records"
    assert [line for line in lines if line.startswith("fetch_record(")] == [
        f'fetch_record("b-2", "{of}/b-2.json")',
        f'fetch_record("gap", "{of}/gap.json")',
    ]


def test_the_first_cell_fetches_the_weights_after_their_record(root):
    path = root / "book" / "part" / "chapter.md"
    reads = 'read_record("gmc"), read_weights(\n    "gmc", "GMC, batch 32", new(0)\n)'
    path.write_text(path.read_text().replace("print(1)", reads))
    texts, problems = notebooks.generate(root)
    assert problems == []
    (text,) = texts.values()
    lines = nbformat.reads(text, as_version=4).cells[0].source.splitlines()
    of = "https://github.com/o/r/raw/main/book/records"
    assert [line for line in lines if line.startswith("fetch_")] == [
        f'fetch_record("gmc", "{of}/gmc.json")',
        f'fetch_weights("gmc", "GMC, batch 32", "{of}/weights/gmc-GMC-batch-32.safetensors")',
    ]
    path.write_text(path.read_text().replace('"GMC, batch 32"', "name"))
    (problem,) = notebooks.generate(root)[1]
    assert "read_weights takes names" in problem


def test_a_record_must_be_named_where_it_is_read(root):
    path = root / "book" / "part" / "chapter.md"
    path.write_text(path.read_text().replace("print(1)", "read_record(name)"))
    (problem,) = notebooks.generate(root)[1]
    assert "read_record takes the name itself" in problem
    assert problem.startswith("book/part/chapter.md:")


def test_a_solution_with_code_is_folded(root):
    (root / "book" / "part" / "chapter.md").write_text(
        FRONT
        + "# Title\n\n```{exercise-start}\n:label: ex\n```\nDo it.\n```{exercise-end}\n```\n\n"
        "```{solution-start} ex\n:class: dropdown\n```\n\nLike this:\n\n"
        "```{code-cell} python\nx = 1\n```\n\nAnd so.\n\n```{code-cell} python\ny = 1\n```\n\n"
        "```{solution-end}\n```\n\nAfter.\n\n```{code-cell} python\nz = 1\n```\n"
    )
    (text,), problems = notebooks.generate(root)[0].values(), notebooks.generate(root)[1]
    assert problems == []
    _, before, x, between, y, after, z = nbformat.reads(text, as_version=4).cells
    fold = "<details>\n<summary>Solution to exercise 3.1{}</summary>\n\n{}\n\n</details>"
    assert before.source.endswith("Do it.\n\n" + fold.format("", "Like this:"))
    assert between.source == fold.format(", continued", "And so.")
    assert after.source == "After."
    assert [cell.metadata.get("cellView") for cell in (x, y, z)] == ["form", "form", None]


def test_a_solution_of_code_alone_says_where_it_is(root):
    (root / "book" / "part" / "chapter.md").write_text(
        FRONT + "# Title\n\n```{exercise}\n:label: ex\nDo it.\n```\n\n"
        "```{solution-start} ex\n:class: dropdown\n```\n\n"
        "```{code-cell} python\nx = 1\n```\n\n```{solution-end}\n```\n"
    )
    (text,) = notebooks.generate(root)[0].values()
    _, before, _code = nbformat.reads(text, as_version=4).cells
    assert before.source.endswith("**Solution to exercise 3.1**: unfold the next cell.")


def test_the_figure_of_a_cell_gets_its_caption_and_number(root):
    (root / "book" / "part" / "chapter.md").write_text(
        FRONT + "# Title\n\nSee below.\n\n```{code-cell} python\n---\nmystnb:\n"
        "  figure:\n    name: fig-a\n    caption: The $x$.\n---\nplot()\n```\n"
    )
    (text,) = notebooks.generate(root)[0].values()
    _, before, code, caption = nbformat.reads(text, as_version=4).cells
    assert before.source.endswith("See below.")
    assert "mystnb" not in code.metadata
    assert caption.source == "**Figure 3.1.** The $x$."


def test_an_open_solution_is_a_problem(root):
    path = root / "book" / "part" / "chapter.md"
    path.write_text(path.read_text() + "\n```{solution-start} sec-top\n```\n\nText.\n")
    assert any("has no {solution-end}" in p for p in notebooks.generate(root)[1])


def test_the_same_chapter_gives_the_same_bytes_and_other_cells_keep_their_ids(root):
    (first,) = notebooks.generate(root)[0].values()
    (again,) = notebooks.generate(root)[0].values()
    assert first == again
    path = root / "book" / "part" / "chapter.md"
    path.write_text(path.read_text().replace("Text.", "Other text."))
    (changed,) = notebooks.generate(root)[0].values()
    ids = [[cell["id"] for cell in json.loads(text)["cells"]] for text in (first, changed)]
    assert [a == b for a, b in zip(*ids, strict=True)] == [True, False, True, True]
    assert len(set(ids[0])) == 4


def test_check_names_what_differs(root):
    chapter = root / "book" / "part" / "chapter.ipynb"
    assert notebooks.differing(root) == ["book/part/chapter.ipynb: missing"]
    assert notebooks.write(root) == []
    assert notebooks.differing(root) == []
    chapter.write_text(chapter.read_text().replace("print(1)", "print(2)"))
    (root / "book" / "old.ipynb").write_text("{}")
    assert notebooks.differing(root) == [
        "book/old.ipynb: has no chapter beside it",
        "book/part/chapter.ipynb: not what its chapter gives",
    ]
    notebooks.write(root)
    assert notebooks.differing(root) == []
    assert not (root / "book" / "old.ipynb").exists()


NOTEBOOKS = notebooks.notebooks_in(colab.ROOT)
CODE = re.compile(r"(?ms)^([ >]*```+)\w*$.*?^\1$|(`+).+?\2")
# A fence of a directive, a role, a label, an option of a directive, a comment.
RAW = re.compile(r"(?m)```+\s*\{|:::|\{[\w:-]+\}`|^\([\w-]+\)=|^[ >]*:[\w-]+:|^%|\{\{")


@pytest.mark.parametrize(
    "raw", ["```{note}", ":::{tip}", "a {ref}`b`", "(sec)=", ":label: a", "% x"]
)
def test_the_pattern_knows_raw_myst(raw):
    assert RAW.search(raw)
    assert not RAW.search(CODE.sub("", f"````text\n{raw}\n````"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_notebook_of_the_book_shows_raw_myst(path):
    """Independent of the converter, which refuses what it does not know."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            assert RAW.findall(CODE.sub("", cell.source)) == [], cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_notebook_begins_with_the_cell_that_installs(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "code"
    assert first.source.startswith(notebooks.INSTALL.format(repository=colab.repository()))


def test_a_problem_has_file_and_line_of_the_chapter(root):
    path = root / "book" / "part" / "chapter.md"
    path.write_text(path.read_text() + "\n\n{nope}`x`\n")
    line = path.read_text().splitlines().index("{nope}`x`") + 1
    (problem,) = notebooks.generate(root)[1]
    assert problem.startswith(f"book/part/chapter.md:{line}: ")
