"""Arrays on their way between devices and files: what either side cannot hold."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmudsc.checkpoints.formats import can_hold
from jmudsc.lazy import in_memory, LazyArray
from jmudsc.paths import flatten, listed, unflatten

# The types of `jax.numpy` that orbax 0.12 has no way to store.
_NOT_STORED = ("uint2", "uint4", "float8_e4m3", "float6_e2m3fn", "float6_e3m2fn")


def savable(variables: PyTree, kind: str) -> PyTree[LazyArray]:
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


def check_savable(variables: PyTree, kind: str) -> None:
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
            "variables: hold no arrays, needed at least one; pass a finished merge."
        )
    if kind != "orbax" and "" in leaves:
        raise ValueError(
            f"variables: are a single array, needed a name for it in a {kind} file; "
            'save {"name": array}.'
        )
    problems = {name: _problem(leaf, kind) for name, leaf in leaves.items()}
    lines = [f"{name}: {problem}" for name, problem in problems.items() if problem]
    if lines:
        raise ValueError(
            f"variables: {kind} cannot save {len(lines)} of {len(leaves)} leaves, "
            f"needed arrays of numbers; remove or convert them:\n{listed(lines)}"
        )


def _problem(leaf: Any, kind: str) -> str | None:
    is_number = isinstance(leaf, (bool, int, float, complex))
    if not is_number and not hasattr(leaf, "dtype"):
        return f"is a {type(leaf).__name__}, not an array"
    dtype = np.float32 if is_number else leaf.dtype
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return "is a PRNG key; use jax.random.key_data"
    if np.dtype(dtype).kind in "OSUMm" or not _holds(kind, np.dtype(dtype)):
        return f"has dtype {dtype}"
    if np.size(leaf) == 0 and kind == "orbax":
        return f"has shape {np.shape(leaf)}, which has no elements"
    return None


def _holds(kind: str, dtype: np.dtype) -> bool:
    return str(dtype) not in _NOT_STORED if kind == "orbax" else can_hold(kind, dtype)


def abstract(where: str, tree: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
    """Return the shapes and types that `to_jax_types` gives leaves, without their data.

    Raises:
        ValueError: naming the leaves that are text.
    """
    leaves = flatten(tree)
    text = [f'"{name}"' for name, leaf in leaves.items() if leaf.dtype.kind in "OSU"]
    if text:
        raise ValueError(
            f"{where}: {len(text)} of {len(leaves)} leaves are text, needed numbers; "
            f'name the subtree to load, for instance subtree="params":\n{listed(text)}'
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
        return leaf if dtype == leaf.dtype else replace(leaf, dtype=dtype, fetch=fetch)

    return unflatten(tree, {name: typed(name, x) for name, x in flatten(tree).items()})


def _to_jax_type(where: str, name: str, leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    if array.dtype.kind in "OSU":
        raise ValueError(
            f'{where}: leaf "{name}" is {leaf!r}, needed numbers; name the subtree to '
            'load, for instance subtree="params".'
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
            f'{where}: leaf "{name}" is {array.dtype} and would lose digits, needed '
            '64-bit types; call jax.config.update("jax_enable_x64", True) first.'
        )
    return narrow
