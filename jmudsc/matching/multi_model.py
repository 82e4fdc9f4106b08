"""Multi-model alignment: what the units of more than two models are aligned to.

Each is a way to choose one permutation per model, so that it makes no difference by
which models one goes from one model to another (cycle consistency). They differ in
which of the similarities of pairs of models they look at.
"""

import functools
import itertools
from collections.abc import Callable, Iterable

import numpy as np

from jmudsc.paths import did_you_mean

REFERENCES = ("first", "mean", "universe")

# Similarities of the units of two models i < j, rows of i, columns of j.
Between = Callable[[int, int], np.ndarray]

# By less than this per unit, a sum of similarities is no better but rounded otherwise.
_ROUNDING = 1e-9


def best_pairs(similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solve one linear assignment problem.

    Args:
        similarity: square, larger is more alike.

    Returns:
        Rows and their columns, of the largest total similarity.
    """
    # Imported late: it takes as long as importing jax, and not every command needs it.
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(similarity, maximize=True)


def check_reference(where: str, reference: str) -> None:
    """Check the name of a reference.

    Args:
        where: the caller, named in the error.
        reference: one of `REFERENCES`.

    Raises:
        ValueError: if it is not.
    """
    if reference not in REFERENCES:
        raise ValueError(
            f'{where}: expected the name of a reference, got "{reference}"'
            f"{did_you_mean(reference, REFERENCES) or '.'} Choose one of "
            f"{', '.join(REFERENCES)}."
        )


def align_to(reference: str, between: Between, models: int, units: int) -> np.ndarray:
    """Align models one-to-one, given the similarities of pairs of them.

    With P_i the permutation of model i and S_ij the similarities of models i and j:

    - `first` maximises the sum over i of <S_0i, P_0 P_i^T> (Git Re-Basin, Ainsworth et
      al. 2023, arXiv:2209.04836, section 3.1);
    - `mean` aligns each model in turn to the mean of those before it, one pass of
      MergeMany (the same, algorithm 3);
    - `universe` maximises the sum over all pairs i < j of <S_ij, P_i P_j^T>, the
      objective of cycle-consistent matching (C2M3, Crisostomi et al. 2024,
      arXiv:2405.17897), by aligning each model in turn to all others until moving one
      model gains nothing (all passes of MergeMany). It starts from what `first` and
      what `mean` find, and keeps the better end, so that it reaches no less than they.

    Args:
        reference: one of `REFERENCES`.
        between: similarities of the units of models i < j.
        models: number of models.
        units: number of units of each.

    Returns:
        `int32[models, units]`, the unit of model 0 that each unit goes to.
    """
    find = {"first": _to_first, "mean": _in_turn, "universe": _in_universe}[reference]
    rows = find(_both_ways(between), np.tile(np.arange(units), (models, 1)))
    return rows[0].argsort()[rows].astype(np.int32)  # model 0 stays


def _to_first(between: Between, rows: np.ndarray) -> np.ndarray:
    found = rows.copy()
    for model in range(1, len(rows)):
        found[model] = _aligned(between, rows, model, [0])[0]
    return found


def _in_turn(between: Between, rows: np.ndarray) -> np.ndarray:
    found = rows.copy()
    for model in range(1, len(rows)):
        found[model] = _aligned(between, found, model, range(model))[0]
    return found


def _in_universe(between: Between, rows: np.ndarray) -> np.ndarray:
    starts = _to_first(between, rows), _in_turn(between, rows)
    first, second = (_ascended(between, start) for start in starts)
    gain = _total(between, second) - _total(between, first)
    return second if gain > _ROUNDING * rows.size else first


def _ascended(between: Between, rows: np.ndarray) -> np.ndarray:
    """Align each model in turn to all others until none can be moved to any gain."""
    rows, models = rows.copy(), len(rows)
    unmoved, model = 0, 0
    while unmoved < models:
        others = [other for other in range(models) if other != model]
        row, scores = _aligned(between, rows, model, others)
        units = np.arange(len(row))
        gain = scores[row, units].sum() - scores[rows[model], units].sum()
        moved = gain > _ROUNDING * len(row)
        if moved:
            rows[model] = row
        unmoved, model = 0 if moved else unmoved + 1, (model + 1) % models
    return rows


def _aligned(
    between: Between, rows: np.ndarray, model: int, others: Iterable[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Align one model to the sum of others; return its row and what it was found on."""
    scores = np.zeros((rows.shape[1],) * 2)
    for other in others:
        scores += between(other, model)[rows[other].argsort()]
    merged, own = best_pairs(scores)
    row = np.empty_like(rows[model])
    row[own] = merged
    return row, scores


def _total(between: Between, rows: np.ndarray) -> float:
    """Sum the similarities of all pairs of units that share a merged unit."""
    order = rows.argsort(axis=1)
    total = 0.0
    for i, j in itertools.combinations(range(len(rows)), 2):
        total += float(between(i, j)[order[i], order[j]].sum(dtype=np.float64))
    return total


def _both_ways(between: Between) -> Between:
    between = functools.cache(between)
    return lambda i, j: between(i, j) if i < j else between(j, i).T
