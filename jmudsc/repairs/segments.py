"""Segments: stretches of a program that share what is compiled where they are alike.

Two stretches are alike if they do the same to values of the same shapes, whatever the
values are called. The blocks of a network are: what differs between them, leaves,
constants, and where a block is in a stack, is handed in. So a network has as many
programs as it has kinds of stretches, and networks side by side have the same.
"""

import functools
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np

from jmudsc.derivation.program import open_jaxpr, shape_of, variables_of


@dataclass(frozen=True, eq=False)
class Given:
    """An operand that is handed in as it may differ between stretches that are alike.

    Attributes:
        value: a number, or the corner of a slice.
    """

    value: Any


@dataclass(frozen=True, eq=False)
class Step:
    """One equation of a segment.

    Attributes:
        eqn: the equation.
        operands: variables, literals, and `Given`s; for a slice of a leaf its operand
            and its corner.
    """

    eqn: Any
    operands: tuple[Any, ...]

    def run(self, ins: Sequence[Any]) -> list[Any]:
        """Evaluate the equation on the values of its operands."""
        eqn = self.eqn
        if len(self.operands) > len(eqn.invars):
            return [jax.lax.dynamic_slice(ins[0], ins[1], shape_of(eqn.outvars[0]))]
        outs = eqn.primitive.bind(*ins, **eqn.params)
        return list(outs) if eqn.primitive.multiple_results else [outs]


@dataclass(frozen=True, eq=False)
class Segment:
    """A stretch of a program; segments of one key are alike.

    Attributes:
        key: what it does, but for what its variables are called.
        steps: the equations, those of leaves and constants alone among them.
        ins: what goes in, by the order in which it is first used: variables, `Given`s.
        outs: the variables that are used later on.
    """

    key: Hashable
    steps: tuple[Step, ...]
    ins: tuple[Any, ...]
    outs: tuple[Any, ...]

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Segment) and self.key == other.key


def segment_of(
    eqns: Sequence[Any], made: Mapping[Any, Any], data: Set[Any], used: Set[Any]
) -> Segment:
    """Describe a stretch of a program.

    Args:
        eqns: its equations that depend on the batch, in order.
        made: variable -> the equation that makes it, for all of the program.
        data: the variables that depend on the batch.
        used: those that are used after the stretch.

    Returns:
        The segment. What it needs that is made of leaves and constants alone is worked
        out in it.
    """
    steps = tuple(_steps(eqns, made, data))
    outs = tuple(v for eqn in eqns for v in eqn.outvars if v in used)
    inside = {v for step in steps for v in step.eqn.outvars}
    operands = [x for step in steps for x in step.operands]
    taken = [x for x in operands if not isinstance(x, jex.Literal)]
    ins = tuple(dict.fromkeys(x for x in taken if x not in inside))
    return Segment(_key(steps, ins, outs), steps, ins, outs)


def run_segment(segment: Segment, values: Sequence[Any]) -> list[jax.Array]:
    """Evaluate a segment, compiled unless one like it was before.

    Args:
        segment: the segment.
        values: one for each of `segment.ins`.

    Returns:
        One array for each of `segment.outs`.
    """
    return _segment(segment, list(values))


@functools.partial(jax.jit, static_argnums=0)
def _segment(segment: Segment, ins: list[Any]) -> list[Any]:
    values = dict(zip(segment.ins, ins, strict=True))
    for step in segment.steps:
        operands = [
            x.val if isinstance(x, jex.Literal) else values[x] for x in step.operands
        ]
        values.update(zip(step.eqn.outvars, step.run(operands), strict=True))
    return [values[var] for var in segment.outs]


def _steps(
    eqns: Iterable[Any], made: Mapping[Any, Any], data: Set[Any]
) -> Iterator[Step]:
    """Yield equations, before each those of its operands that no batch is needed for.

    The order depends on nothing but what is done.
    """
    done: set[int] = set()

    def visit(eqn: Any) -> Iterator[Step]:
        if id(eqn) in done:
            return
        done.add(id(eqn))
        for var in variables_of(eqn.invars):
            if var not in data and var in made:
                yield from visit(made[var])
        yield Step(eqn, _operands(eqn, data))

    for eqn in eqns:
        yield from visit(eqn)


