"""Provenance: the record beside variables of how they were made, with their digests.

Orbax reads flipped bits without a word, so every leaf is saved with a digest, and so
is the record itself. Nothing here is pickled: the record is JSON, arrays that belong to
it are `.npy` arrays.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import PyTree

_RECORD = "provenance.json"
_FORMAT = 1
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
    """

    content: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


def described(record: Record, variables: PyTree) -> dict[str, Any]:
    """Return the JSON values that are stored, but for the digests of the leaves.

    Args:
        record: what the caller has to say.
        variables: what it is of.
    """
    arrays = {
        name: {key: leaf_digest(array) for key, array in arrays.items()}
        for name, arrays in record.arrays.items()
    }
    return {
        "format": _FORMAT,
        **record.content,
        "versions": versions(),
        "nnx": is_nnx_state(variables),
        "digests": {},
        **arrays,
    }


def write(folder: epath.Path, content: Mapping[str, Any], record: Record) -> None:
    """Store a record in a new folder, with its arrays and notes.

    Args:
        folder: to make.
        content: from `described`, with the digests of the leaves.
        record: whose arrays and notes are stored.
    """
    folder.mkdir()
    for name, arrays in record.arrays.items():
        named: dict[str, Any] = {f"{name}/{key}": x for key, x in arrays.items()}
        with (folder / f"{name}.npz").open("wb") as file:
            np.savez(file, **named)
    plain = json.loads(json.dumps(content))  # as `read_record` will see it
    sealed = {"digest": _seal(plain), **plain}
    (folder / _RECORD).write_text(json.dumps(sealed, indent=1))
    for name, text in record.notes.items():
        (folder / name).write_text(text)


def has_record(folder: epath.Path) -> bool:
    """Return whether jmudsc wrote a folder."""
    return (folder / _RECORD).exists()


def read_record(folder: epath.Path) -> dict[str, Any] | None:
    """Read the record in a folder, None if there is no folder.

    Raises:
        ValueError: if the record was changed or damaged after it was written, or is of
            another format.
    """
    path = folder / _RECORD
    if not folder.exists():
        return None
    content: Any = None
    with contextlib.suppress(ValueError, FileNotFoundError):
        content = json.loads(path.read_text())
    if not isinstance(content, dict) or content.pop("digest", "") != _seal(content):
        raise ValueError(_damaged(path))
    if content.get("format") != _FORMAT:
        raise ValueError(
            f"{path}: expected a record of format {_FORMAT}, got one of "
            f"{content.get('format')}. Read it with the jmudsc that saved it."
        )
    return content


def read_arrays(
    folder: epath.Path, name: str, digests: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Read arrays of a record and compare them with their digests.

    Args:
        folder: where the record is.
        name: the name of their file, without its ending.
        digests: what the record has under that name.

    Raises:
        ValueError: if they were changed or damaged after they were written.
    """
    path = folder / f"{name}.npz"
    try:
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


def is_nnx_state(variables: PyTree) -> bool:
    """Return whether all leaves are the values of NNX variables."""
    value = jax.tree_util.GetAttrKey("value")
    with_keys, _ = jax.tree_util.tree_flatten_with_path(variables)
    return all(keys and keys[-1] == value for keys, _ in with_keys)
