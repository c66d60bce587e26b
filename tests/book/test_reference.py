"""The reference part agrees with the chapters: symbols, terms, sources, and the library's names."""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
from pybtex.database import parse_file

import mmcl_core
from tests import ROOT

BOOK = ROOT / "book"
REFERENCE = BOOK / "reference"
CHAPTERS = sorted(path for path in BOOK.rglob("*.md") if REFERENCE not in path.parents)
BUILT = ROOT / "_build" / "html"

CODE = re.compile(r"^(`{3,})\{code-cell\}.*?^\1\s*$", re.S | re.M)
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$])\$(?![\s$])([^$]+?)(?<!\\)\$", re.S)
# Commands that set or name no quantity: layout, operators, functions.
COMMANDS = {
    "frac", "tfrac", "sum", "log", "ln", "exp", "max", "min", "sin", "sqrt", "partial", "top",
    "cdot", "le", "neq", "leftarrow", "lVert", "rVert", "left", "right", "qquad", "begin", "end",
    "aligned", "mathrm", "sparsemax",
}  # fmt: skip


def formulas(text: str) -> list[str]:
    """The formulas of a page, without those that its code cells hold."""
    return [match[1] or match[2] for match in FORMULA.finditer(CODE.sub("", text))]


def symbols(formula: str) -> set[str]:
    r"""The quantities of a formula, without their indices: letters, and commands such as \tau."""
    words = r"\\begin\{\w+\}|\\end\{\w+\}|\\mathrm\{\w+\}|\\\\\[\w+\]"
    tex = re.sub(words, " ", formula)
    tex = re.sub(r"_(\{[^{}]*\}|\\\w+|\w)", " ", tex)
    found = re.findall(r"\\[A-Za-z]+|[A-Za-z]", tex)
    return {name for name in found if name.removeprefix("\\") not in COMMANDS} - {"e"}


def indices(formula: str) -> set[str]:
    """The single letters that stand below others: which query, which key, which step."""
    below = re.findall(r"_(\{[^{}]*\}|\w)", formula)
    return {
        name for part in below for name in re.findall(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])", part)
    }


def first_column(heading: str) -> list[str]:
    """The cells of the first column of the table under a heading of the notation."""
    text = (REFERENCE / "notation.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\* - (.+)$", section, re.M)[1:]


def listed(heading: str) -> list[str]:
    """The symbols of those cells."""
    return [name for cell in first_column(heading) for name in re.findall(r"\$([^$]+)\$", cell)]


def pages() -> dict[str, str]:
    """The text of each chapter."""
    return {path.stem: path.read_text(encoding="utf-8") for path in CHAPTERS}


def test_one_row_for_each_symbol() -> None:
    """A symbol has one meaning: it stands in one row, be it a quantity or an index."""
    rows = listed("Symbols")
    assert len(rows) == len(set(rows)), sorted(rows)
    both = set(rows) & set(listed("Indices"))
    assert not both, f"a quantity and an index: {both}"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_every_symbol_of_a_chapter_is_listed(chapter: Path) -> None:
    """What stands in a formula is in the notation."""
    known = {*listed("Symbols"), *listed("Indices")}
    for formula in formulas(chapter.read_text(encoding="utf-8")):
        unknown = (symbols(formula) | indices(formula)) - known
        assert not unknown, f"{unknown} of ${formula}$: add it to book/reference/notation.md"


def test_every_listed_symbol_is_used() -> None:
    """No row is left over, and each begins in the chapter that it names."""
    used: dict[str, set[str]] = {
        name: set().union(*map(symbols, found), *map(indices, found)) if found else set()
        for name, found in ((name, formulas(text)) for name, text in pages().items())
    }
    text = (REFERENCE / "notation.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\* - (\$.+)\n  - .+\n  - \{ref\}`sec-(\w+)`$", text, re.M)
    assert len(rows) == len(first_column("Symbols"))
    for cell, chapter in rows:
        for name in re.findall(r"\$([^$]+)\$", cell):
            assert name in used[chapter], f"${name}$ is not used in the chapter {chapter}"
    everywhere = set().union(*used.values())
    assert set(listed("Indices")) - {"+"} <= everywhere


def terms() -> dict[str, str]:
    """Each term of the glossary and its definition."""
    text = (REFERENCE / "glossary.md").read_text(encoding="utf-8")
    body = text.split("```{glossary}\n")[1].split("\n```")[0]
    entries = re.findall(r"^(\S.*)\n((?: {2}.+\n?)+)", body, re.M)
    return {term: " ".join(definition.split()) for term, definition in entries}


def test_each_term_has_its_korean_and_its_chapter() -> None:
    """A definition begins with the Korean term and ends with where it is explained."""
    assert len(terms()) >= 40
    assert list(terms()) == sorted(terms(), key=str.lower)
    for term, definition in terms().items():
        assert re.match(r"\(한국어: [^)]*[가-힣][^)]*\) ", definition), term
        assert re.search(r"See \{ref\}`[\w-]+`", definition), term


def test_terms_that_chapters_use_are_defined() -> None:
    """A {term} role names an entry."""
    for name, text in pages().items():
        for body in re.findall(r"\{term\}`([^`]+)`", text):
            target = re.sub(r"^.*<(.+)>$", r"\1", body, flags=re.S)
            assert " ".join(target.split()) in terms(), f"{name}: {target}"


