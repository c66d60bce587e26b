"""Measures of embeddings: retrieval, zero-shot, probes, missing modalities, shape of the space.

Functions take embeddings, or a method and data, and return floats or small dataclasses; none
plots. Embeddings are compared by their cosine: each row is brought to unit norm first, which
changes nothing for what `method.embed` returns.
"""

from mmcl_core.evaluation.embedding import embed_all
from mmcl_core.evaluation.missing import (
    Closeness,
    MissingModality,
    accuracy_at_rate,
    missing_modality,
    partial_to_complete,
)
from mmcl_core.evaluation.pointing import Pointing, pointing_game
from mmcl_core.evaluation.probes import Probe, linear_probe
from mmcl_core.evaluation.prompts import ZeroShot, zero_shot
from mmcl_core.evaluation.retrieval import recall_at_k
from mmcl_core.evaluation.space import alignment, cone, modality_gap, shift_gap, uniformity

__all__ = [
    "Closeness",
    "MissingModality",
    "Pointing",
    "Probe",
    "ZeroShot",
    "accuracy_at_rate",
    "alignment",
    "cone",
    "embed_all",
    "linear_probe",
    "missing_modality",
    "modality_gap",
    "partial_to_complete",
    "pointing_game",
    "recall_at_k",
    "shift_gap",
    "uniformity",
    "zero_shot",
]
