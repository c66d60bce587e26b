"""MyST Markdown to the plain Markdown that Colab and Jupyter show.

A chapter uses MyST's directives (```` ```{exercise} ````), roles (`` {ref}`label` ``) and labels. A
notebook would show them raw, so each is rewritten into what means the same there: an admonition
becomes a quotation, a solution is folded, a citation becomes author and year with a link.

Only what the chapters use is known here. Anything else of MyST is a problem with file and line that
says so: nothing slips through, and who needs more adds it. It is ours because no tool that is kept
up writes notebooks from MyST for Colab: sphinx-tojupyter makes text of the code cells and leaves
solutions open, and mystmd exports no notebooks.

References need the titles and numbers of other pages. So every page is converted twice: the first
pass fills `Book.targets`, the second one uses them.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from textwrap import dedent, indent

from pybtex.database import Entry

FENCE = re.compile(r"^(?P<indent>\s*)(?P<marks>`{3,}|~{3,}|:{3,})\s*(?P<info>.*?)\s*$")
DIRECTIVE = re.compile(r"^\{(?P<name>[\w:-]+)\}\s*(?P<argument>.*)$")
LABEL = re.compile(r"^\((?P<name>[^()\s]+)\)=\s*$")
HEADING = re.compile(r"^#{1,6}\s+(?P<title>.+?)\s*$")
MATH_END = re.compile(r"\$\$\s*(?:\((?P<label>[\w:.-]+)\))?\s*$")
# What is not running text: a formula, a code span, or a role (a name in braces before such a span).
SPAN = re.compile(
    r"(?<![\\$])\$(?![\s$])[^$]+?(?<!\\)\$"
    r"|(?:\{(?P<role>[\w:+-]+)\})?(?P<ticks>`+)(?P<body>.+?)(?<!`)(?P=ticks)(?!`)",
    re.S,
)
LINK = re.compile(r"!?\[(?P<text>[^\[\]]*)\]\((?P<target>[^()\s]+)\)")
RAW = re.compile(r"\{\{.*?\}\}|\[\^[^\]]+\]")
TITLED = re.compile(r"^(?P<text>.*?)\s*<(?P<target>[^<>]+)>$", re.S)

# Of directives; any other would be lost.
OPTIONS = re.compile(r":label:\s*\S+|:class:\s*(?:note|tip|dropdown)|:{3,}.*")
UNKNOWN = (
    "the {} is not known to tools/plain_markdown.py: use another one, or teach it what a notebook "
    "shows instead"
)


@dataclass(frozen=True)
class Target:
    """What a label stands for: its page and its words, such as "Exercise 2"."""

    page: str
    text: str


@dataclass
class Book:
    """What pages know of one another.

    `repository` is the address of the repository's web page, `colab` that of Colab; `references`
    the entries of the bibliography by key; `titles` the title of each page, by its path without
    suffix from the root ("book/intro"); `chapters` the number of each page that has one;
    `notebooks` the pages that have a notebook.
    """

    repository: str
    branch: str
    colab: str
    references: dict[str, Entry]
    titles: dict[str, str] = field(default_factory=dict)
    chapters: dict[str, int] = field(default_factory=dict)
    notebooks: set[str] = field(default_factory=set)
    targets: dict[str, Target] = field(default_factory=dict)

    def link(self, page: str) -> str:
        """Where a reader of a notebook finds another page."""
        place = self.repository.removeprefix("https://github.com/")
        if page in self.notebooks:
            return f"{self.colab}/github/{place}/blob/{self.branch}/{page}.ipynb"
        return f"{self.repository}/blob/{self.branch}/{page}.md"

    def file(self, path: str) -> str:
        """Where a notebook, which is alone in Colab, finds a file of the repository."""
        return f"{self.repository}/raw/{self.branch}/{path}"


@dataclass
class Page:
    """One page under conversion; `convert` is called for its cells from top to bottom."""

    name: str
    book: Book
    problems: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    # The title of the solution that is open, between {solution-start} and {solution-end}.
    solution: str | None = None

    def problem(self, line: int, message: str) -> str:
        """Note a problem; what it stands in for becomes empty."""
        self.problems.append(f"{self.name}.md:{line}: {message}")
        return ""

    def number(self, kind: str) -> str:
        """The next "Figure 2.1", "Figure 2.2", ... of chapter 2, as the book numbers them."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        chapter = self.book.chapters.get(self.name)
        return f"{kind} {chapter}.{self.counts[kind]}" if chapter else f"{kind} {self.counts[kind]}"

    def define(self, label: str | None, text: str) -> None:
        """Let `label` stand for `text`."""
        if label:
            self.book.targets[label] = Target(self.name, text)

    def convert(self, text: str, line: int) -> str:
        """One cell: MyST `text`, which starts at `line` of its file, as plain Markdown."""
        parts = []
        if self.solution:
            parts.append(f"<details>\n<summary>{self.solution}, continued</summary>")
        parts += convert_blocks(self, text.split("\n"), line)
        if self.solution:
            parts.append("</details>")
        joined = join(parts)
        # A fold without content: what it would fold is the code cell below, hidden by itself.
        empty = r"<details>\n<summary>(.*?)</summary>\s*</details>"
        joined = re.sub(empty, _empty_fold, joined)
        return joined.strip()


