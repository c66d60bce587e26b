"""A training step in 1, 2 and 4 processes under torchrun: cost, exchange, and whose gradient.

What each process does is in `scaling_worker`. The batch of all processes together is always the
same. Seconds are those of one machine, whose cores the processes share.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mmcl_book.experiments import scaling_worker
from mmcl_core.errors import MMCLError

CONDITIONS: dict[str, dict[str, Any]] = {
    "1 process": {"processes": 1},
    "2 processes": {"processes": 2},
    "4 processes": {"processes": 4},
}
SECONDS = 1800  # after which a run counts as hanging; it takes about 15


def run(seed: int, processes: int = 1, size: int = scaling_worker.BATCH) -> dict[str, float]:
    """Starts so many processes, and returns what process 0 has measured; see `measure` there.

    Args:
        seed: of weights and samples.
        processes: W, at least 1.
        size: samples of all processes together, a multiple of 4 W.

    Raises:
        MMCLError: the numbers do not fit, or the processes have failed; with what they said last.
    """
    if processes < 1 or size < 8 or size % (4 * processes):
        raise MMCLError(
            f"expected processes of at least 1 and a size that is a multiple of 4 times as many, "
            f"at least 8; got {processes} and {size}"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "measured.json")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes), "-m", scaling_worker.__name__]
        command += [str(path), str(seed), str(size)]
        said = _finished(command)
        if not path.exists():
            raise MMCLError(f"{processes} processes have not finished. They said: {said[-3000:]}")
        return json.loads(path.read_text(encoding="utf-8"))


def _finished(command: list[str]) -> str:
    """Runs a command to its end, or stops it after `SECONDS`; returns what it printed."""
    running = subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        return running.communicate(timeout=SECONDS)[0]
    except subprocess.TimeoutExpired:
        running.terminate()  # torchrun ends its processes with it
        return f"{running.communicate()[0]}\nstopped after {SECONDS} seconds"
