"""Records: their statistics, their making with all that may interrupt it, and their reading."""

import json
import os
import signal
import subprocess
import sys
from importlib import util
from pathlib import Path
from statistics import mean, stdev
from types import ModuleType, SimpleNamespace

import pytest
import records as tool

from mmcl_book import __main__ as program
from mmcl_book.records import making as recording
from mmcl_book.records.fingerprint import fingerprint
from mmcl_book.records.making import make_record
from mmcl_book.records.reading import Record, interval, load_record, next_run, read_record
from mmcl_core.errors import MMCLError, RecordError
from tests import ROOT

FAKE = '''
"""A fake: its numbers follow from the seed, and each run leaves a line in a file."""
from pathlib import Path
CONDITIONS = {"plain": {"a": 1.0}, "with τ = 2": {"a": 2.0, "sizes": (1, 2)}}
CALLS = Path(__file__).with_name("calls.txt")
def run(seed, *, a, sizes=None):
    assert sizes in (None, (1, 2))  # as it stands above, not as JSON has it
    with CALLS.open("a") as file:
        file.write(f"{a} {seed}\\n")
    return {"third": a / 3 + seed, "square": a * seed**2}
'''


def load(path: Path) -> ModuleType:
    spec = util.spec_from_file_location(path.stem, path)
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake(tmp_path, monkeypatch) -> ModuleType:
    """An experiment named fake, in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fake.py").write_text(FAKE, encoding="utf-8")
    module = load(tmp_path / "fake.py")
    monkeypatch.setitem(recording.EXPERIMENTS, "fake", module)
    return module


@pytest.fixture
def edit(fake, monkeypatch):
    """Changes the text of the experiment."""

    def change(old: str, new: str) -> ModuleType:
        path = Path(fake.__file__)
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")
        os.utime(path, (0, len(text)))  # so that no compiled file stands for it
        module = load(path)
        monkeypatch.setitem(recording.EXPERIMENTS, "fake", module)
        return module

    return change


def calls(fake: ModuleType) -> list[str]:
    """The runs since the last call."""
    lines = fake.CALLS.read_text().splitlines() if fake.CALLS.exists() else []
    fake.CALLS.unlink(missing_ok=True)
    return lines


def numbers(path: Path | str) -> dict:
    """What a record says apart from when and how fast."""
    return json.loads(Path(path).read_text()) | {"made": None, "seconds": None, "command": None}


def record_of(values: dict[str, list[float]]) -> Record:
    """A record of one condition."""
    seeds = range(len(next(iter(values.values()))))
    results = {seed: {name: of[seed] for name, of in values.items()} for seed in seeds}
    return Record("x", "python -m x", {}, {"c": {}}, list(seeds), {"c": results}, {"c": {}})


# --- statistics -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "t"),
    [([1.0, 2.0, 4.5], 4.302653), ([0.2, -3.0, 4.0, 4.0, 7.5], 2.776445)],  # from a printed table
)
def test_interval_is_that_of_the_table(values, t) -> None:
    found = interval(values)
    half = t * stdev(values) / len(values) ** 0.5
    assert found == pytest.approx((mean(values), mean(values) - half, mean(values) + half))
    assert record_of({"m": values}).interval("c", "m") == found


def test_next_run_is_that_of_the_table() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    half = 8.610302 * 2.5**0.5 * 1.2**0.5 + 0.01 + 3e-5  # t of 4 degrees, 0.9995
    assert next_run(values) == pytest.approx((3, 3 - half, 3 + half))


def test_equal_values_have_no_width() -> None:
    assert interval([0.1, 0.1, 0.1]) == (0.1, 0.1, 0.1)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")], [1.0, 2.0, float("inf")]])
def test_an_interval_needs_two_finite_values(values) -> None:
    for of in (interval, next_run):
        with pytest.raises(MMCLError, match="at least 2 values, all finite"):
            of(values)


def test_a_live_value_must_fit() -> None:
    record = record_of({"m": [1.0, 2.0, 3.0, 4.0, 5.0], "same": [0.5] * 5, "large": [1e6] * 5})
    # 8.610302 * 1.581139 * 1.095445 = 14.9133
    record.check_live("c", {"m": 17.9, "same": 0.509, "large": 1e6 + 9})
    record.check_live("c", {"m": 99.0, "same": 0.491, "other": 1.0}, names=["same"])
    with pytest.raises(RecordError, match=r"m 18, not in .* to 17\.92\d*; same 0\.52, not") as e:
        record.check_live("c", {"m": 18.0, "same": 0.52, "large": 1e6})
    assert "python -m x" in str(e.value)
    assert "make records" in str(e.value)
    assert "large" not in str(e.value)
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(RecordError, match="disagrees"):
            record.check_live("c", {"m": wrong})
    with pytest.raises(RecordError, match="no measure 'other'; it has 'm', 'same', 'large'"):
        record.check_live("c", {"other": 1.0})
    with pytest.raises(RecordError, match="live run has no measure 'm'"):
        record.check_live("c", {"same": 0.5}, names=["m"])


def test_unknown_names_are_told_what_there_is() -> None:
    record = record_of({"m": [1.0, 2.0]})
    with pytest.raises(RecordError, match="no condition 'd'; it has 'c'"):
        record.values("d", "m")
    with pytest.raises(RecordError, match="no measure 'n'; it has 'm'"):
        record.interval("c", "n")


# --- making, reading ------------------------------------------------------------------------------


def test_a_record_has_what_was_run(fake) -> None:
    said: list[str] = []
    made = make_record("fake", [4, 0], "book/records/fake.json", said.append)
    assert calls(fake) == ["1.0 4", "2.0 4", "1.0 0", "2.0 0"]
    assert [line.partition(":")[0] for line in said] == [f"fake {i}/4" for i in range(1, 5)]
    assert "plain, seed 4: 0.0 s; about 1 min left" in said[0]
    assert "left" not in said[-1]
    assert sorted(path.name for path in Path("book/records").iterdir()) == ["fake.json"]

    Path("book/problems").mkdir()
    for start in (None, Path("book/problems"), Path("book/records")):
        assert read_record("fake", start) == made
    assert made.measures("plain") == ["third", "square"]
    assert made.values("plain", "third") == [4.33333, 0.333333]  # in the order of the seeds
    made.check_live("with τ = 2", {"third": 2 / 3, "square": 0.0})
    text = Path("book/records/fake.json").read_text(encoding="utf-8")
    assert '"with τ = 2"' in text
    assert made.command == (
        "python -m mmcl_book record fake --seeds 4 0 --out book/records/fake.json"
    )
    for shown in (repr(made), made._repr_html_()):
        for part in (made.command, "4, 0", "4, of 2 conditions", made.made["torch"], "threads: "):
            assert part in shown
    assert made._repr_html_().startswith('<table class="record">')


def test_no_absolute_path_gets_into_a_record(fake, tmp_path) -> None:
    record = make_record("fake", [0, 1], tmp_path / "deep" / "fake.json", lambda _: None)
    assert record.command.endswith("--out fake.json")
    text = (tmp_path / "deep" / "fake.json").read_text()
    assert str(tmp_path) not in text
    assert str(Path.home()) not in text


def test_html_is_escaped() -> None:
    record = record_of({"m": [1.0]})
    names = ("date", "python", "mmcl_core", "torch", "numpy", "scikit-learn")
    record.made.update(dict.fromkeys(names, "<b>"), machines=["a & b"])
    shown = record._repr_html_()
    assert "<b>" not in shown
    assert "a &amp; b" in shown


def test_a_stopped_record_goes_on_and_is_as_if_made_in_one_go(fake, monkeypatch) -> None:
    make_record("fake", [0, 1, 2], "whole.json", lambda _: None)
    calls(fake)
    run, left = fake.run, [3]

    def stopped(seed, **config):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return run(seed, **config)

    with monkeypatch.context() as patch:
        patch.setattr(fake, "run", stopped)
        with pytest.raises(KeyboardInterrupt):
            make_record("fake", [0, 1, 2], "part.json", lambda _: None)
    assert not Path("part.json").exists()
    assert calls(fake) == ["1.0 0", "2.0 0", "1.0 1"]
    make_record("fake", [0, 1, 2], "part.json", lambda _: None)
    assert calls(fake) == ["2.0 1", "1.0 2", "2.0 2"]
    assert numbers("part.json") == numbers("whole.json")
    assert load_record(Path("part.json")).seconds.keys() == fake.CONDITIONS.keys()
    assert not Path("part.json.partial").exists()


KILLED = """
import os, signal, sys
from importlib import util
from pathlib import Path
from mmcl_book.records import making as recording
spec = util.spec_from_file_location("fake", Path("fake.py").resolve())
fake = util.module_from_spec(spec)
spec.loader.exec_module(fake)
run = fake.run
def killed(seed, **config):
    if seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return run(seed, **config)
