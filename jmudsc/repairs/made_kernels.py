"""Made kernels: those that a program computes from leaves, and how to change them.

From a leaf to the kernel lead sums, products and moves of entries: a route. Gone along
backwards, with all else as it is, it says what the leaf should be. Where a leaf
is on one route only, as the base of a low-rank product is, the kernel then is what it
should be. Otherwise, as with a direction and its norm, the routes are gone along in
turn, and what comes out is looked at.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import jax.extend.core as jex
import numpy as np
from jaxtyping import Float

from jmudsc.derivation.program import Program, shape_of, variables_of
from jmudsc.derivation.rules.primitive import Arithmetic
from jmudsc.derivation.rules.table import primitive_of
from jmudsc.repairs.leaf_entries import (
    Entries,
    entries_of,
    is_there_once,
    laid_out,
    Origins,
    uses_within,
    write,
)
from jmudsc.repairs.segments import run_segment, Segment, segment_of
from jmudsc.repairs.stepwise import operand_of
from jmudsc.sharding import to_host

Array = Float[np.ndarray, "..."]
# What a value should be, and how much each of its entries counts.
Wanted = tuple[Array, Array]

# How often the routes are gone along, where one is not enough.
_TURNS = 3


@dataclass(frozen=True, eq=False)
class Route:
    """The way from a leaf to a kernel.

    Attributes:
        entries: those of the leaf that come in.
        steps: the equations on the way, and which operand comes from the leaf.
        is_alone: whether nothing else in them depends on the leaf.
    """

    entries: Entries
    steps: tuple[tuple[Any, int], ...]
    is_alone: bool


@dataclass(frozen=True, eq=False)
class Made:
    """A kernel that is computed from leaves.

    Attributes:
        source: the variable that is computed.
        index: for each entry of the kernel its place in that value, flattened.
        program: the program.
        segment: computes the value, and what the routes need to know.
        routes: from leaves that go into nothing else.
        times: how many contractions it is the kernel of.
    """

    source: Any
    index: np.ndarray
    program: Program
    segment: Segment
    routes: tuple[Route, ...]
    times: int

    @property
    def path(self) -> str:
        """The leaf to name it by."""
        return self.routes[0].entries.path

    @property
    def paths(self) -> tuple[str, ...]:
        """The leaves that are changed with it."""
        return tuple(dict.fromkeys(route.entries.path for route in self.routes))


def made_kernel(origins: Origins, var: Any, uses: Set[int]) -> Made | None:
    """Describe a kernel that is computed from leaves.

    Args:
        origins: of the program.
        var: the kernel.
        uses: the `id` of every equation in which a kernel or a bias may meet
            activations.

    Returns:
        The kernel; None if no leaf can be found for it that goes into nothing else.
    """
    making = origins.making
    if var not in making:
        return None
    source, moves = _before_moves(making, var)
    below = _below(making, source)
    own = {id(eqn) for eqn in below}
    inside = {v for eqn in below for v in eqn.outvars} - {source}
    times = _contractions(origins, source, uses)
    if any(id(e) not in own for v in inside for e in origins.users.get(v, ())):
        return None
    routes = tuple(_routes(origins, making, source, own))
    if not routes or times is None:
        return None
    routes = _enough(routes, shape_of(source)) or routes
    index = np.arange(math.prod(shape_of(source))).reshape(shape_of(source))
    for eqn in moves:
        index = laid_out(eqn, index)
    steps = [step for route in routes for step in route.steps]
    others = {v for step in steps for v in variables_of(_others(*step))}
    segment = segment_of(below, making, set(), {source, *others})
    return Made(source, index, origins.program, segment, routes, times)


def _contractions(origins: Origins, var: Any, uses: Set[int]) -> int | None:
    """Count the contractions that a value is the kernel of, its entries moved or not.

    None if it goes into anything else.
    """
    count = 0
    for eqn in origins.users.get(var, ()):
        if id(eqn) in uses:
            count += 1
            continue
        if eqn is None or not _is_move(eqn):
            return None
        more = _contractions(origins, eqn.outvars[0], uses)
        if more is None:
            return None
        count += more
    return count


def made_value(made: Made, leaves: Mapping[str, Any]) -> Array:
    """Compute a kernel from the leaves of a network.

    Args:
        made: the kernel.
        leaves: path -> array.

    Returns:
        The value of its source, in float64.
    """
    return _values(made, leaves)(made.source)


def with_value(
    made: Made, leaves: Mapping[str, Any], wanted: Array
) -> tuple[dict[str, Any], Array]:
    """Find leaves of which a kernel is what it should be, or near it.

    Args:
        made: the kernel.
        leaves: path -> array, what they are now.
        wanted: what its source should be.

    Returns:
        The new leaves, and what the source is with them.
    """
    new: dict[str, Any] = {}
    turns = 1 if _enough(made.routes, shape_of(made.source)) else _TURNS
    for route in made.routes * turns:
        known = {**leaves, **new}
        value, weight = _back(route, wanted, _values(made, known))
        leaf = known[route.entries.path]
        before = to_host(leaf).ravel()[route.entries.index].astype(float)
        value = np.where(weight > 0, value, before)
        new[route.entries.path] = write(leaf, route.entries.index, value)
    return new, made_value(made, {**leaves, **new})


def _before_moves(making: Mapping[Any, Any], var: Any) -> tuple[Any, list[Any]]:
    """Go back to what is computed before entries are only moved about."""
    moves: list[Any] = []
    while _is_move(making[var]) and making[var].invars[0] in making:
        moves.insert(0, making[var])
        (var,) = making[var].invars
    return var, moves


def _below(making: Mapping[Any, Any], var: Any) -> list[Any]:
    """Return the equations that a value is computed by, itself last."""
    found: dict[int, Any] = {}

    def visit(var: Any) -> None:
        eqn = making.get(var)
        if eqn is not None and id(eqn) not in found:
            for before in variables_of(eqn.invars):
                visit(before)
            found[id(eqn)] = eqn

    visit(var)
    return list(found.values())


def _routes(
    origins: Origins, making: Mapping[Any, Any], source: Any, own: set[int]
) -> Iterator[Route]:
    """Yield the ways from leaves that go into nothing but own equations."""

    def visit(var: Any, steps: tuple[tuple[Any, int], ...]) -> Iterator[Route]:
        entries = entries_of(origins, var)
        if entries is not None:
            if is_there_once(entries) and uses_within(origins, entries, own):
                yield Route(entries, steps, _is_alone(making, entries, steps, origins))
            return
        if var not in making:
            return
        eqn = making[var]
        for number in _on_the_way(eqn):
            yield from visit(eqn.invars[number], ((eqn, number), *steps))

    yield from visit(source, ())


def _on_the_way(eqn: Any) -> tuple[int, ...]:
    """Return the operands that an equation can be solved for."""
    if _is_move(eqn):
        return (0,)
    if eqn.primitive.name == "concatenate":
        return tuple(range(len(eqn.invars)))
    record = primitive_of(eqn)
    ways = _BACK.get(record.arithmetic) or _BACK.get(eqn.primitive.name)
    variables = [n for n, x in enumerate(eqn.invars) if not isinstance(x, jex.Literal)]
    return tuple(n for n in variables if n in (ways or {}))


def _is_move(eqn: Any) -> bool:
    return (
        bool(primitive_of(eqn).entries)
        and len(variables_of(eqn.invars)) == len(eqn.invars) == 1
    )


def _others(eqn: Any, number: int) -> list[Any]:
    """Return the operands whose values it takes to solve for one."""
    if eqn.primitive.name == "concatenate":
        return []
    return [x for n, x in enumerate(eqn.invars) if n != number]


def _is_alone(
    making: Mapping[Any, Any],
    entries: Entries,
    steps: Sequence[tuple[Any, int]],
    origins: Origins,
) -> bool:
    leaf = origins.program.leaves[entries.path]
    for eqn, number in steps:
        for other in variables_of(_others(eqn, number)):
            below = {v for e in _below(making, other) for v in e.invars if _is_var(v)}
            if leaf in below or other is leaf:
                return False
    return True


def _is_var(x: Any) -> bool:
    return not isinstance(x, jex.Literal)


def _enough(routes: Sequence[Route], shape: tuple[int, ...]) -> tuple[Route, ...]:
    """Return routes that each entry of the kernel is at the end of one of, alone.

    Empty if there are none.
    """
    is_free = np.ones(math.prod(shape), bool)
    chosen: list[Route] = []
    for route in routes:
        places = _ends(route, shape) if route.is_alone else None
        if places is not None and is_free[places].all():
            is_free[places] = False
            chosen.append(route)
    return () if is_free.any() else tuple(chosen)


def _ends(route: Route, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return where in the kernel each entry of a leaf comes out.

    None if one comes out more than once, or not at all.
    """
    places = np.arange(math.prod(shape)).reshape(shape)
    for eqn, number in reversed(route.steps):
        before = shape_of(eqn.invars[number])
        if eqn.primitive.name == "concatenate":
            places = _cut_out(eqn, number, places)
        elif _is_move(eqn):
            index = laid_out(eqn, np.arange(math.prod(before)).reshape(before))
            if not _is_one_to_one(index, math.prod(before)):
                return None
            flat = np.empty(math.prod(before), int)
            flat[index.ravel()] = places.ravel()
            places = flat.reshape(before)
        elif places.shape != before:
            return None
    return places


