"""From a similarity matrix to an assignment: one-to-one (align) or greedy (zip).

Decisions are taken on the host, by scipy and numpy, so that they are the same on
every accelerator.
"""

import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment


def align(
    similarity: Float[np.ndarray, "stacked stacked"], models: int
) -> Int[np.ndarray, "models units"]:
    """Match the units of every model one-to-one with those of the first.

    Linear assignment (Git Re-Basin, Ainsworth et al. 2023, arXiv:2209.04836, section
    3.1) maximising the sum of similarities between model 0 and each other model.

    Args:
        similarity: larger is more alike; the units of all models stacked, model 0
            first.
        models: number of models stacked.

    Returns:
        The merged unit that each unit of each model goes to; model 0 stays in place.

    Raises:
        ValueError: if `similarity` is not square, not finite, or does not divide into
            `models` blocks.

    Example:
        >>> s = np.eye(4)[[0, 1, 3, 2]].astype("float32")
        >>> s[0, 3] = s[1, 2] = 0.9
        >>> align(s, 2)
        array([[0, 1],
               [1, 0]], dtype=int32)
    """
    similarity = _checked("align", similarity, models)
    units = len(similarity) // models
    result = np.tile(np.arange(units, dtype=np.int32), (models, 1))
    for model in range(1, models):
        block = similarity[:units, model * units : (model + 1) * units]
        rows, columns = linear_sum_assignment(block, maximize=True)
        result[model, columns] = rows
    return result


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
    O(units^2) where the matrix has a typical number of competing maxima.

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
    if not np.array_equal(similarity, similarity.T):
        raise ValueError(
            "zip_units: similarity is not symmetric, it must be; pass "
            "(similarity + similarity.T) / 2."
        )
    for name, value in (("a", a), ("b", b)):
        if not 0 <= value <= 1:
            raise ValueError(f"zip_units: {name} is {value}, it must be in [0, 1].")
    total = len(similarity)
    units = total // models
    root = _greedy(similarity, models, similarity.dtype.type(a), b)
    numbers = np.cumsum(root == np.arange(total)) - 1
    return numbers[root].astype(np.int32).reshape(models, units)


def _greedy(
    similarity: np.ndarray, models: int, a: np.floating, b: float
) -> np.ndarray:
    """Return the smallest member of each unit's cluster.

    Row k's cached maximum is over its later partners only, so every pair is held once,
    by its smaller unit. Units that have joined another are -inf in rows and columns.
    """
    total = len(similarity)
    units = total // models
    s = similarity.copy()
    alive = np.ones(total, bool)
    into = np.arange(total)
    budget = np.full(models, math.floor(b * ((total - units) // models)))
    # Row k's partners start after k, or after its whole model once that is spent.
    ends = (into // units + 1) * units
    starts = np.where(budget[into // units] > 0, into + 1, ends)
    best, partner = np.full(total, -np.inf, s.dtype), np.full(total, total)
    _rescan(s, alive, starts, best, partner, range(total))
    for _ in range(total - units):
        i = int(best.argmax())
        j = int(partner[i])
        into[j], alive[j], best[j] = i, False, -np.inf
        joined = np.minimum(s[i], s[j])
        joined *= a
        s[i] = s[:, i] = joined
        stale = (partner == j) | (partner == i)
        stale[i] = True
        if j < ends[i]:  # a merge inside one model
            model = i // units
            budget[model] -= 1
            if budget[model] == 0:
                starts[model * units : ends[i]] = ends[i]
                stale[model * units : ends[i]] = True
        stale &= alive
        _raise(joined, starts, best, partner, i, alive ^ stale)
        _rescan(s, alive, starts, best, partner, stale.nonzero()[0])
    for unit in range(total):
        into[unit] = into[into[unit]]
    return into


def _raise(
    new: np.ndarray,
    starts: np.ndarray,
    best: np.ndarray,
    partner: np.ndarray,
    i: int,
    rows: np.ndarray,
) -> None:
    """Let the new similarities to unit i take over where they beat a row's maximum."""
    new, best, partner = new[:i], best[:i], partner[:i]
    wins = (new > best) | ((new == best) & (partner > i))
    wins &= rows[:i]
    if wins.any():
        wins &= starts[:i] <= i
        best[wins] = new[wins]
        partner[wins] = i


def _rescan(
    s: np.ndarray,
    alive: np.ndarray,
    starts: np.ndarray,
    best: np.ndarray,
    partner: np.ndarray,
    rows: Iterable[int],
) -> None:
    """Compute the maximum of some rows afresh; the first one where there are ties."""
    for row in rows:
        start = starts[row]
        later = np.where(alive[start:], s[row, start:], -np.inf)
        if later.size:
            first = int(later.argmax())
            best[row], partner[row] = later[first], start + first
        else:
            best[row] = -np.inf


def _checked(where: str, similarity: np.ndarray, models: int) -> np.ndarray:
    similarity = np.asarray(similarity)
    shape = similarity.shape
    if len(shape) != 2 or shape[0] != shape[1] or models < 1 or shape[0] % models:
        raise ValueError(
            f"{where}: similarity has shape {shape} for {models} models; it must be "
            "(models*units, models*units)."
        )
    if not np.issubdtype(similarity.dtype, np.floating):
        similarity = similarity.astype(np.float32)
    if not np.isfinite(similarity).all():
        count = int((~np.isfinite(similarity)).sum())
        raise ValueError(
            f"{where}: {count} of {similarity.size} similarities are not finite; "
            "every one must be, give units that never change similarity 0."
        )
    return similarity
