"""Matchings of the published method, recorded, and how to compare with them."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_HERE = Path(__file__).parent
# What travels with the tests, and all of it where it lies beside the repository.
_FILES = [
    path
    for path in (
        _HERE / "fixtures" / "matching.npz",
        _HERE.parents[2] / "shared" / "golden" / "matching.npz",
    )
    if path.exists()
]


def rows(kind: str) -> list[Any]:
    """Return a test parameter (file, name) for every row whose kind matches."""
    found = []
    for path in _FILES:
        with np.load(path) as file:
            for name in file.files:
                if re.fullmatch(kind, name.split("/")[1]):
                    label = f"{path.parent.name}-{name.replace('/', '-')}"
                    found.append(pytest.param(path, name, id=label))
    return found


def read(path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a similarity matrix and the assignment expected of it."""
    with np.load(path) as file:
        return file[f"{name.split('/')[0]}/similarity"], file[name]


def partition(assignment: np.ndarray) -> list[int]:
    """Number clusters by their first member, so that equal partitions are equal."""
    _, first, numbers = np.unique(
        assignment.ravel(), return_index=True, return_inverse=True
    )
    return first[numbers].tolist()
