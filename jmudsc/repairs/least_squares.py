"""Least squares: kernels that best reproduce what the parents do."""

import functools
import logging
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Array, PyTree

from jmudsc.reordering.combine import shares_of
from jmudsc.repairs.contractions import columns, matrix
from jmudsc.repairs.find_layers import Linear, Norm
from jmudsc.repairs.layer_by_layer import (
    Change,
    change_layers,
    log_skipped,
    operands_of,
    Seen,
)
from jmudsc.repairs.leaf_entries import write
from jmudsc.repairs.merger import Merger
from jmudsc.repairs.regression import (
    added,
    Fit,
    nothing,
    over_all_processes,
    Regression,
    solve,
)
from jmudsc.repairs.rescale import reset_norm
from jmudsc.repairs.targets import Leaves, Targets
from jmudsc.sharding import to_host
from jmudsc.spec.permutation_spec import PermutationSpec
from jmudsc.types import ApplyFn

_log = logging.getLogger(__name__)

RIDGE = 1e-2


@dataclass(frozen=True)
class LeastSquares:
    """How layers are fitted.

    Attributes:
        ridge: how much staying near the merged kernel counts, above 0; relative to the
            mean square of what goes into the layer.
        owners: for each batch the number of the parent whose task it is from; None if
            that is not known.
    """

    ridge: float = RIDGE
    owners: tuple[int, ...] | None = None


def refit(
    spec: PermutationSpec,
    apply_fn: ApplyFn,
    models: Sequence[PyTree],
    assignment: Mapping[str, np.ndarray],
    merged: PyTree,
    batches: Iterable[PyTree],
    *,
    ridge: float = RIDGE,
    weights: Sequence[float] | None = None,
    owners: Sequence[int] | None = None,
) -> PyTree:
    """Fit every linear layer of a merged network to what its parents do.

    No gradient is taken. Layer by layer, in order: with x what goes into it in the
    merged network as fitted so far, and z what the parents make of the same batch,
    brought to the merged order, the kernel W and the bias b minimise

        E |W x + b - z|^2 + ridge * E |x|^2 / len(x) * |W - W_merged|^2.

    z is the output of the batch's owner, the parent that was trained on its task; if
    owners are not given, the weighted mean of all parents, which do not know what to
    make of each other's data. A merged unit in which the owner has no unit follows the
    mean always.

    With owners this is RegMean (Jin et al. 2023, arXiv:2212.09849, eq. 2) but for the
    inputs, which are the merged network's own: what went wrong in one layer is made
    good by the next (as in PLeaS, Nasery et al. 2025, arXiv:2407.02447). The moments of
    x and of z - W_merged x - b_merged are summed exactly over all batches in float32,
    the equations solved in float64 on the host. Both are done in parts, as many as
    there are CPU cores: the last bits of the result depend on their number. A merged
    network that already does what its parents do stays as it is.

    Fitted are dense and fused kernels of any number of axes, and convolutions with any
    strides, dilations and groups; the last layer too. A running statistic is set to
    what the fitted network does. A kernel used more than once, inside a loop, or
    computed from leaves stays as it is, with a warning.

    It costs one pass of the batches through every model and the merged network, the
    activations between two layers held for all batches, and per layer of d incoming
    entries (for a convolution: window x channels) d^2 values, samples x d^2 products
    and a solution of O(d^3).

    Args:
        spec: the permutation spec.
        apply_fn: `(variables, batch) -> outputs`, in evaluation mode.
        models: the variables of each model.
        assignment: label -> `int32[models, *outer units, units]`.
        merged: what `combine` made of them.
        batches: what `apply_fn` takes, one by one; read once.
        ridge: how much staying near the merged kernel counts, above 0; relative to the
            mean square of what goes into the layer.
        weights: the share of each model; None for equal shares.
        owners: for each batch the number of the model whose task it is from, so that
            no batch may mix tasks; None if that is not known.

    Returns:
        The variables with new kernels, biases and running statistics.

    Raises:
        TypeError: if `batches` is no iterable, or a single batch.
        ValueError: if the arguments do not fit together, there are no batches, or an
            activation is not finite.
    """
    shares = shares_of("refit", weights, len(models))
    merger = Merger(spec, apply_fn, models, assignment, shares)
    settings = LeastSquares(ridge, None if owners is None else tuple(owners))
    variables, notes = refit_layers(merger, merged, batches, settings=settings)
    log_skipped(_log, "refit", notes)
    return variables