fake.run = killed
recording.EXPERIMENTS["fake"] = fake
recording.make_record("fake", [0, 1], "out.json")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_what_is_finished_outlives_a_kill(fake, tmp_path) -> None:
    root = ROOT
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED], cwd=tmp_path, env=environment, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL
    assert calls(fake) == ["1.0 0", "2.0 0"]
    make_record("fake", [0, 1], "out.json", lambda _: None)
    assert calls(fake) == ["1.0 1", "2.0 1"]
    make_record("fake", [0, 1], "whole.json", lambda _: None)
    assert numbers("out.json") == numbers("whole.json")


def test_a_complete_record_is_left_alone(fake, edit) -> None:
    said: list[str] = []
    make_record("fake", [0, 1, 2], "out.json", said.append)
    before = Path("out.json").read_bytes()
    calls(fake)
    make_record("fake", [0, 1], "out.json", said.append)
    edit("from pathlib", "# a comment\nfrom pathlib")
    make_record("fake", [0, 1, 2], "out.json", said.append)
    assert said[-2:] == ["out.json is up to date"] * 2
    assert calls(fake) == []
    assert Path("out.json").read_bytes() == before

    make_record("fake", [0, 1], "out.json", said.append, fresh=True)
    assert len(calls(fake)) == 4
    assert load_record(Path("out.json")).seeds == [0, 1]


