"""Gather: the moments of a layer over all batches, and over all uses of its kernel."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jmudsc.repairs.contractions import matrix
from jmudsc.repairs.layer_by_layer import operands_of, Seen
from jmudsc.repairs.layers import Linear
from jmudsc.repairs.mixing import Mixing
from jmudsc.repairs.normal_equations import Uses
from jmudsc.repairs.regression import (
    added,
    Fit,
    nothing,
    over_all_processes,
    Regression,
)
from jmudsc.repairs.shared_kernels import bias_set
from jmudsc.repairs.targets import Leaves, Targets


@dataclass(frozen=True)
class Follow:
    """Whom a layer follows on every batch.

    Attributes:
        owners: the number of the parent; None for no one parent.
        mixings: how much each parent and each sample counts.
    """

    owners: Sequence[int] | None
    mixings: Sequence[Mixing]


@dataclass(frozen=True)
class Gathered:
    """Uses of a kernel that add the same bias, and the first of them.

    Attributes:
        linear: the first of them.
        uses: their moments.
    """

    linear: Linear
    uses: Uses


def gathered(
    seen: Iterable[Seen],
    leaves: Leaves,
    targets: Targets,
    follow: Follow,
) -> list[Gathered]:
    """Gather what goes into a layer and how far from the parents it comes out.

    Args:
        seen: what goes into the layer, for every batch and use.
        leaves: those of the merged network.
        targets: the parents.
        follow: whom it follows.

    Returns:
        The moments, those of uses that add another bias by themselves; first those of
        the first use.
    """
    first: dict[Hashable, Linear] = {}
    operands: dict[Hashable, Sequence[Any]] = {}
    totals: dict[Hashable, Regression] = {}
    for each in seen:
        use = each.use
        assert isinstance(use, Linear)
        key = _set_of(use, each.number)
        if key not in first:
            first[key] = use
            totals[key] = _none_of(use, each)
            operands[key] = [operands_of(use, own) for own in (leaves, *targets.leaves)]
        totals[key] = _with(totals[key], each, operands[key], targets, follow)
    return [Gathered(use, _uses(use, totals[key])) for key, use in first.items()]


def _uses(use: Linear, total: Regression) -> Uses:
    has_shift = use.bias is not None or use.is_normed
    return Uses(over_all_processes(total), has_shift, use.is_turned)


def _set_of(use: Linear, number: int) -> Hashable:
    """Return what uses have equal that share a mean: their bias, or the norm after."""
    if use.bias is None and use.is_normed:
        return number
    return bias_set(use) or use.is_turned


def _none_of(use: Linear, seen: Seen) -> Regression:
    return nothing(use.form, matrix(use.form, use.kernel.index).shape, seen.merged)


def _with(
    total: Regression, seen: Seen, operands: Sequence, targets: Targets, follow: Follow
) -> Regression:
    """Add what goes into one use in one batch."""
    use, mixing = seen.use, follow.mixings[seen.batch]
    assert isinstance(use, Linear)
    owner = None if follow.owners is None else follow.owners[seen.batch]
    merged, *parents = operands
    taken = use.takes if use.is_led else ()
    wanted, axes = targets.within(use.at).of_layer((*use.makes, *taken), owner)
    makes, takes = axes[: len(use.makes)], axes[len(use.makes) :]
    order = sorted(range(len(parents)), key=lambda n: (n != owner, n))
    own = [(seen.parents[n], *parents[n]) for n in order]
    first = None if owner is None else 0
    shape = use.kernel.index.shape
    fit = Fit(use.form, shape, makes, first, takes if use.is_led else None)
    return added(total, use.samples, fit, ((seen.merged, *merged), own), wanted, mixing)
