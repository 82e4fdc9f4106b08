"""Loop axes: what the axes of a value are at one step of the loops around it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jmudsc.derivation.terms.values import Place
from jmudsc.repairs.unroll import Unrolled
from jmudsc.spec.axes import Axis, Fixed, member_of, Units
from jmudsc.spec.permutation_spec import PermutationSpec


@dataclass(frozen=True)
class LoopAxes:
    """The axes of a value that a loop computes at every step.

    Attributes:
        axes: one expression per axis, as they are at the step.
        at: label -> the position along it, where the loop runs over its units.
    """

    axes: tuple[Axis, ...]
    at: Mapping[str, int]


def axes_at(
    var: Any,
    flat: Unrolled,
    axes: Mapping[Place, Sequence[Axis]],
    spec: PermutationSpec,
) -> LoopAxes | None:
    """Say what the axes of a value are at the step that it is of.

    Args:
        var: a variable of the program whose loops were written out.
        flat: that program.
        axes: place of a value before -> one expression per axis, those of the steps of
            the loops around it first.
        spec: the permutation spec.

    Returns:
        The axes; None if it is not known which units of its outer labels those of a
        label go with.
    """
    place, steps = flat.origin.get(var, (Place(var), ()))
    if place not in axes:
        return None
    around, own = axes[place][: len(steps)], tuple(axes[place][len(steps) :])
    at: dict[str, int] = {}
    for axis, step in zip(around, steps, strict=True):
        if isinstance(axis, Units):
            at[axis.label] = step
        elif not isinstance(axis, Fixed):
            return None
        elif axis.split is not None:
            split = axis.split
            own = tuple(member_of(each, split, step) for each in own)
    here = {name for axis in own for name in axis.labels()}
    outer = {o for name in here for o in spec.labels[name].parents}
    return LoopAxes(own, at) if outer <= here | at.keys() else None
