"""Making records: each condition of an experiment with each seed, to be stopped and gone on with.

An experiment is a module with two names:

- `CONDITIONS`: the name of each condition, as a page prints it, and its keyword arguments;
- `run(seed, **config)`: trains, measures, and returns the measures by name. It seeds torch's
  generator itself, and does not read `CONDITIONS`.

And, where they are needed (`experiments/protocol.py`):

- `SEEDS`: those of its record, where they are not the `SEEDS` below;
- `TRIALS`: method -> `Trials`, the settings to choose from; `run` on other scenes with other seeds;
- `BETTER`: the claims against the best simple rival, written down before the record is made;
- `WEIGHTS`: the conditions whose model of the first seed is kept beside the record, by
  `trained(seed, **config)`, which returns the module that `run` measures.

It is ours: papermill and DVC run a step as a whole, and know no seeds of conditions to go on with.
"""

import importlib
import json
import math
import os
import platform
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from mmcl_book import experiments
from mmcl_book.experiments.protocol import Trials
from mmcl_book.records import weights
from mmcl_book.records.fingerprint import ROOT, fingerprint
from mmcl_book.records.reading import Record, RecordError, load_record
from mmcl_core import __version__
from mmcl_core.errors import MMCLError, check_count
from mmcl_core.files import write_whole

SEEDS = tuple(range(5))  # of the records of the book
TRIAL_SEEDS = (10, 11)  # of trials; no record has them
LIBRARIES = ("torch", "numpy", "scikit-learn")  # whose versions may change a number
# Measures of the machine itself, which differ from run to run.
OF_THE_MACHINE = re.compile(r"(seconds|mebibytes)\b")
# How far a run may lie from the recorded one of its seed, and confirm it: the last of six digits.
SAME = 2e-5
# The modules with `CONDITIONS`, found without importing them.
EXPERIMENTS = tuple(
    sorted(
        path.stem
        for path in Path(experiments.__path__[0]).glob("*.py")
        if re.search(r"^CONDITIONS\b", path.read_text("utf-8"), re.M)
    )
)


def experiment(name: str) -> Any:
    """The module of an experiment.

    Raises:
        MMCLError: there is no such experiment.
    """
    if name not in EXPERIMENTS:
        raise MMCLError(f"there is no experiment {name!r}; there are {', '.join(EXPERIMENTS)}")
    return importlib.import_module(f"{experiments.__name__}.{name}")


def seeds_of(name: str) -> tuple[int, ...]:
    """The seeds of the record of an experiment.

    Raises:
        MMCLError: there is no such experiment.
    """
    return tuple(getattr(experiment(name), "SEEDS", SEEDS))


def make_record(
    name: str,
    seeds: Sequence[int],
    out: str | Path,
    say: Callable[[str], object] = print,
    *,
    fresh: bool = False,
    trials: bool = False,
) -> Record:
    """Runs every condition of an experiment with every seed, and writes the record.

    Each finished run is kept in `OUT.partial`, so that the same call goes on where the last one
    was stopped. Runs that `out` already has are not run again, as long as their condition and all
    code and versions that they depend on are the same (`fingerprint`). At the end, the models that
    the experiment names in `WEIGHTS` are kept (`weights.py`).

    Args:
        name: one of `EXPERIMENTS`.
        seeds: at least one; each once.
        out: where to write the record; stands in it as it was passed, unless it is absolute.
        say: is told what goes on, one line a run.
        fresh: runs everything again.
        trials: runs the settings of `TRIALS` in place of the conditions, and keeps no model.

    Raises:
        MMCLError: there is no such experiment, or it has no trials; a seed is given twice; a
            measure is not finite, or not that of the other seeds; a model is too large to be kept.
        RecordError: `out` holds something else, or further seeds.
    """
    out = Path(out)
    record = _nothing_yet(name, seeds, out, trials)
    partial = out.with_name(f"{out.name}.partial")
    known = None if fresh else _usable(partial, record, say)
    if known is None and not fresh:
        known = _usable(out, record, say)
        if known and _holds(known, record):
            say(f"{out} is up to date")
            partial.unlink(missing_ok=True)
            if not trials:
                _keep_models(known, out, say)
            return known
    if known:
        _take_over(known, record, say)
    _write(partial, record)
    todo = record.missing()
    total = len(record.seeds) * len(record.conditions)
    for i, (condition, seed) in enumerate(todo, total - len(todo) + 1):
        start = time.perf_counter()
        record.results[condition][seed] = _run(record, condition, seed, trials)
        seconds = time.perf_counter() - start
        record.seconds[condition][seed] = round(seconds, 2)
        _write(partial, record)
        say(f"{name} {i}/{total}: {condition}, seed {seed}: {seconds:.1f} s{_left(record)}")
    _write(out, record)
    partial.unlink()
    if not trials:
        _keep_models(record, out, say)
    return record


