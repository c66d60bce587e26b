"""The API pages as readers of them want them, and as screen readers do. Loaded by `_config.yml`.

What stands in one backtick of a docstring is code by `default_role` there. This file is ours since
what it mends is Sphinx's own: docstrings of named tuples, signatures that are lists without terms,
and arrows of the sidebar without a name.
"""

import re
from typing import Any

from sphinx.application import Sphinx


def skip(app: Sphinx, what: str, name: str, obj: Any, left_out: bool, options: Any) -> bool | None:
    """Leave out what no reader of these pages looks for: the fields of named tuples."""
    if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number"):
        return True
    return None


def spoken_signatures(body: str) -> str:
    """Signatures of several lines without the list that Sphinx makes of them: it names no terms."""

    def spans(match: re.Match[str]) -> str:
        text = re.sub(r"<(/?)dl>", r"<\1span>", match[0])
        return re.sub(r"<dd>", '<span class="sig-line">', text).replace("</dd>", "</span>")

    return re.sub(r'<dt class="sig .*?</dt>', spans, body, flags=re.S)


def named_folds(sidebar: Any) -> Any:
    """The sidebar, each of its arrows with the name of the page whose sections it unfolds."""
    for summary in sidebar.select("summary"):
        link = summary.find_parent("li").find("a")
        summary["aria-label"] = f"Pages under {link.get_text(strip=True)}"
    return sidebar


def finish_page(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Sphinx's event: change what the theme is about to write."""
    if "body" in context and page.startswith("book/reference/api"):
        context["body"] = spoken_signatures(context["body"])
    if "generate_toctree_html" in context:
        plain = context["generate_toctree_html"]
        context["generate_toctree_html"] = lambda *given, **named: named_folds(
            plain(*given, **named)
        )


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to the events of autodoc."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-skip-member", skip)
    # After the theme, which puts the sidebar's function there.
    app.connect("html-page-context", finish_page, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
