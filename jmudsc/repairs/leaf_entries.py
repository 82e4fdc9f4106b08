"""Leaf entries: which entries of which leaf a value of a program is made of.

A value may be a leaf with its entries moved about (reshaped, transposed, cut out of a
stack, repeated, cast). Where its entries come from is found by moving indices about in
the same way, so that values computed for it can be written back into the leaf.
"""

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jmudsc.derivation.program import Program, shape_of, variables_of
from jmudsc.derivation.rules.primitive import Moves
from jmudsc.derivation.rules.table import primitive_of
from jmudsc.sharding import from_host, placed_like, sharding_of, to_host


@dataclass(frozen=True, eq=False)
class Entries:
    """The entries of a leaf that a value is made of.

    Attributes:
        path: the leaf.
        index: for each entry of the value its place in the flattened leaf.
    """

    path: str
    index: np.ndarray

    @property
    def paths(self) -> tuple[str, ...]:
        """The leaf, as one of one."""
        return (self.path,)


@dataclass(frozen=True)
class Origins:
    """Where the values of a program come from and go to.

    Attributes:
        program: the traced model.
        moved: value -> the leaf that it is but for `moves`, and the equations of them.
        users: value -> the equations that use it, and None if it is an output.
        making: value -> the equation that makes it.
        uses: leaf -> how many equations each of its entries goes into, as far as it is
            known.
        entries: value -> its entries, as far as they are known.
    """

    program: Program
    moved: Mapping[Any, tuple[str, tuple[Any, ...]]]
    users: Mapping[Any, list[Any]]
    making: Mapping[Any, Any]
    uses: dict[str, np.ndarray] = field(default_factory=dict)
    entries: dict[Any, "Entries"] = field(default_factory=dict)


def origins_of(program: Program) -> Origins:
    """Find the values that are a leaf with its entries moved about.

    Args:
        program: the traced model.

    Returns:
        Where values come from and go to.
    """
    moved: dict[Any, tuple[str, tuple[Any, ...]]] = {
        var: (path, ()) for path, var in program.leaves.items()
    }
    users: dict[Any, list[Any]] = {}
    for eqn in program.eqns:
        ins = variables_of(eqn.invars)
        for var in ins:
            users.setdefault(var, []).append(eqn)
        if primitive_of(eqn).entries and len(ins) == 1 and ins[0] in moved:
            path, eqns = moved[ins[0]]
            moved[eqn.outvars[0]] = path, (*eqns, eqn)
    for var in variables_of(program.outvars):
        users.setdefault(var, []).append(None)
    making = {var: eqn for eqn in program.eqns for var in eqn.outvars}
    return Origins(program, moved, users, making)


def entries_of(origins: Origins, var: Any) -> Entries | None:
    """Return the entries of a leaf that a value is made of.

    Args:
        origins: of the program.
        var: the value.

    Returns:
        The entries; None if the value is not a leaf with its entries moved about.
    """
    if isinstance(var, jex.Literal) or var not in origins.moved:
        return None
    if var not in origins.entries:
        path, eqns = origins.moved[var]
        index, eqns = _first(shape_of(origins.program.leaves[path]), eqns)
        for eqn in eqns:
            index = laid_out(eqn, index)
        origins.entries[var] = Entries(path, index)
    return origins.entries[var]


def per_unit(index: np.ndarray) -> np.ndarray:
    """Cut the axes along which entries repeat down to size 1."""
    for axis in range(index.ndim):
        first = index.take([0], axis)
        if (index == first).all():
            index = first
    return index


def is_used(origins: Origins, entries: Entries, times: int) -> bool:
    """Return whether each entry is there once, and goes into so many equations.

    Args:
        origins: of the program.
        entries: of a leaf.
        times: how many equations.
    """
    return is_there_once(entries) and bool(
        (_uses(origins, entries.path)[entries.index] == times).all()
    )


def uses_within(origins: Origins, entries: Entries, eqns: Set[int]) -> bool:
    """Return whether entries of a leaf go into some equations and into no others.

    Args:
        origins: of the program.
        entries: of a leaf.
        eqns: the `id` of each of them.
    """
    inside = _counted(origins, entries.path, lambda eqn: id(eqn) in eqns)
    index = entries.index
    return bool((_uses(origins, entries.path)[index] == inside[index]).all())


def is_there_once(entries: Entries) -> bool:
    """Return whether no entry of the leaf is there twice."""
    places = entries.index.ravel()
    return places.size == 0 or int(np.bincount(places - places.min()).max()) == 1


