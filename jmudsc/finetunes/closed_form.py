"""Closed forms: the matrix that answers best to the inputs that each model saw.

All minimise a sum over models of squared differences from what the model does, on
inputs with the second moments G_i: the solution is (sum G_i)^-1 sum G_i D_i. The
moments are measured, or stood in for by those of the deltas, whose columns lie where
the inputs did. Matrices are (in, out), so the equations are solved from the left, in
float64.
"""

import math
from collections.abc import Sequence

import numpy as np
import scipy.linalg

from jmudsc.finetunes.piece import Piece
from jmudsc.finetunes.spectral import rounding, svd

# Below this a delta is taken as none.
_NOTHING = 1e-12


def wudi(piece: Piece) -> np.ndarray:
    """Let what is merged differ from each delta least in the directions of that delta.

    Cheng et al. 2025 (arXiv:2503.08099), eq. 11, solved exactly, or through the
    eigenvectors of its matrix (arXiv:2606.07289): where an eigenvalue is small the
    solution is mostly noise, and the sum (or mean) of the deltas is kept.
    """
    deltas = _of_size(piece.deltas)
    if not deltas:
        return np.zeros(piece.base.shape)
    weights = [1 / float(np.square(delta).sum()) for delta in deltas]
    if piece.options["solver"] == "exact":
        grams = [w * (d @ d.T) for w, d in zip(weights, deltas, strict=True)]
        return solved(grams, deltas, ridge=piece.options["ridge"])
    return _filtered(piece, deltas, weights)


def actmat(piece: Piece) -> np.ndarray:
    """Solve for the deltas' own second moments, those of large deltas counting more.

    arXiv:2604.01329, with the weights of the models.
    """
    deltas = [delta.astype(np.float64) for delta in piece.deltas]
    pairs = zip(piece.weights, deltas, strict=True)
    grams = [weight * (delta @ delta.T) for weight, delta in pairs]
    return solved(
        grams, deltas, ridge=piece.options["ridge"], rtol=piece.options["rtol"]
    )


def ace(piece: Piece) -> np.ndarray:
    """Solve for the covariances of the deltas over their outputs (arXiv:2603.02945).

    As its authors' code has it: the mean over the outputs is left out of what is
    merged, and one model does not give itself back. Where the sizes of the deltas
    differ much, each covariance is divided by its trace and the top directions of what
    is left are added with one singular value.
    """
    deltas = _of_size(piece.deltas)
    if not deltas:
        return np.zeros(piece.base.shape)
    epsilon, into = piece.options["epsilon"], deltas[0].shape[0]
    sizes = np.array([np.square(delta).sum() for delta in deltas])
    logs = np.log(sizes)
    spread = logs.var() / logs.mean() ** 2 if len(deltas) > 1 and logs.mean() else 0.0
    centred = [delta - delta.mean(axis=1, keepdims=True) for delta in deltas]
    moments = [delta @ delta.T for delta in centred]
    traces = [float(np.trace(each)) or 1.0 for each in moments]
    is_uneven = spread > 0.3
    scales = traces if is_uneven else [1.0] * len(deltas)
    moments = [each / scale for each, scale in zip(moments, scales, strict=True)]
    shifted = [
        each + epsilon / scale * np.eye(into)
        for each, scale in zip(moments, scales, strict=True)
    ]
    shift = np.sum(moments, axis=0).mean(axis=0) / (sizes.mean() if is_uneven else 1.0)
    left = np.sum(shifted, axis=0) + shift[:, None]
    right = sum(s @ d for s, d in zip(shifted, centred, strict=True))
    merged = np.linalg.solve(left, right)
    return merged + _even_top(piece, merged, moments, centred) if is_uneven else merged


def regmean(piece: Piece) -> np.ndarray:
    """Fit the inputs that each model saw (Jin et al. 2023, arXiv:2212.09849, eq. 2).

    Off the diagonal the moments are multiplied by `offdiag`. In directions that no
    input has, the mean of the models is kept.
    """
    models = [model.astype(np.float64) for model in piece.models]
    mean = np.mean(models, axis=0)
    grams = [
        shrunk(gram, piece.options["offdiag"]) for gram in piece.evidence["inputs"]
    ]
    rtol = rounding(mean.shape[:1])  # moments are summed in float32
    return mean + solved(grams, [model - mean for model in models], rtol=rtol)


def lot(piece: Piece) -> np.ndarray:
    """Fit the deltas on the inputs of each task (arXiv:2505.23859, eq. 9).

    In directions that no input has, the base is kept.
    """
    deltas, rtol = [d.astype(np.float64) for d in piece.deltas], piece.options["rtol"]
    rtol = rounding(deltas[0].shape[:1]) if rtol is None else rtol
    return solved(piece.evidence["inputs"], deltas, rtol=rtol)