def join(parts: Iterable[str]) -> str:
    """Blocks with one blank line between."""
    return "\n\n".join(part.strip("\n") for part in parts if part.strip())


def _empty_fold(match: re.Match[str]) -> str:
    title = match[1]
    return "" if title.endswith(", continued") else f"**{title}**: unfold the next cell."


# --- blocks ---------------------------------------------------------------------------------------


def convert_blocks(page: Page, lines: list[str], first: int) -> Iterator[str]:
    """Plain Markdown for each block of `lines`, the first of which is line `first` of the file."""
    at, start = 0, 0  # lines[start:at] is text that is not given out yet
    labels: list[str] = []  # what stood just above
    while at < len(lines):
        line = lines[at]
        fence, label, heading = opening(line), LABEL.match(line), HEADING.match(line)
        formula = line.lstrip().startswith("$$")
        if labels and line.strip() and not (label or heading):
            page.problem(first + at, f"the label {labels} stands above something without a title")
            labels = []
        if not (fence or label or heading or formula or line.startswith("%")):
            at += 1
            continue
        yield convert_inline(page, "\n".join(lines[start:at]), first + start)
        end: int | None = at + 1
        if fence:
            end = fence_end(lines, at, fence)
            yield convert_fence(page, lines[at:end], first + at, fence)
        elif label:
            labels.append(label["name"])
        elif heading:
            title = heading["title"]
            for name in labels:
                page.define(name, title)
            page.book.titles.setdefault(page.name, title)
            labels = []
            yield convert_inline(page, line, first + at)
        elif formula:
            end = math_end(lines, at)
            yield convert_math(page, lines[at:end], first + at)
        # else a comment, which is left out
        if end is None:
            page.problem(first + at, f"{line.strip()!r} is never closed")
            return
        at = start = end
    yield convert_inline(page, "\n".join(lines[start:]), first + start)


def opening(line: str) -> re.Match[str] | None:
    """The match if the line opens a fence."""
    match = FENCE.match(line)
    return match if match and "`" not in match["info"] else None


def fence_end(lines: list[str], at: int, fence: re.Match[str]) -> int | None:
    """The line after the one that closes the fence opened on line `at`."""
    mark = re.escape(fence["marks"][0])
    close = re.compile(rf"^\s*{mark}{{{len(fence['marks'])},}}\s*$")
    return next((end + 1 for end in range(at + 1, len(lines)) if close.match(lines[end])), None)


def math_end(lines: list[str], at: int) -> int | None:
    """The line after the end of the $$ block that begins on line `at`."""
    if MATH_END.search(lines[at].lstrip()[2:]):
        return at + 1
    return next((end + 1 for end in range(at + 1, len(lines)) if MATH_END.search(lines[end])), None)


def convert_math(page: Page, lines: list[str], line: int) -> str:
    """A $$ block; its label becomes a number."""
    text = "\n".join(lines)
    match = MATH_END.search(text, text.index("$$") + 2)
    if not match:
        return ""  # never closed, which the caller notes
    space, _, rest = text[: match.start()].partition("$$")
    return f"{space}$${rest.rstrip()}{equation_tag(page, match['label'])}\n{space}$$"


def equation_tag(page: Page, label: str | None) -> str:
    """TeX for the number of an equation with a label."""
    if not label:
        return ""
    number = page.number("Equation").split()[-1]
    page.define(label, f"({number})")
    return rf" \tag{{{number}}}"


