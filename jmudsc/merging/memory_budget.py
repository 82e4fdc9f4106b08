"""Memory budget: how much memory models may take, and whether they fit into it."""

import math
import os
from collections.abc import Sequence
from typing import Any

import jax
from jaxtyping import PyTree


def room() -> int:
    """Return the bytes that models may take: half of the host's, or of a device's.

    Whichever is less; the rest is for what is computed with them.
    """
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    known = jax.local_devices()[0].memory_stats() or {}
    return min(host, known.get("bytes_limit", host)) // 2


def fits(models: Sequence[PyTree], memory: int) -> bool:
    """Whether models, and one more that they are merged to, fit into memory.

    Args:
        models: per model its arrays, lazy or not, or their shapes.
        memory: in bytes.
    """
    sizes = list(map(tree_bytes, models))
    return sum(sizes) + max(sizes) <= memory


def tree_bytes(tree: PyTree) -> int:
    """Return how many bytes the arrays of a tree take, by their shapes and dtypes."""
    return sum(map(leaf_bytes, jax.tree.leaves(tree)))


def leaf_bytes(leaf: Any) -> int:
    """Return how many bytes an array takes, by its shape and dtype."""
    return math.prod(leaf.shape) * leaf.dtype.itemsize
