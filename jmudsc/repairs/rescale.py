"""Rescale: give merged units their parents' mean and standard deviation (REPAIR)."""

import functools
import logging
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from jmudsc.reordering.combine import shares_of
from jmudsc.repairs.contractions import columns, contract, Form, matrix
from jmudsc.repairs.layer_by_layer import change_layers, log_skipped, operands_of, Seen
from jmudsc.repairs.layers import Layer, Linear, Norm, Shared
from jmudsc.repairs.leaf_entries import Entries, read, write
from jmudsc.repairs.made_kernels import Made
from jmudsc.repairs.merger import Merger
from jmudsc.repairs.targets import Leaves, Targets
from jmudsc.sharding import over_processes, to_host
from jmudsc.spec.axes import Axis, Fixed
from jmudsc.spec.permutation_spec import PermutationSpec
from jmudsc.types import ApplyFn

_log = logging.getLogger(__name__)

# A standard deviation this small beside the mean is rounding: the unit is constant.
_STILL = 1e-5


def repair(
    spec: PermutationSpec,
    apply_fn: ApplyFn,
    models: Sequence[PyTree],
    assignment: Mapping[str, np.ndarray],
    merged: PyTree,
    batches: Iterable[PyTree],
    weights: Sequence[float] | None = None,
) -> PyTree:
    """Give every merged unit the mean and standard deviation of its parents.

    REPAIR (Jordan et al. 2023, arXiv:2211.08403): the output of every linear layer,
    bias included, is rescaled so that over the batches each unit's mean and standard
    deviation are the weighted means of those of its parents. The rescaling is folded
    into the kernel and the bias. Layers are repaired in order, each on what the layers
    repaired before it make of the data. Nothing is looked for by name: any network will
    do.

    Where a norm by running statistics follows, the statistics are set to those of the
    merged network instead, which does the same. Without a bias only the standard
    deviation is repaired. Left alone are linear layers whose outputs may not be
    permuted (the last one), a unit that never changes, and kernels that are used more
    than once, computed from leaves, looked up by rows, or inside a `while` or a branch.

    It costs one pass of the batches through every model and the merged network; the
    activations between two layers are held for all batches. Sums over samples are
    computed in parts, as many as there are CPU cores: the last bits of the result
    depend on their number.

    Args:
        spec: the permutation spec.
        apply_fn: `(variables, batch) -> outputs`, in evaluation mode.
        models: the variables of each model.
        assignment: label -> `int32[models, *outer units, units]`.
        merged: what `combine` made of them.
        batches: what `apply_fn` takes, one by one; read once.
        weights: the share of each model; None for equal shares.

    Returns:
        The variables with new kernels, biases and running statistics.

    Raises:
        TypeError: if `batches` is no iterable, or a single batch.
        ValueError: if the arguments do not fit together, there are no batches, or an
            activation is not finite.
    """
    shares = shares_of("repair", weights, len(models))
    merger = Merger(spec, apply_fn, models, assignment, shares)
    variables, notes = rescale_layers(merger, merged, batches)
    log_skipped(_log, "repair", notes)
    return variables


def rescale_layers(
    merger: Merger,
    merged: PyTree,
    batches: Iterable[PyTree],
    within: Container[str] | None = None,
) -> tuple[PyTree, dict[str, str]]:
    """Do what `repair` does, and say what became of the leaves of every layer.

    Args:
        merger: how the network was merged.
        merged: its variables.
        batches: what `apply_fn` takes, one by one; read once.
        within: the paths of the leaves that may change; None for all.

    Returns:
        The variables, and path of a leaf -> what was done, or why nothing was.

    Raises:
        TypeError: as `repair` does.
        ValueError: as `repair` does.
    """
    return change_layers("repair", _change, merger, merged, batches, within)


def reset_norm(
    where: str, layer: Norm, inputs: Sequence[Array], leaves: Leaves
) -> tuple[Leaves, str]:
    """Set the running statistics of a norm to those of what goes into it.

    Args:
        where: the caller, named in errors.
        layer: the norm.
        inputs: what goes into it, batch by batch.
        leaves: those of the merged network.

    Returns:
        The new leaves, and what was done.

    Raises:
        ValueError: if an input is not finite.
    """
    index = layer.mean.index
    samples = tuple(axis for axis, size in enumerate(index.shape) if size == 1)
    parts = [
        (math.prod(x.shape[axis] for axis in samples), *_mean_and_variance(x, samples))
        for x in inputs
    ]
    mean, variance = _pooled(where, layer.mean.path, parts)
    new = {
        layer.mean.path: write(leaves[layer.mean.path], index, mean),
        layer.variance.path: write(leaves[layer.variance.path], index, variance),
    }
    return new, "reset to what goes into it in the merged network"


