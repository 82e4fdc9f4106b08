"""Lazy arrays: leaves of known shape and dtype that are read when they are needed.

They are on disk, or computed from others that are.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree
from numpy.typing import DTypeLike

from jmudsc.paths import flatten, unflatten

Key = TypeVar("Key")
# Reads the arrays of some names at once.
Fetch = Callable[[Sequence[str]], Mapping[str, Any]]
# Puts the arrays of some names where shardings say; reads no more than what is here.
FetchSpread = Callable[[Mapping[str, jax.sharding.Sharding]], Mapping[str, jax.Array]]

# Reads entries from one place to another.
Part = Callable[[int, int], np.ndarray]

# Arrays that take no more bytes together are read at once: each takes time to find.
_PART = 2**26


@dataclass(frozen=True, eq=False)
class LazyArray:
    """An array that is read when it is asked for.

    Attributes:
        name: what it is called where it is stored.
        shape: as it is stored.
        dtype: as it is stored; of kind `U` if it is text and no array.
        fetch: reads it, and others that are stored with it.
        cost: bytes of memory that computing it takes beside the array itself; 0 if it
            is only read.
        fetch_spread: reads it, and others that are stored with it, to the devices of
            several processes, each its own parts; None if it is only read as a whole.
        part: reads some of its entries, from one place to another, all axes made one;
            None if it can be read as a whole only.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fetch: Fetch = field(repr=False)
    cost: int = 0
    fetch_spread: FetchSpread | None = field(default=None, repr=False)
    part: Part | None = field(default=None, repr=False)

    @property
    def ndim(self) -> int:
        """How many axes the array has."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements the array has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes the array takes."""
        return self.size * self.dtype.itemsize

    def read(self) -> Any:
        """Read the array to the host."""
        return self.fetch([self.name])[self.name]

    def __array__(
        self, dtype: DTypeLike | None = None, copy: bool | None = None
    ) -> np.ndarray:
        """Read the array, for `numpy.asarray` and `jax.numpy.asarray`."""
        return np.array(self.read(), dtype, copy=copy)


Leaf = ArrayLike | LazyArray


def present(leaf: Any) -> Any:
    """Return a leaf itself, read to the host if it is lazy."""
    return leaf.read() if isinstance(leaf, LazyArray) else leaf


def is_lazy(tree: PyTree) -> bool:
    """Whether any leaf of a tree is lazy."""
    return any(isinstance(leaf, LazyArray) for leaf in jax.tree.leaves(tree))


def read_all(tree: PyTree) -> PyTree:
    """Read all lazy arrays of a tree to the host, those stored together at once."""
    lazy = [x for x in jax.tree.leaves(tree) if isinstance(x, LazyArray)]
    names: dict[Fetch, list[str]] = {}
    for leaf in lazy:
        names.setdefault(leaf.fetch, []).append(leaf.name)
    found = {fetch: fetch(wanted) for fetch, wanted in names.items()}

    def read(leaf: Any) -> Any:
        if isinstance(leaf, LazyArray):
            return found[leaf.fetch][leaf.name]
        return leaf

    return jax.tree.map(read, tree)


def to_device(tree: PyTree) -> PyTree:
    """Read a tree to the default device if it is lazy; else return it as it is."""
    return jax.device_put(read_all(tree)) if is_lazy(tree) else tree


def parts_of(leaves: Mapping[Key, LazyArray]) -> Iterator[dict[Key, LazyArray]]:
    """Yield lazy arrays in parts that are small enough to be read at once.

    Args:
        leaves: name -> array.

    Yields:
        Some of them: one, or several that take little memory together.
    """
    part: dict[Key, LazyArray] = {}
    size = 0
    for name, leaf in leaves.items():
        if part and size + leaf.nbytes > _PART:
            yield part
            part, size = {}, 0
        part[name] = leaf
        size += leaf.nbytes
    if part:
        yield part


def in_memory(tree: PyTree) -> PyTree[LazyArray]:
    """Return arrays that are there as lazy ones; those that are lazy stay as they are.

    Args:
        tree: arrays of any kind, or Python scalars.
    """
    leaves = flatten(tree)

    def is_array(leaf: Any) -> bool:
        return hasattr(leaf, "dtype")

    def fetch(names: Sequence[str]) -> Mapping[str, Any]:
        wanted = {name: leaves[name] for name in names}
        return {n: np.asarray(x) if is_array(x) else x for n, x in wanted.items()}

    lazy = {}
    for name, leaf in leaves.items():
        if isinstance(leaf, LazyArray):
            lazy[name] = leaf
            continue
        kind = leaf if is_array(leaf) else np.asarray(leaf)
        lazy[name] = LazyArray(name, tuple(kind.shape), np.dtype(kind.dtype), fetch)
    return unflatten(tree, lazy)
