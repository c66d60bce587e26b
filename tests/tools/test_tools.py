"""The scripts that make the environment, fetch the pages' JavaScript, and configure the build."""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from types import SimpleNamespace

import book_extension
import colab
import contents
import environment
import pytest
import vendor
from text_first import text_first


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder whose lock file names one package, which is an archive beside it; npm is real."""
    if not shutil.which("npm"):
        pytest.skip("needs npm")
    folder = tmp_path / "packages"
    folder.mkdir()
    package = json.dumps({"name": "thing", "version": "1.0.0"})
    with tarfile.open(folder / "thing.tgz", "w:gz") as tar:
        for name in ("package.json", "dist/a.js", "dist/fonts/b.woff", "secret.txt"):
            content = (package if name == "package.json" else name).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    lock(folder, hashlib.sha512((folder / "thing.tgz").read_bytes()).digest())
    monkeypatch.setattr(vendor, "FILES", {"thing/dist/a.js": "a.js", "thing/dist/fonts": "fonts"})
    monkeypatch.setenv("npm_config_offline", "true")
    # One of its own: npm would find in its cache what another test has made in the same second.
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    return folder


def lock(folder, sha512):
    """Writes the two files that npm reads."""
    address = (folder / "thing.tgz").as_uri().replace("file://", "file:")
    needs = {"dependencies": {"thing": address}}
    (folder / "package.json").write_text(json.dumps(needs))
    thing = {
        "version": "1.0.0",
        "resolved": address,
        "integrity": f"sha512-{base64.b64encode(sha512).decode()}",
    }
    content = {"lockfileVersion": 3, "packages": {"": needs, "node_modules/thing": thing}}
    (folder / "package-lock.json").write_text(json.dumps(content))


def files_under(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_only_the_wanted_files_are_taken(packages, tmp_path):
    assert vendor.vendor(tmp_path / "vendor", packages)
    assert files_under(tmp_path / "vendor") == ["a.js", "complete.txt", "fonts/b.woff"]
    assert (tmp_path / "vendor" / "a.js").read_text() == "dist/a.js"


def test_a_complete_folder_is_left_alone(packages, tmp_path, monkeypatch):
    vendor.vendor(tmp_path / "vendor", packages)
    monkeypatch.setattr(vendor.subprocess, "run", lambda *_, **__: pytest.fail("fetched again"))
    assert vendor.vendor(tmp_path / "vendor", packages)


@pytest.mark.parametrize("changed", ["files", "lock"])
def test_what_another_version_left_goes(packages, tmp_path, monkeypatch, changed):
    vendor.vendor(tmp_path / "vendor", packages)
    (tmp_path / "vendor" / "old.js").write_text("")
    if changed == "files":
        monkeypatch.setattr(vendor, "FILES", {"thing/dist/a.js": "new.js"})
    else:
        path = packages / "package-lock.json"
        path.write_text(f"{path.read_text()}\n")
    assert vendor.vendor(tmp_path / "vendor", packages)
    assert "old.js" not in files_under(tmp_path / "vendor")


def test_a_wrong_sum_stops_the_build_and_leaves_nothing(packages, tmp_path):
    lock(packages, bytes(64))
    with pytest.raises(SystemExit, match=r"(?s)wanted sha512-AAAA.*do not trust it"):
        vendor.vendor(tmp_path / "vendor", packages)
    assert not (tmp_path / "vendor").exists()


def test_a_file_that_a_package_lacks_leaves_nothing(packages, tmp_path, monkeypatch):
    monkeypatch.setattr(vendor, "FILES", {"thing/dist/a.js": "a.js", "thing/none.js": "none.js"})
    with pytest.raises(FileNotFoundError):
        vendor.vendor(tmp_path / "vendor", packages)
    assert not (tmp_path / "vendor").exists()


def test_without_npm_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vendor.shutil, "which", lambda name: None)
    assert not vendor.vendor(tmp_path / "vendor")
    assert not (tmp_path / "vendor").exists()
    assert "npm was not found" in capsys.readouterr().out


def test_an_npm_that_reaches_nothing_is_reported(packages, tmp_path, capsys):
    for name in ("package.json", "package-lock.json"):
        text = (packages / name).read_text()
        (packages / name).write_text(text.replace("file:", "https://127.0.0.1:9"))
    assert not vendor.vendor(tmp_path / "vendor", packages)
    assert not (tmp_path / "vendor").exists()
    assert "npm failed (npm error code E" in capsys.readouterr().out


def test_the_lock_file_has_a_sum_for_each_package_and_names_no_server():
    wanted = json.loads((vendor.TOOLS / "package.json").read_text())["dependencies"]
    locked = json.loads((vendor.TOOLS / "package-lock.json").read_text())["packages"]
    assert locked.pop("") == {"dependencies": wanted}
    assert {name: of["version"] for name, of in locked.items()} == {
        f"node_modules/{name}": version for name, version in wanted.items()
    }
    for package in locked.values():
        assert len(base64.b64decode(package["integrity"].removeprefix("sha512-"))) == 64
        assert "resolved" not in package
    assert all(any(source.startswith(f"{name}/") for name in wanted) for source in vendor.FILES)


@pytest.mark.parametrize("version", [(3, 11), (3, 12), (3, 13)])
def test_supported_pythons(version):
    environment.check_version(version)


@pytest.mark.parametrize("version", [(2, 7), (3, 10), (3, 14), (4, 0)])
def test_other_pythons_are_told_what_to_do(version):
    with pytest.raises(SystemExit, match=r"(?s)3\.11, 3\.12 or 3\.13.*PYTHON=python3\.12"):
        environment.check_version(version)


def test_an_environment_is_ready_until_its_list_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "ROOT", str(tmp_path))
    (tmp_path / "list.txt").write_text("")
    assert not environment.is_ready("env", ["list.txt"])
    environment.make("env", ["list.txt"], ["--no-index"])
    assert environment.is_ready("env", ["list.txt"])
    (tmp_path / "list.txt").write_text("numpy==2\n")
    assert not environment.is_ready("env", ["list.txt"])


def test_the_list_of_colab_names_the_versions_of_the_contract():
    pins = colab.pins()
    assert (pins["ipywidgets"], pins["ipython"]) == ("7.7.1", "7.34.0")
    assert {"numpy", "matplotlib", "scikit-learn", "umap-learn", "numba"} <= set(pins)
    assert not {"mmcl-core", "torch", "kornia", "jedi"} & set(pins)


def test_torch_is_linked_with_what_only_torch_needs():
    names = [dist.name for dist in colab.torch_alone()]
    assert "torch" in names
    assert not set(names) & set(colab.pins())


def test_what_the_first_cell_changes_is_named():
    before = {"numpy": "2.1.3", "scipy": "1.16.3", "tqdm": "4.67.3"}
    after = {"numpy": "2.4.6", "scipy": "1.16.3", "mmcl-core": "0.1.0"}
    assert colab.changes(before, before | {"kornia": "0.9"}) == []
    assert colab.changes(before, after) == [
        "numpy: 2.1.3 before, 2.4.6 after",
        "tqdm: 4.67.3 before, nothing after",
    ]


def test_git_takes_the_library_at_hand_for_the_published_one(tmp_path, monkeypatch):
    for key, value in colab.redirect(tmp_path / "at hand").items():
        monkeypatch.setenv(key, value)
    clone = ["git", "clone", "--quiet", colab.repository(), str(tmp_path / "clone")]
    subprocess.run(clone, check=True)
    assert (tmp_path / "clone" / "mmcl_book" / "widgets.py").read_bytes() == (
        colab.ROOT / "mmcl_book" / "widgets.py"
    ).read_bytes()


def test_every_file_names_the_repository_of_the_configuration():
    """README and others cannot read `_config.yml`; when it changes, this names what else must."""
    address = re.compile(r"(?:github\.com|/github)/([\w-]+/[\w-]+)")
    want = colab.repository().removeprefix("https://github.com/")
    files = [
        *(colab.ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CITATION.cff")),
        *(colab.ROOT / "mmcl_core").rglob("*.py"),
        *(path for path in (colab.ROOT / "book").rglob("*") if path.suffix in (".md", ".ipynb")),
    ]
    named = {file: set(address.findall(file.read_text(encoding="utf-8"))) for file in files}
    assert {str(file): found for file, found in named.items() if found - {want}} == {}
    assert sum(map(bool, named.values())) >= 10


@pytest.fixture
def project(tmp_path):
    (tmp_path / "requirements.txt").write_text("torch==1\n")
    (tmp_path / "mmcl_core").mkdir()
    (tmp_path / "mmcl_core" / "a.py").write_text("x = 1\n")
    (tmp_path / "mmcl_book" / "live").mkdir(parents=True)
    (tmp_path / "mmcl_book" / "live" / "a.js").write_text("let x = 1;\n")
    (tmp_path / "mmcl_book" / "live" / "a.css").write_text("p { margin: 0 }\n")
    (tmp_path / "book" / "records").mkdir(parents=True)
    (tmp_path / "book" / "chapter.md").write_text("# Title\n")
    (tmp_path / "book" / "records" / "r.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "requirements.txt", "mmcl_core/a.py", "book/records/r.json", "mmcl_book/live/a.js",
        "mmcl_book/live/a.css",
    ],
)  # fmt: skip
def test_what_a_chapter_depends_on_changes_the_cache(project, name):
    before = book_extension.library_hash(project)
    (project / name).write_text("changed")
    assert book_extension.library_hash(project) != before


def test_a_renamed_file_changes_the_cache_and_a_chapter_does_not(project):
    before = book_extension.library_hash(project)
    (project / "book" / "chapter.md").write_text("# Other\n")
    assert book_extension.library_hash(project) == before
    (project / "mmcl_core" / "a.py").rename(project / "mmcl_core" / "b.py")
    assert book_extension.library_hash(project) != before


@pytest.mark.parametrize("vendored", [True, False])
def test_pages_load_from_the_book_exactly_when_all_was_fetched(tmp_path, monkeypatch, vendored):
    monkeypatch.setattr(book_extension, "EXTRA", tmp_path)
    (tmp_path / "vendor").mkdir()
    if vendored:
        (tmp_path / "vendor" / "complete.txt").write_text("")
    config = SimpleNamespace(mathjax_path="the CDN's")
    book_extension.configure(SimpleNamespace(outdir=str(tmp_path / "html")), config)
    assert (config.mathjax_path != "the CDN's") == vendored
    assert hasattr(config, "nb_ipywidgets_js") == vendored


PAGE = """<head>
<link rel="preload" as="font" href="a.woff2" />
<script src="../_static/vendor/fontawesome/6/js/all.min.js?d"></script>
<script src="documentation_options.js"></script>
<script src="_static/documentation_options.js"></script>
<script src="doctools.js"></script>
<script async="async" src="_static/sphinx-thebe.js"></script>
<script>const THEBE_JS_URL = "https://elsewhere";</script>
<script defer="defer" src="mathjax.js"></script>
<script type="application/vnd.jupyter.widget-state+json">{"state":
 {}}</script>
