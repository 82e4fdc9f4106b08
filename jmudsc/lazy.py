"""Lazy arrays: leaves that are still on disk, of known shape and dtype."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jmudsc.paths import flatten, unflatten

# Reads the arrays of some names at once.
Fetch = Callable[[Sequence[str]], Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class LazyArray:
    """An array that is read when it is asked for.

    Attributes:
        name: what it is called where it is stored.
        shape: as it is stored.
        dtype: as it is stored; of kind `U` if it is text and no array.
        fetch: reads it, and others that are stored with it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fetch: Fetch

    @property
    def nbytes(self) -> int:
        """How many bytes the array takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Any:
        """Read the array to the host."""
        return self.fetch([self.name])[self.name]


def read_all(tree: PyTree[LazyArray]) -> PyTree:
    """Read all arrays of a tree to the host, those that are stored together at once."""
    names: dict[Fetch, list[str]] = {}
    for leaf in jax.tree.leaves(tree):
        names.setdefault(leaf.fetch, []).append(leaf.name)
    found = {fetch: fetch(wanted) for fetch, wanted in names.items()}
    return jax.tree.map(lambda leaf: found[leaf.fetch][leaf.name], tree)


def in_memory(tree: PyTree) -> PyTree[LazyArray]:
    """Return what was read already as if it were still on disk."""
    leaves = flatten(tree)

    def fetch(names: Sequence[str]) -> Mapping[str, Any]:
        return {name: leaves[name] for name in names}

    lazy = {}
    for name, leaf in leaves.items():
        array = np.asarray(leaf)
        lazy[name] = LazyArray(name, array.shape, array.dtype, fetch)
    return unflatten(tree, lazy)