def test_further_seeds_and_conditions_keep_what_there_is(fake, edit) -> None:
    make_record("fake", [1, 2], "out.json", lambda _: None)
    calls(fake)
    with pytest.raises(RecordError, match=r"seeds \[1\], which would be lost"):
        make_record("fake", [0, 2], "out.json", lambda _: None)
    make_record("fake", [0, 1, 2], "out.json", lambda _: None)
    assert calls(fake) == ["1.0 0", "2.0 0"]
    assert list(numbers("out.json")["results"]["plain"]) == ["0", "1", "2"]

    said: list[str] = []
    edit('"plain": {"a": 1.0}', '"plain": {"a": 1.5}, "new": {"a": 5.0}')
    make_record("fake", [0, 1, 2], "out.json", said.append)
    assert said[0] == "plain: had another configuration; beginning it afresh"
    assert calls(fake) == [f"{a} {seed}" for seed in (0, 1, 2) for a in (1.5, 5.0)]
    make_record("fake", [0, 1, 2], "whole.json", lambda _: None)
    assert numbers("out.json") == numbers("whole.json")


@pytest.mark.parametrize("changed", [('"a": 1.0', '"a": 1.5'), ("a / 3", "a / 4")])
def test_a_partial_of_other_code_or_configuration_is_not_used(changed, fake, edit) -> None:
    stop = "    assert seed == 0\n"
    edit("    with CALLS", stop + "    with CALLS")
    with pytest.raises(AssertionError):
        make_record("fake", [0, 1], "out.json", lambda _: None)
    assert calls(fake) == ["1.0 0", "2.0 0"]
    edit(*changed)
    said: list[str] = []
    with pytest.raises(AssertionError):
        make_record("fake", [0, 1], "out.json", said.append)
    assert "afresh" in said[0]
    a = "1.5 0" if changed[0].startswith('"a"') else "1.0 0"
    assert calls(fake) == ([a] if a == "1.5 0" else [a, "2.0 0"])
    edit(stop, "")
    make_record("fake", [0, 1], "out.json", lambda _: None)
    make_record("fake", [0, 1], "whole.json", lambda _: None)
    assert numbers("out.json") == numbers("whole.json")


def test_a_fresh_making_that_was_stopped_goes_on(fake, monkeypatch) -> None:
    make_record("fake", [0, 1], "out.json", lambda _: None)
    calls(fake)
    run = fake.run
    with monkeypatch.context() as patch:
        patch.setattr(fake, "run", lambda seed, **config: [run(seed, **config), 1 / (1 - seed)][0])
        with pytest.raises(ZeroDivisionError):
            make_record("fake", [0, 1], "out.json", lambda _: None, fresh=True)
    assert calls(fake) == ["1.0 0", "2.0 0", "1.0 1"]
    make_record("fake", [0, 1], "out.json", lambda _: None)
    assert calls(fake) == ["1.0 1", "2.0 1"]


@pytest.mark.parametrize("value", ["float('nan')", "float('inf')"])
def test_a_measure_that_is_not_finite_is_an_error_and_not_kept(value, fake, edit) -> None:
    edit("seed**2}", f"(seed**2 if seed == 0 else {value})" + "}")
    with pytest.raises(MMCLError, match=r"fake, plain, seed 1: expected finite .* got square"):
        make_record("fake", [0, 1], "out.json", lambda _: None)
    kept = load_record(Path("out.json.partial"))
    assert [list(of) for of in kept.results.values()] == [[0], [0]]
    assert not Path("out.json").exists()


