"""Write the notebook beside each chapter, for Colab and for running the chapters as tests.

    python tools/notebooks.py           # write
    python tools/notebooks.py --check   # fail, with a list, if a notebook is not what this writes

The chapter (`.md`) is the source. jupytext splits it into cells, `plain_markdown` turns its MyST
into what a notebook shows. A notebook holds no outputs, and its cell ids follow from the content,
so that the same chapter always gives the same bytes.
"""

import hashlib
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import yaml
from jupytext.myst import myst_to_notebook
from plain_markdown import Book, Page, convert_inline, load_references

from mmcl_book.records.weights import file_of

ROOT = Path(__file__).resolve().parent.parent
HIDDEN = {"hide-input", "remove-input", "hide-cell", "remove-cell"}

INSTALL = """\
# Installs the book's library and what it needs where they are missing, as in Colab.
# Elsewhere it does nothing.
import importlib.util

if not all(map(importlib.util.find_spec, ("mmcl_core", "matplotlib", "ipywidgets", "umap"))):
    %pip install -q "mmcl_core[book] @ git+{repository}\""""

# For a chapter that reads records, which a notebook alone in Colab has not beside it.
FETCH = """\


# Fetches recorded results where they are missing.
from mmcl_book.records import fetch_record
"""
READ_RECORD = re.compile(r"""\bread_record\(\s*(?:(["'])(?P<name>[^"']+)\1)?""")
READ_WEIGHTS = re.compile(
    r"""\bread_weights\(\s*(?:"(?P<name>[^"]+)",\s*"(?P<condition>[^"]+)")?"""
)


def read_chapter(path: Path) -> Any:
    """The chapter's cells, as jupytext reads them; `metadata.source_map` has their lines."""
    text = path.read_text(encoding="utf-8")
    chapter = myst_to_notebook(text, add_source_map=True)
    lines = text.splitlines()
    # jupytext counts the blank lines before a cell to it, but leaves them out of the source.
    chapter.metadata["source_map"] = [
        next(i for i in range(start, len(lines)) if lines[i].strip()) + 1
        for start in chapter.metadata["source_map"]
    ]
    return chapter


def convert(page: Page, chapter: Any) -> list[Any]:
    """The chapter's cells as those of a notebook, without outputs."""
    cells = []
    for cell, line in zip(chapter.cells, chapter.metadata["source_map"], strict=True):
        metadata = dict(cell.metadata)
        if cell.cell_type == "markdown":
            text = page.convert(cell.source, line)
            if text:
                cells.append(nbformat.v4.new_markdown_cell(text))
            continue
        if any(found["name"] is None for found in READ_RECORD.finditer(cell.source)):
            page.problem(line, 'read_record takes the name itself, as in read_record("gap")')
        if any(found["name"] is None for found in READ_WEIGHTS.finditer(cell.source)):
            page.problem(line, 'read_weights takes names, as in read_weights("gmc", "GMC", model)')
        caption = figure_caption(page, metadata.pop("mystnb", {}).get("figure"))
        if page.solution or HIDDEN & set(metadata.get("tags", [])):
            # Colab's and Jupyter's own ways to fold the code of a cell.
            metadata["cellView"] = "form"
            metadata["jupyter"] = {"source_hidden": True}
        cells.append(nbformat.v4.new_code_cell(cell.source, metadata=metadata))
        if caption:
            cells.append(nbformat.v4.new_markdown_cell(caption))
    if page.solution:
        page.problem(0, "a {solution-start} has no {solution-end}")
    return cells


def figure_caption(page: Page, figure: dict[str, str] | None) -> str:
    """The caption of a code cell's figure, with its number; else ""."""
    if not figure:
        return ""
    return f"**{page.number('Figure')}.** {convert_inline(page, figure['caption'], 0)}"