def confirm_record(name: str, out: str | Path, say: Callable[[str], object] = print) -> Record:
    """Runs the first seed of each condition again; where all agrees, the code is taken for as good.

    For a change of the code that should change no number, on a machine of the kind that made the
    record. Every measure but `OF_THE_MACHINE` must be as it was, up to `SAME` of 1 or of itself.
    The record then has today's code and versions, and says by which seed that was confirmed.

    Args:
        name: one of `EXPERIMENTS`.
        out: the record, which is complete.
        say: is told what goes on, one line a run.

    Raises:
        MMCLError: there is no such experiment.
        RecordError: a value is another one, or there are other conditions, and the record is stale;
            `out` is left as it is.
    """
    out = Path(out)
    record = load_record(out)
    today = _nothing_yet(name, record.seeds, out)
    if (record.experiment, record.conditions) != (name, today.conditions) or record.missing():
        raise RecordError(
            f"{out}: expected all conditions of {name} as they are today; only what has all of "
            "them can be confirmed. Make the record again, without --confirm"
        )
    seed = record.seeds[0]
    for i, (condition, recorded) in enumerate(record.results.items(), 1):
        values = _run(record, condition, seed)
        differ = [
            f"{measure} {values[measure]:.6g}, recorded {value:.6g}"
            for measure, value in recorded[seed].items()
            if not OF_THE_MACHINE.match(measure)
            and not math.isclose(values[measure], value, rel_tol=SAME, abs_tol=SAME)
        ]
        if differ:
            raise RecordError(
                f"{name}, {condition}, seed {seed}: {'; '.join(differ)}. The record is stale: make "
                f"it again, without --confirm; or this machine ({machine()}) is of another kind "
                f"than that of the record ({'; '.join(record.made['machines'])})"
            )
        say(f"{name} {i}/{len(record.conditions)}: {condition}, seed {seed}: as recorded")
    kept = ("date", "commit", "machines")
    record.made.update({key: of for key, of in today.made.items() if key not in kept})
    record.made["confirmed"] = f"{today.made['date']} at {today.made['commit']}, by seed {seed}"
    for condition in record.weights:  # whose numbers are the same, and so are the models
        weights.date(out, condition, record.made["code"])
    record.weights[:] = today.weights
    _write(out, record)
    _keep_models(record, out, say)
    return record


def why_stale(name: str, record: Record) -> list[str]:
    """In what a record is not that of today's code, conditions, seeds and models; [] if in none."""
    module = experiment(name)
    found = {
        "code": record.made["code"] != fingerprint(Path(module.__file__)),
        "conditions": record.conditions != json.loads(json.dumps(module.CONDITIONS)),
        "seeds": record.seeds != list(seeds_of(name)),
        "models": record.weights != list(getattr(module, "WEIGHTS", ())),
    }
    return [what for what, differs in found.items() if differs]