def _operands(eqn: Any, data: Set[Any]) -> tuple[Any, ...]:
    """Return the operands of an equation, with what may differ between blocks given."""
    operands = tuple(_operand(var, eqn.primitive.name) for var in eqn.invars)
    is_slice = eqn.primitive.name == "slice" and eqn.invars[0] not in data
    if is_slice and not any(step > 1 for step in eqn.params["strides"] or ()):
        return *operands, Given(np.asarray(eqn.params["start_indices"], np.int32))
    return operands


def _operand(var: Any, primitive: str) -> Any:
    """Return an operand, a number as `Given`.

    Exponents stay what they are: a square is computed another way than a power.
    """
    if not isinstance(var, jex.Literal) or primitive == "pow":
        return var
    aval: Any = var.aval
    is_number = aval.shape == () and isinstance(aval.dtype, np.dtype)
    return Given(np.asarray(var.val, aval.dtype)) if is_number else var


def _key(
    steps: Sequence[Step], ins: Sequence[Any], outs: Sequence[Any]
) -> tuple[Hashable, ...]:
    """Write down what some equations do with their variables numbered."""
    numbers: dict[Any, int] = {}
    number = lambda x: numbers.setdefault(x, len(numbers))
    rows: list[Hashable] = [(number(x), _kind(x)) for x in ins]
    for step in steps:
        eqn = step.eqn
        operands = tuple(
            _literal(x) if isinstance(x, jex.Literal) else number(x)
            for x in step.operands
        )
        made = tuple((number(var), _kind(var)) for var in eqn.outvars)
        params = dict(eqn.params)
        if len(operands) > len(eqn.invars):
            params = {}  # the shapes say how much of it is taken
        rows.append((eqn.primitive, frozen(params), operands, made))
    return (*rows, tuple(number(var) for var in outs))


def _kind(x: Any) -> Hashable:
    """Return what the type of an input is: shape and dtype."""
    if isinstance(x, Given):
        return x.value.shape, x.value.dtype
    aval = x.aval
    return (aval.shape, aval.dtype) if hasattr(aval, "dtype") else aval


def _literal(x: Any) -> Hashable:
    value = np.asarray(x.val) if np.ndim(x.val) == 0 else x.val
    return "literal", _kind(x), frozen(value)


def frozen(value: Any) -> Hashable:
    """Return a parameter as something that equals only what means the same.

    Args:
        value: a parameter of an equation, or all of them.
    """
    if isinstance(value, (jex.ClosedJaxpr, jex.Jaxpr)):
        return _frozen_jaxpr(value)
    if isinstance(value, Mapping):
        return "mapping", tuple((k, frozen(v)) for k, v in sorted(value.items()))
    if isinstance(value, (tuple, list)):
        return type(value), tuple(map(frozen, value))
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    try:
        hash(value)
    except TypeError:
        return _Itself(value)
    return type(value), value


def _frozen_jaxpr(jaxpr: Any) -> Hashable:
    """Write down what a program inside another does."""
    inner = open_jaxpr(jaxpr)
    consts = tuple(map(_Itself, getattr(jaxpr, "consts", ())))
    steps = [Step(eqn, tuple(eqn.invars)) for eqn in inner.eqns]
    ins = (*inner.constvars, *inner.invars)
    ends = tuple(v for v in inner.outvars if not isinstance(v, jex.Literal))
    literals = tuple(
        _literal(v) if isinstance(v, jex.Literal) else None for v in inner.outvars
    )
    return _key(steps, ins, ends), literals, consts


@dataclass(frozen=True, eq=False)
class _Itself:
    """A value that equals nothing but itself."""

    value: Any

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.value is other.value