def test_each_source_has_a_doi() -> None:
    """The bibliography links each work by its DOI; one of arXiv fits the number of the preprint."""
    for key, entry in parse_file(str(BOOK / "references.bib")).entries.items():
        doi = entry.fields.get("doi", "")
        assert re.fullmatch(r"10\.\d{4,5}/\S+", doi), key
        number = re.search(r"\d{4}\.\d{5}", entry.fields.get("howpublished", ""))
        if number:
            assert doi == f"10.48550/arXiv.{number[0]}", key


# --- the library --------------------------------------------------------------------------------

# What the book calls the public names of the library.
PUBLIC = """
mmcl_core.losses: info_nce clip_loss siglip_loss queue_info_nce queue_hinge gmc_loss
mmcl_core.sparsemax: sparsemax
mmcl_core.encoders: Encoded ImageEncoder CaptionEncoder TagEncoder ProjectionHead
mmcl_core.methods: CLIP MoCo MCT FDT GMC LateFusion
mmcl_core.methods.fdt: FDTGrounding
mmcl_core.data: ShapesCaptions Emoji CaptionFolder WordTokenizer
mmcl_core.training: fit History save_checkpoint load_checkpoint
mmcl_core.evaluation: recall_at_k modality_gap alignment uniformity linear_probe zero_shot
mmcl_core.evaluation: missing_modality pointing_game
mmcl_book.widgets: scrub
mmcl_book.live: live class_probe circle
mmcl_core.errors: MMCLError ShapeError MissingModalityError DataError CheckpointError
"""


def exported() -> set[str]:
    """The public names above, and what modules export by `__all__`, the figures' colours aside."""
    names = set()
    for line in PUBLIC.split("\n"):
        module, _, found = line.partition(": ")
        names |= {f"{module}.{name}" for name in found.split()}
    for info in pkgutil.walk_packages(mmcl_core.__path__, "mmcl_core."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                names.add(f"{info.name}.{name}")
    return names


def documented() -> dict[str, str]:
    """The object of each directive of the API pages, and its page."""
    directive = re.compile(r"^\.\. auto(?:function|class|module):: (\S+)$", re.M)
    return {
        name: page.stem
        for page in sorted((REFERENCE / "api").glob("*.md"))
        for name in directive.findall(page.read_text(encoding="utf-8"))
    }


def test_every_public_name_has_its_entry() -> None:
    """By its own name, or by that of the module that exports the same object."""
    there = {
        id(pkgutil.resolve_name(name))
        for name in documented()
        if not name.startswith("mmcl_book.experiments.") or name.count(".") > 2
    }
    missing = {name for name in exported() if id(pkgutil.resolve_name(name)) not in there}
    assert not missing


def test_every_group_of_the_api_names_its_section() -> None:
    """Above the objects of a heading stands where the book explains them."""
    free = {"figures", "errors", "training"}  # tools of all chapters
    for page in sorted((REFERENCE / "api").glob("*.md")):
        if page.stem in free:
            continue
        for section in re.split(r"^#{2,3} ", page.read_text(encoding="utf-8"), flags=re.M):
            if "```{eval-rst}" in section and "command line" not in section:
                before = section.split("```{eval-rst}")[0]
                assert re.search(r"\{ref\}|\.md#", before), f"{page.stem}: {before[:60]}"


def test_functions_that_chapters_link_are_on_the_api_pages() -> None:
    """And each chapter links some: there the library takes over from code written from scratch."""
    for name, text in pages().items():
        linked = re.findall(r"\{(?:func|class)\}`~?([\w.]+)`", text)
        unknown = set(linked) - set(documented())
        assert not unknown, f"{name}: {unknown}"
        assert linked or name == "intro", f"{name} links no function of the library"


@pytest.mark.browser
def test_the_built_book_lists_every_object() -> None:
    """The inventory of the built pages has each object of the API pages."""
    from sphinx.util.inventory import InventoryFile

    with (BUILT / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, path: path)
    built = {name for kind, found in inventory.items() if kind.startswith("py:") for name in found}
    assert set(documented()) <= built


BACKTICKS = re.compile(r"``.*?``|`.*?`", re.S)
SECTION = re.compile(r"(?:Args|Attributes|Raises|Returns|Yields):")


def unlike_sphinx(text: str) -> list[str]:
    """The lines of a docstring that Sphinx would read otherwise than they are meant."""
    found = [line for line in BACKTICKS.sub("", text).split("\n") if "|" in line]  # substitutions
    above, in_list = "", False
    for line in text.split("\n"):
        item = line.lstrip().startswith("- ")
        if item and above.strip() and not in_list:
            found.append(line)  # runs on from the paragraph
        if above.endswith(":") and not above.startswith(" ") and line.startswith(" "):
            found += [] if SECTION.fullmatch(above) else [line]  # a quotation, not code
        above, in_list = line, bool(line.strip()) and (item or in_list)
    return found


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Mean `|x|` of `y`.\n\n- one\n  more\n- two\n\nSo::\n\n    f(x)", []),
        ("Mean.\n\nArgs:\n    x: a:\n        b\n\n        - c\n        - d", []),
        ("Mean |x|.", ["Mean |x|."]),
        ("These:\n- one", ["- one"]),
        ("So:\n    f(x)", ["    f(x)"]),
    ],
)
def test_what_sphinx_reads_otherwise_is_found(text: str, wrong: list[str]) -> None:
    assert unlike_sphinx(text) == wrong


SOURCES = [p for name in ("mmcl_core", "mmcl_book") for p in (BOOK.parent / name).rglob("*.py")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_docstrings_are_what_sphinx_reads(path: Path) -> None:
    """One backtick is code there, too; lists, examples and bars have to be written for it."""
    wrong = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            wrong += unlike_sphinx(ast.get_docstring(node) or "")
    assert wrong == []
