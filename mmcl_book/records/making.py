"""Making records: each condition of an experiment with each seed, to be stopped and gone on with.

An experiment is a module with two names:

- `CONDITIONS`: the name of each condition, as a page prints it, and its keyword arguments;
- `run(seed, **config)`: trains, measures, and returns the measures by name. It seeds torch's
  generator itself, and does not read `CONDITIONS`.
"""

import json
import math
import os
import platform
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from types import ModuleType
from typing import Any

import torch

from mmcl_book.experiments import (
    alternatives,
    comparison,
    fdt,
    gap,
    gmc,
    granularity,
    mct,
    missing,
    moco,
    noise,
    pointing,
    scaling,
    structure,
)
from mmcl_book.records.fingerprint import LIBRARIES, fingerprint
from mmcl_book.records.reading import Record, load_record
from mmcl_core import __version__
from mmcl_core.errors import MMCLError, RecordError
from mmcl_core.files import write_whole

EXPERIMENTS: dict[str, ModuleType] = {
    "gap": gap,
    "granularity": granularity,
    "noise": noise,
    "structure": structure,
    "missing": missing,
    "moco": moco,
    "mct": mct,
    "fdt": fdt,
    "pointing": pointing,
    "gmc": gmc,
    "comparison": comparison,
    "alternatives": alternatives,
    "scaling": scaling,
}


def make_record(
    name: str,
    seeds: Sequence[int],
    out: str | Path,
    say: Callable[[str], object] = print,
    *,
    fresh: bool = False,
) -> Record:
    """Runs every condition of an experiment with every seed, and writes the record.

    Each finished run is kept in `OUT.partial`, so that the same call goes on where the last one
    was stopped. Runs that `out` already has are not run again, as long as their condition and all
    code and versions that they depend on are the same (`fingerprint`).

    Args:
        name: one of `EXPERIMENTS`.
        seeds: at least one; each once.
        out: where to write the record; stands in it as it was passed, unless it is absolute.
        say: is told what goes on, one line a run.
        fresh: runs everything again.

    Raises:
        MMCLError: there is no such experiment; a seed is given twice; a measure is not finite, or
            not that of the other seeds.
        RecordError: `out` holds something else, or further seeds.
    """
    out = Path(out)
    record = _nothing_yet(name, list(seeds), out)
    partial = out.with_name(f"{out.name}.partial")
    known = None if fresh else _usable(partial, record, say)
    if known is None and not fresh:
        known = _usable(out, record, say)
        if known and _holds(known, record):
            say(f"{out} is up to date")
            partial.unlink(missing_ok=True)
            return known
    if known:
        _take_over(known, record, say)
    _write(partial, record)
    experiment, todo = EXPERIMENTS[name], record.missing()
    total = len(record.seeds) * len(record.conditions)
    for i, (condition, seed) in enumerate(todo, total - len(todo) + 1):
        start = time.perf_counter()
        values = experiment.run(seed, **experiment.CONDITIONS[condition])
        seconds = time.perf_counter() - start
        record.results[condition][seed] = _checked(values, record, condition, seed)
        record.seconds[condition][seed] = round(seconds, 2)
        _write(partial, record)
        say(f"{name} {i}/{total}: {condition}, seed {seed}: {seconds:.1f} s{_left(record)}")
    _write(out, record)
    partial.unlink()
    return record


def _nothing_yet(name: str, seeds: list[int], out: Path) -> Record:
    """The record before the first run."""
    if name not in EXPERIMENTS:
        raise MMCLError(f"there is no experiment {name!r}; there are {', '.join(EXPERIMENTS)}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise MMCLError(f"expected some seeds, each once; got {seeds}")
    if out.is_dir():
        raise MMCLError(f"{out}: expected a file to write, found a folder")
    shown = out.name if out.is_absolute() else out.as_posix()
    words = ["python", "-m", "mmcl_book", "record", name, "--seeds", *map(str, seeds)]
    module = EXPERIMENTS[name]
    made = {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "mmcl_core": __version__,
        **{library: version(library) for library in LIBRARIES},
        "machines": [machine()],
        "code": fingerprint(Path(str(module.__file__))),
    }
    conditions = json.loads(json.dumps(module.CONDITIONS))  # as it will be read again
    empty: dict[str, dict[int, Any]] = {condition: {} for condition in conditions}
    return Record(
        experiment=name,
        command=shlex.join([*words, "--out", shown]),
        made=made,
        conditions=conditions,
        seeds=seeds,
        results=empty,
        seconds={condition: {} for condition in conditions},
    )


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
    if known.made["code"] != record.made["code"]:
        say(f"{path}: made by other code or versions; beginning afresh")
        return None
    return known


def _holds(known: Record, record: Record) -> bool:
    """Whether there is nothing to do."""
    same = list(known.conditions.items()) == list(record.conditions.items())
    return same and set(record.seeds) <= set(known.seeds) and not known.missing()


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
    means = {c: mean(of.values()) for c, of in record.seconds.items() if of}
    seconds = sum(means.get(c, mean(means.values())) for c, _ in record.missing())
    return f"; about {math.ceil(seconds / 60) or 1} min left" if record.missing() else ""


def machine() -> str:
    """The processor, its cores, and the threads that torch uses; nothing that names the host."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = (line.partition(":") for line in cpuinfo.read_text("utf-8").splitlines())
        name = next((value.strip() for key, _, value in fields if "model name" in key), name)
    return f"{name}, cores: {os.cpu_count()}, threads: {torch.get_num_threads()}"
