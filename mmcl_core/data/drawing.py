"""How a scene of the shapes laboratory is drawn: attributes in, pixels out.

Integers only, apart from outlines, which use nothing but operations that IEEE 754 rounds exactly:
the same attributes give the same bytes on every machine.
"""

from functools import lru_cache

import numpy as np

VALUES: dict[str, tuple[str, ...]] = {
    "shape": ("circle", "square", "triangle", "star", "cross", "ring"),
    "colour": ("red", "orange", "yellow", "green", "blue", "purple"),
    "size": ("small", "large"),
    "texture": ("solid", "striped", "dotted"),
    "position": ("top left", "top right", "bottom left", "bottom right"),
}
ATTRIBUTES = tuple(VALUES)

_RGB = np.array(
    [[214, 40, 40], [245, 130, 32], [245, 215, 50], [50, 165, 75], [40, 95, 220], [140, 60, 180]],
    dtype=np.int16,
)
# Radii as shares of half the picture's side: three small ones, three large ones.
_RADII = (0.25, 0.28, 0.31, 0.38, 0.41, 0.44)
# Independent random streams of one seed.
SCENES, PLACES, NOISE, SENTENCES = 0, 1, 2, 3


def raw_stream(seed: int, stream: int, n: int) -> np.ndarray:
    """`n` raw 64-bit numbers of one stream."""
    bits = np.random.PCG64(np.random.SeedSequence([seed, stream]))
    return np.asarray(bits.random_raw(n))


def uniform(seed: int, stream: int, shape: tuple[int, ...]) -> np.ndarray:
    """Float64 in [0, 1), drawn row by row: the first rows do not depend on the number of rows."""
    raw = raw_stream(seed, stream, int(np.prod(shape)))
    return ((raw >> np.uint64(11)) * 2.0**-53).reshape(shape)


