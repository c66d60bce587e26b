"""What all tests share: the scripts of tools/, which are not a package, and one thread."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))


@pytest.fixture(autouse=True, scope="module")  # before what a module shares
def _one_thread(request):
    """Threads that wait for each other over a few numbers take a hundred times as long."""
    if "benchmarks" in request.path.parts:  # those measure what a reader gets
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
