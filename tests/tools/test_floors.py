"""The lower bounds of pyproject.toml: read, and put to the test in an environment of their own."""

from pathlib import Path

import check
import floors
import pytest
import yaml

from tests import ROOT

PROJECT = """
[project]
dependencies = ["torch>=2.6", "Pillow >= 10"]
[project.optional-dependencies]
book = ["kornia{}"]
dev = ["ruff==1", "mypy"]
"""


def test_the_oldest_allowed_are_the_bounds() -> None:
    expected = {"torch": "2.6", "Pillow": "10", "kornia": "0.9"}
    assert floors.lower_bounds(PROJECT.format(">=0.9")) == expected


@pytest.mark.parametrize("wrong", ["", "==0.9", ">0.8", ">=0.9,<1"])
def test_a_dependency_has_a_lower_bound_alone(wrong: str) -> None:
    with pytest.raises(SystemExit, match=f"expected a lower bound alone.*kornia{wrong}"):
        floors.lower_bounds(PROJECT.format(wrong))


def test_those_of_the_project_can_be_read() -> None:
    bounds = floors.lower_bounds((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert {"torch", "numpy", "matplotlib", "ipywidgets"} <= set(bounds)


def test_a_bound_is_replaced_by_name() -> None:
    bounds = {"torch": "2.6", "numpy": "1.26"}
    replaced = floors.replaced(bounds, ["torch==2.13.0"])
    assert replaced == {"torch": "2.13.0", "numpy": "1.26"}
    for wrong in ("torch", "torch>=3", "tqdm==4"):
        with pytest.raises(SystemExit, match="Expected package==version, of torch, numpy"):
            floors.replaced(bounds, [wrong])


def test_what_runs_the_tests_is_pinned() -> None:
    pinned = floors.tools((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    assert [line.partition("==")[0] for line in pinned] == sorted(floors.TOOLS)


def test_its_tests_are_there() -> None:
    assert all((ROOT / place.removeprefix("--ignore=")).exists() for place in floors.TESTS)


def workflow(name: str) -> dict:
    path = ROOT / ".github" / "workflows" / f"{name}.yml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]


def test_the_workflows_ask_for_checks_that_exist() -> None:
    asked = []
    for path in Path(ROOT, ".github", "workflows").glob("*.yml"):
        for job in workflow(path.stem).values():
            lines = [line for step in job["steps"] for line in step.get("run", "").splitlines()]
            asked += [line.split("tools/check.py")[1] for line in lines if "tools/check.py" in line]
    names = {name for line in asked for name in line.split()}
    assert names >= {"unit", *check.WEEKLY}
    assert names <= check.CHECKS.keys() | check.WEEKLY.keys()


def test_once_a_week_all_tests_run_as_on_an_old_processor() -> None:
    expected = {"ATEN_CPU_CAPABILITY": "default", **check.CAPABILITIES["default"]}
    assert workflow("weekly")["processor"]["env"] == expected
    assert set(workflow("weekly")["report"]["needs"]) == workflow("weekly").keys() - {"report"}
