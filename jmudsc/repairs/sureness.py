"""Sureness: how much each parent knows of each sample, by its outputs alone.

No parent knows all tasks, and nobody may say which sample is of which. A network that
was trained on a sample's task says something particular of it; one that was not stays
near what it says of everything.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, PyTree

from jmudsc.sharding import over_processes

# Rows of one output of a network, and the sample that each row is of.
Rows = Float[np.ndarray, "_ _"]
Samples = Int[np.ndarray, " _"]


def sureness(
    leaves: Sequence[Rows],
    samples: Sequence[Samples],
    count: int,
    source: PyTree = None,
) -> Float[np.ndarray, " samples"]:
    """Say how sure a network is of each sample.

    It is |y - mean y|^2 / mean |y - mean y|^2, of the outputs y of a sample, and the
    mean over all outputs where there are several: 1 on average over the samples, and 1
    everywhere if the outputs never vary.

    Args:
        leaves: the outputs of the network.
        samples: for each of them the number of the sample that each row is of.
        count: number of samples.
        source: the batches that the samples are of: where every process has its own,
            means are over the samples of all.

    Returns:
        The sureness of each sample, 0 or more.
    """
    found = []
    for rows, of in zip(leaves, samples, strict=True):
        middle = _mean(rows, source)
        apart = ((rows - middle) ** 2).sum(axis=1)
        squares = np.bincount(of, weights=apart, minlength=count)
        squares /= np.maximum(np.bincount(of, minlength=count), 1)
        mean = float(_mean(squares, source))
        found.append(squares / mean if mean > 0 else np.ones(count))
    return np.mean(found, axis=0)


def _mean(rows: np.ndarray, source: PyTree) -> np.ndarray:
    """Return the mean over rows, those of other processes included."""
    total = rows.sum(axis=0, dtype=np.float64)
    parts = over_processes((np.asarray(total), np.asarray(len(rows))), source)
    sums, counts = zip(*parts, strict=True)
    total = np.sum(list(map(np.asarray, sums)), axis=0)
    return np.asarray(total / sum(map(int, counts)))


def shares_by_sureness(
    sure: Float[np.ndarray, "parents samples"], shares: Sequence[float]
) -> Float[np.ndarray, "parents samples"]:
    """Return the share of each parent in what a merged network should make of samples.

    Args:
        sure: the `sureness` of each parent.
        shares: the share of each parent in the average.

    Returns:
        Shares in proportion to both, summing to 1 over the parents; where no parent
        says anything, the shares in the average.
    """
    weights = sure * np.asarray(shares)[:, None]
    total = weights.sum(axis=0)
    plain = np.broadcast_to(np.asarray(shares)[:, None], weights.shape)
    return np.where(total > 0, weights / np.where(total > 0, total, 1), plain)
