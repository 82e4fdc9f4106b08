"""Npz files: numpy's archives of arrays, without pickle."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jmudsc.checkpoints.reading import reading, steady
from jmudsc.checkpoints.structure import Route
from jmudsc.checkpoints.subtrees import longer
from jmudsc.lazy import LazyArray
from jmudsc.paths import listed

# Numpy writes bfloat16 as two bytes of no type, and no other type of JAX so.
_BFLOAT16, _STORED = np.dtype(jnp.bfloat16), np.dtype("V2")
_ENDING = ".npy"
_LONGEST = 2**16 - 1 - len(_ENDING)  # bytes in the name of an array


def begins(start: bytes) -> bool:
    """Whether the first bytes are those of a zip archive."""
    return start[:4] in (b"PK\3\4", b"PK\5\6")


def open_npz(file: Path) -> dict[str, LazyArray]:
    """Return the arrays of an archive by what their headers say.

    Args:
        file: a whole npz file.

    Returns:
        Name -> array.

    Raises:
        ValueError: if the file is damaged, or holds anything but arrays of numbers.
    """
    with reading(file, "npz file"):
        headers = _headers(file)
    _check_headers(file, headers)

    def fetch(names: Sequence[str]) -> Mapping[str, np.ndarray]:
        with reading(file, "npz file"), np.load(file, allow_pickle=False) as arrays:
            return {name: _typed(arrays[f"{name}{_ENDING}"]) for name in names}

    found, read = {}, steady(str(file), file, fetch)
    for member, (shape, dtype) in headers.items():
        name = member.removesuffix(_ENDING)
        known = _BFLOAT16 if dtype == _STORED else dtype.newbyteorder("=")
        found[name] = LazyArray(name, shape, known, read)
    return found


def write_npz(file: Path, leaves: Mapping[str, LazyArray]) -> None:
    """Write arrays to an archive, one after the other.

    Args:
        file: where.
        leaves: name -> array, of a type that it `holds`.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, leaf in leaves.items():
            with archive.open(f"{name}{_ENDING}", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, leaf.read(), allow_pickle=False)


def holds(dtype: np.dtype) -> bool:
    """Whether a file tells a type: all of numpy's own, and bfloat16."""
    return issubclass(dtype.type, np.number | np.bool_) or dtype == _BFLOAT16


def refused(names: Mapping[str, Route]) -> dict[str, str]:
    """Return the leaves that would not come back under their names, and why."""
    long = f"has a name of more than {_LONGEST} bytes"
    zero = [path for path in names if "\0" in path]
    return dict.fromkeys(longer(names, _LONGEST), long) | dict.fromkeys(
        zero, "has a zero byte in its name"
    )


def _headers(file: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Read shape and dtype of every member; what is no array counts as objects."""
    headers = {}
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if name in headers:
                raise ValueError(f'two members are named "{name}"')
            with archive.open(name) as member:
                headers[name] = _header(name, member)
    return headers


def _header(name: str, member: Any) -> tuple[tuple[int, ...], np.dtype]:
    if not name.endswith(_ENDING):
        return (), np.dtype(object)
    version = np.lib.format.read_magic(member)
    wide = version != (1, 0)
    read = (
        np.lib.format.read_array_header_2_0
        if wide
        else np.lib.format.read_array_header_1_0
    )
    shape, _, dtype = read(member)
    return shape, dtype


def _check_headers(
    file: Path, headers: Mapping[str, tuple[tuple[int, ...], np.dtype]]
) -> None:
    objects = [name for name, (_, dtype) in headers.items() if dtype.hasobject]
    if objects:
        raise ValueError(
            f"{file}: expected arrays of numbers, got Python objects in "
            f"{len(objects)} of {len(headers)} members. Save them as numbers, nothing "
            f"is ever unpickled:\n{listed(objects)}"
        )
    untold = [
        f"{name}: {dtype}"
        for name, (_, dtype) in headers.items()
        if dtype.kind == "V" and dtype != _STORED
    ]
    if untold:
        raise ValueError(
            f"{file}: expected numpy's own types or bfloat16, got types that the file "
            f"does not tell in {len(untold)} of {len(headers)} arrays. Save them as "
            f"such:\n{listed(untold)}"
        )


def _typed(array: np.ndarray) -> np.ndarray:
    if array.dtype == _STORED:
        return array.view(_BFLOAT16)
    return array.astype(array.dtype.newbyteorder("="), copy=False)
