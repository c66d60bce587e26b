"""What each built page has besides its text. Loaded by `_config.yml`.

- For whom a link is sent to: title, description and picture of the page.
- In the menu of downloads: the notebook as Colab opens it, and the PDF of the whole book.
- At the foot: the versions that the page was built with.
- `{runs}`: a table of the chapters, what each took to execute and when.

It is ours: sphinxext-opengraph would do the first of these four alone.
"""

import html
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from datetime import date, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from book_extension import ROOT, site_address
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

SHOWN = ["torch", "numpy", "matplotlib", "umap-learn", "ipywidgets", "mmcl_core"]
LONGEST = 200  # characters of a description; what shows it cuts it off about there
PICTURE = "_static/social.png"
PICTURE_ALT = "Closing the Gap: two overlapping circles, one blue, one orange"
LABELS = {
    "download-notebook-button": "notebook (.ipynb)",
    "download-source-button": "source (.md)",
    "download-pdf-button": "print this page",
}


def description(doctree: nodes.document) -> str:
    """The first sentences of a page that are not in a box, to at most `LONGEST` characters."""
    text = ""
    for paragraph in doctree.findall(nodes.paragraph):
        said = " ".join(paragraph.astext().split())
        if isinstance(paragraph.parent, nodes.section) and said.endswith((".", "?", "!")):
            text = f"{text} {said}".strip()
        if len(text) >= LONGEST / 2:
            break
    return text if len(text) <= LONGEST else text[:LONGEST].rsplit(" ", 1)[0] + " …"


def social_tags(title: str, text: str, address: str) -> str:
    """The tags from which messengers and networks draw the preview of a link."""
    tags = {
        "og:type": "article",
        "og:title": title,
        "og:description": text,
        "og:url": address,
        "og:image": site_address() + PICTURE,
        "og:image:alt": PICTURE_ALT,
    }
    lines = [f'<meta property="{k}" content="{html.escape(v)}" />' for k, v in tags.items()]
    lines.append('<meta name="twitter:card" content="summary_large_image" />')
    lines.append(f'<meta name="description" content="{html.escape(text)}" />')
    return "\n".join(lines) + "\n"


def commit(root: Path = ROOT) -> str:
    """The short hash of the commit that is built, "" when it is not known."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(
            command, cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def foot(today: date) -> str:
    """What the page was built with, in a line."""
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{name} {version(name)}" for name in SHOWN]
    built = f"Built on {today:%Y-%m-%d}"
    if known := commit():
        built += f" from commit {known}"
    return f'<p class="versions">{built} with {", ".join(versions)}.</p>'


def extend_page(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Add to what the theme's templates are given; after the theme's own handlers."""
    context["theme_extra_footer"] = foot(date.today())
    for group in context.get("header_buttons", []):
        if group.get("label") == "download-buttons":
            for button in group["buttons"]:
                button["text"] = LABELS.get(button["label"], button["text"])
            group["buttons"].append(
                {
                    "type": "link",
                    "url": site_address() + "closing-the-gap.pdf",
                    "text": "whole book (.pdf)",
                    "tooltip": "The whole book as one PDF, from its site",
                    "icon": "fas fa-book",
                    "label": "download-book-button",
                }
            )
    if doctree is not None:
        title = app.env.titles[page].astext()
        address = f"{site_address()}{page}.html"
        context["metatags"] += social_tags(title, description(doctree), address)


def offer_notebooks(app: Sphinx, exception: Exception | None) -> None:
    """Offer the notebook that Colab opens: the theme's has the directives of MyST in it."""
    if exception or app.builder.name != "html":
        return
    for page in app.env.found_docs:
        notebook = Path(app.srcdir, f"{page}.ipynb")
        if notebook.exists():
            offered = Path(app.outdir, "_sources", notebook.relative_to(app.srcdir))
            offered.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(notebook, offered)


class RunsNode(nodes.General, nodes.Element):
    """Stands where the table of runs will be, once all chapters have been executed."""


class Runs(SphinxDirective):
    """`{runs}`"""

    def run(self) -> list[nodes.Node]:
        """Leave a place for the table."""
        self.env.note_reread()  # another page may have been executed since
        return [RunsNode()]


def table(rows: Iterable[list[nodes.Node]], header: list[str]) -> nodes.table:
    """A table of docutils; each cell holds one inline node."""
    body = [nodes.row("", *(nodes.entry("", nodes.paragraph("", "", c)) for c in r)) for r in rows]
    cells = [nodes.entry("", nodes.paragraph(text=name)) for name in header]
    columns = [nodes.colspec(colwidth=1) for _ in header]
    head, rest = nodes.thead("", nodes.row("", *cells)), nodes.tbody("", *body)
    group = nodes.tgroup("", *columns, head, rest, cols=len(header))
    return nodes.table("", group, classes=["colwidths-auto"])


def fill_runs(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Put the table of runs, and on what they ran, in its place."""
    places = list(doctree.findall(RunsNode))
    if not places:
        return
    known: dict[str, Any] = getattr(app.env, "nb_metadata", {})  # of myst-nb
    rows: list[list[nodes.Node]] = []
    total = 0.0
    for chapter in app.env.collect_relations():  # in the order of the contents
        run = known.get(chapter, {}).get("exec_data")
        if run:
            title = app.env.titles[chapter].astext()
            address = app.builder.get_relative_uri(page, chapter)
            when = datetime.fromtimestamp(run["mtime"])
            link = nodes.reference("", title, refuri=address, internal=True)
            rows.append([link, nodes.Text(f"{run['runtime']:.0f}"), nodes.Text(f"{when:%Y-%m-%d}")])
            total += run["runtime"]
    rows.append([nodes.Text("all chapters"), nodes.Text(f"{total:.0f}"), nodes.Text("")])
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processor cores"
    for place in places:
        on = nodes.paragraph(text=f"The pages were built on: {machine}.")
        place.replace_self([table(rows, ["chapter", "seconds", "last executed"]), on])


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to Sphinx's events."""
    app.add_directive("runs", Runs)
    app.add_node(RunsNode)
    app.connect("doctree-resolved", fill_runs)
    # The theme makes its buttons at 501.
    app.connect("html-page-context", extend_page, priority=502)
    app.connect("build-finished", offer_notebooks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
