"""The shapes laboratory: scenes of which everything is known.

A scene holds one to three objects on a varied background. Each object has five attributes, and a
caption names as many of them as its level of detail allows:

    detail 1   shape                      a star and a ring
    detail 2   + colour                   a green star and a red ring
    detail 3   + size and texture         a small striped green star and ...
    detail 4   + position                 a small striped green star at top left and ...

The picture always shows all of them. That is the point: what a caption leaves out is known, and
so are the mask and the attributes of each object, for measurement and never for training.

Same seed, same bytes, on every machine: randomness is the raw stream of PCG64 (which NumPy
promises to keep), pixels are integers, and the outlines use only operations that IEEE 754 rounds
exactly. Row i does not depend on how many rows are drawn, nor the pictures on the captions.
"""

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mmcl_core.batches import Batch, BatchDataset, Indices, index, row_of
from mmcl_core.data.drawing import (
    ATTRIBUTES,
    SCENES,
    SENTENCES,
    VALUES,
    coverage,
    place,
    render,
    uniform,
)
from mmcl_core.data.tokenizer import WordTokenizer
from mmcl_core.errors import DataError, MMCLError, check_count

NAMED_AT_DETAIL = {1: ATTRIBUTES[:1], 2: ATTRIBUTES[:2], 3: ATTRIBUTES[:4], 4: ATTRIBUTES}

SYNONYMS = {
    "circle": "disc", "square": "box", "triangle": "wedge", "cross": "plus", "ring": "hoop",
    "red": "crimson", "orange": "amber", "yellow": "golden", "green": "emerald", "blue": "azure",
    "purple": "violet", "small": "little", "large": "big", "solid": "plain", "striped": "banded",
    "dotted": "spotted", "top": "upper", "bottom": "lower",
}  # fmt: skip
OPENINGS = ("", "there is", "we see", "a picture of")


def _word_list() -> list[str]:
    spoken = [w for values in VALUES.values() for value in values for w in value.split()]
    grammar = [w for opening in OPENINGS for w in opening.split()] + ["a", "an", "and", "at"]
    return sorted({*spoken, *SYNONYMS.values(), *grammar})


WORDS = tuple(_word_list())