def test_other_measures_than_those_of_the_first_seed_are_an_error(fake, edit) -> None:
    edit('"square"', '"square" if seed else "cube"')
    with pytest.raises(MMCLError, match=r"seed 1: measures \['cube', 'square'\]"):
        make_record("fake", [0, 1], "out.json", lambda _: None)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"experiment": "fake"}', '{"experiment": "fake", "results": 1}']
)
def test_a_broken_record_is_told(text, fake, tmp_path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "fake.json").write_text(text)
    with pytest.raises(RecordError, match="expected the record of an experiment"):
        read_record("fake")
    with pytest.raises(RecordError, match="Remove it"):
        make_record("fake", [0], "records/fake.json", lambda _: None)
    assert (tmp_path / "records" / "fake.json").read_text() == text


def test_a_record_that_is_not_there_or_not_whole_is_told(fake, tmp_path) -> None:
    with pytest.raises(RecordError, match=r"no records/no\.json.* in .*make records"):
        read_record("no")
    make_record("fake", [0, 1], "records/fake.json", lambda _: None)
    content = json.loads(Path("records/fake.json").read_text())
    del content["results"]["plain"]["1"]
    Path("records/fake.json").write_text(json.dumps(content))
    with pytest.raises(RecordError, match=r"without \('plain', 1\)"):
        read_record("fake")


# --- the fingerprint ------------------------------------------------------------------------------

IMPORTS = "from mmcl_core.a import f\nfrom mmcl_core.shelf import h, j"
PACKAGE = {
    "__init__.py": "__version__ = '1'",
    "a.py": "from mmcl_core.b import c\ndef f(x):\n    return x + 1",
    "b/__init__.py": "B = 1",
    "b/c.py": "def g():\n    import mmcl_core.d\n    return 0",
    "d.py": "D = [1, None, 'text']",
    "shelf/__init__.py": "'Doc.'\nfrom mmcl_core.shelf.h import h\nfrom mmcl_core.shelf.i import i",
    "shelf/h.py": "def h():\n    return 1",
    "shelf/i.py": "def i():\n    return 1",
    "shelf/j.py": "J = 1",
    "unused.py": "U = 1",
}


@pytest.mark.parametrize(
    ("file", "text", "same"),
    [
        ("a.py", "from mmcl_core.b import c  # why\ndef f(x):\n    'Doc.'\n    return (x +\n1)", 1),
        ("a.py", "'''Doc.'''\nfrom mmcl_core.b import c\n\n\ndef f(x):\n    return x + 1\n", 1),
        ("__init__.py", "__version__ = '2'", 1),
        ("unused.py", "U = 2", 1),
        ("e.py", "E = 1", 1),
        ("exp.py", f"CONDITIONS: dict = {{'b': 1}}\n{IMPORTS}", 1),
        ("exp.py", f"CONDITIONS = {{'a': 1}}\n{IMPORTS}\nEPOCHS = 2", 0),
        ("a.py", "from mmcl_core.b import c\ndef f(x):\n    return x + 2", 0),
        ("a.py", "from mmcl_core.b import c\ndef f(x):\n    return x - 1", 0),
        ("b/__init__.py", "B = 2", 0),
        ("b/c.py", "def g():\n    import mmcl_core.d\n    return 1", 0),
        ("d.py", "D = [1, None, 'other']", 0),
        ("d.py", "D = [1, 'text']", 0),
        # A package that only hands names on: what it hands on counts, if it is asked for.
        ("shelf/__init__.py", "from mmcl_core.shelf.h import h", 1),
        ("shelf/__init__.py", "from mmcl_core.shelf.i import i as h", 0),
        ("shelf/__init__.py", "from mmcl_core.shelf.h import h\nH = 1", 0),
        ("shelf/h.py", "def h():\n    return 2", 0),
        ("shelf/i.py", "def i():\n    return 2", 1),
        ("shelf/j.py", "J = 2", 0),
    ],
)
def test_the_fingerprint_is_of_what_changes_a_number(file, text, same, tmp_path) -> None:
    library = tmp_path / "mmcl_core"
    for name, content in PACKAGE.items():
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text(content)
    experiment = library / "exp.py"
    experiment.write_text(f"CONDITIONS = {{'a': 1}}\n{IMPORTS}")
    before = fingerprint(experiment, tmp_path)
    (library / file).write_text(text)
    assert (fingerprint(experiment, tmp_path) == before) is bool(same)


def test_the_fingerprint_is_also_of_the_versions(fake, monkeypatch) -> None:
    file = Path(fake.__file__)
    before = fingerprint(file)
    monkeypatch.setattr("mmcl_book.records.fingerprint.version", lambda name: "9")
    assert fingerprint(file) != before