def planned(name: str, seeds: Sequence[int], out: str | Path) -> tuple[int, float]:
    """How many runs `make_record` would begin, and about how many seconds these take.

    The seconds are those of the runs in `out`, also where it is stale; 0 where there are none.
    """
    out = Path(out)
    record = _nothing_yet(name, seeds, out)
    for path in (out.with_name(f"{out.name}.partial"), out):
        if known := _usable(path, record, lambda _: None):
            _take_over(known, record, lambda _: None)
            break
    todo = record.missing()
    return len(todo), _seconds(todo, load_record(out) if out.exists() else record)


def settings_of(name: str) -> dict[str, dict[str, Any]]:
    """What there is to try: "method: setting" and its keyword arguments.

    Raises:
        MMCLError: there is no such experiment, or it has no `TRIALS`.
    """
    module = experiment(name)
    if not getattr(module, "TRIALS", None):
        raise MMCLError(f"the experiment {name} has no trials")
    return {
        f"{method}: {setting}": dict(config)
        for method, tried in module.TRIALS.items()
        for setting, config in tried.settings.items()
    }


def _conditions(name: str, trials: bool) -> dict[str, dict[str, Any]]:
    return settings_of(name) if trials else experiment(name).CONDITIONS


def _run(record: Record, condition: str, seed: int, trials: bool = False) -> dict[str, float]:
    """One run, with six digits of each measure."""
    module = experiment(record.experiment)
    config = _conditions(record.experiment, trials)[condition]
    return _checked(module.run(seed, **config), record, condition, seed)


def _keep_models(record: Record, out: Path, say: Callable[[str], object]) -> None:
    """Trains and keeps the models that are not there by the same code."""
    module, seed, code = experiment(record.experiment), record.seeds[0], record.made["code"]
    for condition in record.weights:
        if weights.made_by(out, condition) == code:
            continue
        model = module.trained(seed, **module.CONDITIONS[condition])
        path = weights.keep(out, condition, model, seed=seed, code=code)
        say(f"{record.experiment}: {condition}, seed {seed}, kept in {path}")


def _nothing_yet(name: str, seeds: Sequence[int], out: Path, trials: bool = False) -> Record:
    """The record before the first run."""
    module = experiment(name)
    seeds = [check_count("each of the seeds", seed, 0) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise MMCLError(f"expected some seeds, each once; got {seeds}")
    if out.is_dir():
        raise MMCLError(f"{out}: expected a file to write, found a folder")
    shown = out.name if out.is_absolute() else out.as_posix()
    words = ["python", "-m", "mmcl_book", "record", name, *(["--trials"] if trials else [])]
    words += ["--seeds", *map(str, seeds)]
    made = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "python": platform.python_version(),
        "mmcl_core": __version__,
        **{library: version(library) for library in LIBRARIES},
        "machines": [machine()],
        "code": fingerprint(Path(module.__file__)),
    }
    # As they will be read again.
    conditions = json.loads(json.dumps(_conditions(name, trials)))
    empty: dict[str, dict[int, Any]] = {condition: {} for condition in conditions}
    return Record(
        experiment=name,
        command=shlex.join([*words, "--out", shown]),
        made=made,
        conditions=conditions,
        seeds=seeds,
        results=empty,
        seconds={condition: {} for condition in conditions},
        tried={} if trials else {m: len(t.settings) for m, t in _tried(module).items()},
        weights=[] if trials else list(getattr(module, "WEIGHTS", ())),
    )


def _tried(module: Any) -> Mapping[str, Trials]:
    return getattr(module, "TRIALS", {})


def _usable(path: Path, record: Record, say: Callable[[str], object]) -> Record | None:
    """What a file has of the same experiment, by the same code; None if there is nothing."""
    if not path.exists():
        return None
    known = load_record(path)
    if known.experiment != record.experiment:
        raise RecordError(
            f"{path} is of the experiment {known.experiment}, not {record.experiment}; take "
            "another --out"
        )
    if any(known.made.get(what) != record.made[what] for what in ("code", *LIBRARIES)):
        say(f"{path}: made by other code or versions; beginning afresh")
        return None
    return known