def convert_fence(page: Page, lines: list[str], line: int, fence: re.Match[str]) -> str:
    """A fenced block, with its fences: plain code as it is, a directive by its name."""
    directive = DIRECTIVE.match(fence["info"])
    if not directive:
        if fence["marks"][0] == ":":
            return page.problem(line, f"{lines[0].strip()!r} names no directive")
        return "\n".join(lines)
    known = DIRECTIVES.get(directive["name"])
    if not known:
        return page.problem(line, UNKNOWN.format(f"directive {{{directive['name']}}}"))
    body = dedent("\n".join(lines[1:-1])).split("\n")
    options, skip = split_options(body)
    for option in body[: max(skip, 1)]:
        if option.startswith((":", "---")) and not OPTIONS.fullmatch(option.rstrip()):
            page.problem(line, UNKNOWN.format(f"option {option.rstrip()}"))
    block = Block(
        page=page,
        argument=directive["argument"],
        options=options,
        lines=body[skip:],
        line=line,
        body_line=line + 1 + skip,
    )
    return indent(known(block), fence["indent"])


def split_options(lines: list[str]) -> tuple[dict[str, str], int]:
    """A directive's options, and the number of lines that they take."""
    options, count = {}, 0
    while count < len(lines) and (match := re.match(r"^:([\w-]+):\s*(.*)$", lines[count])):
        options[match[1]] = match[2].strip()
        count += 1
    return options, count


# --- directives -----------------------------------------------------------------------------------


@dataclass
class Block:
    """A directive: its argument, options and body."""

    page: Page
    argument: str
    options: dict[str, str]
    lines: list[str]
    line: int
    body_line: int

    @property
    def title(self) -> str:
        """The argument as plain Markdown."""
        return convert_inline(self.page, self.argument, self.line)

    @property
    def body(self) -> str:
        """The body as plain Markdown."""
        return join(convert_blocks(self.page, self.lines, self.body_line))


def fold(title: str, body: str) -> str:
    """Text that a click unfolds. The blank lines let Markdown inside be read as such."""
    return f"<details>\n<summary>{title}</summary>\n\n{body}\n\n</details>"


def quote(text: str) -> str:
    """A quotation. Formulas go on one line: the marks of the quotation would be read as TeX."""
    text = re.sub(r"\$\$.*?\$\$", lambda match: " ".join(match[0].split()), text, flags=re.S)
    return indent(text, "> ", lambda line: True).replace("> \n", ">\n").rstrip()


def admonition(block: Block) -> str:
    """A quotation with a bold title, or a fold."""
    title, body = block.title, block.body
    if block.options.get("class") == "dropdown":
        return fold(title, body)
    return quote(f"**{title}.** {body}" if re.match(r"[\w(*]", body) else f"**{title}**\n\n{body}")


def exercise(block: Block) -> str:
    """A bold number, the title, and the text."""
    number = block.page.number("Exercise")
    block.page.define(block.options.get("label"), number)
    title = f"**{number}. {block.title}**" if block.argument else f"**{number}.**"
    return f"{title}\n\n{block.body}".strip()


def solution_title(block: Block) -> str:
    """ "Solution to exercise 2", by the label that a solution names."""
    target = block.page.book.targets.get(block.argument)
    if not target:
        # Not yet defined in the first pass, missing in the second.
        return block.page.problem(block.line, f"no exercise has the label {block.argument!r}")
    return f"Solution to {target.text[:1].lower()}{target.text[1:]}"


def solution_start(block: Block) -> str:
    """Open a fold that {solution-end} closes; `Page.convert` closes it between cells."""
    block.page.solution = solution_title(block) or "Solution"
    return f"<details>\n<summary>{block.page.solution}</summary>"


def solution_end(block: Block) -> str:
    """Close the fold."""
    if block.page.solution is None:
        return block.page.problem(block.line, "{solution-end} without {solution-start}")
    block.page.solution = None
    return "</details>"


DIRECTIVES: dict[str, Callable[[Block], str]] = {
    "admonition": admonition,
    "exercise": exercise,
    "exercise-start": exercise,
    "exercise-end": lambda block: "",
    "solution": lambda block: fold(solution_title(block), block.body),
    "solution-start": solution_start,
    "solution-end": solution_end,
}


# --- inline ---------------------------------------------------------------------------------------


