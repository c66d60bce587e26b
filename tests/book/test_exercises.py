"""Each chapter asks, answers at once, and shows how: its exercises, their checks and solutions.

A check is a function `check_...(answer)` that returns what is to be said of an answer. The cell of
the exercise calls it on an empty answer, and that of the folded solution on the right one. What it
says of mistakes is tested in the file of the chapter, as test_moco.py.
"""

import ast
import re
from dataclasses import dataclass
from functools import cache

import pytest
from contents import ROOT, pages

from tests.built import file_of, read

LEAST = 3  # exercises of a chapter that have a check

# ```{exercise-start} Title ... ```{exercise-end}, and ```{exercise} Title ... ```
GATED = re.compile(
    r"^`{3,}\{(?P<kind>exercise|solution)-start\} *(?P<about>.*)\n"
    r"(?P<body>(?:.*\n)*?)`{3,}\{(?P=kind)-end\}",
    re.M,
)
PLAIN = re.compile(
    r"^(?P<fence>`{3,})\{(?P<kind>exercise|solution)\} *(?P<about>.*)\n"
    r"(?P<body>(?:.*\n)*?)(?P=fence)$",
    re.M,
)
CODE = re.compile(r"^`{3,}\{code-cell\}.*\n((?:.*\n)*?)`{3,}$", re.M)
OPTIONS = re.compile(r"\A(?:---\n(?:.*\n)*?---\n|(?::.*\n)*)")  # of a cell
CALL = re.compile(r"print\(\s*(?:[^()]*,\s*)?(check_\w+)\(")


def chapters() -> list[str]:
    """The chapters of _toc.yml that have a kernel, by their file's name without its end."""
    return [name for name in pages()[1:] if "kernelspec:" in text_of(name)[:300]]


def text_of(chapter: str) -> str:
    return (ROOT / f"{chapter}.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Block:
    """An exercise or a solution."""

    kind: str
    label: str  # of the exercise, here and there
    folded: bool
    code: tuple[str, ...]  # the source of each of its cells

    @property
    def checks(self) -> set[str]:
        """The names of the check functions whose word it prints."""
        return {name for cell in self.code for name in CALL.findall(cell)}


@cache
def blocks_of(chapter: str) -> list[Block]:
    """The exercises and solutions of a chapter."""
    text, found = text_of(chapter), []
    for match in [*GATED.finditer(text), *PLAIN.finditer(text)]:
        body = match["body"]
        options = dict(re.findall(r"^:(\w+): *(.*)$", body, re.M))
        label = options.get("label", "") if match["kind"] == "exercise" else match["about"]
        folded = "dropdown" in options.get("class", "")
        found.append(Block(match["kind"], label, folded, tuple(CODE.findall(body))))
    return found


def of_kind(chapter: str, kind: str) -> list[Block]:
    return [block for block in blocks_of(chapter) if block.kind == kind]


CHAPTERS = chapters()


def test_there_are_chapters() -> None:
    assert len(CHAPTERS) >= 9


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_enough_exercises_answer_at_once(chapter: str) -> None:
    checked = [block.label for block in of_kind(chapter, "exercise") if block.checks]
    assert len(checked) >= LEAST, f"with a check: {checked}"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_exercise_has_one_folded_solution(chapter: str) -> None:
    exercises = [block.label for block in of_kind(chapter, "exercise")]
    solutions = of_kind(chapter, "solution")
    assert all(exercises), "an exercise has no label"
    assert sorted(block.label for block in solutions) == sorted(exercises)
    assert [block.label for block in solutions if not block.folded] == [], "not folded"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_solution_runs_the_check_of_its_exercise(chapter: str) -> None:
    solved = {block.label: block.checks for block in of_kind(chapter, "solution")}
    for exercise in of_kind(chapter, "exercise"):
        unasked = exercise.checks - solved[exercise.label]
        assert not unasked, f"{exercise.label}: its solution does not print {sorted(unasked)}"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_check_never_just_says_wrong(chapter: str) -> None:
    for function in functions(chapter):
        if function.name.startswith("check_"):
            for text in plain_texts(function):
                enough = text == "right" or len(text.split()) >= 3
                assert enough, f"{function.name} says no more than {text!r}"


def plain_texts(function: ast.FunctionDef) -> list[str]:
    """The constant strings that a function returns."""
    values = [node.value for node in ast.walk(function) if isinstance(node, ast.Return)]
    either = [
        v for value in values if isinstance(value, ast.IfExp) for v in (value.body, value.orelse)
    ]
    found = [v.value for v in [*values, *either] if isinstance(v, ast.Constant)]
    return [text for text in found if isinstance(text, str)]


def functions(chapter: str) -> list[ast.FunctionDef]:
    """The functions that a chapter defines, anywhere in its cells."""
    cells = [OPTIONS.sub("", cell) for cell in CODE.findall(text_of(chapter))]
    nodes = [node for cell in cells for node in ast.parse(cell).body]
    return [node for node in nodes if isinstance(node, ast.FunctionDef)]


@pytest.mark.browser  # needs the built book, though no browser
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_page_shows_both_answers(chapter: str) -> None:
    """Executed, an exercise says that it is not answered, and its solution is right."""
    page = read(file_of(chapter))
    for exercise in of_kind(chapter, "exercise"):
        if exercise.checks:
            link = page.select_one(f'.admonition-title a[href="#{exercise.label}"]')
            assert link, f"no solution leads to {exercise.label}"
            for block, expected in (
                (page.find(id=exercise.label), "not answered yet"),
                (link.find_parent("div", class_="solution"), "right"),
            ):
                cells = block.select(".cell_output")
                said = [line for cell in cells for line in cell.text.splitlines()]
                assert expected in said, f"{exercise.label}: {said}"
