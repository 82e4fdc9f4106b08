"""Provenance: the record beside variables of how they were made, with their digests.

Orbax reads flipped bits without a word, so every leaf is saved with a digest, and so
is the record itself. Nothing here is pickled: the record is JSON, arrays that belong to
it are `.npy` arrays.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from etils import epath

from jmudsc.checkpoints.structure import names_in

_RECORD = "provenance.json"
_FORMAT = 2
CARD = "README.md"
_PACKAGES = ("jmudsc", "jax", "flax", "orbax-checkpoint", "numpy", "scipy")


def leaf_digest(leaf: Any) -> str:
    """Return the SHA-256 of a leaf's dtype, shape and bytes in row-major order.

    Example:
        >>> leaf_digest(np.zeros(2, np.float32))[:12]
        'a8c7f57bd4b7'
    """
    array = np.asarray(leaf)
    digest = hashlib.sha256(f"{array.dtype.name}{list(array.shape)}".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Record:
    """What is to be stored beside variables.

    Attributes:
        content: plain JSON values, under any keys but those of `described`.
        arrays: name of a file, without its ending -> its arrays by name. Their digests
            are put into the record under the name of the file.
        notes: file name -> text, for people to read.
        card: what the variables say of themselves in `README.md`, at the top of a
            directory, and beside a file in the folder of its record; None for nothing.
    """

    content: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    card: str | None = None


def described(record: Record) -> dict[str, Any]:
    """Return the JSON values that are stored, but for what is known of the files.

    Args:
        record: what the caller has to say.
    """
    arrays = {
        name: {key: leaf_digest(array) for key, array in arrays.items()}
        for name, arrays in record.arrays.items()
    }
    return {
        "format": _FORMAT,
        **record.content,
        "versions": versions(),
        **arrays,
    }


def write(folder: epath.Path, content: Mapping[str, Any], record: Record) -> None:
    """Store a record in a new folder, with its arrays and notes.

    Args:
        folder: to make.
        content: from `described`, with `structure`, `digests` (of the leaves) and
            `files` (size and SHA-256 of each).
        record: whose arrays and notes are stored.
    """
    folder.mkdir()
    for name, arrays in record.arrays.items():
        named: dict[str, Any] = {f"{name}/{key}": x for key, x in arrays.items()}
        with (folder / f"{name}.npz").open("wb") as file:
            np.savez(file, **named)
    for name, text in record.notes.items():
        (folder / name).write_text(text)
    beside = {file.name: size_and_digest(file) for file in sorted(folder.iterdir())}
    plain = json.loads(json.dumps({**content, "beside": beside}))  # as it is read
    sealed = {"digest": _seal(plain), **plain}
    (folder / _RECORD).write_text(json.dumps(sealed, indent=1))


def names_beside(content: Mapping[str, Any]) -> list[str]:
    """Return what the folder of a record holds."""
    return [_RECORD, *content.get("beside", ())]


def size_and_digest(file: os.PathLike[str]) -> list[Any]:
    """Return the size of a file in bytes and the SHA-256 of all in it."""
    digest = hashlib.sha256()
    with epath.Path(file).open("rb") as opened:
        while part := opened.read(2**20):
            digest.update(part)
        return [opened.tell(), digest.hexdigest()]


def has_record(folder: epath.Path) -> bool:
    """Return whether jmudsc wrote a folder."""
    return (folder / _RECORD).exists()


def read_record(folder: epath.Path) -> dict[str, Any] | None:
    """Read the record in a folder, None if there is no folder.

    Raises:
        ValueError: if the record was changed or damaged after it was written, or is of
            a later version.
    """
    path = folder / _RECORD
    if not folder.exists():
        return None
    content: Any = None
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(_damaged(path)) from error
    if not isinstance(content, dict):
        raise ValueError(_damaged(path))
    version = content.get("format")
    if type(version) is int and version > _FORMAT:
        raise ValueError(
            f"{path}: expected a record of format {_FORMAT} or less, got one of "
            f"{version}, of a later version. Read it with the jmudsc that saved it."
        )
    if content.pop("digest", "") != _seal(content) or not _is_whole(content):
        raise ValueError(_damaged(path))
    return content


def _is_whole(content: Mapping[str, Any]) -> bool:
    """Whether a record has what is asked of it, of the right types."""
    digests = content.get("digests")
    if not _is_text(digests):
        return False
    if content.get("format") == 1:
        return isinstance(content.get("nnx"), bool)
    try:
        names = sorted(names_in(content["structure"]))
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return False
    return (
        content.get("format") == _FORMAT
        and names == sorted(digests or ())
        and all(map(_are_files, (content.get("beside"), content.get("files"))))
    )


def _are_files(values: Any) -> bool:
    return isinstance(values, dict) and all(
        isinstance(x, list) and [type(y) for y in x] == [int, str]
        for x in values.values()
    )


def _is_text(values: Any) -> bool:
    return isinstance(values, dict) and all(
        isinstance(x, str) for pair in values.items() for x in pair
    )


def read_arrays(
    folder: epath.Path, content: Mapping[str, Any], name: str
) -> dict[str, np.ndarray]:
    """Read arrays of a record and compare them with their digests.

    Args:
        folder: where the record is.
        content: the record.
        name: the name of their file, without its ending.

    Raises:
        ValueError: if they were changed or damaged after they were written.
    """
    path = folder / f"{name}.npz"
    digests: Any = content.get(name)
    stamp = content.get("beside", {}).get(path.name)
    if not _is_text(digests):
        raise ValueError(_damaged(folder / _RECORD))
    try:
        if stamp is not None and size_and_digest(path) != stamp:
            raise ValueError(_damaged(path))
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {key: arrays[f"{name}/{key}"] for key in digests}
    except Exception as error:  # zipfile and zlib have errors of their own
        raise ValueError(_damaged(path)) from error
    if any(leaf_digest(found[key]) != digests[key] for key in digests):
        raise ValueError(_damaged(path))
    return found


def changed(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """Return the paths whose digest is not as expected, or only on one side.

    Example:
        >>> changed({"a": "1", "b": "2"}, {"b": "3", "c": "4"})
        ['a', 'b', 'c']
    """
    paths = found.keys() | expected.keys()
    return sorted(path for path in paths if found.get(path) != expected.get(path))


def _seal(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _damaged(path: os.PathLike[str]) -> str:
    return (
        f"{path}: expected it as it was saved, got it changed or damaged. Copy the "
        "checkpoint again or repeat the merge."
    )


def check_json(name: str, values: Mapping[str, Any]) -> None:
    """Check that values can be written as JSON and read again.

    Args:
        name: what they are called, for the error.
        values: the values.

    Raises:
        ValueError: naming a value that is not plain JSON.
    """
    for key, value in values.items():
        try:
            json.dumps({key: value}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name}: expected plain numbers, text, lists and mappings, got "
                f'something else in "{key}" ({error}). Convert it first.'
            ) from error


def versions() -> dict[str, str]:
    """Return the version of each library that has a part in a merge."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # run from a source folder
            found[package] = "unknown"
    return found