def convert_inline(page: Page, text: str, line: int) -> str:
    """Running text: roles and links rewritten, code left as it is."""
    out, last = [], 0
    for match in SPAN.finditer(text):
        here = line + text.count("\n", 0, match.start())
        out.append(convert_links(page, text[last : match.start()], here))
        out.append(convert_role(page, match, here) if match["role"] else match[0])
        last = match.end()
    rest = convert_links(page, text[last:], line + text.count("\n", 0, last))
    return "".join([*out, rest])


def convert_links(page: Page, text: str, line: int) -> str:
    """Text without code: links to pages get their address."""
    if raw := RAW.search(text):
        page.problem(line, f"{raw[0]} would stand raw in the notebook; write it out")

    def replace(match: re.Match[str]) -> str:
        path = match["target"].partition("#")[0]
        if match[0][0] != "!" and re.match("https?:|mailto:", path):
            return match[0]
        if match[0][0] != "!" and path.endswith(".md"):
            return document(page, path.removesuffix(".md"), match["text"], line)
        return page.problem(line, UNKNOWN.format(f"link {match[0]}"))

    return LINK.sub(replace, text)


def convert_role(page: Page, match: re.Match[str], line: int) -> str:
    """A role such as {ref}`label` or {ref}`words <label>`."""
    name, body = match["role"], match["body"]
    titled_body = TITLED.match(body)
    text, target = (titled_body["text"], titled_body["target"]) if titled_body else ("", body)
    if name == "ref":
        return reference(page, target, text, line)
    if name == "eq":
        return reference(page, target, "", line)
    if name == "doc":
        return document(page, target, text, line)
    if name in ("cite", "cite:t"):
        return citation(page, body, line, in_text=name == "cite:t")
    if name == "term":
        return f"*{text or target}*"
    if name in ("func", "class", "meth"):
        return f"`{text or (target.split('.')[-1] if target[0] == '~' else target)}`"
    return page.problem(line, UNKNOWN.format(f"role {{{name}}}"))


def resolve(page: str, path: str) -> str:
    """A path beside `page`, or from the root if it starts with "/", as a path from the root."""
    if path.startswith("/"):
        return path.lstrip("/")
    parts: list[str] = []
    for part in (PurePosixPath(page).parent / path).parts:
        if part == "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def document(page: Page, path: str, text: str, line: int) -> str:
    """A link to another page."""
    name = resolve(page.name, path)
    if name not in page.book.titles:
        return page.problem(line, f"there is no page {name}.md")
    return f"[{text or page.book.titles[name]}]({page.book.link(name)})"


def reference(page: Page, label: str, text: str, line: int) -> str:
    """The words for a label; a link if it is on another page."""
    target = page.book.targets.get(label)
    if not target:
        return page.problem(line, f"nothing has the label {label!r}")
    words = text or target.text
    return words if target.page == page.name else f"[{words}]({page.book.link(target.page)})"


def plain(tex: str) -> str:
    """The words of a field of the bibliography."""
    return re.sub(r"[{}]", "", tex)


def authors(entry: Entry) -> str:
    """ "Ho", "Ho and Li" or "Ho et al."."""
    people = entry.persons.get("author", [])
    names = [plain(" ".join(one.prelast_names + one.last_names)) for one in people]
    return " and ".join(names) if len(names) < 3 else f"{names[0]} et al."


def linked_citation(entry: Entry, pattern: str) -> str:
    """The citation, linked to the paper where its address is known."""
    text = pattern.format(year=entry.fields["year"])
    doi, url = entry.fields.get("doi"), entry.fields.get("url")
    address = f"https://doi.org/{doi}" if doi else url
    return f"[{text}]({address})" if address else text


def citation(page: Page, keys: str, line: int, *, in_text: bool) -> str:
    """ "Ho et al. (2020)" in the sentence, "(Ho et al., 2020; Li, 2021)" beside it."""
    found = []
    for key in (part.strip() for part in keys.split(",")):
        entry = page.book.references.get(key)
        if not entry:
            page.problem(line, f"book/references.bib has no {key!r}")
            continue
        year = " ({year})" if in_text else ", {year}"
        found.append(linked_citation(entry, authors(entry) + year))
    return " and ".join(found) if in_text else f"({'; '.join(found)})"


def load_references(path: Path) -> dict[str, Entry]:
    """The entries of a .bib file by key."""
    from pybtex.database import parse_file

    return dict(parse_file(str(path)).entries)
