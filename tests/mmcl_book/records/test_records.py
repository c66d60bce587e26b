"""Records: their statistics, their making with all that may interrupt it, and their reading."""

import json
import os
import signal
import subprocess
import sys
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest
import records as tool

from mmcl_book import __main__ as program
from mmcl_book.records import making as recording
from mmcl_book.records.making import confirm_record, make_record, planned, why_stale
from mmcl_book.records.reading import Record, RecordError, load_record, read_record
from mmcl_core.errors import MMCLError
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
    register(monkeypatch, fake=module)
    return module


def register(monkeypatch: pytest.MonkeyPatch, **modules: object) -> None:
    """Puts experiments beside those of the book."""
    names = dict.fromkeys([*recording.EXPERIMENTS, *modules])
    for place in (recording, program, tool):
        monkeypatch.setattr(place, "EXPERIMENTS", tuple(names))
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"mmcl_book.experiments.{name}", module)


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
        register(monkeypatch, fake=module)
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
        for part in (made.again, "4, 0", "4, of 2 conditions", made.made["torch"], "threads: "):
            assert part in shown
    assert made._repr_html_().startswith('<table class="record">')


@pytest.mark.parametrize("name", recording.EXPERIMENTS)
def test_the_command_that_a_page_shows_can_be_typed(name) -> None:
    """Older records were made by commands that are gone."""
    record = load_record(ROOT / "book" / "records" / f"{name}.json")
    shown = record.provenance()["command"].split()
    assert shown[:3] == ["python", "-m", "mmcl_book"]
    args = program.parser().parse_args(shown[3:])
    assert (args.name, args.seeds) == (name, record.seeds)


def test_no_absolute_path_gets_into_a_record(fake, tmp_path) -> None:
    record = make_record("fake", [0, 1], tmp_path / "deep" / "fake.json", lambda _: None)
    assert record.command.endswith("--out fake.json")
    text = (tmp_path / "deep" / "fake.json").read_text()
    assert str(tmp_path) not in text
    assert str(Path.home()) not in text


def test_html_is_escaped() -> None:
    record = Record("x", "python -m x", {}, {"c": {}}, [0], {"c": {0: {"m": 1.0}}}, {"c": {}})
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
recording.EXPERIMENTS = ("fake",)
sys.modules["mmcl_book.experiments.fake"] = fake
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
        (["fake", "--confirm", "--fresh"], "leave out --fresh"),
        (["fake", "--confirm", "--seeds", 0], "leave out --fresh, --seeds"),
        (["fake", "--confirm", "--out", "other.json"], "expected all conditions of fake"),
        (["fake", "--confirm", "--out", "none.json"], "none.json"),
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
    register(monkeypatch, other=fake)
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


# --- by today's code? ---------------------------------------------------------------------------


def test_each_record_is_of_todays_code_and_seeds() -> None:
    """B2: five of thirteen records were stale, eight had other seeds, and nothing said so."""
    folder = ROOT / "book" / "records"
    lines = (folder / "stale.txt").read_text(encoding="utf-8").splitlines()
    assert "only shrinks" in lines[0]
    listed = [line for line in lines if not line.startswith("#")]
    assert sorted(path.stem for path in folder.glob("*.json")) == sorted(recording.EXPERIMENTS)
    found = {name: why_stale(name, read_record(name, folder)) for name in recording.EXPERIMENTS}
    stale = {name: ", ".join(why) for name, why in found.items() if why}
    assert listed == sorted(stale), (
        f"{stale} differ in what is named: make them again (`make records`), or, where no number "
        "has changed, run `python -m mmcl_book record NAME --confirm`. Those that book/records/"
        "stale.txt lists, and that differ in nothing, are not stale: remove their lines"
    )


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("from pathlib", "# why\nfrom pathlib", []),
        ("import Path", "import Path\ndef unused():\n    return 1", []),
        ("a / 3", "a / 4", ["code"]),
        ('"a": 1.0', '"a": 1.5', ["conditions"]),
        ('{"plain"', '{"new": {"a": 3.0}, "plain"', ["conditions"]),
    ],
)
def test_what_makes_a_record_stale(old, new, why, fake, edit) -> None:
    record = make_record("fake", recording.SEEDS, "out.json", lambda _: None)
    assert why_stale("fake", record) == []
    edit(old, new)
    assert why_stale("fake", record) == why
    make_record("fake", recording.SEEDS, "out.json", lambda _: None)
    assert why_stale("fake", load_record(Path("out.json"))) == []


