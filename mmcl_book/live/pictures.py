"""A scene of the laboratory as `draw.js` takes it: numbers, from which the same bytes are drawn."""

from base64 import b64encode
from typing import Any

import numpy as np

from mmcl_core.data import ShapesCaptions
from mmcl_core.data.drawing import ATTRIBUTES, NOISE, raw_stream


def scene(data: ShapesCaptions, i: int = 0) -> dict[str, Any]:
    """Scene `i` as JSON: its objects, its background and the noise on it, as base64."""
    placed = {name: values[i] for name, values in data._placed.items()}
    there = np.flatnonzero(data.attributes["shape"][i].numpy() >= 0)
    objects = [
        {name: int(data.attributes[name][i, slot]) for name in ATTRIBUTES}
        | {"radius": int(placed["radius"][slot])}
        | {name: placed[name][slot].tolist() for name in ("shift", "tint", "phase")}
        for slot in there
    ]
    size, row = data.size**2, int(data.rows[i])
    raw = raw_stream(data.seed, NOISE, -(-(row + 1) * size // 8)).astype("<u8").view(np.int8)
    noise = raw[row * size : (row + 1) * size] >> np.int8(4)
    return {
        "objects": objects,
        "ground": placed["ground"].tolist(),
        "slope": placed["slope"].tolist(),
        "noise": b64encode(noise.tobytes()).decode(),
    }
