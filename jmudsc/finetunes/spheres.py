"""Spheres: interpolation between directions, and how far it may lead from the base."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from jmudsc.finetunes.piece import Piece

# Directions nearer than this are taken as one: the sphere is flat between them.
_FLAT = 0.9995


def slerp(piece: Piece) -> np.ndarray:
    """Go the share `t` of the great circle from the first network to the second."""
    first, second = piece.models
    return _between(first, second, piece.options["t"])


def nuslerp(piece: Piece) -> np.ndarray:
    """Go along the great circle between two deltas, or weights if there is no base.

    With `flatten=False` each output unit goes along its own.
    """
    first, second = piece.weights
    total = first + second
    share = 0.5 if abs(total) < 1e-6 else second / total
    return _by_column(piece.deltas, lambda pair: _between(pair[0], pair[1], share))


def karcher(piece: Piece) -> np.ndarray:
    """Return the mean direction on the sphere, of the mean length.

    It is the point from which the directions to all models sum to 0.
    """
    wide = [model.astype(np.float64) for model in piece.models]
    lengths = [float(np.linalg.norm(model)) for model in wide]
    length = sum(lengths) / len(lengths)
    units = [w / n for w, n in zip(wide, lengths, strict=True) if n > 0]
    if not units:
        return np.zeros_like(piece.base)
    mean = np.mean(units, axis=0)
    norm = float(np.linalg.norm(mean))
    mean = units[0] if norm < 1e-12 else mean / norm
    for _ in range(piece.options["max_iter"]):
        step = np.mean([_towards(mean, unit) for unit in units], axis=0)
        size = float(np.linalg.norm(step))
        if size < piece.options["tol"]:
            break
        mean = np.cos(size) * mean + np.sin(size) / size * step
        mean /= np.linalg.norm(mean)
    return length * mean


def model_stock(piece: Piece) -> np.ndarray:
    """Go from the base towards the mean as far as the deltas agree.

    Jang et al. 2024 (arXiv:2403.19522), eq. 5. With c the mean cosine between the
    deltas of T models, the share is `t = T c / (1 + (T - 1) c)`; kept in [0, 1] by
    `clamp`. With `filter_wise` each output unit has its own.
    """
    return _by_column(piece.deltas, lambda ds: _stock(ds, piece.options["clamp"]))


def _stock(deltas: Sequence[np.ndarray], clamp: bool) -> np.ndarray:
    pairs = list(itertools.combinations(deltas, 2))
    cosine = sum(_cosine(a, b) for a, b in pairs) / len(pairs)
    models = len(deltas)
    below = 1 + (models - 1) * cosine
    share = models * cosine / below if abs(below) > 1e-9 else 0.0
    share = min(max(share, 0.0), 1.0) if clamp else share
    return np.multiply(share, np.mean(np.stack(deltas), axis=0, dtype=np.float64))


def _by_column(
    deltas: Sequence[np.ndarray], rule: Callable[[Sequence[np.ndarray]], np.ndarray]
) -> np.ndarray:
    """Apply a rule to whole deltas, or to each column of matrices."""
    if deltas[0].ndim == 1:
        return rule(deltas)
    columns = range(deltas[0].shape[1])
    return np.stack([rule([d[:, c] for d in deltas]) for c in columns], axis=1)


def _between(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    a, b = first.astype(np.float64), second.astype(np.float64)
    cosine = _cosine(a, b)
    if (cosine == 0 and not (a.any() and b.any())) or abs(cosine) > _FLAT:
        return (1 - share) * a + share * b
    angle = np.arccos(cosine)
    parts = np.sin((1 - share) * angle) * a, np.sin(share * angle) * b
    return (parts[0] + parts[1]) / np.sin(angle)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (x.reshape(-1).astype(np.float64) for x in (a, b))
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.clip(a @ b / lengths, -1, 1)) if lengths > 0 else 0.0


def _towards(point: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Return the tangent at a point that leads to another, as long as the way."""
    cosine = float(np.clip(point.reshape(-1) @ unit.reshape(-1), -1, 1))
    apart = unit - cosine * point
    size = float(np.linalg.norm(apart))
    return np.arccos(cosine) / size * apart if size > 1e-12 else np.zeros_like(point)
