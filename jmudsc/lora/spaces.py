"""Spaces: coordinates in which low-rank updates of one matrix are merged.

All computed in float64. Directions that no update has are 0 in all coordinates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

# The factors of one update, (in, rank) and (rank, out), and their scale.
Factors = tuple[np.ndarray, np.ndarray, float]


@dataclass(frozen=True, eq=False)
class Coordinates:
    """The updates of one matrix in the coordinates of a space.

    Attributes:
        models: of each model, an array of one shape.
        left: what is multiplied from the left to come back, (in, ...); None for
            nothing.
        right: what is multiplied from the right to come back, (..., out).
    """

    models: tuple[np.ndarray, ...]
    left: np.ndarray | None
    right: np.ndarray

    def lifted(self, merged: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return two factors of what coordinates stand for: (in, n) and (n, out)."""
        return merged if self.left is None else self.left @ merged, self.right


@dataclass(frozen=True)
class Space:
    """A way to write low-rank updates of one matrix as small arrays.

    Attributes:
        name: what it is called.
        coordinates: writes the updates of all models so; None for a model without.
        sizes: (in, out, sum of ranks) -> the shape of the coordinates.
    """

    name: str
    coordinates: Callable[[Sequence[Factors | None]], Coordinates]
    sizes: Callable[[int, int, int], tuple[int, int]]


def knots(updates: Sequence[Factors | None]) -> Coordinates:
    """Write each update on the right singular vectors that all of them share.

    Stoica et al. 2024 (KnOTS, arXiv:2410.19735), section 4: the updates, one below the
    other, are P S Q^T; a model's coordinates are its block of P S, which is D_i Q.
    """
    there = [each for each in updates if each is not None]
    writes, triangle = np.linalg.qr(np.vstack([b for _, b, _ in there]).T)
    blocks, first = [], 0
    for a, b, scale in there:
        rows = triangle[:, first : first + len(b)].T
        blocks.append(scale * (np.linalg.qr(a)[1] @ rows))
        first += len(b)
    turn = _directions(np.vstack(blocks).T)
    right = (writes @ turn).T
    models = tuple(_block(each, right, updates) for each in updates)
    return Coordinates(models, None, right)


def core(updates: Sequence[Factors | None]) -> Coordinates:
    """Write each update on bases of what all of them read and write.

    Panariello et al. 2025 (Core Space, arXiv:2509.17786), section 4: Q_a has the left
    singular vectors of all A side by side, Q_b^T the right ones of all B one below the
    other; a model's coordinates are Q_a^T D_i Q_b.
    """
    there = [each for each in updates if each is not None]
    left = _directions(np.hstack([a for a, _, _ in there]))
    right = _directions(np.hstack([b.T for _, b, _ in there])).T
    zeros = np.zeros((left.shape[1], len(right)))
    models = tuple(
        zeros if each is None else each[2] * (left.T @ each[0]) @ (each[1] @ right.T)
        for each in updates
    )
    return Coordinates(models, left, right)


SPACES = {
    space.name: space
    for space in (
        Space("knots", knots, lambda into, out, ranks: (into, min(out, ranks))),
        Space(
            "core", core, lambda into, out, ranks: (min(into, ranks), min(out, ranks))
        ),
    )
}


def padded(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array with zeros after its entries, to a shape."""
    return np.pad(array, [(0, n - m) for m, n in zip(array.shape, shape, strict=True)])


def svd_of_product(
    a: np.ndarray, b: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the singular value decomposition of a product, by one as small as it is.

    Args:
        a: (in, inner).
        b: (inner, out); None for `a` alone.

    Returns:
        U (in, n), s (n,) and V^T (n, out).
    """
    if b is None:
        return np.linalg.svd(a, full_matrices=False)
    if a.shape[1] >= min(len(a), b.shape[1]):
        return np.linalg.svd(a @ b, full_matrices=False)
    reads, first = np.linalg.qr(a)
    writes, second = np.linalg.qr(b.T)
    u, s, vt = np.linalg.svd(first @ second.T)
    return reads @ u, s, vt @ writes.T


def _block(
    update: Factors | None, right: np.ndarray, updates: Sequence[Factors | None]
) -> np.ndarray:
    if update is None:
        into = next(len(each[0]) for each in updates if each is not None)
        return np.zeros((into, len(right)))
    a, b, scale = update
    return scale * a @ (b @ right.T)


def _directions(columns: np.ndarray) -> np.ndarray:
    """Return the left singular vectors of columns; 0 for those that are rounding."""
    u, s, _ = np.linalg.svd(columns, full_matrices=False)
    least = max(columns.shape) * np.finfo(np.float32).eps * s.max(initial=0.0)
    return np.where(s > least, u, 0)
