"""Like: put the leaves of a checkpoint into the structure of a tree that is given."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmudsc.checkpoints.structure import routes_of
from jmudsc.paths import did_you_mean, flatten, listed, unflatten


def like_tree(where: str, tree: PyTree, like: PyTree) -> PyTree:
    """Return the leaves of a tree in the structure of another.

    Leaves are the same if the keys that lead to them are, as text: a list may be a dict
    with the keys "0", "1", ... and an NNX variable the array in it.

    Args:
        where: what the tree is of, for the error.
        tree: arrays, lazy or not.
        like: arrays or `jax.ShapeDtypeStruct`s; other leaves, such as functions, are
            taken as they are. A typed PRNG key takes the data of one.

    Returns:
        A tree of the structure of `like`.

    Raises:
        ValueError: listing every leaf that only one of them has, or whose shapes or
            dtypes differ.
    """
    found = _by_text(tree)
    wanted = {name: x for name, x in _by_text(like).items() if _is_array(x)}
    problems = [
        *(
            f"{name}: is not there{did_you_mean(name, found.keys() - wanted.keys())}"
            for name in wanted
            if name not in found
        ),
        *(f"{name}: is not in `like`" for name in found if name not in wanted),
        *(
            f"{name}: expected {_told(expected)}, got {_told(found[name])}"
            for name, expected in wanted.items()
            if name in found and _told(found[name]) != _told(expected)
        ),
    ]
    if problems:
        raise ValueError(
            f"{where}: expected the {len(wanted)} leaves of `like`, got "
            f"{len(problems)} that differ. Correct `like`, or name a subtree or rename "
            f"leaves:\n{listed(problems)}"
        )
    names = {path: _text(keys) for path, keys in routes_of(like).items()}
    leaves = {
        path: _as_key(found[names[path]], leaf) if _is_array(leaf) else leaf
        for path, leaf in flatten(like).items()
    }
    return unflatten(like, leaves)


def _by_text(tree: PyTree) -> dict[str, Any]:
    leaves = flatten(tree)
    return {_text(keys): leaves[path] for path, keys in routes_of(tree).items()}


def _text(keys: tuple[Any, ...]) -> str:
    return "/".join(map(str, keys))


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") or isinstance(leaf, bool | int | float | complex)


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _told(leaf: Any) -> str:
    """Return the dtype and shape that an array has in JAX, a key those of its data."""
    if _is_key(leaf):
        data = jax.eval_shape(jax.random.key_data, leaf)
        return f"{data.dtype}{list(data.shape)}"
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    return f"{jax.dtypes.canonicalize_dtype(dtype)}{list(np.shape(leaf))}"


def _as_key(leaf: Any, like: Any) -> Any:
    if not _is_key(like):
        return leaf
    return jax.random.wrap_key_data(jnp.asarray(leaf), impl=like.dtype._impl.name)
