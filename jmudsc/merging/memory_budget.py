"""Memory budget: how much memory a merge may hold, and what it is spent on.

Models come first: if they have no room they stay on disk. What they leave is for the
statistics of activations, gathered in several passes over the data if they have no room
in it, and then for what is remembered of weights.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import jax
from jaxtyping import PyTree


def room() -> int:
    """Return the bytes that a merge may hold: half of the host's, or of a device's.

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


def left_for_statistics(models: Sequence[PyTree], memory: int) -> int:
    """Return what of the memory statistics may take, and what is remembered of weights.

    Args:
        models: per model its arrays, lazy or not, or their shapes.
        memory: in bytes, for all together.
    """
    sizes = list(map(tree_bytes, models))
    held = sum(sizes) + max(sizes) if fits(models, memory) else 0
    return memory - held


def tree_bytes(tree: PyTree) -> int:
    """Return how many bytes the arrays of a tree take, by their shapes and dtypes."""
    return sum(map(leaf_bytes, jax.tree.leaves(tree)))


def leaf_bytes(leaf: Any) -> int:
    """Return how many bytes an array takes, by its shape and dtype."""
    return math.prod(leaf.shape) * leaf.dtype.itemsize
