"""No page fails by the clock: what rests on measured time or memory is shown, and not checked.

Another machine, or this one beside another program, measures something else. A claim on seconds or
on mebibytes that were measured by the page therefore says what it `usually` is, and has no bound.
"""

import ast
import textwrap

import pytest

from tests.book.chapter import cells
from tests.book.test_exercises import CHAPTERS

MEASURED = {"seconds", "mebibytes"}  # of `step_costs` and of `growth.measured`
CLOCKS = {"perf_counter", "perf_counter_ns", "monotonic", "process_time", "time_ns", "timeit"}


def bounded_costs(source: str) -> list[str]:
    """The claims of a page with a bound on something measured, directly or by way of a name."""
    tree = ast.parse(source)
    known, before = MEASURED | CLOCKS, -1
    while len(known) > before:  # until no further name is found to rest on a measurement
        before = len(known)
        for node in tree.body:
            for inner in ast.walk(node) if not isinstance(node, ast.FunctionDef) else ():
                if isinstance(inner, (ast.Assign, ast.NamedExpr)) and _rests_on(inner.value, known):
                    targets = inner.targets if isinstance(inner, ast.Assign) else [inner.target]
                    known |= {name for target in targets for name in _names(target)}
            if isinstance(node, ast.FunctionDef):
                values = [r.value for r in ast.walk(node) if isinstance(r, ast.Return) and r.value]
                # Of a pair, as a model and the seconds it took, the name that it gets has to tell.
                if any(_rests_on(v, known) for v in values if not isinstance(v, ast.Tuple)):
                    known.add(node.name)
    return [
        ast.unparse(call.args[0])
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and _names(call.func) == {"Claim"}
        and _rests_on(call, known)
        and "usually" not in {keyword.arg for keyword in call.keywords}
    ]


def _names(node: ast.AST) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def _rests_on(node: ast.AST, known: set[str]) -> bool:
    attributes = {inner.attr for inner in ast.walk(node) if isinstance(inner, ast.Attribute)}
    return bool((attributes | _names(node)) & known)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_no_claim_is_checked_by_the_clock(chapter: str) -> None:
    source = "\n".join(cells(chapter.removeprefix("book/")))
    assert "Claim(" in source
    assert not bounded_costs(source)


@pytest.mark.parametrize(
    "source",
    [
        "Claim('a', 'm', costs['FDT'].seconds / costs['CLIP'].seconds, at_most=2.5)",
        "base = costs['CLIP']\nClaim('a', 'm', costs['FDT'].mebibytes / base.mebibytes, at_most=2)",
        "ratio = {n: (c.seconds, c.mebibytes) for n, c in costs.items()}\n"
        "Claim('a', 'm', ratio['CLIP'][0], at_most=3.0)",
        "start = perf_counter()\ntook = perf_counter() - start\nClaim('a', 'm', took, at_least=0)",
        "model, seconds = train()\nClaim('a', 'm', seconds / 60, at_most=1)",
        "def share(a):\n    return a.seconds / 2\nClaim('a', 'm', share(own), at_most=1)",
        "check_claims([Claim('a', 'm', result=max(c.seconds for c in costs), at_most=1)])",
        "import time\nt = time.monotonic()\nx = {1: t}\nClaim('a', 'm', x[1], at_most=1)",
    ],
)
def test_a_bound_on_a_cost_is_found(source: str) -> None:
    assert bounded_costs(source) == ["'a'"]
    names = {"at_most", "at_least"}
    usually = ast.parse(source)
    for node in ast.walk(usually):
        if isinstance(node, ast.keyword) and node.arg in names:
            node.arg = "usually"
    assert bounded_costs(ast.unparse(usually)) == []


def test_other_claims_keep_their_bounds() -> None:
    source = """
        def spelled(mebibytes):
            print(mebibytes)
            return "many"
        def trained():
            return model, perf_counter() - start
        model, took = trained()
        Claim("a", "m", model.recall, at_least=0.5)
        for name, cost in costs.items():
            print(name, cost.seconds)
        name, value = "recall", record.interval("CLIP", "recall").low
        Claim("a", "m", value, at_least=0.5)
    """
    assert bounded_costs(textwrap.dedent(source)) == []