def refit_layers(
    merger: Merger,
    merged: PyTree,
    batches: Iterable[PyTree],
    within: Container[str] | None = None,
    *,
    settings: LeastSquares | None = None,
) -> tuple[PyTree, dict[str, str]]:
    """Do what `refit` does, and say what became of the leaves of every layer.

    Args:
        merger: how the network was merged.
        merged: its variables.
        batches: what `apply_fn` takes, one by one; read once.
        within: the paths of the leaves that may change; None for all.
        settings: how to fit; of one parent all batches are its own, whatever `owners`
            says. None for the defaults.

    Returns:
        The variables, and path of a leaf -> what was done, or why nothing was.

    Raises:
        TypeError: as `refit` does.
        ValueError: as `refit` does.
    """
    settings = settings or LeastSquares()
    check_ridge("refit", settings.ridge)
    if len(merger.parents) == 1:
        settings = replace(settings, owners=None)
    if settings.owners is not None:
        check_owners("refit", settings.owners, len(merger.parents))
    change: Change = functools.partial(_change, settings)
    return change_layers("refit", change, merger, merged, batches, within)


def check_ridge(where: str, ridge: float) -> None:
    """Check the strength of the penalty.

    Args:
        where: the caller, named in the error.
        ridge: the strength.

    Raises:
        ValueError: if it is not finite and above 0.
    """
    if not (math.isfinite(ridge) and ridge > 0):
        raise ValueError(
            f"{where}: ridge: expected a finite number above 0, got {ridge}. Try "
            f"{RIDGE}."
        )


def check_owners(where: str, owners: Sequence[int], models: int) -> None:
    """Check the owners of batches.

    Args:
        where: the caller, named in the error.
        owners: for each batch the number of a model.
        models: number of models.

    Raises:
        ValueError: if one of them is no model, or a model owns no batch.
    """
    numbers = list(range(models))
    if sorted(set(owners)) != numbers:
        wrong = sorted({str(owner) for owner in owners if owner not in numbers})
        wrong += [f"no batch of model {n}" for n in numbers if n not in set(owners)]
        raise ValueError(
            f"{where}: owners: expected for each batch the number of the model whose "
            f"task it is from, each of 0 to {models - 1} at least once, got "
            f"{', '.join(wrong)}. Count the batches of each task."
        )


def _change(
    settings: LeastSquares, seen: Sequence[Seen], leaves: Leaves, targets: Targets
) -> tuple[Leaves, str]:
    layer, owners = seen[0].layer, settings.owners
    if isinstance(layer, Norm):
        return reset_norm("refit", layer, [each.merged for each in seen], leaves)
    if owners is not None and len(owners) != len(seen):
        raise ValueError(
            f"refit: owners: expected one for each of the {len(seen)} batches, got "
            f"{len(owners)}. Count the batches of each task."
        )
    total = _gathered(seen, leaves, targets, owners)
    if not (np.isfinite(total.mean).all() and np.isfinite(total.comoment).all()):
        raise ValueError(
            f"refit: {layer.kernel.path}: expected finite activations, got some that "
            "are not. Check the range of the input."
        )
    has_shift = layer.bias is not None or layer.is_normed
    kernel_change, bias_change = solve(total, settings.ridge, has_shift)
    index = matrix(layer.form, layer.kernel.index)
    new = {layer.kernel.path: _changed(leaves[layer.kernel.path], index, kernel_change)}
    if layer.bias is not None:
        index = columns(layer.form, layer.bias.index)
        new[layer.bias.path] = _changed(leaves[layer.bias.path], index, bias_change)
    return new, "refit by least squares"


def _gathered(
    seen: Sequence[Seen],
    leaves: Leaves,
    targets: Targets,
    owners: Sequence[int] | None,
) -> Regression:
    """Gather what goes in and how far from the parents it comes out, of all batches."""
    first = seen[0].layer
    assert isinstance(first, Linear)
    merged = operands_of(first, leaves)
    parents = [operands_of(first, of_parent) for of_parent in targets.leaves]
    shape = first.kernel.index.shape
    total = nothing(matrix(first.form, first.kernel.index).shape, seen[0].merged)
    for each, owner in zip(seen, owners or [None] * len(seen), strict=True):
        layer = each.layer
        assert isinstance(layer, Linear)
        wanted, axes = targets.of_layer(layer.makes, owner)
        order = sorted(range(len(parents)), key=lambda n: (n != owner, n))
        own = [(each.parents[n], *parents[n]) for n in order]
        fit = Fit(layer.form, shape, axes, None if owner is None else 0)
        into = each.merged, *merged
        total = added(total, layer.samples, fit, into, own, wanted)
    return over_all_processes(total)


def _changed(leaf: Array, index: np.ndarray, change: np.ndarray) -> Array:
    """Return a leaf with something added to some of its entries."""
    before = to_host(leaf).ravel()[index].astype(float)
    return write(leaf, index, before + change)
