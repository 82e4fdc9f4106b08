"""Figures: how near the outputs of a network come to what they should be."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from jmudsc.repairs.outputs import Outputs
from jmudsc.repairs.sureness import shares_by_sureness, sureness

# Samples are counted in this many parts, to tell how much chance is in a difference.
_PARTS = 20

Target = tuple[Float[np.ndarray, "_ _"], ...]
# Per output the sums of `_terms`, over the samples of each task and part.
Sums = tuple[Float[np.ndarray, "terms tasks parts"], ...]


@dataclass(frozen=True)
class Figures:
    """How near the outputs of a network come to what they should be.

    Attributes:
        cosine: of the outputs and what they should be, both less their mean over the
            samples, over all samples together: their correlation, in [-1, 1].
        error: the squared distance from what they should be, as a share of how much
            that varies; 1 for a network that says the same of every sample.
        agreement: share of the places whose largest output is the largest of what they
            should be; None where there is but one output a place.
        divergence: mean KL divergence in nats from what they should be, outputs taken
            as logits where they are no probabilities; None as for `agreement`.
        own: the cosine on the samples of each parent's task.
        score: what the user's function says; None without one.
    """

    cosine: float
    error: float
    agreement: float | None
    divergence: float | None
    own: tuple[float | None, ...] = ()
    score: float | None = None


def wanted_of(
    parents: Sequence[Outputs], shares: Sequence[float], owners: Sequence[int] | None
) -> tuple[Target, Int[np.ndarray, " samples"]]:
    """Return what each sample should get, and the parent whose task it is from.

    Args:
        parents: the outputs of each.
        shares: the share of each in the average.
        owners: for each batch the number of the parent whose task it is from: its
            output is what the samples should get. None if that is not known: the mean
            of the parents weighted by their sureness, and the task that of the surest.

    Returns:
        The outputs, and the number of a parent for every sample.
    """
    first = parents[0]
    if owners is None:
        sure = [sureness(x.leaves, x.samples, x.count) for x in parents]
        weights = shares_by_sureness(np.stack(sure), shares)
        tasks = np.stack(sure).argmax(axis=0)
    else:
        tasks = np.asarray(owners)[first.batches]
        weights = np.eye(len(parents))[:, tasks]
    return _mixed(parents, weights), tasks


def mean_of(parents: Sequence[Outputs], shares: Sequence[float]) -> Outputs:
    """Return the outputs of the ensemble: the mean of those of the parents.

    Args:
        parents: the outputs of each.
        shares: the share of each.
    """
    first = parents[0]
    weights = np.repeat(np.asarray(shares)[:, None], first.count, axis=1)
    return Outputs(_mixed(parents, weights), first.samples, first.batches)


def sums_of(
    outputs: Outputs, wanted: Target, tasks: Int[np.ndarray, " samples"], count: int
) -> Sums | None:
    """Compare the outputs of a network with what they should be.

    Args:
        outputs: of the network.
        wanted: what they should be.
        tasks: the number of a task for each sample.
        count: number of tasks.

    Returns:
        What figures are computed from; None if an output is not finite.
    """
    if not all(np.isfinite(leaf).all() for leaf in outputs.leaves):
        return None
    cells = _PARTS * tasks + np.arange(outputs.count) % _PARTS
    sums = []
    for leaf, target, of in zip(outputs.leaves, wanted, outputs.samples, strict=True):
        terms = _terms(leaf.astype(np.float64), target)
        summed = [np.bincount(cells[of], x, count * _PARTS) for x in terms]
        sums.append(np.stack(summed).reshape(len(terms), count, _PARTS))
    return tuple(sums)


def figures_of(sums: Sums, score: float | None = None) -> Figures:
    """Compute the figures of a network.

    Args:
        sums: from `sums_of`.
        score: what the user's function says of it.
    """
    cosine, error, agreement, divergence = _figures([x.sum(axis=(1, 2)) for x in sums])
    tasks = range(sums[0].shape[1])
    own = [_figures([x[:, task].sum(axis=-1) for x in sums])[0] for task in tasks]
    return Figures(
        float(cosine),
        float(error),
        _or_none(agreement),
        _or_none(divergence),
        tuple(map(_or_none, own)),
        score,
    )


def quality(sums: Sums) -> float:
    """Return the number by which networks are compared, their cosine.

    It counts a sample by how much there is to say of it, so that events that are rare
    are not drowned by the rest, and does not depend on the scale of the outputs.
    """
    return float(_quality([x.sum(axis=(1, 2)) for x in sums]))


def error_of_difference(ours: Sums, theirs: Sums) -> float:
    """Return the standard error of the difference of two networks in `quality`.

    It is the jackknife's, over parts of the samples.
    """
    parts = np.flatnonzero(ours[0][-1].sum(axis=0))
    if len(parts) < 2:
        return 0.0
    left_out = [
        [
            x.sum(axis=1)[:, parts].sum(axis=1, keepdims=True) - x.sum(axis=1)[:, parts]
            for x in sums
        ]
        for sums in (ours, theirs)
    ]
    differences = _quality(left_out[0]) - _quality(left_out[1])
    spread = ((differences - differences.mean()) ** 2).sum()
    return float(np.sqrt((len(parts) - 1) / len(parts) * spread))


def _terms(rows: np.ndarray, wanted: np.ndarray) -> list[np.ndarray]:
    """Return what is summed over rows; figures of the largest are NaN for one entry."""
    ours, theirs = rows - rows.mean(axis=0), wanted - wanted.mean(axis=0)
    nothing = np.full(len(rows), np.nan)
    several = rows.shape[1] > 1
    return [
        (ours * ours).sum(axis=1),
        (ours * theirs).sum(axis=1),
        (theirs * theirs).sum(axis=1),
        ((rows - wanted) ** 2).sum(axis=1),
        (rows.argmax(axis=1) == wanted.argmax(axis=1)) * 1.0 if several else nothing,
        _divergences(rows, wanted) if several else nothing,
        np.ones(len(rows)),
    ]


def _figures(totals: Sequence[np.ndarray]) -> np.ndarray:
    """Return cosine, error, agreement and divergence, the mean over all outputs."""
    found = []
    for ours, both, theirs, apart, agree, divergence, places in totals:
        norms = np.sqrt(ours * theirs)
        still = (ours == 0) & (theirs == 0)
        cosine = np.where(still, 1.0, both / np.where(norms > 0, norms, 1))
        error = apart / np.where(theirs > 0, theirs, 1)
        count = np.where(places > 0, places, np.nan)
        none = 0 * count
        found.append([cosine + none, error + none, agree / count, divergence / count])
    known = np.ma.masked_invalid(np.asarray(found))
    return np.asarray(known.mean(axis=0).filled(np.nan))


def _quality(totals: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray(_figures(totals)[0])


def _divergences(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    ours, theirs = _log_probabilities(rows), _log_probabilities(wanted)
    return (np.exp(theirs) * (theirs - ours)).sum(axis=1)


def _log_probabilities(rows: np.ndarray) -> np.ndarray:
    if (rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, atol=1e-3):
        return np.log(np.maximum(rows, np.finfo(np.float32).tiny))
    shifted = rows - rows.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _mixed(
    parents: Sequence[Outputs], weights: Float[np.ndarray, "parents samples"]
) -> Target:
    """Average the outputs of parents, by a weight for each sample."""
    outputs = zip(*(parent.leaves for parent in parents), strict=True)
    return tuple(
        np.sum(
            [w[of][:, None] * x for w, x in zip(weights, leaves, strict=True)], axis=0
        )
        for leaves, of in zip(outputs, parents[0].samples, strict=True)
    )


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
