"""Safetensors files: one, or several with an index that says what is in which."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jmudsc.checkpoints.filling import read_at, Table
from jmudsc.checkpoints.reading import reading, steady
from jmudsc.checkpoints.structure import Route
from jmudsc.lazy import LazyArray, Part
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
_METADATA = "__metadata__"
_LARGE = 1 << 22  # bytes


def begins(start: bytes) -> bool:
    """Whether the first bytes are a length of less than 2^40, and JSON after it."""
    return start[8:9] == b"{" and start[5:8] == b"\0\0\0"


def open_safetensors(file: Path) -> dict[str, LazyArray]:
    """Return the arrays of a file, or of those an index names, by what is said of them.

    Args:
        file: a whole safetensors file, or `NAME.safetensors.index.json` with the files
            beside it.

    Returns:
        Name -> array.

    Raises:
        ValueError: if the file is damaged, or has arrays of types that numpy has not,
            or if the index is no index, names files elsewhere, or listing the files
            and arrays that are not there.
    """
    return _open_index(file) if file.name.endswith(INDEX) else _open_file(file)


def _open_file(file: Path) -> dict[str, LazyArray]:
    with reading(file, "safetensors file"):
        opened = _opened(file)
        parts = {name: opened.get_slice(name) for name in opened.offset_keys()}
        kinds = {name: part.get_dtype() for name, part in parts.items()}

    def fetch(names: Sequence[str]) -> Mapping[str, np.ndarray]:
        with reading(file, "safetensors file"):
            return {name: whole(leaves[name]) for name in names}

    def whole(leaf: LazyArray) -> np.ndarray:
        # For large arrays numpy has larger pages of memory than the library; which
        # still reads where the file is gone.
        if leaf.nbytes >= _LARGE and file.exists():
            return read_at(file, leaf, places[leaf.name])
        return opened.get_tensor(leaf.name)

    unknown = [f"{name}: {kind}" for name, kind in kinds.items() if kind not in _TYPES]
    if unknown:
        raise ValueError(
            f"{file}: expected arrays of {', '.join(_TYPES)}, got other types in "
            f"{len(unknown)} of {len(kinds)}. Convert them:\n{listed(unknown)}"
        )
    read, places = steady(str(file), file, fetch), _places(file)

    def part_of(name: str, leaf: LazyArray) -> Part:
        def part(start: int, stop: int) -> np.ndarray:
            read([])  # or it was written anew
            size = leaf.dtype.itemsize
            some = replace(leaf, shape=(stop - start,))
            with reading(file, "safetensors file"):
                return read_at(file, some, places[name] + start * size)

        return part

    leaves = {
        name: LazyArray(name, tuple(part.get_shape()), _TYPES[kinds[name]], read)
        for name, part in parts.items()
    }
    return {n: replace(leaf, part=part_of(n, leaf)) for n, leaf in leaves.items()}


def _places(file: Path) -> dict[str, int]:
    """Return where each array begins in a file that is known to be whole."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
    return {
        name: 8 + size + entry["data_offsets"][0]
        for name, entry in header.items()
        if name != _METADATA
    }


def _opened(file: Path) -> Any:
    from safetensors import safe_open

    try:
        # Not mapped into memory: what is read would stay there until it is needed.
        return safe_open(file, framework="numpy", backend="pread")
    except TypeError:  # safetensors 0.7 always maps
        return safe_open(file, framework="numpy")


def _open_index(index: Path) -> dict[str, LazyArray]:
    files = _weight_map(index)
    away = sorted({x for x in files.values() if Path(x).name != x or "\\" in x})
    if away:
        raise ValueError(
            f"{index}: expected names of files beside it, got {len(away)} of "
            f"{len(set(files.values()))} elsewhere. Move the files and correct the "
            f"names:\n{listed(away)}"
        )
    shards = sorted(set(files.values()))
    missing = [x for x in shards if not (index.parent / x).is_file()]
    if missing:
        raise ValueError(
            f"{index}: expected all files that it names beside it, got {len(missing)} "
            f"of {len(shards)} missing. Copy them again:\n{listed(missing)}"
        )
    found = {shard: _open_file(index.parent / shard) for shard in shards}
    lost = [f"{n}: not in {x}" for n, x in files.items() if n not in found[x]]
    if lost:
        raise ValueError(
            f"{index}: expected every array in the file that it names for it, got "
            f"{len(lost)} of {len(files)} that are not. Copy the checkpoint again:\n"
            f"{listed(lost)}"
        )
    return {name: found[shard][name] for name, shard in files.items()}


def files_of(file: Path) -> list[Path]:
    """Return a file, with those that it names if it is an index.

    Raises:
        ValueError: if it is called an index and is none.
    """
    if not file.name.endswith(INDEX):
        return [file]
    shards = sorted(set(_weight_map(file).values()))
    return [file, *(file.parent / shard for shard in shards)]


def write_safetensors(
    file: Path,
    leaves: Mapping[str, LazyArray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays to a file, one after the other.

    The library wants all of them in memory. A file is the length of a header, in eight
    bytes, the header, and the bytes of the arrays, the widest types first.

    Args:
        file: where.
        leaves: name -> array, of a type that safetensors has.
        metadata: text to be stored with them.
    """
    table = table_of(leaves, metadata)
    with file.open("wb") as opened:
        opened.write(table.head)
        for name in table.places:
            array = np.ascontiguousarray(leaves[name].read())
            opened.write(array.reshape(-1).view(np.uint8).data)


def table_of(
    leaves: Mapping[str, LazyArray], metadata: Mapping[str, str] | None = None
) -> Table:
    """Return the header of a file of some arrays, and where each lies in it.

    Args:
        leaves: name -> array, of a type that safetensors has.
        metadata: text to be stored with them.
    """
    order = sorted(leaves, key=lambda name: (-leaves[name].dtype.itemsize, name))
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    end = 0
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
    head = len(text).to_bytes(8, "little") + text
    places = {name: len(head) + header[name]["data_offsets"][0] for name in order}
    return Table(head, places, len(head) + end)


def holds(dtype: np.dtype) -> bool:
    """Whether safetensors has a type."""
    return dtype in _NAMES


def refused(names: Mapping[str, Route]) -> dict[str, str]:
    """Return the leaves that would not come back under their names, and why."""
    return {
        path: "has the name that such a file has for its metadata"
        for path in names
        if path == _METADATA
    }


def _weight_map(index: Path) -> dict[str, str]:
    try:
        content = json.loads(index.read_text())
        files = content["weight_map"]
        good = files and all(isinstance(x, str) for x in files.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        good, files = False, {}
    if not good:
        raise ValueError(
            f'{index}: expected JSON with "weight_map", array name -> file name, got '
            "something else. Copy it again."
        )
    return files
