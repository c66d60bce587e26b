"""Importing the library is light: what few readers use is imported when it is used."""

import json
import subprocess
import sys

PARTS = [
    "batches",
    "data",
    "data.augment",
    "encoders",
    "losses",
    "methods",
    "training",
    "evaluation",
    "cli",
]
HEAVY = ["matplotlib", "umap", "numba", "ipywidgets", "IPython", "sklearn", "scipy", "kornia"]

# One process for all of them: each would import PyTorch anew.
CODE = f"""
import importlib, json, sys
found = {{}}
def look(name):
    found[name] = [heavy for heavy in {HEAVY} if heavy in sys.modules]
for part in {PARTS}:
    importlib.import_module("mmcl_core." + part)
    look(part)
import torch
from mmcl_core.evaluation import linear_probe
linear_probe(torch.eye(4), torch.arange(4) % 2, torch.eye(4), torch.arange(4) % 2)
look("a probe")
print(json.dumps(found))
"""


def test_importing_loads_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert "sklearn" in found.pop("a probe")  # so that it would be seen
    assert found == {part: [] for part in PARTS}
