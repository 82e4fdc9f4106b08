"""Least squares: kernels that best reproduce what the parents do."""

import functools
import logging
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.batches import check_iterable
from jmudsc.reordering.combine import shares_of
from jmudsc.repairs.contractions import columns, matrix
from jmudsc.repairs.gather import Follow, gathered
from jmudsc.repairs.layer_by_layer import (
    Change,
    change_layers,
    log_skipped,
    Seen,
)
from jmudsc.repairs.layers import Layer, Linear, Norm, uses_of
from jmudsc.repairs.merger import Merger
from jmudsc.repairs.mixing import Mixing, mixings_of, SampleWeight, TARGETS
from jmudsc.repairs.normal_equations import gain, shift_of, solve, Uses
from jmudsc.repairs.operands import with_change
from jmudsc.repairs.rescale import reset_norm
from jmudsc.repairs.targets import Leaves, Targets
from jmudsc.spec.permutation_spec import PermutationSpec
from jmudsc.types import ApplyFn

_log = logging.getLogger(__name__)

RIDGE = 1e-2
# What is said of leaves that were fitted.
FITTED = "refit by least squares"
_WHOLE = "Patterns are of whole leaf paths."


@dataclass(frozen=True)
class LeastSquares:
    """How layers are fitted.

    Attributes:
        ridge: how much staying near the merged kernel counts, above 0; relative to the
            mean square of what goes into the layer.
        owners: for each batch the number of the parent whose task it is from; None if
            that is not known.
        target: whom to follow on each sample: its "owner", all parents by their
            "sureness", or all alike, the "ensemble"; None for owners where they are
            known, and else for sureness.
        sample_weight: `(batch, outputs of the parents) -> weights` of each sample, or
            of each of its places; None for 1.
        only: patterns of the leaves that are fitted, with a layer's bias those of its
            kernel; none for all.
    """

    ridge: float = RIDGE
    owners: tuple[int, ...] | None = None
    target: str | None = None
    sample_weight: SampleWeight | None = None
    only: tuple[str, ...] = ()

    @property
    def follows_owners(self) -> bool:
        """Whether on each batch its owner alone is followed."""
        return self.owners is not None and self.target in (None, "owner")

    @property
    def by_sureness(self) -> bool:
        """Whether parents count by how sure they are of each sample."""
        return self.target == "sureness" or (self.target is None and not self.owners)


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
    target: str | None = None,
    sample_weight: SampleWeight | None = None,
    only: Sequence[str] = (),
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

    Fitted are dense and fused kernels of any number of axes, convolutions with any
    strides, dilations and groups, and rows that are looked up; the last layer too. A
    running statistic is set to what the fitted network does. A kernel that is used more
    than once is fitted to all its uses together; if what goes into it depends on it, as
    in a recurrent network, twice: on the states of the parents, and then on its own. A
    kernel that is computed from leaves (a sum, a product, leaves joined, a direction
    and a norm) is solved for, and then its leaves. Those inside a `scan` of up to 512
    steps are fitted as if it was written out. A kernel inside a branch, a `while` loop
    or a longer `scan`, or one whose leaves go into something else too, stays as it is,
    with a warning.

    It costs one pass of the batches through every model and the merged network, and for
    a kernel with several uses one more from the first of them to the last; the
    activations between two layers held for all batches; and per layer of d incoming
    entries (for a convolution: window x channels) d^2 values, samples x d^2 products
    and a solution of O(d^3). The second moments of large windows that overlap depend on
    the lags of their entries only, but for the ends, and take samples x d x channels.

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
        target: whom to follow on each sample: its "owner", all parents by their
            "sureness", or all alike, the "ensemble"; None for owners where they are
            known, and else for sureness.
        sample_weight: `(batch, outputs of the parents) -> weights` of each sample, or
            of each of its places, 0 or more; None for 1. For events that are rare.
        only: patterns of the leaves that are fitted, with a layer's bias those of its
            kernel; none for all.

    Returns:
        The variables with new kernels, biases and running statistics.

    Raises:
        TypeError: if `batches` is no iterable, or a single batch.
        ValueError: if the arguments do not fit together, there are no batches, or an
            activation is not finite.
    """
    shares = shares_of("refit", weights, len(models))
    merger = Merger(spec, apply_fn, models, assignment, shares)
    owned = None if owners is None else tuple(owners)
    settings = LeastSquares(ridge, owned, target, sample_weight, tuple(only))
    leaves = paths.flatten(merged)
    paths.check_patterns("refit", settings.only, leaves, "leaf", _WHOLE)
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
            says. Patterns of `only` may match nothing: of a trunk, those of heads do.
            None for the defaults.

    Returns:
        The variables, and path of a leaf -> what was done, or why nothing was.

    Raises:
        TypeError: as `refit` does.
        ValueError: as `refit` does.
    """
    settings = settings or LeastSquares()
    check_ridge("refit", settings.ridge)
    if len(merger.parents) == 1:
        settings = replace(settings, owners=None, target="ensemble")
    _check_target(settings)
    if settings.owners is not None:
        check_owners("refit", settings.owners, len(merger.parents))
    check_iterable("refit", batches)
    batches = list(batches)
    mixings = mixings_of(merger, batches, settings.by_sureness, settings.sample_weight)
    change: Change = functools.partial(_change, settings, mixings)
    variables, notes = change_layers("refit", change, merger, merged, batches, within)
    return variables, {path: note for path, note in notes.items() if note}


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


