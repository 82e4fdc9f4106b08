"""What is stored beside merged variables: how they were made, and proof they are whole.

Orbax reads flipped bits without a word, so every leaf is saved with a digest, and so
is the record itself. Nothing here is pickled: the record is JSON, assignments are
`.npy` arrays.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import PyTree

from jmudsc.merging.result import MergeResult

_RECORD = "provenance.json"
_ASSIGNMENT = "assignment.npz"
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


def record(result: MergeResult, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a merge in plain JSON values.

    Args:
        result: the merge.
        extra: plain JSON values of the caller's own.

    Returns:
        What `write` stores and `read_record` gives back, but for the assignment, of
        which it holds the digests only, and `digests` of the leaves, which are empty.

    Raises:
        ValueError: if a value is not plain JSON or an assignment not int32.
    """
    _check_json("recipe", result.recipe)
    _check_json("extra", extra)
    _check_assignment(result.assignment)
    return {
        "format": _FORMAT,
        "recipe": dict(result.recipe),
        "extra": dict(extra),
        "history": [float(objective) for objective in result.history],
        "versions": versions(),
        "nnx": is_nnx_state(result.variables),
        "digests": {},
        "assignment": {k: leaf_digest(v) for k, v in result.assignment.items()},
    }


def write(
    folder: epath.Path,
    content: Mapping[str, Any],
    assignment: Mapping[str, np.ndarray],
    notes: Mapping[str, str],
) -> None:
    """Store a record, its assignment and notes in a new folder."""
    folder.mkdir()
    arrays: dict[str, Any] = {f"assignment/{k}": v for k, v in assignment.items()}
    with (folder / _ASSIGNMENT).open("wb") as file:
        np.savez(file, **arrays)
    plain = json.loads(json.dumps(content))  # as `read_record` will see it
    sealed = {"digest": _seal(plain), **plain}
    (folder / _RECORD).write_text(json.dumps(sealed, indent=1))
    for name, text in notes.items():
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
            f"{path}: has format {content.get('format')}, needed {_FORMAT}; read it "
            "with the version of jmudsc that saved it."
        )
    return content


def read_assignment(
    folder: epath.Path, digests: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Read the assignment in a folder and compare it with its digests.

    Raises:
        ValueError: if it was changed or damaged after it was written.
    """
    path = folder / _ASSIGNMENT
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {label: arrays[f"assignment/{label}"] for label in digests}
    except Exception as error:  # zipfile and zlib have errors of their own
        raise ValueError(_damaged(path)) from error
    if any(leaf_digest(found[label]) != digests[label] for label in digests):
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
        f"{path}: was changed or damaged after it was saved, needed it unchanged; "
        "copy the checkpoint again or repeat the merge."
    )


def _check_json(name: str, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        try:
            json.dumps({key: value}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f'{name}: "{key}" cannot be written as JSON ({error}), needed plain '
                "numbers, text, lists and mappings; convert it first."
            ) from error


def _check_assignment(assignment: Mapping[str, np.ndarray]) -> None:
    for label, array in assignment.items():
        if array.dtype != np.int32:
            raise ValueError(
                f'assignment: "{label}" is {array.dtype}, needed int32; '
                "convert it with .astype(np.int32)."
            )


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