def _outline(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points (x right, y down, in radii) lie inside of the shape."""
    r2 = x * x + y * y
    if shape == "circle":
        return r2 <= 1.0
    if shape == "ring":
        return (r2 <= 1.0) & (r2 >= 0.3)
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 0.86
    if shape == "cross":
        return (np.minimum(abs(x), abs(y)) <= 0.32) & (np.maximum(abs(x), abs(y)) <= 1.0)
    if shape == "triangle":
        return (y <= 0.8) & (1.8 * abs(x) <= y + 1.0)
    # Star: five points, as the even-odd rule over its ten corners. Literal numbers, as sin and
    # cos may differ in the last bit from machine to machine.
    tips = [(0.0, -1.08), (1.027, -0.334), (0.635, 0.874), (-0.635, 0.874), (-1.027, -0.334)]
    dents = [(0.27, -0.371), (0.436, 0.142), (0.0, 0.459), (-0.436, 0.142), (-0.27, -0.371)]
    corners = [point for pair in zip(tips, dents, strict=True) for point in pair]
    inside = np.zeros(x.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside


@lru_cache(maxsize=4)
def _stencils(half: int) -> np.ndarray:
    """Coverage 0..128 of every shape at every radius: int16 `[6, 6, half, half]`, anti-aliased."""
    fine = 4
    at = (np.arange(half * fine) + 0.5) / fine - half / 2
    y, x = np.meshgrid(at, at, indexing="ij")
    drawn = [[_outline(s, x / (r * half), y / (r * half)) for r in _RADII] for s in VALUES["shape"]]
    blocks = np.array(drawn).reshape(6, 6, half, fine, half, fine)
    return (blocks.sum(axis=(3, 5)) * (128 // fine**2)).astype(np.int16)


def place(scenes: dict[str, np.ndarray], seed: int, size: int) -> dict[str, np.ndarray]:
    """Radius, shift within its quarter, colour jitter and phase of each object, and backgrounds."""
    n, slots = scenes["shape"].shape
    u = uniform(seed, PLACES, (n, 6 + 4 * 8))
    each = u[:, 6:].reshape(n, 4, 8)[:, :slots]
    radius = 3 * np.maximum(scenes["size"], 0) + (each[:, :, 0] * 3).astype(np.int64)
    room = np.array([size // 4 - int(np.ceil(1.1 * r * (size // 2))) - 1 for r in _RADII])
    room = np.maximum(room, 0)[radius][:, :, None]
    return {
        "radius": radius,
        "shift": (each[:, :, 1:3] * (2 * room + 1)).astype(np.int64) - room,
        "tint": (each[:, :, 3:6] * 33).astype(np.int16) - np.int16(16),
        "phase": (each[:, :, 6:8] * 64).astype(np.int64),
        "ground": (u[:, :3] * 31).astype(np.int16) + (60 + u[:, 3:4] * 140).astype(np.int16),
        "slope": (u[:, 4:6] * 81).astype(np.int16) - np.int16(40),
    }


def coverage(
    scenes: dict[str, np.ndarray],
    placed: dict[str, np.ndarray],
    row: np.ndarray,
    slot: int,
    half: int,
) -> np.ndarray:
    """Coverage 0..128 of object `slot` in the quarter of scenes `row`: int16 `[k, half, half]`."""
    # A shape never reaches the border of its stencil, so a cyclic shift moves it whole.
    steps = np.arange(half)
    down = (steps - placed["shift"][row, slot, 0, None]) % half
    right = (steps - placed["shift"][row, slot, 1, None]) % half
    shape, radius = scenes["shape"][row, slot], placed["radius"][row, slot]
    flat = ((shape * 6 + radius)[:, None] * half + down) * half
    return _stencils(half).ravel()[flat[:, :, None] + right[:, None, :]]


def render(
    scenes: dict[str, np.ndarray], placed: dict[str, np.ndarray], seed: int, size: int
) -> np.ndarray:
    """Draw all scenes: uint8 `[N, 3, size, size]`. Integers only; a few hundred scenes at a time
    stay in the processor's cache."""
    n, slots = scenes["shape"].shape
    # With a period of 2 pixels, diagonal stripes are a chessboard, and any crop wipes them out.
    half, period = size // 2, max(size // 12, 4)
    noise = raw_stream(seed, NOISE, -(-n * size * size // 8)).astype("<u8").view(np.int8)
    noise = noise[: n * size * size].reshape(n, 1, size, size) >> np.int8(4)  # -8 to 7
    ramp = (2 * np.arange(size, dtype=np.int16) - np.int16(size - 1)).astype(np.int32)
    steps = np.arange(half + 64)
    stripe = (steps[:, None] + steps) % period < period / 2
    dot = (steps[:, None] % period < period / 2) & (steps % period < period / 2)
    inked = np.stack([np.zeros_like(dot), stripe, dot])
    images = np.empty((n, 3, size, size), dtype=np.uint8)
    for start in range(0, n, 256):
        some = slice(start, start + 256)
        slope = placed["slope"][some].astype(np.int32)
        tilt = (slope[:, :1, None] * ramp[:, None] + slope[:, 1:, None] * ramp) // size
        canvas = placed["ground"][some][:, :, None, None] + noise[some]
        canvas = np.clip(canvas + tilt[:, None].astype(np.int16), 0, 255)
        quarters = canvas.reshape(-1, 3, 2, half, 2, half)
        for slot in range(slots):
            row = start + np.flatnonzero(scenes["shape"][some, slot] >= 0)
            colour = np.clip(_RGB[scenes["colour"][row, slot]] + placed["tint"][row, slot], 0, 255)
            phase = placed["phase"][row, slot]
            texture = scenes["texture"][row, slot, None, None]
            down = (phase[:, :1] + np.arange(half))[:, :, None]
            ink = inked[texture, down, (phase[:, 1:] + np.arange(half))[:, None, :]][:, None]
            paint = np.where(ink, colour[:, :, None, None] // 3, colour[:, :, None, None])
            cover = coverage(scenes, placed, row, slot, half)[:, None]
            top, left = np.divmod(scenes["position"][row, slot], 2)
            under = quarters[row - start, :, top, :, left, :]
            quarters[row - start, :, top, :, left, :] = under + ((paint - under) * cover >> 7)
        images[some] = canvas
    return images