def _is_one_to_one(index: np.ndarray, size: int) -> bool:
    return index.size == size and np.unique(index).size == size


def _cut_out(eqn: Any, number: int, value: np.ndarray) -> np.ndarray:
    """Return what an operand of a concatenation is of a value of its output."""
    axis = eqn.params["dimension"]
    sizes = [shape_of(x)[axis] for x in eqn.invars]
    return np.split(value, np.cumsum(sizes)[:-1], axis)[number]


def _values(made: Made, leaves: Mapping[str, Any]) -> Callable[[Any], Array]:
    """Return what looks up the values that a kernel is made of."""
    operand = lambda x: operand_of(made.program, x, leaves)
    outs = run_segment(made.segment, [operand(x) for x in made.segment.ins])
    found = dict(zip(made.segment.outs, outs, strict=True))

    def value(x: Any) -> Array:
        if isinstance(x, jex.Literal):
            return np.asarray(x.val, float)
        array = found[x] if x in found else operand(x)
        return to_host(array).astype(float)

    return value


def _back(route: Route, wanted: Array, value: Callable[[Any], Array]) -> Wanted:
    """Say what the entries of a leaf should be for a kernel to be what it should be."""
    now: Wanted = wanted, np.ones_like(wanted)
    for eqn, number in reversed(route.steps):
        record = primitive_of(eqn)
        if _is_move(eqn):
            now = _unmoved(eqn, now)
        elif eqn.primitive.name == "concatenate":
            now = _cut_out(eqn, number, now[0]), _cut_out(eqn, number, now[1])
        else:
            ways = _BACK.get(record.arithmetic) or _BACK[eqn.primitive.name]
            now = ways[number](*now, *map(value, _others(eqn, number)))
            now = _unspread(now, shape_of(eqn.invars[number]))
    return now