def test_the_fingerprint_knows_the_real_library() -> None:
    from mmcl_book.records.fingerprint import ROOT, _reached

    names = {
        path.relative_to(ROOT).as_posix()
        for path in _reached(ROOT / "mmcl_book" / "experiments" / "mct.py", ROOT)
    }
    library = {"encoders.py", "methods/mct.py", "losses/clip.py", "data/augment.py"}
    assert {f"mmcl_core/{name}" for name in library} <= names
    assert "mmcl_book/experiments/mct.py" in names
    assert (
        not {"mmcl_book/records/reading.py", "mmcl_book/widgets.py", "mmcl_core/__main__.py"}
        & names
    )


# --- the command line -----------------------------------------------------------------------------


def command(capsys, *argv: object) -> tuple[int, str, str]:
    try:
        code = program.main(["record", *map(str, argv)])
    except SystemExit as end:
        code = int(end.code or 0)
    return code, *capsys.readouterr()


def test_the_command_makes_a_record(fake, capsys) -> None:
    arguments = ("fake", "--seeds", 0, 1, "--out", "out.json")
    code, out, err = command(capsys, *arguments)
    assert (code, err.count("\n")) == (0, 4)
    assert out.startswith("fake: 4, of 2 conditions")
    assert out.endswith(": out.json\n")
    assert command(capsys, *arguments)[2] == "out.json is up to date\n"
    code, out, err = command(capsys, *arguments, "--quiet", "--fresh")
    assert (code, err) == (0, "")
    assert len(calls(fake)) == 8


@pytest.mark.parametrize("more", [[], ["--fresh"]])
def test_ctrl_c_says_how_to_go_on(more, fake, capsys, monkeypatch) -> None:
    def pressed(seed, **config):
        raise KeyboardInterrupt

    monkeypatch.setattr(fake, "run", pressed)
    code, out, err = command(capsys, "fake", "--seeds", 0, 1, "--out", "out.json", *more)
    assert (code, out) == (130, "")
    assert "same command" in err
    assert "out.json.partial" in err
    assert ("without --fresh" in err) == bool(more)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no", "--seeds", 0, "--out", "o"], "invalid choice: 'no'"),
        (["fake", "--out", "o"], "--seeds"),
        (["fake", "--seeds", 0], "--out"),
        (["fake", "--seeds", -1, "--out", "o"], "--seeds"),
        (["fake", "--seeds", 0, 0, "--out", "o"], "expected some seeds, each once; got [0, 0]"),
        (["fake", "--seeds", 0, "--out", "."], "expected a file to write, found a folder"),
        (["fake", "--seeds", 0, "--out", "other.json"], "is of the experiment other, not fake"),
        (["fake", "--seeds", 0, "--out", "fake.py"], "expected the record of an experiment"),
        (["fake", "--seeds", 0, "--out", "fake.py/o"], "fake.py"),
    ],
)
def test_wrong_input_is_told_and_leaves_nothing(
    arguments, said, fake, capsys, tmp_path, monkeypatch
) -> None:
    monkeypatch.setitem(recording.EXPERIMENTS, "other", fake)
    make_record("other", [0], "other.json", lambda _: None)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    code, out, err = command(capsys, *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_under_torchrun_it_says_that_it_cannot(fake, capsys, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = command(capsys, "fake", "--seeds", 0, "--out", "out.json")
    assert code == 2
    assert "start it without torchrun" in err


# --- make records ---------------------------------------------------------------------------------


def test_make_records_calls_the_command_for_each_experiment(monkeypatch) -> None:
    called = []
    codes = {"one": 0, "two": 2, "three": 0}

    def started(command: list[str], cwd: Path) -> SimpleNamespace:
        called.append(program.parser().parse_args(command[3:]))
        return SimpleNamespace(wait=lambda: codes[command[4]])

    monkeypatch.setattr(recording, "EXPERIMENTS", dict.fromkeys(codes))
    monkeypatch.setattr(tool, "EXPERIMENTS", dict.fromkeys(codes))
    monkeypatch.setattr(program, "EXPERIMENTS", dict.fromkeys(codes))
    monkeypatch.setattr(tool.subprocess, "Popen", started)
    assert tool.main([]) == 2  # that of the one which failed; the others are made
    assert [args.name for args in called] == ["one", "two", "three"]
    assert called[0].seeds == list(range(5))
    assert called[0].out == "book/records/one.json"
    assert tool.main(["three"]) == 0
    codes["one"] = 130  # Ctrl-C
    called.clear()
    assert tool.main([]) == 130
    assert len(called) == 1