def lot_of_scales(piece: Piece) -> np.ndarray:
    """Weight the deltas of a scale by the mean squares of what it multiplies (eq. 12).

    Other leaves, and entries that multiply nothing, are averaged.
    """
    mean = np.asarray(np.mean(piece.deltas, axis=0, dtype=np.float64))
    if "squares" not in piece.evidence:
        return mean
    squares = piece.evidence["squares"]
    total = np.sum(squares, axis=0)
    pairs = zip(squares, piece.deltas, strict=True)
    weighted = np.sum([square * delta for square, delta in pairs], axis=0)
    return np.where(total > 0, weighted / np.where(total > 0, total, 1), mean)


def solved(
    grams: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    ridge: float = 0.0,
    rtol: float | None = None,
) -> np.ndarray:
    """Solve `(sum G_i + ridge) M = sum G_i T_i`.

    Args:
        grams: symmetric and without negative eigenvalues, (in, in).
        targets: (in, out).
        ridge: added to the diagonal; if it is 0, M is the solution of least size.
        rtol: without a ridge, the least eigenvalue that is not taken as 0, relative to
            the largest; None for what float64 can tell.
    """
    left = np.sum(grams, axis=0)
    right = sum(gram @ target for gram, target in zip(grams, targets, strict=True))
    if ridge > 0:
        left = left + ridge * np.eye(len(left))
        return scipy.linalg.cho_solve(scipy.linalg.cho_factor(left), right)
    values, vectors = np.linalg.eigh(left)
    least = len(left) * np.finfo(np.float64).eps if rtol is None else rtol
    kept = values > least * values.max(initial=0.0)
    inverse = np.where(kept, 1 / np.where(kept, values, 1), 0)
    return vectors @ (inverse[:, None] * (vectors.T @ right))


def shrunk(gram: np.ndarray, share: float) -> np.ndarray:
    """Multiply what is off the diagonal."""
    return share * gram + (1 - share) * np.diag(np.diag(gram))


def _of_size(deltas: Sequence[np.ndarray]) -> list[np.ndarray]:
    wide = [delta.astype(np.float64) for delta in deltas]
    return [delta for delta in wide if np.square(delta).sum() > _NOTHING]


def _filtered(
    piece: Piece, deltas: Sequence[np.ndarray], weights: Sequence[float]
) -> np.ndarray:
    """Solve along eigenvectors that matter, and keep the start along the others."""
    start = {
        "sum": np.sum(deltas, axis=0),
        "mean": np.sum(deltas, axis=0) / len(piece.deltas),
        "zero": np.zeros_like(deltas[0]),
    }[piece.options["init"]]
    values, vectors = _spectrum(deltas, weights)
    rank = piece.options["rank"]
    if rank == "participation":
        kept = math.ceil(np.sqrt(values).sum() ** 2 / values.sum() - 1e-9)
        passed = np.ones(kept)
    else:
        kept = min(math.ceil(rank * deltas[0].shape[0]), len(values))
        passed = 1 - np.exp(
            -np.maximum(values[:kept], 1e-8) * piece.options["exp_time"]
        )
    top = vectors[:, :kept]
    pairs = zip(weights, deltas, strict=True)
    right = sum(w * ((top.T @ delta) @ delta.T) @ delta for w, delta in pairs)
    goal = right / np.maximum(values[:kept], 1e-8)[:, None]
    return start + top @ (passed[:, None] * (goal - top.T @ start))


def _spectrum(
    deltas: Sequence[np.ndarray], weights: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues of the sum of weighted Gram matrices, largest first."""
    pairs = list(zip(weights, deltas, strict=True))
    if len(deltas) * deltas[0].shape[1] < deltas[0].shape[0]:
        beside = np.hstack([math.sqrt(w) * delta for w, delta in pairs])
        u, s, _ = np.linalg.svd(beside, full_matrices=False)
        return np.square(s), u
    values, vectors = np.linalg.eigh(sum(w * (d @ d.T) for w, d in pairs))
    return np.maximum(values[::-1], 0), vectors[:, ::-1]


def _even_top(
    piece: Piece,
    merged: np.ndarray,
    moments: Sequence[np.ndarray],
    centred: Sequence[np.ndarray],
) -> np.ndarray:
    mean = np.mean(moments, axis=0)
    pairs = zip(moments, centred, strict=True)
    u, s, vt = svd(merged + sum((moment - mean) @ delta for moment, delta in pairs))
    kept = max(1, int(piece.options["k_frac"] * min(merged.shape)))
    return s[:kept].mean() * (u[:, :kept] @ vt[:kept])
