"""Assignment: which units become one by a similarity matrix, by align or by zip.

Decisions are taken on the host, by scipy and numpy, so that they are the same on
every accelerator.
"""

import numpy as np
from jaxtyping import Float, Int

from jmudsc.matching.multi_model import align_to, check_reference
from jmudsc.matching.zip import greedy_zip


def align(
    similarity: Float[np.ndarray, "stacked stacked"],
    models: int,
    reference: str = "first",
) -> Int[np.ndarray, "models units"]:
    """Match the units of every model one-to-one with those of all others.

    Linear assignment (Git Re-Basin, Ainsworth et al. 2023, arXiv:2209.04836, section
    3.1), maximising the sum of similarities between model 0 and each other model; for
    more than two models other references may serve better, see `align_to`.

    Args:
        similarity: larger is more alike; the units of all models stacked, model 0
            first. Only the blocks above the diagonal ones are looked at.
        models: number of models stacked.
        reference: `first`, `mean` or `universe`; the same for two models.

    Returns:
        The merged unit that each unit of each model goes to; model 0 stays in place.

    Raises:
        ValueError: if `similarity` is not square, not finite, or does not divide into
            `models` blocks, or there is no such reference.

    Example:
        >>> s = np.eye(4)[[0, 1, 3, 2]].astype("float32")
        >>> s[0, 3] = s[1, 2] = 0.9
        >>> align(s, 2)
        array([[0, 1],
               [1, 0]], dtype=int32)
    """
    check_reference("align", reference)
    similarity = _checked("align", similarity, models)
    units = len(similarity) // models
    blocks = similarity.reshape(models, units, models, units)
    return align_to(reference, lambda i, j: blocks[i, :, j], models, units)


def zip_units(
    similarity: Float[np.ndarray, "stacked stacked"],
    models: int,
    a: float = 0.5,
    b: float = 1.0,
) -> Int[np.ndarray, "models units"]:
    """Merge the most similar units, of two models or of one, until one width is left.

    The greedy matching of ZipIt (Stoica et al. 2024, arXiv:2305.03053, section 4.2).
    The most similar allowed pair i < j is merged: j joins i, which keeps its model and
    whose similarity to any other unit becomes the smaller of the two, times `a`. Ties
    go to the first pair in row-major order. Row maxima are cached, so that the time is
    O(units^2) in practice.

    Args:
        similarity: symmetric, larger is more alike; the units of all models stacked.
        models: number of models stacked.
        a: decay of a merged unit's similarities, in [0, 1].
        b: share of a model's merges that it may spend on pairs of its own units, in
            [0, 1]; with 0 every merge is between models.

    Returns:
        The merged unit that each unit of each model goes to; merged units are numbered
        in the order of their first member.

    Raises:
        ValueError: if `similarity` is not square, not finite, not symmetric, or does
            not divide into `models` blocks, or if `a` or `b` is outside [0, 1].
    """
    similarity = _checked("zip_units", similarity, models)
    if not _symmetric(similarity):
        raise ValueError(
            "zip_units: expected a symmetric similarity, got one that is not. Pass "
            "(similarity + similarity.T) / 2."
        )
    for name, value in (("a", a), ("b", b)):
        if not 0 <= value <= 1:
            raise ValueError(
                f"zip_units: expected {name} in [0, 1], got {value}. Leave it out for "
                "the usual value."
            )
    total = len(similarity)
    units = total // models
    root = greedy_zip(similarity, models, similarity.dtype.type(a), b)
    numbers = np.cumsum(root == np.arange(total)) - 1
    return numbers[root].astype(np.int32).reshape(models, units)


def _symmetric(matrix: np.ndarray, tile: int = 128) -> bool:
    """Compare with the transpose tile by tile, several times as fast as all at once."""
    starts = range(0, len(matrix), tile)
    return all(
        np.array_equal(
            matrix[i : i + tile, j : j + tile], matrix[j : j + tile, i : i + tile].T
        )
        for i in starts
        for j in starts[: i // tile + 1]
    )


def _checked(where: str, similarity: np.ndarray, models: int) -> np.ndarray:
    similarity = np.asarray(similarity)
    shape = similarity.shape
    if len(shape) != 2 or shape[0] != shape[1] or models < 1 or shape[0] % models:
        raise ValueError(
            f"{where}: expected a similarity of shape (models*units, models*units) for "
            f"{models} models, got {shape}. Stack the units of all models."
        )
    if not np.issubdtype(similarity.dtype, np.floating):
        similarity = similarity.astype(np.float32)
    if not np.isfinite(similarity).all():
        count = int((~np.isfinite(similarity)).sum())
        raise ValueError(
            f"{where}: expected finite similarities, got {count} of {similarity.size} "
            "that are NaN or infinite. Give units that never change similarity 0."
        )
    return similarity
