"""The simple rivals on frozen features: closed forms between features of pictures and tf-idf.

Ridge regression from pictures to captions, and canonical correlation analysis (CCA) of both.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from mmcl_core.data import CaptionFolder
from mmcl_core.data.tokenizer import split_words
from mmcl_core.features import FeatureCaptions


class Rival(NamedTuple):
    """A closed form: what it makes of mean features [N, F], and of texts."""

    image: Callable[[np.ndarray], np.ndarray]
    caption: Callable[[Sequence[str]], np.ndarray]


@lru_cache(maxsize=4)
def reduced(data: CaptionFolder, dims: int) -> tuple[Any, Any, np.ndarray]:
    """tf-idf and its reduction, and that of the training pictures, all captions as one text."""
    words = TfidfVectorizer(analyzer=split_words, min_df=2, sublinear_tf=True)
    whole = words.fit_transform([" ".join(data.captions(i)) for i in range(len(data))])
    svd = TruncatedSVD(min(dims, whole.shape[1] - 1), random_state=0)
    kept = svd.fit_transform(whole)
    return words, svd, kept


def _tf_idf(data: CaptionFolder, dims: int) -> tuple[Any, np.ndarray]:
    """Texts to reduced tf-idf, and that of the training pictures."""
    words, svd, kept = reduced(data, dims)
    return (lambda texts: svd.transform(words.transform(list(texts)))), kept


def numbers(data: FeatureCaptions) -> np.ndarray:
    """The features of all pictures, float64 [N, F]."""
    return data.batch(range(len(data)))["image"].double().numpy()


def ridge(data: FeatureCaptions, *, dims: int, alpha: float) -> Rival:
    """From mean features to tf-idf, by least squares with a penalty.

    Args:
        data: standardised features.
        dims: to which tf-idf is reduced.
        alpha: the penalty, times the number of pictures.
    """
    texts, y = _tf_idf(data, dims)
    x, middle = numbers(data), y.mean(0)
    normal = x.T @ x + alpha * len(x) * np.eye(x.shape[1])
    to_text = np.linalg.solve(normal, x.T @ (y - middle))
    return Rival(lambda f: f @ to_text, lambda t: texts(t) - middle)


def cca(data: FeatureCaptions, *, dims: int, alpha: float, kept: int, power: float) -> Rival:
    """Directions of features and of tf-idf that agree most, both penalised.

    Args:
        data: standardised features.
        dims: to which tf-idf is reduced before.
        alpha: penalty of both, as a share of the mean variance.
        kept: number of directions.
        power: of its correlation, by which each direction is weighted.
    """
    texts, y = _tf_idf(data, dims)
    x, middle = numbers(data), y.mean(0)
    y = y - middle

    def whitening(z: np.ndarray) -> np.ndarray:
        cov = z.T @ z / len(z)
        cov += alpha * np.trace(cov) / len(cov) * np.eye(len(cov))
        values, vectors = np.linalg.eigh(cov)
        return vectors / np.sqrt(values) @ vectors.T

    one, other = whitening(x), whitening(y)
    left, strength, right = np.linalg.svd(one @ (x.T @ y / len(x)) @ other, full_matrices=False)
    weight = strength[:kept] ** power
    a, b = one @ left[:, :kept] * weight, other @ right[:kept].T * weight
    return Rival(lambda f: f @ a, lambda t: (texts(t) - middle) @ b)