def _change(
    layer: Layer, looked: Iterable[Seen], leaves: Leaves, targets: Targets
) -> tuple[Leaves, str]:
    if isinstance(layer, Shared):
        return {}, "is used more than once"
    seen = list(looked)
    if isinstance(layer, Norm):
        return reset_norm("repair", layer, [each.merged for each in seen], leaves)
    if isinstance(layer.kernel, Made) or isinstance(layer.bias, Made):
        return {}, "is computed from other leaves"
    if layer.form.is_lookup:
        return {}, "left alone: its rows are looked up"
    if layer.is_normed:
        return {}, "left to the norm that follows"
    if not any(layer.makes[axis].labels() for axis in layer.unit_axes):
        return {}, "left alone: its units may not be permuted"
    mean, spread = _of_units([(s.use, s.merged) for s in seen], leaves)
    axes = _axes_of_units(layer)
    own = [
        _of_units([(s.use, s.parents[number]) for s in seen], leaves_of_parent)
        for number, leaves_of_parent in enumerate(targets.leaves)
    ]
    targets = targets.within(layer.at)
    wanted = [targets.mean(values, axes) for values in zip(*own, strict=True)]
    lives = spread > _STILL * np.abs(mean)
    scale = np.where(lives, wanted[1] / np.where(lives, spread, 1), 1)
    shift = np.where(lives, wanted[0] - scale * mean, 0)
    return _folded(layer, leaves, scale, shift)


def _folded(
    layer: Linear, leaves: Leaves, scale: np.ndarray, shift: np.ndarray
) -> tuple[Leaves, str]:
    """Fold `scale * output + shift` into kernel and bias."""
    assert isinstance(layer.kernel, Entries)
    assert not isinstance(layer.bias, Made)
    path, index = layer.kernel.path, matrix(layer.form, layer.kernel.index)
    factor = columns(layer.form, scale.astype(np.float32))
    new = {path: write(leaves[path], index, read(leaves[path], index) * factor)}
    if layer.bias is None:
        return (
            new,
            "rescaled to the parents' standard deviation; there is no bias to shift",
        )
    path, index = layer.bias.path, layer.bias.index
    bias = scale * read(leaves[path], index).astype(float) + shift
    new[path] = write(leaves[path], index, bias)
    return new, "rescaled to the parents' mean and standard deviation"


def _of_units(
    inputs: Sequence[tuple[Any, Array]], leaves: Leaves
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of the units of a layer, over batches."""
    first, _ = inputs[0]
    operands = operands_of(first, leaves)
    parts = [
        (layer.samples, *_of_outputs(layer.form, layer.sample_axes, x, *operands))
        for layer, x in inputs
    ]
    mean, variance = _pooled("repair", first.kernel.path, parts)
    return mean, np.sqrt(variance)


def _axes_of_units(layer: Linear) -> tuple[Axis, ...]:
    """Return what the axes of the output are when there is one sample only."""
    return tuple(
        axis if number in layer.unit_axes else Fixed(1)
        for number, axis in enumerate(layer.makes)
    )


def _pooled(
    where: str, path: str, parts: Sequence[tuple[int, Array, Array]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance over all parts, by count, mean and variance of each."""
    counts, *moments = zip(*parts, strict=True)
    means, variances = ([to_host(x).astype(float) for x in each] for each in moments)
    here = sum(counts), *_mixed(counts, means, variances)
    gathered = over_processes(here, moments)
    mean, variance = _mixed(*zip(*gathered, strict=True))
    if bad := int((~np.isfinite(mean + variance)).sum()):
        raise ValueError(
            f"{where}: {path}: expected finite activations, got {bad} of {mean.size} "
            "units that are not. Check the range of the input."
        )
    return mean, variance


def _mixed(counts: Sequence, means: Sequence, variances: Sequence) -> tuple:
    """Return mean and variance over samples in parts, by those of each part."""
    shares = np.divide(counts, sum(counts))
    mean = np.tensordot(shares, np.asarray(means, float), 1)
    with np.errstate(invalid="ignore"):  # what is not finite is found by the caller
        apart = np.asarray(means, float) - mean
        spread = np.asarray(variances, float) + np.square(apart)
        return mean, np.tensordot(shares, spread, 1)


@functools.partial(jax.jit, static_argnames="samples")
def _mean_and_variance(x: Array, samples: tuple[int, ...]) -> tuple[Array, Array]:
    x = x.astype(jnp.float32)
    mean = x.mean(axis=samples, keepdims=True)
    return mean, jnp.square(x - mean).mean(axis=samples, keepdims=True)


@functools.partial(jax.jit, static_argnames=("form", "samples"))
def _of_outputs(
    form: Form, samples: tuple[int, ...], x: Array, kernel: ArrayLike, bias: ArrayLike
) -> tuple[Array, Array]:
    return _mean_and_variance(contract(form, x, kernel, bias), samples)
