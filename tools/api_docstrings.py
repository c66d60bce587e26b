"""Docstrings of the library as Sphinx reads them, and the API pages as screen readers do.

Loaded by `_config.yml`.

The docstrings are written for readers of the source: `one backtick` for code, lists without a
blank line above, an indented example below a colon, bars for absolute values. Sphinx expects
reStructuredText, where each of these means something else. So they are rewritten on the way.
"""

import re
from typing import Any

from sphinx.application import Sphinx

# Code in one or two backticks; all else is running text.
CODE = re.compile(r"(`{1,2})(.+?)\1", re.S)
SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):$")
ITEM = re.compile(r"^ *- ")


def indentation(line: str) -> int:
    """Number of spaces before the first word."""
    return len(line) - len(line.lstrip())


def with_literal_code(text: str) -> str:
    """Code in double backticks, bars outside of it as characters, not as substitutions."""
    out, last = [], 0
    for match in CODE.finditer(text):
        out += [text[last : match.start()].replace("|", r"\|"), f"``{match[2]}``"]
        last = match.end()
    return "".join([*out, text[last:].replace("|", r"\|")])


def with_blank_lines(lines: list[str]) -> list[str]:
    """A blank line above each list; an example, indented below a colon, becomes a literal block."""
    out: list[str] = []
    in_block: int | None = None  # indentation of the line above the example
    for number, line in enumerate(lines):
        above = lines[number - 1] if number else ""
        following = lines[number + 1] if number + 1 < len(lines) else ""
        if in_block is not None and line.strip() and indentation(line) <= in_block:
            in_block = None
            if above.strip():
                out.append("")
        if ITEM.match(line) and above.strip() and not starts_inside(lines, number):
            out.append("")
        out.append(line)
        # Only at the margin: the text of a parameter may end in a colon, too.
        if line.endswith(":") and indentation(following) > indentation(line) == 0:
            if SECTION.match(line):
                continue
            in_block = 0
            out[-1] += ":"
            out.append("")
    return out


def starts_inside(lines: list[str], number: int) -> bool:
    """Whether the item in line `number` goes on with a list that has begun above it."""
    for above in reversed(lines[:number]):
        if not above.strip():
            return False
        if ITEM.match(above):
            return True
    return False


def rewrite(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Sphinx's event: change `lines` in place."""
    spaced = with_blank_lines(lines)
    lines[:] = with_literal_code("\n".join(spaced)).split("\n")
    if what == "property":
        # Napoleon reads "1 / temperature: a scalar" on the first line as a type and a text.
        lines.insert(0, "")


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
    # Before napoleon, which reads "Args:" and the like.
    app.connect("autodoc-process-docstring", rewrite, priority=400)
    app.connect("autodoc-skip-member", skip)
    # After the theme, which puts the sidebar's function there.
    app.connect("html-page-context", finish_page, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
