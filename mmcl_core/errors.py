"""The errors that `mmcl_core` raises on bad input.

Every message says what was expected, what came, and, where it helps, what to do. All of them are
`ValueError`s, so that code which knows nothing of this library can still catch them.
"""


class MMCLError(ValueError):
    """Base of the family: an argument has a value that cannot be used."""


class ShapeError(MMCLError):
    """A tensor has the wrong shape, type or device, or a batch is too small."""


class MissingModalityError(MMCLError):
    """A method was handed a batch without a modality that it needs."""


class DataError(MMCLError):
    """A file, a row or a caption cannot be used."""


class CheckpointError(MMCLError):
    """A checkpoint cannot be read, or belongs to another method."""