def _holds(known: Record, record: Record) -> bool:
    """Whether there is nothing to do."""
    same = list(known.conditions.items()) == list(record.conditions.items())
    models = known.weights == record.weights and known.tried == record.tried
    return same and models and set(record.seeds) <= set(known.seeds) and not known.missing()


def _take_over(known: Record, record: Record, say: Callable[[str], object]) -> None:
    """Puts into `record` the runs that are already known."""
    done = [s for s in known.seeds if all(s in of for of in known.results.values())]
    if dropped := [seed for seed in done if seed not in record.seeds]:
        raise RecordError(
            f"there are results of seeds {dropped}, which would be lost: name these seeds, too, or "
            "pass --fresh"
        )
    for condition, config in record.conditions.items():
        if known.conditions.get(condition, config) != config:
            say(f"{condition}: had another configuration; beginning it afresh")
        elif condition in known.conditions:
            for seed in known.results[condition].keys() & set(record.seeds):
                record.results[condition][seed] = known.results[condition][seed]
                record.seconds[condition][seed] = known.seconds[condition][seed]
    machines = [*known.made["machines"], *record.made["machines"]]
    record.made["machines"] = list(dict.fromkeys(machines))
    if "confirmed" in known.made:
        record.made["confirmed"] = known.made["confirmed"]


def _checked(
    values: dict[str, float], record: Record, condition: str, seed: int
) -> dict[str, float]:
    """The measures of one run with six digits; raises MMCLError if they cannot be kept."""
    where = f"{record.experiment}, {condition}, seed {seed}"
    kept = {name: float(f"{float(value):.6g}") for name, value in values.items()}
    for name, value in kept.items():
        if not math.isfinite(value):
            raise MMCLError(f"{where}: expected finite measures, got {name} = {value}")
    for other, theirs in record.results[condition].items():
        if kept.keys() != theirs.keys():
            raise MMCLError(
                f"{where}: measures {sorted(kept.keys() ^ theirs.keys())} are not in this and in "
                f"seed {other}"
            )
    return kept


def _write(path: Path, record: Record) -> None:
    """The record as JSON, with the seeds in their order."""
    ordered = {
        name: {
            condition: {seed: of[condition][seed] for seed in record.seeds if seed in of[condition]}
            for condition in record.conditions
        }
        for name, of in (("results", record.results), ("seconds", record.seconds))
    }
    content = json.dumps(asdict(record) | ordered, indent=2, ensure_ascii=False)
    write_whole(path, f"{content}\n")


def _left(record: Record) -> str:
    """How long the missing runs will take, from the seconds of those that are done."""
    minutes = math.ceil(_seconds(record.missing(), record) / 60) or 1
    return f"; about {minutes} min left" if record.missing() else ""


def _seconds(todo: Sequence[tuple[str, int]], known: Record) -> float:
    """Of these runs, as those of their conditions took that are known, or else of any."""
    means = {c: mean(of.values()) for c, of in known.seconds.items() if of}
    return sum(means.get(c, mean(means.values())) for c, _ in todo) if means else 0.0


def commit() -> str:
    """The commit of the code, with "-dirty" where files differ from it; "unknown" without git."""
    words = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        if (ROOT / ".git").exists():  # not a repository that this is installed into
            done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
            return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass
    return "unknown"


def machine() -> str:
    """The processor, its instructions, cores and torch's threads; nothing that names the host.

    Two of one name may round differently: the instructions tell.
    """
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = (line.partition(":") for line in cpuinfo.read_text("utf-8").splitlines())
        name = next((value.strip() for key, _, value in fields if "model name" in key), name)
    torch_uses = f"{torch.backends.cpu.get_cpu_capability()}, threads: {torch.get_num_threads()}"
    return f"{name}, cores: {os.cpu_count()}, {torch_uses}"
