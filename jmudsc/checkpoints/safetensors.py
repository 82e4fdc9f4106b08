"""Safetensors files: one, or several with an index that says what is in which."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jmudsc.checkpoints.steady import steady
from jmudsc.lazy import LazyArray
from jmudsc.paths import listed

INDEX = ".safetensors.index.json"

# The types that safetensors gives back as numpy arrays, by the names it has for them.
_TYPES = {
    "BOOL": np.dtype(bool),
    "BF16": np.dtype(jnp.bfloat16),
    "C64": np.dtype(np.complex64),
    **{f"F{8 * size}": np.dtype(f"f{size}") for size in (2, 4, 8)},
    **{f"I{8 * size}": np.dtype(f"i{size}") for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": np.dtype(f"u{size}") for size in (1, 2, 4, 8)},
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


def open_safetensors(file: Path) -> dict[str, LazyArray]:
    """Return the arrays of a file by what its header says.

    Args:
        file: a whole safetensors file.

    Returns:
        Name -> array.

    Raises:
        ValueError: if the file is damaged, or has arrays of types that numpy has not.
    """
    from safetensors import safe_open, SafetensorError

    try:
        # Not mapped into memory: what is read would stay there until it is needed.
        opened: Any = safe_open(file, framework="numpy", backend="pread")
    except (SafetensorError, OSError) as error:
        raise ValueError(_damaged(file, error)) from error

    def fetch(names: Sequence[str]) -> Mapping[str, np.ndarray]:
        try:
            return {name: opened.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise ValueError(_damaged(file, error)) from error

    names = opened.offset_keys()
    parts = {name: opened.get_slice(name) for name in names}
    kinds = {name: part.get_dtype() for name, part in parts.items()}
    unknown = [f"{name}: {kind}" for name, kind in kinds.items() if kind not in _TYPES]
    if unknown:
        raise ValueError(
            f"{file}: {len(unknown)} of {len(kinds)} arrays have types that cannot be "
            f"read, needed {', '.join(_TYPES)}; convert them:\n{listed(unknown)}"
        )
    read = steady(str(file), file, fetch)
    return {
        name: LazyArray(name, tuple(part.get_shape()), _TYPES[kinds[name]], read)
        for name, part in parts.items()
    }


def open_index(index: Path) -> dict[str, LazyArray]:
    """Return the arrays of the files that an index names.

    Args:
        index: `NAME.safetensors.index.json`, with the files beside it.

    Returns:
        Name -> array.

    Raises:
        ValueError: if the index is no index, names files elsewhere, or listing the
            files and arrays that are not there.
    """
    files = _weight_map(index)
    away = sorted({x for x in files.values() if Path(x).name != x or "\\" in x})
    if away:
        raise ValueError(
            f"{index}: names {len(away)} files that are not beside it, needed plain "
            f"file names:\n{listed(away)}"
        )
    shards = sorted(set(files.values()))
    missing = [x for x in shards if not (index.parent / x).is_file()]
    if missing:
        raise ValueError(
            f"{index}: {len(missing)} of {len(shards)} files are missing, needed all "
            f"beside it; copy them again:\n{listed(missing)}"
        )
    found = {shard: open_safetensors(index.parent / shard) for shard in shards}
    lost = [f"{n}: not in {x}" for n, x in files.items() if n not in found[x]]
    if lost:
        raise ValueError(
            f"{index}: {len(lost)} of {len(files)} arrays are not in the files it "
            f"names for them, needed all; copy the checkpoint again:\n{listed(lost)}"
        )
    return {name: found[shard][name] for name, shard in files.items()}


def shards_of(index: Path) -> list[Path]:
    """Return the files that an index names, in order.

    Args:
        index: as for `open_index`.

    Raises:
        ValueError: if the index is no index.
    """
    return [index.parent / name for name in sorted(set(_weight_map(index).values()))]


def write_safetensors(file: Path, leaves: Mapping[str, LazyArray]) -> None:
    """Write arrays to a file, one after the other.

    The library wants all of them in memory. A file is the length of a header, in eight
    bytes, the header, and the bytes of the arrays, the widest types first.

    Args:
        file: where.
        leaves: name -> array, of a type that safetensors has.
    """
    order = sorted(leaves, key=lambda name: (-leaves[name].dtype.itemsize, name))
    header, end = {}, 0
    for name in order:
        leaf, start = leaves[name], end
        end += leaf.nbytes
        header[name] = {
            "dtype": _NAMES[leaf.dtype],
            "shape": leaf.shape,
            "data_offsets": (start, end),
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            array = np.ascontiguousarray(leaves[name].read())
            opened.write(array.reshape(-1).view(np.uint8).data)


def can_hold(dtype: np.dtype) -> bool:
    """Whether safetensors has a type."""
    return dtype in _NAMES


def _weight_map(index: Path) -> dict[str, str]:
    try:
        content = json.loads(index.read_text())
        files = content["weight_map"]
        good = files and all(isinstance(x, str) for x in files.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        good, files = False, {}
    if not good:
        raise ValueError(
            f"{index}: is no index of safetensors files, needed JSON with "
            '"weight_map", array name -> file name; copy it again.'
        )
    return files


def _damaged(file: Path, error: Exception) -> str:
    return (
        f"{file}: cannot be read ({error}), needed a whole safetensors file; copy it "
        "again."
    )