def test_other_seeds_make_a_record_stale(fake) -> None:
    record = make_record("fake", [0, 1, 2], "out.json", lambda _: None)
    assert why_stale("fake", record) == ["seeds"]


def test_another_version_of_a_library_runs_all_again(fake, monkeypatch) -> None:
    make_record("fake", [0], "out.json", lambda _: None)
    calls(fake)
    monkeypatch.setattr(recording, "version", lambda name: "9")
    said: list[str] = []
    make_record("fake", [0], "out.json", said.append)
    assert "afresh" in said[0]
    assert len(calls(fake)) == 2


def test_a_refactoring_is_confirmed_by_the_first_seed(fake, edit, capsys) -> None:
    made = make_record("fake", [2, 0], "out.json", lambda _: None)
    calls(fake)
    edit("a / 3 + seed", "seed + a / 3")
    assert "code" in why_stale("fake", made)
    code, _, err = command(capsys, "fake", "--confirm", "--out", "out.json")
    assert (code, err.count("as recorded")) == (0, 2)
    assert calls(fake) == ["1.0 2", "2.0 2"]
    record = load_record(Path("out.json"))
    assert "code" not in why_stale("fake", record)
    assert numbers("out.json")["results"] == json.loads(json.dumps(made.results))
    assert "by seed 2" in record.provenance()["confirmed"]
    assert record.made["commit"] == made.made["commit"]
    further = make_record("fake", [2, 0, 1], "out.json", lambda _: None)
    assert calls(fake) == ["1.0 1", "2.0 1"]
    assert further.made["confirmed"] == record.made["confirmed"]


@pytest.mark.parametrize("new", ["a / 3.001 + seed", "a / 3 + seed + 1e-4"])
def test_other_numbers_are_not_confirmed(new, fake, edit, capsys) -> None:
    make_record("fake", [0, 1], "out.json", lambda _: None)
    before = Path("out.json").read_bytes()
    edit("a / 3 + seed", new)
    code, out, err = command(capsys, "fake", "--confirm", "--out", "out.json")
    assert (code, out) == (2, "")
    assert "plain, seed 0: third 0.333" in err
    assert "recorded 0.333333" in err
    assert "square" not in err
    assert "stale" in err
    assert Path("out.json").read_bytes() == before


def test_seconds_need_not_be_confirmed(fake, edit) -> None:
    """Two runs never take the same time."""
    edit('"square": a', '"seconds, step": a')
    make_record("fake", [1], "out.json", lambda _: None)
    edit("seed**2", "seed**2 * 7")
    assert why_stale("fake", confirm_record("fake", "out.json", lambda _: None)) == ["seeds"]


def test_new_conditions_are_not_confirmed(fake, edit) -> None:
    make_record("fake", [0], "out.json", lambda _: None)
    edit('{"plain"', '{"new": {"a": 3.0}, "plain"')
    with pytest.raises(RecordError, match="expected all conditions of fake as they are today"):
        confirm_record("fake", "out.json", lambda _: None)


def test_a_record_has_the_commit_of_its_code(fake, tmp_path, monkeypatch) -> None:
    def git(*words: str) -> str:
        name = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        done = subprocess.run(["git", *name, *words], cwd=tmp_path, capture_output=True, text=True)
        return done.stdout.strip()

    monkeypatch.setattr(recording, "ROOT", tmp_path)
    assert recording.commit() == "unknown"
    git("init")
    git("add", "fake.py")
    git("commit", "-m", "one")
    git("tag", "v9")
    commit = make_record("fake", [0], "out.json", lambda _: None).provenance()["commit"]
    assert commit == git("rev-parse", "HEAD")[:12]
    (tmp_path / "fake.py").write_text("")
    assert recording.commit() == f"{commit}-dirty"


# --- make records ---------------------------------------------------------------------------------


def test_experiments_are_found_and_imported_one_by_one() -> None:
    """To run one, the others are not loaded."""
    assert set(recording.EXPERIMENTS) >= {"gap", "missing", "fdt", "scaling"}
    assert not {"small", "scaling_worker", "parts"} & set(recording.EXPERIMENTS)
    for name in recording.EXPERIMENTS:
        module = recording.experiment(name)
        assert module.CONDITIONS
        assert callable(module.run)
    loaded = (
        "import sys; from mmcl_book.records.making import experiment; experiment('noise');"
        "print(*(m for m in sys.modules if m.startswith('mmcl_book.experiments.')))"
    )
    done = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True)
    assert set(done.stdout.split()) == {
        f"mmcl_book.experiments.{m}" for m in ("small", "gap", "noise", "protocol", "unseen_words")
    }


