"""Stepwise: a program evaluated segment by segment, stopped in between.

What a layer should be depends on what the layers before it make of the data once they
have been changed. So a program stops before a layer, its leaves may be changed, and it
goes on with what they are then.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import PyTree

from jmudsc.derivation.program import Program, variables_of
from jmudsc.repairs.segments import Given, run_segment, Segment, segment_of
from jmudsc.sharding import on_device

# What is alive between two segments: variable -> array.
Values = dict[Any, Any]


@dataclass(frozen=True, eq=False)
class Way:
    """The way through a program, with stops.

    Attributes:
        program: the traced model.
        segments: what is computed before each stop, after the one before it.
        dropped: for each segment the variables that nothing needs after it.
    """

    program: Program
    segments: tuple[Segment, ...]
    dropped: tuple[tuple[Any, ...], ...]

    def start(self, batch: PyTree) -> Values:
        """Return what is alive before the first segment: the leaves of the batch."""
        data = map(on_device, jax.tree.leaves(batch))
        return dict(zip(self.program.inputs, data, strict=True))

    def after(self, number: int, values: Values, leaves: Mapping[str, Any]) -> Values:
        """Evaluate one segment.

        What is made of leaves alone is computed where it is used, with the leaves that
        are handed in.

        Args:
            number: which segment.
            values: what is alive before it; not changed.
            leaves: path -> array.

        Returns:
            What is alive after it.
        """
        segment, program = self.segments[number], self.program
        value = lambda x: values[x] if x in values else operand_of(program, x, leaves)
        alive = dict(values)
        if segment.outs:
            made = run_segment(segment, [value(x) for x in segment.ins])
            alive |= zip(segment.outs, made, strict=True)
        for var in self.dropped[number]:
            alive.pop(var, None)
        return alive


def operand_of(program: Program, x: Any, leaves: Mapping[str, Any]) -> Any:
    """Return an operand of a segment that is there from the beginning.

    Args:
        program: the traced model.
        x: a leaf, a constant, or what is given.
        leaves: path -> array.
    """
    if isinstance(x, Given):
        return x.value
    path = program.path_of.get(x)
    return program.consts[x] if path is None else leaves[path]


def way_through(
    program: Program,
    stops: Sequence[tuple[Any, Any]],
    data: Set[Any] = frozenset(),
) -> Way:
    """Cut a program into segments.

    Args:
        program: the traced model.
        stops: equations in program order, and for each a value that is needed there.
        data: variables that count as data although no batch is needed for them.

    Returns:
        The way through it, up to the last stop.
    """
    made = {var: eqn for eqn in program.eqns for var in eqn.outvars}
    parts = _parts(program, stops, data)
    data = {*program.inputs, *(v for part in parts for e in part for v in e.outvars)}
    used: set[Any] = set()
    segments: list[Segment] = []
    dropped: list[tuple[Any, ...]] = []
    needed: set[Any] = set()
    for part, (_, operand) in zip(reversed(parts[:-1]), reversed(stops), strict=True):
        used |= needed | {operand}
        segment = segment_of(part, made, data, used)
        needed = {x for x in segment.ins if x in data}
        segments.insert(0, segment)
        dropped.insert(0, tuple(x for x in needed if x not in used))
    return Way(program, tuple(segments), tuple(dropped))


def values_at(
    program: Program,
    stops: Sequence[tuple[Any, Any]],
    leaves: Mapping[str, Any],
    batch: PyTree,
) -> Iterator[jax.Array]:
    """Evaluate a program, stopping before some equations to yield a value of each.

    `leaves` may be changed while it stops.

    Args:
        program: the traced model.
        stops: equations, in program order, and the value to yield before each.
        leaves: path -> array.
        batch: what the model is run on.

    Yields:
        The values.
    """
    way = way_through(program, stops)
    values = way.start(batch)
    for number, (_, operand) in enumerate(stops):
        values = way.after(number, values, leaves)
        yield values[operand]


def _parts(
    program: Program, stops: Sequence[tuple[Any, Any]], counted: Set[Any]
) -> list[list[Any]]:
    """Cut the equations that depend on the batch before every stop."""
    parts: list[list[Any]] = [[]]
    todo = [eqn for eqn, _ in stops]
    data = set(program.inputs)
    for eqn in program.eqns:
        while todo and eqn is todo[0]:
            parts.append([])
            todo.pop(0)
        is_data = not data.isdisjoint(variables_of(eqn.invars))
        if is_data or not counted.isdisjoint(eqn.outvars):
            data.update(eqn.outvars)
            parts[-1].append(eqn)
    return parts