class ShapesCaptions(BatchDataset):
    """Scenes of shapes with captions, tags, masks and attributes.

    A batch has "image", "caption" (the first sentence), "tags" and "index".

    Args:
        n: number of scenes.
        seed: non-negative. The same seed gives the same bytes.
        size: side of the square pictures in pixels; even, at least 24.
        detail: 1 to 4, how much the captions say.
        objects: smallest and largest number of objects in a scene, 1 to 4.
        sentences: sentences for each scene; they mean the same and differ in words and order.
        tags: the attributes that become tags, one entry for each value; none, and batches have no
            tags.
        synonyms: whether a sentence may say "disc" for "circle", "crimson" for "red", and so on.
        attributes: draw these scenes instead of random ones: name -> integers `[N, O]`, -1 where
            there is no object. All five names; `n` and `objects` are then ignored.

    Attributes:
        images: uint8 `[N, 3, size, size]`.
        sentences: int64 `[N, S, L]`, word numbers, 0 is padding.
        tags: float32 `[N, T]`, 1 where some object has the value; names in `tag_names`.
        named: the attributes that the captions name.
        attributes: name -> int64 `[N, O]`, -1 where there is no object.
        rows: int64 `[N]`, the number of each scene among those that were drawn.

    Raises:
        MMCLError: an argument is out of its range.
        DataError: an attribute is unknown or has an impossible value.
    """

    _each = ("images", "sentences", "tags", "attributes", "_placed")

    def __init__(
        self,
        n: int = 6000,
        *,
        seed: int = 0,
        size: int = 48,
        detail: int = 4,
        objects: tuple[int, int] = (1, 3),
        sentences: int = 5,
        tags: Sequence[str] = ("shape", "colour"),
        synonyms: bool = True,
        attributes: Mapping[str, np.ndarray | Tensor | Sequence[Sequence[int]]] | None = None,
    ) -> None:
        size, n = check_count("size", size), check_count("n", n)
        seed, sentences = check_count("seed", seed, 0), check_count("sentences", sentences)
        if size < 24 or size % 2:
            raise MMCLError(f"size must be an even number of pixels, at least 24; got {size}")
        if detail not in NAMED_AT_DETAIL:
            raise MMCLError(f"detail must be 1, 2, 3 or 4; got {detail!r}")
        if not 1 <= objects[0] <= objects[1] <= 4:
            raise MMCLError(
                f"objects must be (low, high) with 1 <= low <= high <= 4; got {objects}"
            )
        for name in tags:
            _known_attribute(name)
        self.seed, self.size, self.detail, self.synonyms = seed, size, detail, synonyms
        self.named = NAMED_AT_DETAIL[detail]
        self.tokenizer = WordTokenizer(WORDS)
        scenes = _draw_scenes(n, seed, objects) if attributes is None else _checked(attributes)
        self.rows = torch.arange(len(scenes["shape"]))
        self._placed = place(scenes, seed, size)
        self.images = torch.from_numpy(render(scenes, self._placed, seed, size))
        self.attributes = {k: torch.from_numpy(v.astype(np.int64)) for k, v in scenes.items()}
        self.sentences = self._write(sentences)
        self.tag_names = tuple(value for name in tags for value in VALUES[name])
        none = torch.zeros(len(self), 0)
        self.tags = torch.cat([none, *(self._multi_hot(name) for name in tags)], dim=1)

    # -- as a data set ---------------------------------------------------------------------------

    def _read(self, rows: Tensor) -> Batch:
        """`image`, `caption` (the first sentence), and `tags` if there are some."""
        batch = {"image": self.images[rows].float().div_(255), "caption": self.sentences[rows, 0]}
        return {**batch, "tags": self.tags[rows]} if self.tag_names else batch

    def text(self, i: int, sentence: int = 0) -> str:
        """A sentence of scene `i` in words."""
        told = self.sentences[row_of(i, len(self))]
        return self.tokenizer.decode(told[row_of(sentence, len(told))])

    def with_detail(self, detail: int) -> "ShapesCaptions":
        """The same scenes, told at another level of detail."""
        if detail not in NAMED_AT_DETAIL:
            raise MMCLError(f"detail must be 1, 2, 3 or 4; got {detail!r}")
        return self._told(NAMED_AT_DETAIL[detail], detail)

    def without(self, attribute: str) -> "ShapesCaptions":
        """The same scenes, told without one attribute: no "small" and "large", for example.

        What else the sentences say stays as it is, even where grammar would want another word
        ("a small striped green at top left", without the shape).

        Raises:
            DataError: the attribute is unknown, or the captions do not name it or nothing else.
        """
        _known_attribute(attribute)
        named = tuple(name for name in self.named if name != attribute)
        if not named or attribute not in self.named:
            raise DataError(
                f"expected captions that name {attribute} and something else; these name "
                f"{', '.join(self.named)}"
            )
        return self._told(named, self.detail)

    def _told(self, named: tuple[str, ...], detail: int) -> "ShapesCaptions":
        other = copy.copy(self)
        other.named, other.detail = named, detail
        other.sentences = other._write(self.sentences.shape[1])
        return other

    # -- what is known of a scene ----------------------------------------------------------------

    def masks(self, indices: Indices) -> Tensor:
        """Which pixels each object covers: bool `[n, O, size, size]`, all False for no object."""
        rows = index(indices, len(self)).numpy()
        scenes = {k: v.numpy()[rows] for k, v in self.attributes.items()}
        placed = {k: v[rows] for k, v in self._placed.items()}
        (n, slots), half = scenes["shape"].shape, self.size // 2
        canvas = np.zeros((n, slots, 2, half, 2, half), dtype=bool)
        for slot in range(slots):
            row = np.flatnonzero(scenes["shape"][:, slot] >= 0)
            down, right = np.divmod(scenes["position"][row, slot], 2)
            canvas[row, slot, down, :, right, :] = coverage(scenes, placed, row, slot, half) >= 64
        return torch.from_numpy(canvas.reshape(n, slots, self.size, self.size))

    def meaning(self, detail: int | None = None) -> Tensor:
        """Number scenes by what a caption of that detail says of them: int64 `[N]`.

        Two scenes have the same number when their objects agree in every attribute that is named
        at this detail (None: in these captions), in whichever order and words.
        """
        code = torch.zeros_like(self.attributes["shape"])
        for name in self.named if detail is None else NAMED_AT_DETAIL[detail]:
            code = code * (len(VALUES[name]) + 1) + self.attributes[name] + 1
        return torch.unique(code.sort(dim=1).values, dim=0, return_inverse=True)[1]

    def compositional_split(
        self, held_out: Sequence[tuple[str, str]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Indices of the scenes without and with a held-out pair of (shape, colour).

        The default holds out one colour of each shape, so that every shape and every colour is
        seen in training, but never these six together.
        """
        pairs = list(zip(VALUES["shape"], VALUES["colour"], strict=True))
        pairs = pairs if held_out is None else list(held_out)
        has_pair = torch.zeros(len(self), dtype=torch.bool)
        for shape, colour in pairs:
            is_shape = self.attributes["shape"] == _value_index("shape", shape)
            is_colour = self.attributes["colour"] == _value_index("colour", colour)
            has_pair |= (is_shape & is_colour).any(dim=1)
        return (~has_pair).nonzero().flatten(), has_pair.nonzero().flatten()

    @classmethod
    def colliding(
        cls, n: int, *, seed: int = 0, size: int = 48, detail: int = 4, synonyms: bool = True
    ) -> tuple["ShapesCaptions", "ShapesCaptions"]:
        """Two data sets whose rows i hold the same words, bound differently.

        "a red circle and a blue square" in the first is "a blue circle and a red square" in the
        second. Two objects of different shape and colour, same size and texture; places,
        backgrounds and sentences are equal. Needs detail 2 or more: shape words alone do not
        tell the two apart.
        """
        if detail < 2:
            raise MMCLError(
                f"colliding bags need captions that name colours (detail 2 to 4); got {detail}"
            )
        scenes = _draw_scenes(n, seed, (2, 2))
        for name in ("shape", "colour"):  # step past the first object's value: surely different
            first, second = scenes[name].T
            kinds = len(VALUES[name])
            scenes[name][:, 1] = (first + 1 + second % (kinds - 1)) % kinds
        for name in ("size", "texture"):
            scenes[name][:, 1] = scenes[name][:, 0]
        swapped = scenes | {"colour": scenes["colour"][:, ::-1].copy()}
        one, other = (
            cls(seed=seed, size=size, detail=detail, synonyms=synonyms, attributes=each)
            for each in (scenes, swapped)
        )
        return one, other

    # -- writing ---------------------------------------------------------------------------------

    def _multi_hot(self, name: str) -> Tensor:
        kinds = torch.arange(len(VALUES[name]))
        return (self.attributes[name][:, :, None] == kinds).any(dim=1).float()

    def _write(self, count: int) -> Tensor:
        """All sentences at once: fill a table of word slots, then push the empty ones out."""
        scenes = {k: v.numpy() for k, v in self.attributes.items()}
        n, slots = scenes["shape"].shape
        number = {w: i for i, w in enumerate(self.tokenizer.words, start=4)} | {"": 0}
        # One choice of synonym for each word and sentence: two red objects are both "crimson".
        draws = 1 + slots + len(SYNONYMS)
        u = uniform(self.seed, SENTENCES, (int(self.rows.max()) + 1, count, draws))[
            self.rows.numpy()
        ]

        def say(name: str, part: int = 0) -> np.ndarray:
            """Word numbers `[n, S, O]` of one attribute, synonyms drawn; 0 where not named."""
            said = np.zeros((n, count, slots), dtype=np.int64)
            if name not in self.named:
                return said
            for value, phrase in enumerate(VALUES[name]):
                word = phrase.split()[part]
                chosen = np.full((n, count, 1), number[word])
                if self.synonyms and word in SYNONYMS:
                    draw = u[:, :, 1 + slots + list(SYNONYMS).index(word), None]
                    chosen = np.where(draw < 0.5, chosen, number[SYNONYMS[word]])
                said = np.where(scenes[name][:, None, :] == value, chosen, said)
            return said

        size, texture, colour, shape = map(say, ("size", "texture", "colour", "shape"))
        down, right = say("position", 0), say("position", 1)
        there = np.broadcast_to(scenes["shape"][:, None] >= 0, shape.shape)
        first = shape
        for word in (colour, texture, size):  # backwards from the last word said
            first = np.where(word > 0, word, first)
        vowels = [number[w] for w in self.tokenizer.words if w[0] in "aeiou"]
        article = np.where(np.isin(first, vowels), number["an"], number["a"])
        article = np.where(there, article, 0)
        at = np.where(down > 0, number["at"], 0)
        join = np.where(there, number["and"], 0)
        phrase = np.stack([join, article, size, texture, colour, shape, at, down, right], axis=-1)

        # Objects in a drawn order, those that are not there last.
        order = np.argsort(u[:, :, 1 : 1 + slots] + 2 * ~there, axis=-1, kind="stable")
        phrase = np.take_along_axis(phrase, order[..., None], axis=2)
        phrase[:, :, 0, 0] = 0  # no "and" before the first
        opening = np.zeros((len(OPENINGS), 3), dtype=np.int64)
        for i, words in enumerate(OPENINGS):
            opening[i, : len(words.split())] = [number[w] for w in words.split()]
        chosen = opening[(u[:, :, 0] * len(OPENINGS)).astype(int)]
        one = np.ones((n, count, 1), dtype=np.int64)
        table = np.concatenate([one, chosen, phrase.reshape(n, count, -1), 2 * one], axis=-1)
        table = np.take_along_axis(table, np.argsort(table == 0, axis=-1, kind="stable"), axis=-1)
        return torch.from_numpy(table)


def _known_attribute(name: str) -> None:
    if name not in VALUES:
        raise DataError(f"unknown attribute {name!r}; known are {', '.join(ATTRIBUTES)}")


def _value_index(name: str, value: str) -> int:
    if value not in VALUES[name]:
        raise DataError(f"unknown {name} {value!r}; known are {', '.join(VALUES[name])}")
    return VALUES[name].index(value)


def _draw_scenes(n: int, seed: int, objects: tuple[int, int]) -> dict[str, np.ndarray]:
    """Random attributes, int64 `[n, O]`, -1 where there is no object. Places are distinct."""
    slots = objects[1]
    u = uniform(seed, SCENES, (n, 1 + 4 + 4 * 4))  # four slots, so that O changes no draw
    count = objects[0] + (u[:, 0] * (objects[1] - objects[0] + 1)).astype(np.int64)
    scenes = {
        name: (u[:, 5 + 4 * i : 5 + 4 * i + slots] * len(VALUES[name])).astype(np.int64)
        for i, name in enumerate(ATTRIBUTES[:4])
    }
    scenes["position"] = np.argsort(u[:, 1:5], axis=1, kind="stable")[:, :slots]
    absent = np.arange(slots) >= count[:, None]
    return {name: np.where(absent, -1, values) for name, values in scenes.items()}


def _checked(
    attributes: Mapping[str, np.ndarray | Tensor | Sequence[Sequence[int]]],
) -> dict[str, np.ndarray]:
    """Attributes that a caller gave, as int64 arrays of one shape, their values possible."""
    for name in attributes:
        _known_attribute(name)
    if missing := [name for name in ATTRIBUTES if name not in attributes]:
        raise DataError(f"attributes needs all of {', '.join(ATTRIBUTES)}; {missing} not given")
    scenes = {name: np.array(attributes[name], dtype=np.int64) for name in ATTRIBUTES}
    shape = scenes["shape"].shape
    for name, values in scenes.items():
        if values.ndim != 2 or values.shape != shape or not 1 <= shape[1] <= 4 or not len(values):
            raise DataError(
                "attributes must all be [N, O] of one shape, O from 1 to 4; "
                f"{name} is {list(values.shape)}, shape is {list(shape)}"
            )
        if values.min() < -1 or values.max() >= len(VALUES[name]):
            raise DataError(
                f"{name} must lie in -1 to {len(VALUES[name]) - 1}; "
                f"got {values.min()} to {values.max()}"
            )
        if ((values < 0) != (scenes["shape"] < 0)).any():
            raise DataError(f"{name} and shape disagree on which objects are there (-1 is absent)")
    taken = np.sort(scenes["position"], axis=1)
    if ((taken[:, 1:] == taken[:, :-1]) & (taken[:, 1:] >= 0)).any():
        row = int(np.argmax(((taken[:, 1:] == taken[:, :-1]) & (taken[:, 1:] >= 0)).any(axis=1)))
        raise DataError(f"two objects of scene {row} have the same position; it holds one each")
    if (scenes["shape"] < 0).all(axis=1).any():
        raise DataError("every scene needs at least one object")
    return scenes
