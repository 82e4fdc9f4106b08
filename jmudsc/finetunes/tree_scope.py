"""Tree scope: the largest entries of whole models, found without holding a model.

The bits of a positive float32 are in the order of its value. One pass counts how many
entries begin with each of the 2^16 upper halves, a second how many of those that begin
as the threshold does end with each lower half: the threshold is exact, and between
passes there are only counts. A third pass finds the sign that most entries have.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jmudsc.finetunes.job import Evidence, Job, pieces, read
from jmudsc.finetunes.task_vectors import majority_of

_HALF = 1 << 16


def thresholds(job: Job, method: str) -> Evidence | None:
    """Find what the entries of each model must reach to be among the largest.

    Args:
        job: the merge.
        method: the method, of which all leaves count together.

    Returns:
        For every piece the least magnitude that each model keeps, and the sign of most
        entries; None if the largest are those of each leaf.
    """
    own = [plan for plan in job.plans.values() if plan.method.name == method]
    merged = [p.path for p in own if p.copied is None and not p.is_statistic]
    if not merged or own[0].settings["scope"] != "tree":
        return None
    density = own[0].settings["density"]
    models = len(job.models)
    densities = density if isinstance(density, (list, tuple)) else [density] * models
    found = {"threshold": _least(job, merged, densities)}
    learned = replace(job, evidence={method: lambda path, number: found})
    majority = 0
    for path in merged:
        for piece in pieces(learned, read(learned, path)):
            majority += majority_of(piece.entries, found)
    evidence: Mapping[str, Any] = {**found, "majority": lambda: majority}
    return lambda path, number: evidence


def _least(
    job: Job, merged: Sequence[str], densities: Sequence[float]
) -> tuple[np.float32, ...]:
    """Return the least of the largest magnitudes of each model."""
    upper = np.zeros((len(densities), _HALF), np.int64)
    for model, bits in _magnitudes(job, merged):
        upper[model] += np.bincount(bits >> 16, minlength=_HALF)
    begins, ranks = [], []
    for density, counts in zip(densities, upper, strict=True):
        kept = max(1, int(density * counts.sum()))
        begin, rank = _reached(counts, kept)
        begins.append(begin)
        ranks.append(rank)
    lower = np.zeros((len(densities), _HALF), np.int64)
    for model, bits in _magnitudes(job, merged):
        near = bits[bits >> 16 == begins[model]] & (_HALF - 1)
        lower[model] += np.bincount(near, minlength=_HALF)
    found = []
    for begin, rank, counts in zip(begins, ranks, lower, strict=True):
        bits = np.array(begin * _HALF + _reached(counts, rank)[0], np.uint32)
        found.append(bits.view(np.float32)[()])
    return tuple(found)


def _magnitudes(job: Job, merged: Sequence[str]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the bits of the magnitudes of every leaf of every delta."""
    for path in merged:
        leaves = read(job, path)
        for number, model in enumerate(leaves.models):
            size = np.abs(model - leaves.base).astype(np.float32).reshape(-1)
            yield number, size.view(np.uint32).astype(np.int64)


def _reached(counts: np.ndarray, kept: int) -> tuple[int, int]:
    """Return at which count, from the last down, so many are reached.

    And the rank among those that are counted there.
    """
    down = np.cumsum(counts[::-1])
    place = int(np.searchsorted(down, kept))
    before = int(down[place - 1]) if place else 0
    return len(counts) - 1 - place, kept - before