def _unmoved(eqn: Any, wanted: Wanted) -> Wanted:
    """Undo a move of entries."""
    shape = shape_of(eqn.invars[0])
    place = np.arange(math.prod(shape)).reshape(shape)
    return _collected(laid_out(eqn, place), wanted, shape)


def _unspread(wanted: Wanted, shape: tuple[int, ...]) -> Wanted:
    """Undo that an operand of size 1 on some axes met one that is longer."""
    if wanted[0].shape == shape:
        return wanted
    place = np.arange(math.prod(shape)).reshape(shape)
    return _collected(np.broadcast_to(place, wanted[0].shape), wanted, shape)


def _collected(place: np.ndarray, wanted: Wanted, shape: tuple[int, ...]) -> Wanted:
    """Bring entries back to their places; of those of one place take the mean."""
    size = math.prod(shape)
    value, weight = (each.ravel() for each in wanted)
    total = np.bincount(place.ravel(), weight, size)
    mean = np.bincount(place.ravel(), weight * value, size)
    mean /= np.where(total > 0, total, 1)
    return mean.reshape(shape), total.reshape(shape)


def _divided(value: Array, weight: Array, factor: Array) -> Wanted:
    is_zero = factor == 0
    return np.where(is_zero, 0, value / np.where(is_zero, 1, factor)), (
        weight * np.square(factor)
    )


# What is computed -> for each operand that it can be solved for how: of what comes out,
# how much its entries count, and the other operand.
_BACK: dict[Any, dict[int, Callable[..., Wanted]]] = {
    Arithmetic.SUM: dict.fromkeys((0, 1), lambda v, w, other: (v - other, w)),
    Arithmetic.DIFFERENCE: {
        0: lambda v, w, other: (v + other, w),
        1: lambda v, w, other: (other - v, w),
    },
    Arithmetic.PRODUCT: dict.fromkeys((0, 1), _divided),
    Arithmetic.QUOTIENT: {
        0: lambda v, w, other: _divided(v, w, 1 / np.where(other == 0, np.inf, other))
    },
    "neg": {0: lambda v, w: (-v, w)},
}
