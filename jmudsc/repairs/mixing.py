"""Mixing: how much each parent counts in what a sample should get, and each sample."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jmudsc.repairs.merger import Merger
from jmudsc.repairs.outputs import outputs_of
from jmudsc.repairs.sureness import shares_by_sureness, sureness
from jmudsc.sharding import to_host

TARGETS = ("owner", "sureness", "ensemble")

# (batch, outputs of the parents) -> the weight of every sample, or of its places.
SampleWeight = Callable[[PyTree, Sequence[PyTree]], Any]
Weights = Float[Array | np.ndarray, "..."]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("parents", "samples"), meta_fields=()
)
@dataclass(frozen=True)
class Mixing:
    """How much counts in what layers are fitted to on one batch.

    Attributes:
        parents: per parent its share in what each sample should get; None for the same
            shares in all samples.
        samples: the weight of each sample, or of each of its places; None for 1.
    """

    parents: Weights | None = None
    samples: Weights | None = None

    @property
    def mean_weight(self) -> float:
        """The mean of the weights of samples."""
        return 1.0 if self.samples is None else float(np.mean(to_host(self.samples)))


def mixings_of(
    merger: Merger,
    batches: Sequence[PyTree],
    by_sureness: bool,
    sample_weight: SampleWeight | None,
) -> list[Mixing]:
    """Find out how much counts, batch by batch.

    Args:
        merger: how the network was merged.
        batches: what `apply_fn` takes.
        by_sureness: whether each parent counts by its sureness of each sample, so far
            as it has outputs with an axis of samples.
        sample_weight: the user's weights; None for 1.

    Returns:
        One for each batch.

    Raises:
        ValueError: if weights are not finite and at least 0, or not of the samples.
    """
    mixings = [Mixing()] * len(batches)
    if by_sureness and len(merger.parents) > 1:
        mixings = [Mixing(each) for each in _by_sureness(merger, batches)] or mixings
    if sample_weight is None:
        return mixings
    weights = _of_samples(merger, batches, sample_weight)
    return [Mixing(m.parents, w) for m, w in zip(mixings, weights, strict=True)]


def along(weights: Weights, shape: tuple[int, ...]) -> Array:
    """Bring weights of samples to what has them along its leading axes.

    Places that were joined with samples to one axis, one sample after another, have the
    weight of their sample. Where the axes are others, the mean stands for all.

    Args:
        weights: of samples, or of samples and places.
        shape: of what they are to be multiplied with.

    Returns:
        An array of as many axes as `shape`, to be broadcast.
    """
    weights = jnp.asarray(weights, jnp.float32)
    ones = (1,) * len(shape)
    if weights.ndim > 1 and shape[: weights.ndim] != weights.shape:
        if shape[0] == weights.size:
            return weights.reshape(-1, *ones[1:])
        weights = weights.reshape(len(weights), -1).mean(axis=1)
    if shape[: weights.ndim] == weights.shape:
        return weights.reshape(*weights.shape, *ones[weights.ndim :])
    if shape and shape[0] % len(weights) == 0:
        return jnp.repeat(weights, shape[0] // len(weights)).reshape(-1, *ones[1:])
    return weights.mean().reshape(ones)


def _by_sureness(
    merger: Merger, batches: Sequence[PyTree]
) -> Iterable[Float[np.ndarray, "parents samples"]]:
    """Yield the parents' shares in the samples of each batch, if they can be told."""
    found = [
        outputs_of(merger.apply_fn, parent, batches, most=None, where="refit")
        for parent in merger.parents
    ]
    known = [each for each in found if each is not None]
    if len(known) < len(found) or not all(
        np.isfinite(leaf).all() for each in known for leaf in each.leaves
    ):
        return
    sure = np.stack([sureness(x.leaves, x.samples, x.count, batches) for x in known])
    shares = shares_by_sureness(sure, merger.shares).astype(np.float32)
    for number in range(len(batches)):
        yield shares[:, known[0].batches == number]


def _of_samples(
    merger: Merger, batches: Sequence[PyTree], sample_weight: SampleWeight
) -> list[Weights]:
    compiled, found = jax.jit(merger.apply_fn), []
    for number, batch in enumerate(batches):
        outputs = [compiled(parent, batch) for parent in merger.parents]
        weights = np.asarray(to_host(sample_weight(batch, outputs)), np.float32)
        counts = {np.shape(x)[0] for x in jax.tree.leaves(batch) if np.shape(x)}
        good = np.isfinite(weights).all() and (weights >= 0).all() and weights.any()
        if not good or not weights.shape or weights.shape[0] not in counts:
            raise ValueError(
                f"refit: sample_weight: expected for batch {number} finite weights of "
                "at least 0, not all of them 0, one for each sample or for each of its "
                f"places, got an array of shape {list(weights.shape)} with values from "
                f"{weights.min(initial=np.inf):g} to {weights.max(initial=-np.inf):g}. "
                "Return an array whose first axis runs over the samples."
            )
        found.append(weights)
    return found
