"""Leaf entries: which entries of which leaf a value of a program is made of.

A value may be a leaf with its entries moved about (reshaped, transposed, cut out of a
stack, repeated, cast). Where its entries come from is found by moving indices about in
the same way, so that values computed for it can be written back into the leaf.
"""

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jmudsc.derivation.program import Program, shape_of, variables_of
from jmudsc.derivation.rules.primitive import Moves
from jmudsc.derivation.rules.table import primitive_of
from jmudsc.sharding import placed_like


@dataclass(frozen=True, eq=False)
class Entries:
    """The entries of a leaf that a value is made of.

    Attributes:
        path: the leaf.
        index: for each entry of the value its place in the flattened leaf.
    """

    path: str
    index: np.ndarray


@dataclass(frozen=True)
class Origins:
    """Where the values of a program come from and go to.

    Attributes:
        program: the traced model.
        moved: value -> the leaf that it is but for `moves`, and the equations of them.
        users: value -> the equations that use it, and None if it is an output.
    """

    program: Program
    moved: Mapping[Any, tuple[str, tuple[Any, ...]]]
    users: Mapping[Any, list[Any]]


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
    return Origins(program, moved, users)


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
    path, eqns = origins.moved[var]
    shape = shape_of(origins.program.leaves[path])
    index = jnp.arange(np.prod(shape, dtype=int), dtype=jnp.int32).reshape(shape)
    for eqn in eqns:
        if primitive_of(eqn).entries is not Moves.KEPT:
            ins = [v.val if isinstance(v, jex.Literal) else index for v in eqn.invars]
            index = eqn.primitive.bind(*ins, **eqn.params)
    return Entries(path, np.asarray(index))


def per_unit(entries: Entries) -> Entries:
    """Cut the axes along which the entries repeat down to size 1."""
    index = entries.index
    for axis in range(index.ndim):
        first = index.take([0], axis)
        if (index == first).all():
            index = first
    return Entries(entries.path, index)


def is_used_once(origins: Origins, entries: Entries) -> bool:
    """Return whether each entry is there once, and goes into one equation only."""
    size = math.prod(shape_of(origins.program.leaves[entries.path]))
    if (_counts(entries, size) > 1).any():
        return False
    uses = np.zeros(size, int)
    for var, (path, _) in origins.moved.items():
        if path == entries.path:
            users = [u for u in origins.users.get(var, ()) if not _hands_on(origins, u)]
            found = entries_of(origins, var) if users else None
            if found is not None:
                uses += len(users) * (_counts(found, size) > 0)
    return bool((uses[entries.index] == 1).all())


def leaves_below(origins: Origins, eqn: Any, data: Set[Any]) -> list[str]:
    """Return the leaves of which the operands of an equation are made, without data.

    Args:
        origins: of the program.
        eqn: the equation.
        data: the values that depend on the batch.

    Returns:
        Their paths.
    """
    made = {var: e for e in origins.program.eqns for var in e.outvars}
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


@jax.jit
def read(leaf: ArrayLike, index: ArrayLike) -> Float[Array, "..."]:
    """Read entries of a leaf by their places in the flattened leaf, in float32."""
    return jnp.take(jnp.ravel(jnp.asarray(leaf)), jnp.asarray(index)).astype("float32")


def write(leaf: ArrayLike, index: ArrayLike, values: ArrayLike) -> Array:
    """Return a leaf with some entries set, by their places; its dtype stays."""
    return placed_like(_write(leaf, index, values), leaf)


@jax.jit
def _write(leaf: ArrayLike, index: ArrayLike, values: ArrayLike) -> Array:
    leaf = jnp.asarray(leaf)
    flat = jnp.ravel(leaf).at[index].set(jnp.asarray(values).astype(leaf.dtype))
    return flat.reshape(leaf.shape)


def _counts(entries: Entries, size: int) -> np.ndarray:
    return np.bincount(entries.index.ravel(), minlength=size)


def _hands_on(origins: Origins, eqn: Any) -> bool:
    return eqn is not None and eqn.outvars[0] in origins.moved