def test_seeds_from_numpy_are_whole_numbers(fake) -> None:
    """They stand in the file as others do; bug report 1."""
    record = make_record("fake", np.arange(2), "out.json", lambda _: None)
    assert record.seeds == [0, 1]
    assert load_record(Path("out.json")).results == record.results
    for seeds in ([0, True], [0.5], [-1], ["0"]):
        with pytest.raises(MMCLError, match="each of the seeds"):
            make_record("fake", seeds, "other.json", lambda _: None)
    assert not Path("other.json").exists()


def test_what_is_planned_is_what_is_run(fake, edit) -> None:
    assert planned("fake", [0, 1], "out.json") == (4, 0.0)
    make_record("fake", [0, 1], "out.json", lambda _: None)
    content = json.loads(Path("out.json").read_text())
    content["seconds"] = {"plain": {"0": 1.0, "1": 3.0}, "with τ = 2": {"0": 10.0, "1": 10.0}}
    Path("out.json").write_text(json.dumps(content))
    assert planned("fake", [0, 1], "out.json") == (0, 0.0)
    assert planned("fake", [0, 1, 2, 3], "out.json") == (4, 24.0)
    edit("a / 3", "a / 4")
    assert planned("fake", [0, 1], "out.json") == (4, 24.0)
    edit('"plain": {"a": 1.0}, ', '"new": {"a": 1.0}, ')
    assert planned("fake", [0], "out.json") == (2, 16.0)  # a new one as the others on average
    assert len(calls(fake)) == 4  # nothing of this ran anything


class Started:
    """A process that has to be asked some times before it is done; keeps who ran beside whom."""

    running: ClassVar[list[str]]
    beside: ClassVar[dict[str, set[str]]]

    def __init__(self, command: list[str], cwd: Path) -> None:
        self.name, self.asked = command[4], 0
        arguments = program.parser().parse_args(command[3:])
        assert arguments.seeds == list(recording.SEEDS)
        assert arguments.out == f"book/records/{self.name}.json"
        assert os.environ["OMP_NUM_THREADS"] == "1"
        self.running.append(self.name)
        for one in self.running:
            self.beside.setdefault(one, set()).update(self.running)

    def poll(self) -> int | None:
        self.asked += 1
        if self.asked < 3:
            return None
        self.running.remove(self.name)
        return CODES[self.name]

    wait = poll


CODES: dict[str, int] = {}


@pytest.fixture
def started(monkeypatch) -> type[Started]:
    CODES.clear()
    CODES.update(one=0, two=2, three=0, scaling=0)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(Started, "running", [], raising=False)
    monkeypatch.setattr(Started, "beside", {}, raising=False)
    monkeypatch.setattr(tool.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(tool.subprocess, "Popen", Started)
    seconds = {"one": 60.0, "two": 7200.0, "three": 3600.0, "scaling": 1800.0}
    monkeypatch.setattr(tool, "seeds_of", lambda name: recording.SEEDS)
    monkeypatch.setattr(tool, "planned", lambda name, seeds, out: (len(seeds), seconds[name]))
    for place in (tool, program):
        monkeypatch.setattr(place, "EXPERIMENTS", tuple(CODES))
    return Started


def test_make_records_says_how_long_and_runs_two_at_a_time(started, capsys) -> None:
    assert tool.main([]) == 2  # that of the one which failed; the others are made
    assert list(started.beside) == ["two", "three", "one", "scaling"]  # the longest first
    assert started.beside["two"] == {"two", "three"}
    assert started.beside["scaling"] == {"scaling"}  # it measures seconds
    printed = capsys.readouterr().out
    assert "two               5  120 min" in printed
    assert "20 runs, about 2.5 h with 2 at a time" in printed  # two hours, and a half alone
    assert tool.main(["three"]) == 0


def test_ctrl_c_stops_make_records(started) -> None:
    CODES["two"] = 130
    assert tool.main([]) == 130
    assert list(started.beside) == ["two", "three"]


def test_make_records_of_no_experiment_is_told(capsys) -> None:
    assert tool.main(["no"]) == 2
    assert "there is no experiment 'no'; there are alternatives" in capsys.readouterr().err