<script>inline()</script>
</head><body><p>&lt;/body&gt; Text.</p>
</body>
"""


def test_the_text_comes_before_all_that_it_does_not_need():
    assert (
        text_first(PAGE)
        == """<head>
<script defer="defer" src="../_static/vendor/fontawesome/6/js/all.min.js?d"></script>
<script defer="defer" src="documentation_options.js"></script>
<script src="_static/documentation_options.js"></script>
<script defer="defer" src="doctools.js"></script>
<script defer="defer" src="mathjax.js"></script>
<script>inline()</script>
</head><body><p>&lt;/body&gt; Text.</p>

<script type="application/vnd.jupyter.widget-state+json">{"state":
 {}}</script></body>
"""
    )


def test_a_page_with_the_text_first_stays_as_it_is():
    once = text_first(PAGE)
    assert text_first(once) == once


def test_a_live_model_comes_after_the_text():
    model = '<script type="application/json" class="mmcl-data" id="m-data">{"a": 1}</script>'
    page = f"<head></head><body><p>One</p>{model}<p>Two</p></body>"
    assert text_first(page) == f"<head></head><body><p>One</p><p>Two</p>{model}</body>"
    assert text_first(text_first(page)) == text_first(page)


def test_sections_are_listed_after_their_chapter(tmp_path):
    chapters = "[{file: a, sections: [{file: a/x}]}, {file: b}]"
    toc = f"root: start\nparts: [{{caption: One, chapters: {chapters}}}]"
    (tmp_path / "_toc.yml").write_text(toc)
    assert contents.parts(tmp_path) == [("", ["start"]), ("One", ["a", "a/x", "b"])]
    assert contents.pages(tmp_path) == ["start", "a", "a/x", "b"]
