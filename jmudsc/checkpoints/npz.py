"""Npz files: numpy's archives of arrays, without pickle."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jmudsc.checkpoints.steady import steady
from jmudsc.lazy import LazyArray
from jmudsc.paths import listed

# Numpy writes bfloat16 as two bytes of no type, and no other type of JAX so.
_BFLOAT16, _STORED = np.dtype(jnp.bfloat16), np.dtype("V2")
_ENDING = ".npy"


def open_npz(file: Path) -> dict[str, LazyArray]:
    """Return the arrays of an archive by what their headers say.

    Args:
        file: a whole npz file.

    Returns:
        Name -> array.

    Raises:
        ValueError: if the file is damaged, or holds anything but arrays of numbers.
    """
    try:
        headers = _headers(file)
    except Exception as error:  # zipfile and zlib have errors of their own
        raise ValueError(_damaged(file, error)) from error
    _check_headers(file, headers)

    def fetch(names: Sequence[str]) -> Mapping[str, np.ndarray]:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return {name: _typed(arrays[name]) for name in names}
        except Exception as error:  # of zipfile and zlib, as above
            raise ValueError(_damaged(file, error)) from error

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
        leaves: name -> array, of a type that `can_hold` accepts.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, leaf in leaves.items():
            with archive.open(f"{name}{_ENDING}", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, leaf.read(), allow_pickle=False)


def can_hold(dtype: np.dtype) -> bool:
    """Whether a file tells a type: all of numpy's own, and bfloat16."""
    return issubclass(dtype.type, np.number | np.bool_) or dtype == _BFLOAT16


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
            f"{file}: {len(objects)} of {len(headers)} members are Python objects, "
            "needed arrays of numbers; nothing is ever unpickled, save them as numbers:"
            f"\n{listed(objects)}"
        )
    untold = [
        f"{name}: {dtype}"
        for name, (_, dtype) in headers.items()
        if dtype.kind == "V" and dtype != _STORED
    ]
    if untold:
        raise ValueError(
            f"{file}: {len(untold)} of {len(headers)} arrays are of types that the "
            "file does not tell, needed numpy's own or bfloat16; save them as such:"
            f"\n{listed(untold)}"
        )


def _typed(array: np.ndarray) -> np.ndarray:
    if array.dtype == _STORED:
        return array.view(_BFLOAT16)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _damaged(file: Path, error: Exception) -> str:
    said = str(error) or type(error).__name__
    return f"{file}: cannot be read ({said}), needed a whole npz file; copy it again."
