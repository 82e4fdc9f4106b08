"""Structure: the containers of a tree as plain JSON, and the tree built from it again.

A leaf is the name that it is stored under, None is null, and a container is an object
with one key, which says what it is: `{"dict": [[key, part], ...]}`, `{"list": [...]}`
or `{"tuple": [...]}`. Nodes of other types (dataclasses, states of NNX) are dicts by
the names of their parts; only `load(..., like=tree)` brings them back.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import PyTree

# What is plain JSON of the form above.
Structure = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Variable:
    """What is stored as a variable of NNX is, where Flax is not asked for one.

    Attributes:
        value: its array.
    """

    value: Any


class Position(int):
    """A position in a list or tuple as a key; all other numbers are keys of dicts."""


# The keys that lead to a part of a tree: of dicts, names of attributes, positions.
Route = tuple[str | int, ...]


def routes_of(tree: PyTree) -> dict[str, Route]:
    """Return the keys that lead to every leaf of a tree, by path.

    The value of an NNX variable has the keys of the variable.

    Example:
        >>> routes_of({"params": [{"mlp/w": 1}]})
        {'params/0/mlp/w': ('params', 0, 'mlp/w')}
    """
    with_keys, _ = jax.tree_util.tree_flatten_with_path(tree)
    variables = _variables(tree)
    return {
        jax.tree_util.keystr(keys, simple=True, separator="/"): tuple(
            _plain_key(key)
            for n, key in enumerate(keys)
            if not (key == _VALUE and keys[:n] in variables)
        )
        for keys, _ in with_keys
    }


def structure_of(tree: PyTree, names: Mapping[str, str]) -> Structure:
    """Return the containers of a tree, in which an NNX variable is its value.

    Args:
        tree: any pytree.
        names: path of every leaf -> the name it is stored under.
    """

    def described(part: PyTree, path: tuple[Any, ...]) -> Structure:
        if part is None:
            return None
        children, _ = jax.tree_util.tree_flatten_with_path(
            part, is_leaf=lambda x: x is not part
        )
        if len(children) == 1 and children[0][0] == ():
            return names[jax.tree_util.keystr(path, simple=True, separator="/")]
        parts = [(keys[-1], described(x, (*path, *keys))) for keys, x in children]
        if _is_variable(part):
            return parts[0][1]
        if isinstance(part, (list, tuple)) and type(part) in (list, tuple):
            return {type(part).__name__: [x for _, x in parts]}
        return {"dict": [[_plain_key(key), x] for key, x in parts]}

    return described(tree, ())


def built(structure: Structure, leaves: Mapping[str, Any]) -> PyTree:
    """Return the tree of a structure.

    Args:
        structure: from `structure_of`.
        leaves: a value for every name in it.

    Raises:
        ValueError: if it is no structure.
        KeyError: if it has a name that `leaves` has not.

    Example:
        >>> built({"dict": [[0, "w"], [10, {"list": [None, "v"]}]]}, {"w": 1, "v": 2})
        {0: 1, 10: [None, 2]}
    """
    if structure is None:
        return None
    if isinstance(structure, str):
        return leaves[structure]
    if isinstance(structure, dict) and len(structure) == 1:
        [(kind, parts)] = structure.items()
        if kind == "dict":
            return {key: built(part, leaves) for key, part in parts}
        if kind in ("list", "tuple"):
            found = [built(part, leaves) for part in parts]
            return found if kind == "list" else tuple(found)
    raise ValueError(f"expected a structure, got {structure!r}")


def names_in(structure: Structure) -> Iterator[str]:
    """Yield the names of the leaves of a structure."""
    if isinstance(structure, str):
        yield structure
    elif structure is not None:
        [(kind, parts)] = structure.items()
        for part in parts:
            yield from names_in(part[1] if kind == "dict" else part)


_VALUE = jax.tree_util.GetAttrKey("value")


def _is_variable(part: Any) -> bool:
    """Whether a node is a variable of NNX; Flax is imported if there is one."""
    return isinstance(part, Variable) or any(
        base.__name__ == "Variable" and base.__module__.startswith("flax.nnx")
        for base in type(part).__mro__
    )


def _variables(tree: PyTree) -> set[tuple[Any, ...]]:
    """Return the keys that lead to each variable of NNX in a tree."""
    with_keys, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_variable)
    return {keys for keys, part in with_keys if _is_variable(part)}


def _plain_key(key: Any) -> str | int:
    if isinstance(key, jax.tree_util.SequenceKey):
        return Position(key.idx)
    plain = key.name if isinstance(key, jax.tree_util.GetAttrKey) else key.key
    return plain if type(plain) in (str, int) else str(plain)
