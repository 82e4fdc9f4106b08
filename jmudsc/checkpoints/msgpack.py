"""Msgpack files: what `flax.serialization.to_bytes` makes, one tree in one file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from jmudsc.checkpoints.flax_bytes import from_bytes, to_bytes
from jmudsc.checkpoints.reading import reading
from jmudsc.checkpoints.structure import Route
from jmudsc.lazy import in_memory, LazyArray, read_all
from jmudsc.paths import flatten, listed

# Flax puts large arrays in pieces under a key of this name.
_CHUNKED = "__msgpack_chunked_array__"


def begins(start: bytes) -> bool:
    """Whether the first bytes are of a map that is not empty, and not of HDF5."""
    first = start[0] if start else 0
    is_map = 0x80 < first < 0x90 or first in (0xDE, 0xDF)
    return is_map and not start.startswith(b"\x89HDF\r\n")


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
    with reading(file, "msgpack file that Flax wrote"):
        tree = _with_text_keys(from_bytes(file.read_bytes()))
        leaves = flatten(tree)
    if not isinstance(tree, dict):
        raise ValueError(
            f"{file}: expected a tree of arrays, got a {type(tree).__name__}. Write it "
            "with flax.serialization.to_bytes."
        )
    plain = (np.ndarray, np.generic, bool, int, float, complex, str)
    strange = [
        f"{name}: {type(x).__name__}"
        for name, x in leaves.items()
        if not isinstance(x, plain)
    ]
    if strange:
        raise ValueError(
            f"{file}: expected arrays and numbers, got something else in "
            f"{len(strange)} of {len(leaves)} leaves. Leave them out:\n"
            f"{listed(strange)}"
        )
    return in_memory(tree)


def write_msgpack(file: Path, tree: Mapping[str, Any]) -> None:
    """Write a tree to a file.

    Args:
        file: where.
        tree: nested dicts of arrays, which are all read at once.
    """
    file.write_bytes(to_bytes(read_all(dict(tree))))


def refused(names: Mapping[str, Route]) -> dict[str, str]:
    """Return the leaves that would not come back under their names, and why."""
    return {
        path: f'has a key "{_CHUNKED}", which Flax has for itself'
        for path, keys in names.items()
        if _CHUNKED in keys
    }


def _with_text_keys(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {str(key): _with_text_keys(part) for key, part in tree.items()}
    return [_with_text_keys(x) for x in tree] if isinstance(tree, list) else tree
