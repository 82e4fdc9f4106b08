"""Flax bytes: trees as `flax.serialization` writes them in msgpack, without Flax.

An array is an extension of msgpack: its shape, the name of its dtype and its bytes,
again in msgpack. One that is larger than msgpack may hold is a dict of parts.
"""

from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

# The numbers by which Flax marks what msgpack itself cannot hold.
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_PARTS = "__msgpack_chunked_array__"
_LARGEST = 2**30  # bytes of an array that is written whole


def from_bytes(content: bytes) -> Any:
    """Read a tree.

    Args:
        content: what `flax.serialization.msgpack_serialize` or `to_bytes` gives.

    Returns:
        Dicts, lists, arrays, numbers and text.

    Raises:
        ValueError: if it is no msgpack, and other errors if it is damaged within.
    """
    tree = msgpack.unpackb(content, ext_hook=_unpacked, raw=False, strict_map_key=False)
    return _joined(tree)


def to_bytes(tree: Mapping[str, Any], largest: int = _LARGEST) -> bytes:
    """Write a tree, to the same bytes as `flax.serialization.msgpack_serialize`.

    Args:
        tree: nested dicts of host arrays and numbers.
        largest: bytes of an array that is not cut into parts.
    """
    cut = _cut(tree, largest)
    content = msgpack.packb(cut, default=_packed, strict_types=True)
    assert content is not None
    return content


def _packed(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        parts = (array.shape, array.dtype.name, array.tobytes())
        code = _ARRAY if isinstance(value, np.ndarray) else _SCALAR
        return msgpack.ExtType(code, msgpack.packb(parts, use_bin_type=True))
    if isinstance(value, complex):
        return msgpack.ExtType(_COMPLEX, msgpack.packb((value.real, value.imag)))
    raise TypeError(f"a {type(value).__name__} has no place in a msgpack file")


def _unpacked(code: int, content: bytes) -> Any:
    if code == _COMPLEX:
        return complex(*msgpack.unpackb(content))
    if code not in (_ARRAY, _SCALAR):
        return msgpack.ExtType(code, content)
    shape, dtype, values = msgpack.unpackb(content, raw=True)
    array = np.frombuffer(values, np.dtype(dtype.decode())).reshape(shape)
    return array if code == _ARRAY else array[()]


def _cut(tree: Any, largest: int) -> Any:
    """Sort keys, as JAX does, and cut arrays that are too large into flat parts."""
    if isinstance(tree, Mapping):
        return {key: _cut(tree[key], largest) for key in sorted(tree)}
    if not isinstance(tree, np.ndarray) or tree.nbytes <= largest:
        return tree
    count = max(1, largest // tree.itemsize)
    flat = tree.reshape(-1)
    parts = [flat[i : i + count] for i in range(0, flat.size, count)]
    return {_PARTS: True, "shape": _numbered(tree.shape), "chunks": _numbered(parts)}


def _joined(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    if _PARTS not in tree:
        return {key: _joined(part) for key, part in tree.items()}
    shape = _in_order(tree["shape"])
    return np.concatenate(_in_order(tree["chunks"])).reshape(shape)


def _numbered(values: Any) -> dict[str, Any]:
    return {str(number): value for number, value in enumerate(values)}


def _in_order(numbered: Mapping[str, Any]) -> list[Any]:
    return [numbered[str(number)] for number in range(len(numbered))]
