"""Find layers: the linear layers of a program and its norms by running statistics.

A linear layer is a contraction of activations with a kernel, or a lookup of its rows.
The kernel is a leaf but for a rearrangement of its entries (a reshape, a transpose, a
slice of a stack, a cast), or computed from leaves so that it can be told which new
leaves a new kernel has. No module is looked for by name.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

import jax.extend.core as jex
import numpy as np

from jmudsc.derivation.program import Program, shape_of, variables_of
from jmudsc.derivation.rules.primitive import Arithmetic, Moves
from jmudsc.derivation.rules.table import contraction, primitive_of
from jmudsc.derivation.running_statistics import running_statistics, Statistics
from jmudsc.derivation.taps import value_axes
from jmudsc.repairs.contractions import Form, form_of, is_lookup, unit_axes
from jmudsc.repairs.layers import Layers, Linear, Norm, uses_of
from jmudsc.repairs.leaf_entries import (
    Entries,
    entries_of,
    leaves_below,
    Origins,
    origins_of,
    per_unit,
)
from jmudsc.repairs.loop_axes import axes_at, LoopAxes
from jmudsc.repairs.made_kernels import made_kernel
from jmudsc.repairs.operands import Operand
from jmudsc.repairs.shared_kernels import layers_of
from jmudsc.repairs.unroll import MOST_STEPS, unrolled
from jmudsc.spec.axes import Axis
from jmudsc.spec.permutation_spec import PermutationSpec

_COMPUTED = "is computed with, in a way that cannot be undone, before it is contracted"


@dataclass(frozen=True)
class _Finder:
    """What is known of a program while its layers are looked for.

    Attributes:
        origins: where its values come from and go to.
        data: the values that depend on the batch.
        uses: the `id` of every contraction of such a value with one that does not, and
            of every sum.
        axes_of: what the axes of such a value are; None if it is not known.
        subtractions: the running statistics by the equation that subtracts the mean.
        skipped: filled with what is left out, and why.
        made: the operands that are computed, by variable, as far as they are known.
    """

    origins: Origins
    data: Set[Any]
    uses: Set[int]
    axes_of: Callable[[Any], LoopAxes | None]
    subtractions: Mapping[int, Statistics]
    skipped: dict[str, str] = field(default_factory=dict)
    made: dict[Any, Operand | None] = field(default_factory=dict)

    def operand(self, var: Any) -> Operand | None:
        """Return what a kernel or bias is made of; None if it cannot be changed."""
        entries = entries_of(self.origins, var)
        if entries is not None or isinstance(var, jex.Literal):
            return entries
        if var not in self.made:
            self.made[var] = made_kernel(self.origins, var, self.uses)
        return self.made[var]

    def skip(self, leaves: Iterable[str], why: str) -> None:
        self.skipped.update(dict.fromkeys(leaves, why))


def find_layers(program: Program, spec: PermutationSpec) -> Layers:
    """Find the linear layers of a program and its norms by running statistics.

    Args:
        program: the traced model.
        spec: its spec, derived or written by hand.

    Returns:
        The layers, those inside loops among them. What is inside a branch is skipped,
        and so is a kernel that is used in other ways too, or computed from leaves in a
        way that cannot be undone.
    """
    flat = unrolled(program)
    axes = value_axes(program, spec)
    axes_of = lambda var: axes_at(var, flat, axes, spec)
    program = flat.program
    statistics = running_statistics(program, flat.data)
    subtractions = {id(record.eqn): record for record in statistics if record.mean}
    uses = frozenset(id(e) for e in program.eqns if _uses_an_operand(e, flat.data))
    finder = _Finder(origins_of(program), flat.data, uses, axes_of, subtractions)
    found: list[Linear | Norm] = []
    for eqn in program.eqns:
        if id(eqn) in uses and not _is_sum(eqn):
            found += _linears(finder, eqn)
        elif id(eqn) in finder.subtractions:
            found += _norms(finder, eqn)
        elif primitive_of(eqn).bodies is not None:
            for path in leaves_below(finder.origins, eqn, flat.data):
                finder.skipped[path] = f"is used inside a {_kind_of(eqn)}"
    steps = layers_of(found, finder.origins, finder.skipped)
    kept = {id(use.eqn): use for step in steps for use in uses_of(step)}
    stops = tuple(kept[id(eqn)] for eqn in program.eqns if id(eqn) in kept)
    return Layers(program, flat.data, steps, stops, finder.skipped)


def _uses_an_operand(eqn: Any, data: Set[Any]) -> bool:
    """Whether an equation does to data what a layer does with a kernel or bias."""
    if not (contraction(eqn) is not None or is_lookup(eqn) or _is_sum(eqn)):
        return False
    ins = variables_of(eqn.invars)
    return len(ins) == 2 and sum(var in data for var in ins) == 1


def _kind_of(eqn: Any) -> str:
    """Say what an equation is that has a program inside."""
    name = eqn.primitive.name
    return f"{name} of more than {MOST_STEPS} steps" if name == "scan" else name


def _is_sum(eqn: Any) -> bool:
    return primitive_of(eqn).arithmetic is Arithmetic.SUM


def _linears(finder: _Finder, eqn: Any) -> Iterator[Linear]:
    origins = finder.origins
    side = int(eqn.invars[0] in finder.data)
    var, out = eqn.invars[side], eqn.outvars[0]
    form, kernel, made = form_of(eqn, side), finder.operand(var), finder.axes_of(out)
    if kernel is None:
        for path in leaves_below(origins, eqn, finder.data):
            finder.skipped[path] = _COMPUTED
    elif form is None:
        finder.skip(kernel.paths, "is in a convolution of an unusual form")
    elif made is None:
        finder.skip(kernel.paths, "is in a loop over layers that are not told apart")
    else:
        bias, is_normed = None, False
        takes: tuple[Axis, ...] = ()
        if not form.is_lookup:
            bias, is_normed = _what_follows(finder, out, form)
            taken = finder.axes_of(eqn.invars[1 - form.side])
            takes = () if taken is None else taken.axes
        yield Linear(eqn, form, kernel, bias, made.axes, takes, is_normed, made.at)


def _norms(finder: _Finder, eqn: Any) -> Iterator[Norm]:
    record, origins = finder.subtractions[id(eqn)], finder.origins
    mean, leaves = entries_of(origins, record.mean_var), origins.program.leaves
    assert record.mean is not None
    both = leaves[record.mean], leaves[record.variance]
    if mean is None or mean.path != record.mean or len({*map(shape_of, both)}) != 1:
        finder.skipped[record.mean] = "is not subtracted as it is"
    elif any(len(origins.users[leaf]) != 1 for leaf in both):
        finder.skipped[record.mean] = "is used more than once"
    else:
        mean, variance = (
            Entries(path, per_unit(mean.index)) for path in (mean.path, record.variance)
        )
        yield Norm(eqn, record.activations, mean, variance)


def _what_follows(finder: _Finder, var: Any, form: Form) -> tuple[Operand | None, bool]:
    """Find the bias added to an output, and whether a norm comes next.

    The units are followed through whatever keeps each of their axes whole.
    """
    shape = shape_of(var)
    units = unit_axes(form, len(shape))
    kept = tuple(n if axis in units else 1 for axis, n in enumerate(shape))
    places, bias = list(units), None
    while True:
        eqn, *others = finder.origins.users[var]
        if others or eqn is None:
            return bias, False
        if id(eqn) in finder.subtractions:
            return bias, finder.subtractions[id(eqn)].activations is var
        if primitive_of(eqn).arithmetic is Arithmetic.SUM and bias is None:
            other = eqn.invars[eqn.invars[0] is var]
            bias = _bias(finder.operand(other), places, kept)
            if bias is None:
                return None, False
        else:
            followed = [_followed(eqn, place) for place in places]
            places = [place for place in followed if place is not None]
            if len(places) < len(followed):
                return bias, False
        var = eqn.outvars[0]


def _bias(
    found: Operand | None, places: list[int], shape: tuple[int, ...]
) -> Operand | None:
    """Return an operand that has one entry for every unit, in a given shape."""
    if found is None:
        return None
    index = per_unit(found.index)
    samples = [axis for axis in range(index.ndim) if axis not in places]
    index = np.transpose(index, (*places, *samples))
    if index.size != np.prod(shape):
        return None
    return replace(found, index=index.reshape(shape))


def _followed(eqn: Any, axis: int) -> int | None:
    """Return where an axis comes out of an equation whole, None if it does not."""
    name, params = eqn.primitive.name, eqn.params
    if primitive_of(eqn).entries is Moves.KEPT:
        return axis
    if name == "transpose":
        return params["permutation"].index(axis)
    if name == "squeeze":
        return axis - sum(dropped < axis for dropped in params["dimensions"])
    if name == "broadcast_in_dim":
        return params["broadcast_dimensions"][axis]
    if name == "reshape":
        before, after = (shape_of(v) for v in (eqn.invars[0], eqn.outvars[0]))
        ahead = np.prod(before[:axis])
        found = [
            i
            for i, size in enumerate(after)
            if size == before[axis] and np.prod(after[:i]) == ahead
        ]
        return found[-1] if found else None
    return None
