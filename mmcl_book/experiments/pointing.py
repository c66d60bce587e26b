"""Do the tokens of a word point to its object, where both words of an object are learned?

Full captions name five attributes of an object, and in few epochs a model learns the shape least of
all. So words for shapes point badly in the experiment "fdt", with tokens and without. Here captions
name shape and colour alone (detail 2); all else is as there.
"""

from typing import Any

from mmcl_book.experiments import fdt, small, structure, tokens
from mmcl_core.errors import MMCLError
from mmcl_core.evaluation import pointing_game
from mmcl_core.methods import CLIP, FDT

CONDITIONS: dict[str, dict[str, Any]] = {"FDT": {"kind": "FDT"}, "CLIP": {"kind": "CLIP"}}
DETAIL, COLDEST = 2, 15.0


def train(seed: int, kind: str = "FDT") -> CLIP:
    """Trains an FDT, cooled as in the experiment "fdt", or a CLIP with the same encoders.

    Args:
        seed: of scenes, first weights and order.
        kind: "FDT" or "CLIP".

    Raises:
        MMCLError: another kind.
    """
    if kind not in ("FDT", "CLIP"):
        raise MMCLError(f"kind must be 'FDT' or 'CLIP'; got {kind!r}")
    data = small.scenes(small.PAIRS, seed, detail=DETAIL)
    method = fdt.new_clip(data, seed) if kind == "CLIP" else fdt.new_fdt(data, seed, end=COLDEST)
    small.train(method, data, seed, epochs=fdt.EPOCHS)
    return method


def measure(method: CLIP) -> dict[str, float]:
    """Of the test scenes: "recall", "pointing, colour", "pointing chance, colour", likewise shape.

    All are defined as in the experiment "fdt".
    """
    test = small.scenes(1000, small.TEST_SEED, detail=DETAIL)
    measured = {"recall": fdt.recall(test, *fdt.both(method, test))}
    for name in structure.POINTED:
        if isinstance(method, FDT):
            maps, masks, *_ = tokens.token_maps(method, test, name)
        else:
            maps, masks, *_ = structure.word_maps(method, test, name)
        game = pointing_game(maps, masks)
        measured |= {f"pointing, {name}": game.accuracy, f"pointing chance, {name}": game.chance}
    return measured


def run(seed: int, kind: str = "FDT") -> dict[str, float]:
    """Trains and measures; see `train` and `measure`."""
    return measure(train(seed, kind))
