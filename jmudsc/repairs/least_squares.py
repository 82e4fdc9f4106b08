"""Refit: kernels that best reproduce what the parents do, by least squares."""

import functools
import logging
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float, PyTree

from jmudsc.repairs.contractions import columns, Form, matrix, rows
from jmudsc.repairs.find_layers import Norm
from jmudsc.repairs.layer_by_layer import (
    Change,
    change_layers,
    log_skipped,
    outputs,
    Seen,
)
from jmudsc.repairs.leaf_entries import write
from jmudsc.repairs.rescale import reset_norm
from jmudsc.repairs.targets import Leaves, Parents
from jmudsc.sharding import over_processes, to_host
from jmudsc.spec.permutation_spec import PermutationSpec
from jmudsc.types import ApplyFn

_log = logging.getLogger(__name__)

REFITS = ("least-squares",)
RIDGE = 1e-2

Parts = tuple[Float[Array, "groups 1 both"], Float[Array, "groups incoming both"]]


@dataclass(frozen=True)
class Regression:
    """Moments of what goes into a map and of what is missing from what comes out.

    Attributes:
        count: number of samples.
        mean: of the incoming entries, and after them of the outgoing residuals.
        comoment: sum over samples of the products of deviations from the mean, of
            incoming entries with both.
    """

    count: int
    mean: Float[Array, "groups 1 both"]
    comoment: Float[Array, "groups incoming both"]


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
    """Fit every map of a merged network to what its parents do, without a gradient.

    Map by map, in order: with x what goes into it in the merged network as fitted so
    far, and z what the parents make of the same batch, brought to the merged order, the
    kernel W and the bias b minimise

        E |W x + b - z|^2 + ridge * E |x|^2 / len(x) * |W - W_merged|^2.

    z is the output of the batch's owner, the parent that was trained on its task; if
    owners are not given, the weighted mean of all parents, which do not know what to
    make of each other's data. A merged unit in which the owner has no unit follows the
    mean always.

    With owners this is RegMean (Jin et al. 2023, arXiv:2212.09849, eq. 2) but for the
    inputs, which are the merged network's own: what went wrong in one layer is made
    good by the next (as in PLeaS, Nasery et al. 2025, arXiv:2407.02447). The moments of
    x and of z - W_merged x - b_merged are summed exactly over all batches in float32,
    the equations solved in float64 on the host. A merged network that already does what
    its parents do stays as it is.

    Fitted are dense and fused kernels of any number of axes, and convolutions with any
    strides, dilations and groups; the last map too. A running statistic is set to what
    the fitted network does. A kernel used more than once, inside a loop, or computed
    from leaves stays as it is, with a warning.

    It costs one pass of the batches through every model and the merged network, the
    activations between two layers held for all batches, and per map of d incoming
    entries (for a convolution: window x channels) d^2 values, samples x d^2 products
    and a solution of O(d^3).

    Args:
        spec: the permutation spec.
        apply_fn: `(variables, batch) -> outputs`, in evaluation mode.
        models: the variables of each model.
        assignment: label -> `int32[models, *parent units, units]`.
        merged: what `combine` made of them.
        batches: what `apply_fn` takes, one by one; read once.
        ridge: how much staying near the merged kernel counts, above 0; relative to the
            mean square of what goes into the map.
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
    variables, notes = refit_layers(
        spec, apply_fn, models, assignment, merged, batches, ridge, weights, owners
    )
    log_skipped(_log, "refit", notes)
    return variables


def refit_layers(
    spec: PermutationSpec,
    apply_fn: ApplyFn,
    models: Sequence[PyTree],
    assignment: Mapping[str, np.ndarray],
    merged: PyTree,
    batches: Iterable[PyTree],
    ridge: float = RIDGE,
    weights: Sequence[float] | None = None,
    owners: Sequence[int] | None = None,
    within: Container[str] | None = None,
) -> tuple[PyTree, dict[str, str]]:
    """Refit as `refit` does, and say what became of the leaves of every layer.

    Args:
        spec: as for `refit`, and so are the others.
        apply_fn: as for `refit`.
        models: as for `refit`.
        assignment: as for `refit`.
        merged: as for `refit`.
        batches: as for `refit`.
        ridge: as for `refit`.
        weights: as for `refit`.
        owners: as for `refit`.
        within: the paths of the leaves that may change; None for all.

    Returns:
        The variables, and path of a leaf -> what was done, or why nothing was.

    Raises:
        ValueError: as `refit` does.
    """
    check_ridge("refit", ridge)
    if owners is not None:
        check_owners("refit", owners, len(models))
    change: Change = functools.partial(_change, ridge, owners)
    parts = spec, apply_fn, models, assignment, merged, batches, weights, within
    return change_layers("refit", change, *parts)


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
            f"{where}: ridge is {ridge}, it must be finite and above 0; try {RIDGE}."
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
        strange = sorted({str(owner) for owner in owners if owner not in numbers})
        missing = [str(number) for number in numbers if number not in set(owners)]
        said = [f"{', '.join(strange)} is no model"] if strange else []
        said += [f"no batch is of model {', '.join(missing)}"] if missing else []
        raise ValueError(
            f"{where}: owners: {'; '.join(said)}; needed is for each batch the number "
            f"of the model whose task it is from, each of 0 to {models - 1} at least "
            "once."
        )


def _change(
    ridge: float,
    owners: Sequence[int] | None,
    seen: Sequence[Seen],
    leaves: Leaves,
    parents: Parents,
) -> tuple[Leaves, str]:
    layer = seen[0].layer
    if isinstance(layer, Norm):
        return reset_norm("refit", layer, [each.merged for each in seen], leaves)
    if owners is not None and len(owners) != len(seen):
        raise ValueError(
            f"refit: there are {len(owners)} owners for {len(seen)} batches, needed is "
            "one for each; count the batches of each task."
        )
    total = functools.reduce(joined, _regressions(seen, leaves, parents, owners))
    total = _of_all_processes(total)
    if not (jnp.isfinite(total.mean).all() and jnp.isfinite(total.comoment).all()):
        raise ValueError(
            f"refit: what {layer.kernel.path} makes of the batches is not finite, it "
            "must be; check the range of the input."
        )
    has_shift = layer.bias is not None or layer.is_normed
    kernel_change, bias_change = solve(total, ridge, has_shift)
    index = matrix(layer.form, layer.kernel.index)
    new = {layer.kernel.path: _added(leaves[layer.kernel.path], index, kernel_change)}
    if layer.bias is not None:
        index = np.asarray(columns(layer.form, jnp.asarray(layer.bias.index)))
        new[layer.bias.path] = _added(leaves[layer.bias.path], index, bias_change)
    return new, "refit by least squares"


def solve(
    total: Regression, ridge: float, has_shift: bool
) -> tuple[Float[np.ndarray, "groups incoming outgoing"], np.ndarray]:
    """Find the change of a kernel and its bias that leaves the least residual.

    Args:
        total: moments of what goes in and of the residual before the change.
        ridge: strength of the penalty on the change, times the mean square of what
            goes in.
        has_shift: whether there is a bias to change too, which is not penalised.

    Returns:
        The change of the kernel, and that of the bias, (groups, 1, outgoing).
    """
    into = total.comoment.shape[1]
    mean = to_host(total.mean).astype(float)
    second = to_host(total.comoment).astype(float) / total.count
    if not has_shift:
        second += np.swapaxes(mean[..., :into], 1, 2) * mean
    changes = []
    for group in second:
        gram, cross = group[:, :into], group[:, into:]
        penalty = ridge * np.trace(gram) / into or 1.0  # of inputs that are all zero
        changes.append(
            scipy.linalg.solve(gram + penalty * np.eye(into), cross, assume_a="pos")
        )
    change = np.stack(changes)
    return change, mean[..., into:] - mean[..., :into] @ change


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
    parts = _joined((a.mean, a.comoment), (b.mean, b.comoment), share, weight)
    return Regression(count, *parts)


def _of_all_processes(total: Regression) -> Regression:
    """Put together what every process gathered from batches of its own."""
    parts = total.count, total.mean, total.comoment
    gathered = [Regression(int(n), *rest) for n, *rest in over_processes(parts, parts)]
    return functools.reduce(joined, gathered)


def _regressions(
    seen: Sequence[Seen],
    leaves: Leaves,
    parents: Parents,
    owners: Sequence[int] | None,
) -> Iterable[Regression]:
    """Yield, batch by batch, what goes in and how far from the parents it comes out."""
    for each, owner in zip(seen, owners or [None] * len(seen), strict=True):
        layer = each.layer
        assert not isinstance(layer, Norm)
        of_parent = lambda number, each=each, layer=layer: outputs(
            layer, each.parents[number], parents.leaves[number]
        )
        target = parents.target(of_parent, layer.makes, owner)
        residual = target - outputs(layer, each.merged, leaves)
        shape = layer.kernel.index.shape
        count = residual.size // math.prod(residual.shape[a] for a in layer.unit_axes)
        yield Regression(count, *_moments(layer.form, shape, each.merged, residual))


@functools.partial(jax.jit, static_argnames=("form", "shape"))
def _moments(form: Form, shape: tuple[int, ...], x: Array, residual: Array) -> Parts:
    into = rows(form, jnp.asarray(x, jnp.float32), shape)
    both = jnp.concatenate([into, columns(form, residual)], axis=-1)
    mean = both.mean(axis=1, keepdims=True)
    apart = both - mean
    first, highest = apart[..., : into.shape[-1]], jax.lax.Precision.HIGHEST
    return mean, jnp.einsum("gsi,gsj->gij", first, apart, precision=highest)


@jax.jit
def _joined(a: Parts, b: Parts, share: Array, weight: Array) -> Parts:
    (mean_a, comoment_a), (mean_b, comoment_b) = a, b
    step = mean_b - mean_a
    outer = jnp.swapaxes(step[..., : comoment_a.shape[1]], 1, 2) * step
    return mean_a + share * step, comoment_a + comoment_b + weight * outer


def _added(leaf: Array, index: np.ndarray, change: np.ndarray) -> Array:
    """Return a leaf with something added to some of its entries."""
    before = to_host(leaf).ravel()[index].astype(float)
    return write(leaf, index, before + change)
