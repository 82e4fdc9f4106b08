"""Msgpack files: what `flax.serialization.to_bytes` makes, one tree in one file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from jmudsc.checkpoints.flax_bytes import from_bytes, to_bytes
from jmudsc.lazy import in_memory, LazyArray
from jmudsc.paths import flatten, listed


def open_msgpack(file: Path) -> PyTree[LazyArray]:
    """Read the tree in a file; all of it, since it has no table of contents.

    Args:
        file: a whole msgpack file.

    Returns:
        Nested dicts; lists are dicts with the keys "0", "1", ..., as Flax has them.

    Raises:
        ValueError: if the file is damaged, or holds anything but arrays, numbers and
            text.
    """
    try:
        tree = _with_text_keys(from_bytes(file.read_bytes()))
    except Exception as error:  # msgpack, numpy and OSError
        raise ValueError(
            f"{file}: cannot be read ({error}), needed a whole msgpack file that Flax "
            "wrote; copy it again."
        ) from error
    if not isinstance(tree, dict):
        raise ValueError(
            f"{file}: holds a {type(tree).__name__}, needed a tree of arrays; write it "
            "with flax.serialization.to_bytes."
        )
    plain = (np.ndarray, np.generic, bool, int, float, complex, str)
    leaves = flatten(tree)
    strange = [
        f"{name}: {type(x).__name__}"
        for name, x in leaves.items()
        if not isinstance(x, plain)
    ]
    if strange:
        raise ValueError(
            f"{file}: {len(strange)} of {len(leaves)} leaves are no arrays, needed "
            f"arrays and numbers; leave them out:\n{listed(strange)}"
        )
    return in_memory(tree)


def write_msgpack(file: Path, tree: Mapping[str, Any]) -> None:
    """Write a tree to a file.

    Args:
        file: where.
        tree: nested dicts of host arrays.
    """
    file.write_bytes(to_bytes(dict(tree)))


def _with_text_keys(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {str(key): _with_text_keys(part) for key, part in tree.items()}
    return [_with_text_keys(x) for x in tree] if isinstance(tree, list) else tree