def install_cell(cells: list[Any], book: Book) -> Any:
    """What a notebook begins with, so that `cells` find the library and the records they read."""
    source = INSTALL.format(repository=book.repository)
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    records = sorted({found["name"] for found in READ_RECORD.finditer(code) if found["name"]})
    if records:
        urls = {name: book.file(f"book/records/{name}.json") for name in records}
        source += FETCH + "".join(f'\nfetch_record("{name}", "{urls[name]}")' for name in records)
    found = {(of["name"], of["condition"]) for of in READ_WEIGHTS.finditer(code) if of["name"]}
    if found:
        source += "\nfrom mmcl_book.records import fetch_weights\n"
    for name, condition in sorted(found):
        place = file_of(Path("book/records", f"{name}.json"), condition).as_posix()
        source += f'\nfetch_weights("{name}", "{condition}", "{book.file(place)}")'
    return nbformat.v4.new_code_cell(source)


def assemble(cells: list[Any], book: Book) -> str:
    """The notebook as text: the install cell, then `cells`."""
    notebook = nbformat.v4.new_notebook(
        cells=[install_cell(cells, book), *cells],
        metadata={
            "colab": {"provenance": []},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
    )
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        content = f"{cell.cell_type}\n{cell.source}"
        copy = seen[content] = seen.get(content, 0) + 1
        cell.id = hashlib.sha256(f"{content}\n{copy}".encode()).hexdigest()[:12]
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def chapter_numbers(toc: dict[str, Any]) -> dict[str, int]:
    """The chapters of the numbered parts, counted through the book."""
    parts = [part for part in toc.get("parts", []) if part.get("numbered")]
    chapters = [chapter["file"] for part in parts for chapter in part["chapters"]]
    return {name: number for number, name in enumerate(chapters, start=1)}


def generate(root: Path = ROOT) -> tuple[dict[Path, str], list[str]]:
    """The text of every notebook, by its path; and what would not read well in one."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    paths = {
        path.relative_to(root).with_suffix("").as_posix(): path
        for path in sorted((root / "book").rglob("*.md"))
    }
    chapters = {name: read_chapter(path) for name, path in paths.items()}
    book = Book(
        repository=config["repository"]["url"],
        branch=config["repository"]["branch"],
        colab=config["launch_buttons"]["colab_url"],
        references=load_references(root / "book" / "references.bib"),
        chapters=chapter_numbers(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))),
        notebooks={name for name, read in chapters.items() if "kernelspec" in read.metadata},
    )
    for name, chapter in chapters.items():  # first pass: titles, labels, numbers
        convert(Page(name, book), chapter)
    problems, texts = [], {}
    for name in sorted(book.notebooks):
        page = Page(name, book)
        cells = convert(page, chapters[name])
        problems += page.problems
        texts[paths[name].with_suffix(".ipynb")] = assemble(cells, book)
    return texts, problems


def write(root: Path = ROOT) -> list[str]:
    """Write the notebooks that changed, remove those whose chapter is gone; return problems."""
    texts, problems = generate(root)
    for path, text in texts.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(root)}")
    for path in set(notebooks_in(root)) - set(texts):
        path.unlink()
        print(f"removed {path.relative_to(root)}, which has no chapter")
    return problems


def notebooks_in(root: Path) -> list[Path]:
    """All notebooks of the book."""
    found = (root / "book").rglob("*.ipynb")
    return sorted(path for path in found if ".ipynb_checkpoints" not in path.parts)


def differing(root: Path = ROOT) -> list[str]:
    """The problems, and what `write` would change, one line each."""
    texts, lines = generate(root)
    for path in sorted({*texts, *notebooks_in(root)}):
        name = path.relative_to(root).as_posix()
        if path not in texts:
            lines.append(f"{name}: has no chapter beside it")
        elif not path.exists():
            lines.append(f"{name}: missing")
        elif path.read_text(encoding="utf-8") != texts[path]:
            lines.append(f"{name}: not what its chapter gives")
    return lines


if __name__ == "__main__":
    check = "--check" in sys.argv[1:]
    if found := differing() if check else write():
        advice = "\nRun `make notebooks`, commit what it writes, and correct what it prints."
        sys.exit("\n".join(found) + (advice if check else ""))
