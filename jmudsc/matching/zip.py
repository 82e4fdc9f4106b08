"""Zip: greedy merging of the most similar units, also of two units of one model."""

import math

import numpy as np


def greedy_zip(
    similarity: np.ndarray, models: int, a: np.floating, b: float
) -> np.ndarray:
    """Merge the most similar pair of units until as many are left as a model has.

    The greedy matching of ZipIt (Stoica et al. 2024, arXiv:2305.03053, section 4.2); of
    equal pairs the first in row-major order is taken.

    Every pair is held once, by the row of its smaller unit. Row k's `best[k]` is never
    below its most similar pair that is still allowed, and `partner[k]` is the first
    unit to reach it for as long as that pair is allowed and as similar; a row is
    scanned again only when it comes to the top and its pair is not: the work is
    quadratic in the number of units.

    Args:
        similarity: (models*units, models*units), symmetric, finite.
        models: number of models stacked.
        a: what the similarities of a merged unit are multiplied by.
        b: share of the merges that a model may spend on its own units.

    Returns:
        Per unit the smallest member of its cluster.
    """
    total = len(similarity)
    units = total // models
    s = _padded(similarity)
    into = np.arange(total)
    gone = np.zeros(total, s.dtype)  # -inf for a unit that has joined another
    budget = [math.floor(b * ((total - units) // models) + 1e-9)] * models
    # Row k's partners start after k, or after its whole model once that is spent.
    ends = (into // units + 1) * units
    starts = into + 1 if budget[0] > 0 else ends.copy()
    best, partner = _all_best(s, starts)
    for _ in range(total - units):
        i = int(best.argmax())
        j = int(partner[i])
        while j < starts[i] or gone[j] or s[i, j] != best[i]:
            best[i], partner[i] = _first_best(s[i], gone, int(starts[i]))
            i = int(best.argmax())
            j = int(partner[i])
        into[j], gone[j], best[j] = i, -np.inf, -np.inf
        joined = np.minimum(s[i], s[j])
        joined *= a
        s[i] = s[:, i] = joined
        joined += gone
        model, own = i // units, slice(ends[i] - units, ends[i])
        budget[model] -= int(j < ends[i])
        if budget[model] == 0:
            starts[own], joined[own] = ends[i], -np.inf
        best[i], partner[i] = _first_best(joined, gone, int(starts[i]))
        partner[:i][joined[:i] >= best[:i]] = 0  # 0 is no row's partner: scan again
        np.maximum(best[:i], joined[:i], out=best[:i])
    for unit in range(total):
        into[unit] = into[into[unit]]
    return into


def _all_best(
    s: np.ndarray, starts: np.ndarray, tile: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Return for every row what `_first_best` does, several rows at once."""
    best, partner = np.empty(len(s), s.dtype), np.empty(len(s), int)
    columns = np.arange(len(s))
    for first in range(0, len(s), tile):
        rows = slice(first, first + tile)
        later = np.where(columns >= starts[rows, None], s[rows], -np.inf)
        partner[rows] = later.argmax(axis=1)
        best[rows] = later.max(axis=1)
    return best, partner


def _first_best(
    row: np.ndarray, gone: np.ndarray, start: int
) -> tuple[np.floating, int]:
    """Return the largest similarity from a unit on, and the first unit that has it."""
    later = row[start:] + gone[start:]
    if not later.size:
        return row.dtype.type(-np.inf), len(row)
    place = int(later.argmax())
    return later[place], start + place


def _padded(matrix: np.ndarray) -> np.ndarray:
    """Copy with rows a little apart: at a power of two columns share cache sets."""
    rows, columns = matrix.shape
    copy = np.empty((rows, columns + 16), matrix.dtype)[:, :columns]
    copy[:] = matrix
    return copy
