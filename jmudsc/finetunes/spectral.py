"""Spectra: merging by the singular directions of what was trained into each matrix.

All computed in float64. Directions whose singular value is nothing but rounding are
left out: methods that lift small singular values would make noise of them.
"""

from collections.abc import Sequence

import numpy as np

from jmudsc.finetunes.piece import Piece

Svd = tuple[np.ndarray, np.ndarray, np.ndarray]


def tsv(piece: Piece) -> np.ndarray:
    """Keep the top directions of each delta and make those of all models orthogonal.

    Gargiulo et al. 2025 (task singular vectors, arXiv:2412.00081), algorithm 2: of T
    models each keeps min(in, out) / T directions, or `rank`; the kept directions of
    all are replaced by the nearest orthonormal ones.
    """
    deltas = _wide(piece.deltas)
    rank = piece.options["rank"] or min(deltas[0].shape) // len(deltas)
    u, s, vt = _side_by_side([_top(svd(delta), rank) for delta in deltas])
    return (polar(u) * s) @ polar(vt)


def iso_c(piece: Piece) -> np.ndarray:
    """Give all directions of the summed deltas one singular value, their mean.

    Marczak et al. 2025 (arXiv:2502.04959), section 4.1.
    """
    u, s, vt = svd(np.sum(_wide(piece.deltas), axis=0), piece.options["rtol"])
    return _mean(s) * (u @ vt)


def iso_cts(piece: Piece) -> np.ndarray:
    """Join the common directions with those of each task, all with one singular value.

    Marczak et al. 2025 (arXiv:2502.04959), section 4.2: the directions of the sum, and
    for each task the top ones of what the outputs of the common ones leave of its
    delta.
    """
    deltas = _wide(piece.deltas)
    rtol = piece.options["rtol"]
    size, models = min(deltas[0].shape), len(deltas)
    apart = size - int(piece.options["common_space_fraction"] * size)
    per_task = round(apart / models)
    common = _top(svd(np.sum(deltas, axis=0), rtol), size - per_task * models)
    outputs = common[2].T @ common[2]
    tasks = [
        _top(svd(d - d @ outputs, rtol, float(np.linalg.norm(d, 2))), per_task)
        for d in deltas
    ]
    u, s, vt = _side_by_side([*tasks, common])
    return _mean(s) * (polar(u) @ polar(vt))


def calibrated(
    delta: np.ndarray, deltas: Sequence[np.ndarray], alpha: float
) -> np.ndarray:
    """Rescale each output direction of a merged delta to what the models do on it.

    Singular value calibration (arXiv:2602.05536): direction r is divided by the mean
    over models of `max(alpha, share of the model's own response)`. It makes up for
    what was added several times, and undoes a scale of the whole. A model whose
    response is nothing but rounding counts the least. After a method that makes all
    singular values equal there are no directions to tell apart.

    Args:
        delta: what was merged, (in, out).
        deltas: of the models.
        alpha: the least that a model counts, above 0.
    """
    u, s, vt = svd(delta.astype(np.float64))
    merged = u * s
    counts = np.zeros_like(s)
    for own in deltas:
        response = own.astype(np.float64) @ vt.T
        size = np.square(response).sum(axis=0)
        is_there = size > size.sum() * rounding(own.shape) ** 2
        share = (merged * response).sum(axis=0) / np.where(is_there, size, 1)
        counts += np.maximum(alpha, np.where(is_there, share, 0))
    return (u * (s * len(deltas) / counts)) @ vt


def svd(
    matrix: np.ndarray, rtol: float | None = None, largest: float | None = None
) -> Svd:
    """Return the thin singular value decomposition, without what is only rounding.

    Args:
        matrix: (in, out), float64.
        rtol: the least singular value that is kept, relative to the largest; None for
            what float32 can tell from 0.
        largest: what to call the largest, for a matrix that something was taken from.

    Returns:
        U (in, r), s (r,) and V^T (r, out); r is 0 for a matrix of zeros.
    """
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    least = rounding(matrix.shape) if rtol is None else rtol
    kept = int(np.sum(s > least * (s.max(initial=0.0) if largest is None else largest)))
    return u[:, :kept], s[:kept], vt[:kept]


def rounding(shape: tuple[int, ...]) -> float:
    """Return how large float32 makes a singular value that is 0, of a largest of 1."""
    return max(shape) * float(np.finfo(np.float32).eps)


def polar(matrix: np.ndarray) -> np.ndarray:
    """Return the matrix with orthonormal columns, or rows, that is nearest.

    Directions that the matrix does not have are not made up: of columns that are
    copies each has its share of the one direction.
    """
    if 0 in matrix.shape:
        return matrix
    u, _, vt = svd(matrix)
    return u @ vt


def _wide(deltas: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [delta.astype(np.float64) for delta in deltas]


def _top(parts: Svd, rank: int) -> Svd:
    u, s, vt = parts
    return u[:, :rank], s[:rank], vt[:rank]


def _side_by_side(parts: Sequence[Svd]) -> Svd:
    us, values, vts = zip(*parts, strict=True)
    return np.hstack(us), np.concatenate(values), np.vstack(vts)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else 0.0
