"""Unroll: a program whose loops are written out, step after step.

What a layer inside a loop should be can only be found where its values can be read, so
the steps of a loop become equations like all others. What every step computes of leaves
alone is computed once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from jmudsc.derivation.program import (
    live_equations,
    open_jaxpr,
    Program,
    scan_operands,
    shape_of,
    variables_of,
)
from jmudsc.derivation.terms.values import Place
from jmudsc.repairs.segments import frozen

# A loop of more steps stays a loop.
MOST_STEPS = 512


@dataclass(frozen=True, eq=False)
class Unrolled:
    """A program without its loops.

    Attributes:
        program: the program.
        data: its variables that depend on the batch, or are the state of a loop that
            does, from the first step on.
        origin: variable -> where it was before, and the step of each loop around it.
        loops: the equations of the loops that were written out.
    """

    program: Program
    data: frozenset[Any]
    origin: Mapping[Any, tuple[Place, tuple[int, ...]]]
    loops: tuple[Any, ...]


def unrolled(program: Program, most: int = MOST_STEPS) -> Unrolled:
    """Write the steps of every loop of a known number of steps out.

    Args:
        program: the traced model.
        most: loops of more steps stay as they are, and what is inside them.

    Returns:
        The program without them. One that has none is the same program.
    """
    leaves = set(program.leaves.values())
    writer = _Writer(most, set(program.inputs), leaves, dict(program.consts))
    names: dict[Any, Any] = {}
    writer.write(program.eqns, names, _Here((), ()))
    outvars = tuple(_named(names, var) for var in program.outvars)
    flat = Program(
        program.invars,
        writer.consts,
        live_equations(writer.eqns, outvars),
        outvars,
        program.paths,
    )
    loops = tuple(writer.loops)
    kept = flat if loops else program
    return Unrolled(kept, frozenset(writer.data), writer.origin, loops)


@dataclass(frozen=True)
class _Here:
    """Where equations are: the loops around them, and the step of each."""

    loops: tuple[Any, ...]
    steps: tuple[int, ...]


@dataclass
class _Writer:
    """Equations on their way to a program without loops.

    Attributes:
        most: loops of more steps stay as they are.
        data: the variables that depend on the batch, so far.
        leafy: those that depend on leaves alone, and these.
        consts: the constants of the program.
        eqns: what is written, so far.
        origin: variable -> where it was before, and at which steps.
        loops: the loops that were written out.
        known: what is computed of leaves alone -> its variables.
        fresh: the variables that the program did not have.
    """

    most: int
    data: set[Any]
    leafy: set[Any]
    consts: dict[Any, Any]
    eqns: list[Any] = field(default_factory=list)
    origin: dict[Any, tuple[Place, tuple[int, ...]]] = field(default_factory=dict)
    loops: dict[Any, None] = field(default_factory=dict)
    known: dict[Any, list[Any]] = field(default_factory=dict)
    fresh: set[Any] = field(default_factory=set)

    def write(self, eqns: Iterable[Any], names: dict[Any, Any], here: _Here) -> None:
        """Write equations, the variables of which have other names by now."""
        for eqn in eqns:
            ins = [_named(names, var) for var in eqn.invars]
            if self._is_written_out(eqn, variables_of(ins)):
                outs = self._loop(eqn, ins, here)
            else:
                outs = self._equation(eqn, ins, here)
            for old, new in zip(eqn.outvars, outs, strict=True):
                names[old] = new
                self._came_from(new, old, here)

    def _is_written_out(self, eqn: Any, ins: Sequence[Any]) -> bool:
        """Whether an equation is a loop in which leaves meet data."""
        if self.data.isdisjoint(ins) or self.leafy.isdisjoint(ins):
            return False
        return eqn.primitive.name == "scan" and 0 < eqn.params["length"] <= self.most

    def _equation(self, eqn: Any, ins: list[Any], here: _Here) -> list[Any]:
        if not here.loops and all(a is b for a, b in zip(ins, eqn.invars, strict=True)):
            self.eqns.append(eqn)
            outs = list(eqn.outvars)
            self._note(eqn, outs)
        else:
            outs = self._renamed(eqn, ins)
        return outs

    def _came_from(self, new: Any, old: Any, here: _Here) -> None:
        if not isinstance(new, jex.Literal) and new in self.fresh:
            self.origin.setdefault(new, (Place(old, here.loops), here.steps))

    def _renamed(self, eqn: Any, ins: list[Any]) -> list[Any]:
        """Write an equation under new names, unless it is known what it gives."""
        if all(isinstance(x, jex.Literal) and shape_of(x) == () for x in ins) and ins:
            return _computed(eqn, ins)
        if eqn.primitive.name == "dynamic_slice" and all(
            isinstance(x, jex.Literal) for x in ins[1:]
        ):
            eqn, ins = _as_slice(eqn, ins)
        if self.data.intersection(variables_of(ins)):
            return self._written(eqn, ins)
        key = eqn.primitive, frozen(eqn.params), tuple(map(_key, ins))
        if key not in self.known:
            self.known[key] = self._written(eqn, ins)
        return self.known[key]

    def _written(self, eqn: Any, ins: list[Any]) -> list[Any]:
        outs = [jex.Var(var.aval) for var in eqn.outvars]
        return self._added(eqn.replace(invars=ins, outvars=outs))

    def _added(self, eqn: Any) -> list[Any]:
        self.eqns.append(eqn)
        self.fresh.update(eqn.outvars)
        self._note(eqn, eqn.outvars)
        return list(eqn.outvars)

    def _note(self, eqn: Any, outs: Sequence[Any]) -> None:
        ins = variables_of(eqn.invars)
        if not self.data.isdisjoint(ins):
            self.data.update(outs)
        elif not self.leafy.isdisjoint(ins):
            self.leafy.update(outs)

    def _loop(self, eqn: Any, ins: list[Any], here: _Here) -> list[Any]:
        self.loops[eqn] = None
        body, length = eqn.params["jaxpr"], eqn.params["length"]
        inner = open_jaxpr(body)
        self.consts |= zip(inner.constvars, getattr(body, "consts", ()), strict=True)
        consts, carried = scan_operands(eqn)
        fixed, carry, xs = (
            ins[:consts],
            ins[consts : consts + carried],
            ins[consts + carried :],
        )
        carry = [self._state(x) for x in carry]
        made: list[list[Any]] = []
        for step in range(length)[:: -1 if eqn.params["reverse"] else 1]:
            own = [self._step_of(x, step) for x in xs]
            names = dict(zip(inner.invars, [*fixed, *carry, *own], strict=True))
            inside = _Here((*here.loops, eqn), (*here.steps, step))
            for old, new in names.items():
                self._came_from(new, old, inside)
            self.write(inner.eqns, names, inside)
            outs = [_named(names, var) for var in inner.outvars]
            carry = outs[:carried]
            made.append(outs[carried:])
        if eqn.params["reverse"]:
            made.reverse()
        return [*carry, *(self._stacked(each) for each in zip(*made, strict=True))]

    def _state(self, x: Any) -> Any:
        """Let the first state of a loop count as data, as those after it do."""
        aval: Any = x.aval
        is_data = not isinstance(x, jex.Literal) and x in self.data
        if is_data or not jnp.issubdtype(aval.dtype, jnp.inexact):
            return x
        (copy,) = self._made(jex.primitives.copy_p, [x], {}, aval)
        self.data.add(copy)
        return copy

    def _step_of(self, x: Any, step: int) -> Any:
        """Write the slice of one step out of what a loop runs over."""
        if isinstance(x, jex.Literal):
            return x
        shape = shape_of(x)
        cut = x.aval.update(shape=(1, *shape[1:]))
        if x in self.data:  # with the step as an operand, as all steps are alike
            where = [_number(step), *(_number(0) for _ in shape[1:])]
            params = {"slice_sizes": (1, *shape[1:])}
            (row,) = self._made(
                jex.primitives.dynamic_slice_p, [x, *where], params, cut
            )
        else:
            params = {
                "start_indices": (step, *(0 for _ in shape[1:])),
                "limit_indices": (step + 1, *shape[1:]),
                "strides": None,
            }
            (row,) = self._made(jex.primitives.slice_p, [x], params, cut)
        params, aval = {"dimensions": (0,)}, x.aval.update(shape=shape[1:])
        return self._made(jex.primitives.squeeze_p, [row], params, aval)[0]

    def _stacked(self, values: Sequence[Any]) -> Any:
        """Write what every step gives as one value."""
        rows = []
        for x in values:
            shape, axes = (1, *shape_of(x)), tuple(range(1, len(shape_of(x)) + 1))
            params = {"shape": shape, "broadcast_dimensions": axes, "sharding": None}
            aval = x.aval.update(shape=shape)
            rows += self._made(jex.primitives.broadcast_in_dim_p, [x], params, aval)
        aval = rows[0].aval.update(shape=(len(rows), *shape_of(rows[0])[1:]))
        if len(rows) == 1:
            return rows[0]
        params = {"dimension": 0}
        return self._made(jex.primitives.concatenate_p, rows, params, aval)[0]

    def _made(
        self, primitive: Any, ins: list[Any], params: dict[str, Any], aval: Any
    ) -> list[Any]:
        """Write an equation that the program did not have."""
        out = jex.Var(aval)
        no_effects = jex.no_effects
        return self._added(jex.new_jaxpr_eqn(ins, [out], primitive, params, no_effects))


def _named(names: Mapping[Any, Any], var: Any) -> Any:
    return var if isinstance(var, jex.Literal) else names.get(var, var)


def _computed(eqn: Any, ins: Sequence[Any]) -> list[Any]:
    """Work an equation of numbers alone out, such as the counter of a loop."""
    outs = eqn.primitive.bind(*(x.val for x in ins), **eqn.params)
    outs = outs if eqn.primitive.multiple_results else [outs]
    return [
        jex.Literal(np.asarray(value), var.aval)
        for value, var in zip(outs, eqn.outvars, strict=True)
    ]


def _as_slice(eqn: Any, ins: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Write a slice whose place is known as one."""
    source, *where = ins
    sizes = eqn.params["slice_sizes"]
    bounds = [
        n - size for n, size in zip(shape_of(source), sizes, strict=True)
    ]  # beyond which a dynamic slice does not begin
    starts = [
        min(max(int(x.val), 0), most) for x, most in zip(where, bounds, strict=True)
    ]
    ends = [start + size for start, size in zip(starts, sizes, strict=True)]
    params = {
        "start_indices": tuple(starts),
        "limit_indices": tuple(ends),
        "strides": None,
    }
    return eqn.replace(primitive=jex.primitives.slice_p, params=params), [source]


def _number(value: int) -> Any:
    array = np.asarray(value, np.int32)
    return jex.Literal(array, jax.typeof(array))


def _key(x: Any) -> Any:
    """Return what equal operands have equal."""
    if isinstance(x, jex.Literal):
        array = np.asarray(x.val)
        return array.dtype, array.shape, array.tobytes()
    return x