def leaves_below(origins: Origins, eqn: Any, data: Set[Any]) -> list[str]:
    """Return the leaves of which the operands of an equation are made, without data.

    Args:
        origins: of the program.
        eqn: the equation.
        data: the values that depend on the batch.

    Returns:
        Their paths.
    """
    made = origins.making
    path_of = {var: path for path, var in origins.program.leaves.items()}
    found: dict[str, None] = {}
    todo = variables_of(eqn.invars)
    while todo:
        var = todo.pop()
        if var in path_of:
            found[path_of[var]] = None
        elif var in made and var not in data:
            todo += variables_of(made[var].invars)
    return list(found)


def read(leaf: ArrayLike, index: np.ndarray) -> Float[np.ndarray, "..."]:
    """Read entries of a leaf by their places in the flattened leaf, in float32."""
    return to_host(leaf).ravel()[index].astype(np.float32)


def write(leaf: ArrayLike, index: np.ndarray, values: np.ndarray) -> Array:
    """Return a leaf with some entries set, by their places; its dtype stays."""
    here = to_host(leaf)
    flat = here.flatten()
    flat[index] = values.astype(here.dtype)
    new = flat.reshape(here.shape)
    return placed_like(new, leaf) if sharding_of(leaf) else from_host(new, leaf)


def laid_out(eqn: Any, index: np.ndarray) -> np.ndarray:
    """Do to places, on the host, what an equation does to entries.

    Args:
        eqn: one that only moves the entries of its operand.
        index: places, of the shape of that operand.

    Returns:
        The places of what comes out.
    """
    name, params = eqn.primitive.name, eqn.params
    if primitive_of(eqn).entries is Moves.KEPT:
        return index
    if name in _ON_HOST:
        return _ON_HOST[name](index, params)
    ins = [v.val if isinstance(v, jex.Literal) else index for v in eqn.invars]
    return np.asarray(eqn.primitive.bind(*map(jnp.asarray, ins), **params))


def _first(
    shape: tuple[int, ...], eqns: Sequence[Any]
) -> tuple[np.ndarray, Sequence[Any]]:
    """Return the places of the entries of a leaf, and what becomes of them then.

    Of a leaf that is cut first, as a stack of layers is, no places are made but those
    that stay.
    """
    starts, sizes = (0,) * len(shape), shape
    if eqns and eqns[0].primitive.name == "slice" and not eqns[0].params["strides"]:
        starts, sizes = eqns[0].params["start_indices"], shape_of(eqns[0].outvars[0])
        eqns = eqns[1:]
    kind = np.int32 if math.prod(shape) < 2**31 else np.int64
    index = np.zeros(sizes, kind)
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        along = (np.arange(size) + start) * math.prod(shape[axis + 1 :])
        others = [n for n in range(len(shape)) if n != axis]
        index += np.expand_dims(along.astype(kind), others)
    return index, eqns


def _broadcast(index: np.ndarray, params: Mapping[str, Any]) -> np.ndarray:
    where, shape = params["broadcast_dimensions"], params["shape"]
    others = [axis for axis in range(len(shape)) if axis not in where]
    return np.broadcast_to(np.expand_dims(index, others), shape)


def _cut(index: np.ndarray, params: Mapping[str, Any]) -> np.ndarray:
    starts, limits = params["start_indices"], params["limit_indices"]
    steps = params["strides"] or (1,) * index.ndim
    return index[tuple(map(slice, starts, limits, steps))]


# Primitive -> the same on the host, where nothing is compiled.
_ON_HOST: dict[str, Callable[[np.ndarray, Mapping[str, Any]], np.ndarray]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": lambda x, params: x.reshape(params["new_sizes"]),
    "rev": lambda x, params: np.flip(x, params["dimensions"]),
    "slice": _cut,
    "squeeze": lambda x, params: np.squeeze(x, params["dimensions"]),
    "transpose": lambda x, params: x.transpose(params["permutation"]),
}


def _uses(origins: Origins, path: str) -> np.ndarray:
    """Count the equations that each entry of a leaf goes into."""
    if path not in origins.uses:
        origins.uses[path] = _counted(origins, path, lambda eqn: True)
    return origins.uses[path]


def _counted(origins: Origins, path: str, counts: Callable[[Any], bool]) -> np.ndarray:
    """Count for each entry of a leaf those that count of the equations it goes into."""
    uses = np.zeros(math.prod(shape_of(origins.program.leaves[path])), np.uint32)
    for var, (leaf, _) in origins.moved.items():
        if leaf == path:
            users = [e for e in origins.users.get(var, ()) if not _hands_on(origins, e)]
            count = sum(map(counts, users))
            found = entries_of(origins, var) if count else None
            if found is not None:
                uses[found.index] += np.uint32(count)
    return uses


def _hands_on(origins: Origins, eqn: Any) -> bool:
    return eqn is not None and eqn.outvars[0] in origins.moved