def _check_target(settings: LeastSquares) -> None:
    if settings.target not in (None, *TARGETS):
        raise ValueError(
            f"refit: target: expected one of {', '.join(TARGETS)}, got "
            f'"{settings.target}". Leave it out to follow owners where they are known.'
        )
    if settings.target == "owner" and settings.owners is None:
        raise ValueError(
            'refit: target: expected owners with "owner", got none. Pass owners, for '
            "each batch the number of the model whose task it is from."
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
    settings: LeastSquares,
    mixings: Sequence[Mixing],
    layer: Layer,
    seen: Iterable[Seen],
    leaves: Leaves,
    targets: Targets,
) -> tuple[Leaves, str]:
    if settings.only and not _is_named(layer, settings.only):
        return {}, ""
    if isinstance(layer, Norm):
        return reset_norm("refit", layer, [each.merged for each in seen], leaves)
    owners = settings.owners
    if owners is not None and len(owners) != len(mixings):
        raise ValueError(
            f"refit: owners: expected one for each of the {len(mixings)} batches, got "
            f"{len(owners)}. Count the batches of each task."
        )
    follow = Follow(owners if settings.follows_owners else None, mixings)
    sets = gathered(seen, leaves, targets, follow)
    first = sets[0].linear
    if not all(np.isfinite(each.uses.total.mean).all() for each in sets) or not all(
        np.isfinite(each.uses.total.comoment).all() for each in sets
    ):
        raise ValueError(
            f"refit: {first.kernel.path}: expected finite activations, got some that "
            "are not. Check the range of the input."
        )
    uses = [each.uses for each in sets]
    new, change, done = _with_change(first, leaves, uses, settings.ridge)
    for each in sets:
        if new and (bias := each.linear.bias) is not None:
            index = columns(each.linear.form, bias.index)
            shift = shift_of(each.uses, change)
            new |= with_change(bias, {**leaves, **new}, index, shift)[0]
    return new, done


def _is_named(layer: Layer, only: Sequence[str]) -> bool:
    """Whether patterns name the kernel of a layer, all that it is made of."""
    first = uses_of(layer)[0]
    leaves = first.kernel.paths if isinstance(first, Linear) else [first.mean.path]
    return all(paths.matches(path, only) for path in leaves)


def _with_change(
    layer: Linear, leaves: Leaves, uses: Sequence[Uses], ridge: float
) -> tuple[Leaves, np.ndarray, str]:
    """Solve for a kernel; return its leaves, how it changes, and what was done."""
    change, kernel = solve(uses, ridge), layer.kernel
    index = matrix(layer.form, kernel.index)
    new, found, is_exact = with_change(kernel, leaves, index, change)
    if is_exact:
        return new, found, FITTED
    if gain(uses, found, ridge) > 0:
        return new, found, f"{FITTED}, as far as what it is made of can follow"
    return {}, change, "is computed from leaves in a way that cannot be fitted"
