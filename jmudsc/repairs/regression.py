"""Regression: the moments that a fit by least squares needs.

All of a batch is gathered by one compiled function, which layers of one kind share,
whatever network they are in.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jmudsc.repairs.contractions import columns, contract, Form, looked_up, rows
from jmudsc.repairs.lags import lags_are_cheaper, moments_by_lags
from jmudsc.repairs.mixing import along, Mixing
from jmudsc.repairs.targets import Targets
from jmudsc.sharding import from_host, over_processes, sharding_of, to_host
from jmudsc.spec.axes import Axis

MeanAndComoment = tuple[
    Float[Array | np.ndarray, "groups 1 _"],
    Float[Array | np.ndarray, "groups incoming both"],
]
# What goes into a layer of one network, its kernel and its bias.
Operands = tuple[ArrayLike, ArrayLike, ArrayLike]


@dataclass(frozen=True)
class Fit:
    """What is fitted; layers of which all this is the same share a function.

    Attributes:
        form: how the contraction is computed.
        shape: the shape of the kernel.
        axes: what the axes of the output are.
        owner: the parent that the samples belong to; None if that is not known.
        takes: what the axes of the activations are, where the merged network's are not
            known yet, and those that it should have are taken for them; None where
            they are known.
    """

    form: Form
    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    owner: int | None
    takes: tuple[Axis, ...] | None = None


@dataclass(frozen=True)
class Regression:
    """Moments of what goes into a layer and of what is missing from what comes out.

    Of a lookup, of which a sample has 1 in one incoming entry and 0 in all others, the
    mean is left out, and of the moments of incoming entries all but the squares: then
    `both` has one entry, and after it those of the outgoing residuals.

    Attributes:
        count: number of samples, or the sum of their weights.
        mean: of the incoming entries, and after them of the outgoing residuals.
        comoment: sum over samples of the products of distances from the mean, of
            incoming entries with both.
    """

    count: int | float
    mean: Float[Array | np.ndarray, "groups 1 _"]
    comoment: Float[Array | np.ndarray, "groups incoming both"]


def nothing(form: Form, sizes: tuple[int, int, int], x: Array) -> Regression:
    """Return the moments of no samples, where those of some are to be.

    Args:
        form: of the layer.
        sizes: the numbers of groups, incoming and outgoing entries.
        x: what goes into the layer.
    """
    groups, incoming, outgoing = sizes
    if form.is_lookup:
        empty, sums = (groups, 1, 0), (groups, incoming, 1 + outgoing)
        return Regression(0, _zeros(empty, x), _zeros(sums, x))
    mean, comoment = (
        _zeros((groups, n, incoming + outgoing), x) for n in (1, incoming)
    )
    return Regression(0, mean, comoment)


def added(
    total: Regression,
    count: int,
    fit: Fit,
    networks: tuple[Operands, Sequence[Operands]],
    targets: Targets,
    mixing: Mixing,
) -> Regression:
    """Add a batch to the moments of those before it, exactly (see `merge_moments`).

    Args:
        total: the moments of those before it.
        count: number of samples of the batch.
        fit: what is fitted.
        networks: what goes into the layer in the merged network, and its leaves; and
            the same for each parent, the owner first.
        targets: what the parents want, `of_layer`.
        mixing: how much each parent and each sample counts.

    Returns:
        The moments of all.
    """
    counted = count if mixing.samples is None else count * mixing.mean_weight
    both = total.count + counted
    share = np.float32(counted / both)
    weight = np.float32(total.count * counted / both)
    before = total.mean, total.comoment
    merged, parents = networks
    given = (merged, list(parents))
    return Regression(
        both, *_added(fit, before, (share, weight), given, targets, mixing)
    )


def over_all_processes(total: Regression) -> Regression:
    """Put together what every process gathered from batches of its own, on the host."""
    source = total.mean, total.comoment
    here = total.count, *map(to_host, source)
    gathered = [
        Regression(_plain(count), *map(np.asarray, parts))
        for count, *parts in over_processes(here, source)
    ]
    return functools.reduce(joined, gathered)


def joined(a: Regression, b: Regression) -> Regression:
    """Combine the moments of two sets of samples, exactly (see `merge_moments`).

    Args:
        a: of one set.
        b: of another.

    Returns:
        The moments over both.
    """
    count = a.count + b.count
    share, weight = np.float32(b.count / count), np.float32(a.count * b.count / count)
    before, more = (a.mean, a.comoment), (b.mean, b.comoment)
    mean, comoment = _joined(before, more, share, weight)
    return Regression(count, mean, comoment)


@functools.partial(jax.jit, static_argnums=0)
def _added(
    fit: Fit,
    total: MeanAndComoment,
    steps: tuple[ArrayLike, ArrayLike],
    networks: tuple[Operands, list[Operands]],
    targets: Targets,
    mixing: Mixing,
) -> MeanAndComoment:
    return _joined(total, _of_batch(fit, *networks, targets, mixing), *steps)


def _of_batch(
    fit: Fit,
    merged: Operands,
    parents: Sequence[Operands],
    targets: Targets,
    mixing: Mixing,
) -> MeanAndComoment:
    """Return the moments of a batch; use under `jit`."""
    of_parent = lambda number: contract(fit.form, *parents[number])
    target = targets.target(of_parent, fit.axes, fit.owner, mixing.parents)
    if fit.form.is_lookup:
        residual = columns(fit.form, target - contract(fit.form, *merged))
        return _of_rows(fit, merged[0], residual, _weights(fit, mixing, target))
    x = jnp.asarray(merged[0], jnp.float32)
    if fit.takes is not None:
        into = lambda number: jnp.asarray(parents[number][0], jnp.float32)
        x = targets.target(into, fit.takes, fit.owner, mixing.parents)
    residual = columns(fit.form, target - contract(fit.form, x, *merged[1:]))
    weights = _weights(fit, mixing, target)
    if weights is None and lags_are_cheaper(fit.form, x.shape, fit.shape):
        return moments_by_lags(fit.form, x, residual, fit.shape)
    return moments_by_copies(fit.form, x, residual, fit.shape, weights)


def _weights(fit: Fit, mixing: Mixing, target: Array) -> Array | None:
    """Return the weight of each row; None for equal ones."""
    if mixing.samples is None:
        return None
    each = along(mixing.samples, target.shape)
    return columns(fit.form, jnp.broadcast_to(each, target.shape))[..., :1]


def _of_rows(
    fit: Fit, numbers: ArrayLike, residual: Array, weights: Array | None
) -> MeanAndComoment:
    """Return the moments of a lookup."""
    count = fit.shape[fit.form.looked_along]
    row = looked_up(fit.form, jnp.asarray(numbers), count)
    weights = jnp.ones_like(residual[..., :1]) if weights is None else weights
    both = jnp.concatenate([weights, weights * residual], axis=-1)[0]
    sums = jax.ops.segment_sum(both, row, count + 1)[:count]
    return jnp.zeros((1, 1, 0), both.dtype), sums[None]


def moments_by_copies(
    form: Form,
    x: Array,
    residual: Array,
    shape: tuple[int, ...],
    weights: Array | None = None,
) -> MeanAndComoment:
    """Return what `moments_by_lags` does, with a copy of every window.

    Args:
        form: of the layer.
        x: what goes into it.
        residual: float32[groups, rows, outgoing].
        shape: of the kernel.
        weights: float32[groups, rows, 1], of each row; None for equal ones.
    """
    into = rows(form, x, shape)
    both = jnp.concatenate([into, residual], axis=-1)
    if weights is None:
        mean = both.mean(axis=1, keepdims=True)
        apart = both - mean
        first = apart[..., : into.shape[-1]]
    else:
        mean = (weights * both).sum(axis=1, keepdims=True) / weights.sum(
            axis=1, keepdims=True
        )
        apart = both - mean
        first = weights * apart[..., : into.shape[-1]]
    highest = jax.lax.Precision.HIGHEST
    return mean, jnp.einsum("gsi,gsj->gij", first, apart, precision=highest)


def _joined(a: Any, b: Any, share: ArrayLike, weight: ArrayLike) -> MeanAndComoment:
    (mean_a, comoment_a), (mean_b, comoment_b) = a, b
    if mean_a.shape[-1] == 0:
        return mean_a, comoment_a + comoment_b
    step = mean_b - mean_a
    outer = step[..., : comoment_a.shape[1]].mT * step
    return mean_a + share * step, comoment_a + comoment_b + weight * outer


def _plain(count: Any) -> int | float:
    return count if isinstance(count, int | float) else np.asarray(count).item()


def _zeros(shape: tuple[int, ...], x: Array) -> Array:
    """Return zeros where what is computed of an array will be; nothing is compiled."""
    sharding, zeros = sharding_of(x), np.zeros(shape, np.float32)
    if sharding is None:
        return from_host(zeros, x)
    everywhere = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return jax.device_put(zeros, everywhere)
