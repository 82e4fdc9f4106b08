"""Arrays on their way between devices and files: what either side cannot hold."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmudsc.checkpoints.formats import Format
from jmudsc.checkpoints.structure import routes_of
from jmudsc.lazy import in_memory, LazyArray
from jmudsc.paths import flatten, listed, unflatten

# The floating-point types that leaves may be cast to.
FLOATS = ("float32", "bfloat16", "float16", "float64")


def cast(tree: PyTree, dtype: str, *, widen: bool = False) -> PyTree:
    """Return a tree whose real floating-point leaves have another type.

    Args:
        tree: arrays, of which lazy ones stay lazy.
        dtype: one of `FLOATS`.
        widen: leave every leaf in the type that holds both its own and float32.
    """

    def as_dtype(leaf: Any) -> Any:
        own = np.dtype(leaf.dtype)
        if not jnp.issubdtype(own, jnp.floating):
            return leaf
        wanted = np.promote_types(own, np.float32) if widen else np.dtype(dtype)
        if wanted == own:
            return leaf
        if not isinstance(leaf, LazyArray):
            return leaf.astype(wanted)

        def fetch(names: Sequence[str]) -> Mapping[str, np.ndarray]:
            return {name: np.asarray(leaf.read()).astype(wanted) for name in names}

        return replace(leaf, dtype=wanted, fetch=fetch)

    return jax.tree.map(as_dtype, tree)


def savable(variables: PyTree, kind: Format) -> PyTree[LazyArray]:
    """Return variables as they are to be saved: to be copied to the host one by one.

    Args:
        variables: arrays, lazy or not, or numbers.
        kind: the format they are to be saved in.

    Raises:
        ValueError: naming every leaf that could not be saved.
    """
    check_savable(variables, kind)

    def array(leaf: Any) -> Any:
        return leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)

    return in_memory(jax.tree.map(array, variables))


def check_savable(variables: PyTree, kind: Format) -> None:
    """Check that a format can hold variables.

    Args:
        variables: arrays, numbers or `jax.ShapeDtypeStruct`s.
        kind: the format.

    Raises:
        ValueError: naming every leaf that could not be saved.
    """
    leaves = flatten(variables)
    if not leaves:
        raise ValueError(
            "variables: expected at least one array, got none. Pass a finished merge."
        )
    if kind.layout != "tree" and "" in leaves:
        raise ValueError(
            f"variables: expected names for what is in a file of {kind.name}, got a "
            'single array. Save {"name": array}.'
        )
    problems = dict(kind.refused(routes_of(variables)))
    for name, leaf in leaves.items():
        if problem := _name_problem(name) or _problem(leaf, kind):
            problems[name] = problem
    lines = [f"{name}: {problems[name]}" for name in leaves if name in problems]
    if lines:
        raise ValueError(
            f"variables: expected leaves that {kind.name} can hold, got {len(lines)} "
            f"of {len(leaves)} that it cannot. Remove, rename or convert them:\n"
            f"{listed(lines)}"
        )


def _name_problem(path: str) -> str | None:
    try:
        path.encode()
    except UnicodeEncodeError:
        return "has a name that is no Unicode text"
    return None


def _problem(leaf: Any, kind: Format) -> str | None:
    is_number = isinstance(leaf, (bool, int, float, complex))
    if not is_number and not hasattr(leaf, "dtype"):
        return f"is a {type(leaf).__name__}, not an array"
    dtype = np.float32 if is_number else leaf.dtype
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return "is a PRNG key; use jax.random.key_data"
    if np.dtype(dtype).kind in "OSUMm" or not kind.holds(np.dtype(dtype)):
        return f"has dtype {dtype}"
    if np.size(leaf) == 0 and not kind.empty_arrays:
        return f"has shape {np.shape(leaf)}, which has no elements"
    return None


def abstract(where: str, tree: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
    """Return the shapes and types that `to_jax_types` gives leaves, without their data.

    Raises:
        ValueError: naming the leaves that are text.
    """
    leaves = flatten(tree)
    text = [f'"{name}"' for name, leaf in leaves.items() if leaf.dtype.kind in "OSU"]
    if text:
        raise ValueError(
            f"{where}: expected numbers, got text in {len(text)} of {len(leaves)} "
            'leaves. Name the subtree to load, for instance subtree="params":\n'
            f"{listed(text)}"
        )
    shapes = {
        name: jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype))
        for name, x in leaves.items()
    }
    return unflatten(tree, shapes)


def to_jax_types(where: str, tree: PyTree) -> PyTree[np.ndarray]:
    """Return leaves read from a file as arrays of types that JAX keeps here.

    Where JAX has no 64-bit types a leaf is narrowed if that changes no value, and
    scalars of float64 in any case, as JAX itself does.
    """
    leaves = {name: _to_jax_type(where, name, x) for name, x in flatten(tree).items()}
    return unflatten(tree, leaves)


def lazily_typed(where: str, tree: PyTree[LazyArray]) -> PyTree[LazyArray]:
    """Return leaves of a file such that each is read as `to_jax_types` gives it.

    Raises:
        ValueError: naming the leaves that are text.
    """
    shapes = flatten(abstract(where, tree))

    def typed(path: str, leaf: LazyArray) -> LazyArray:
        def fetch(names: Sequence[str]) -> Mapping[str, np.ndarray]:
            return {name: _to_jax_type(where, path, leaf.read()) for name in names}

        dtype = shapes[path].dtype
        if dtype == leaf.dtype:
            return leaf
        return replace(leaf, dtype=dtype, fetch=fetch, fetch_spread=None, part=None)

    return unflatten(tree, {name: typed(name, x) for name, x in flatten(tree).items()})


def _to_jax_type(where: str, name: str, leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    if array.dtype.kind in "OSU":
        raise ValueError(
            f'{where}: expected numbers, got {leaf!r} in leaf "{name}". Name the '
            'subtree to load, for instance subtree="params".'
        )
    kept = jax.dtypes.canonicalize_dtype(array.dtype)
    if kept == array.dtype:
        return array
    with np.errstate(all="ignore"):
        narrow = array.astype(kept)
    is_float = array.dtype.kind in "fc"
    is_same = np.array_equal(narrow, array, equal_nan=is_float)
    if not is_same and not (is_float and array.ndim == 0):
        raise ValueError(
            f"{where}: expected a leaf that {kept} can hold, got {array.dtype} in "
            f'"{name}" that would lose digits. Call '
            'jax.config.update("jax_enable_x64", True) first.'
        )
    return narrow
