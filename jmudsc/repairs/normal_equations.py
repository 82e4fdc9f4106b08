"""Normal equations: what changes of kernels and biases leave the least residual."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from jaxtyping import Float

from jmudsc.repairs.regression import Regression
from jmudsc.sharding import to_host

Matrices = Float[np.ndarray, "_ _ _"]


@dataclass(frozen=True)
class Uses:
    """Uses of one kernel that add the same bias.

    Attributes:
        total: moments of what goes in and of the residual before the change.
        has_shift: whether there is a bias to change too, which is not penalised.
        is_turned: whether the kernel is used as its transpose.
    """

    total: Regression
    has_shift: bool
    is_turned: bool = False


def solve(uses: Sequence[Uses], ridge: float) -> Matrices:
    """Find the change of a kernel that leaves the least residual.

    With A the second moments of what goes into the uses of the kernel, B those of what
    goes into uses of its transpose, and C and D the moments of each with the residual,
    the change X solves `A X + X B = C + D^T`, a Sylvester equation.

    Args:
        uses: of the kernel, by the bias that they add; at least one of them is of the
            kernel as it is.
        ridge: strength of the penalty on the change, times the mean square of what
            goes in.

    Returns:
        The change of the kernel, (groups, incoming, outgoing).
    """
    gram, cross, turned = _sides(uses)
    if turned is None:
        return np.stack([_of_group(*g, ridge) for g in zip(gram, cross, strict=True)])
    return _sylvester(gram[0], turned, cross[0], ridge)[None]


def gain(uses: Sequence[Uses], change: Matrices, ridge: float) -> float:
    """Return by how much a change lowers what `solve` makes least.

    Args:
        uses: as for `solve`.
        change: any change.
        ridge: as for `solve`.
    """
    gram, cross, turned = _sides(uses)
    penalty = np.array([_penalty(each, turned, ridge) for each in gram])
    left = penalty[:, None, None] * change
    left += gram[..., None] * change if gram.ndim == 2 else gram @ change
    if turned is not None:
        left += change * turned if turned.ndim == 1 else change @ turned
    return float((change * (2 * cross - left)).sum())


def shift_of(use: Uses, change: Matrices) -> Matrices:
    """Return how much a bias has to change with the kernel.

    Args:
        use: the uses that add it.
        change: of the kernel.

    Returns:
        The change of the bias, (groups, 1, outgoing).
    """
    mean = to_host(use.total.mean).astype(float)
    into = use.total.comoment.shape[1]
    change = np.swapaxes(change, 1, 2) if use.is_turned else change
    return mean[..., into:] - mean[..., :into] @ change


def _sides(uses: Sequence[Uses]) -> tuple[np.ndarray, Matrices, np.ndarray | None]:
    """Return A, C + D^T, and B; None for B where no use is of the transpose.

    A and B are diagonals where all uses are lookups.
    """
    count = sum(use.total.count for use in uses)
    straight, turned = (
        [_second(use, count) for use in uses if use.is_turned == flag]
        for flag in (False, True)
    )
    gram, cross = _summed(straight)
    if not turned:
        return gram, cross, None
    (other,), (back,) = _summed(turned)
    return gram, cross + back.T, other


def _summed(moments: Sequence[tuple[np.ndarray, Matrices]]) -> tuple:
    grams, crosses = zip(*moments, strict=True)
    if any(gram.ndim == 3 for gram in grams):
        grams = [g if g.ndim == 3 else g[..., None] * np.eye(g.shape[1]) for g in grams]
    return sum(grams[1:], grams[0]), sum(crosses[1:], crosses[0])


def _second(use: Uses, count: int | float) -> tuple[np.ndarray, Matrices]:
    """Return second moments, about the mean where it is free, as a share of all.

    Those of incoming entries, of a lookup the squares alone; and with the residual.
    """
    total = use.total
    into = total.comoment.shape[1]
    second = to_host(total.comoment).astype(float) / total.count
    is_lookup = total.mean.shape[-1] == 0
    if not use.has_shift and not is_lookup:
        mean = to_host(total.mean).astype(float)
        second += np.swapaxes(mean[..., :into], 1, 2) * mean
    second *= total.count / count
    if is_lookup:
        return second[..., 0], second[..., 1:]
    return second[..., :into], second[..., into:]


def _of_group(gram: np.ndarray, cross: np.ndarray, ridge: float) -> np.ndarray:
    penalty = _penalty(gram, None, ridge)
    if gram.ndim == 1:
        return cross / (gram + penalty)[:, None]
    left = gram + penalty * np.eye(len(gram))
    return scipy.linalg.solve(left, cross, assume_a="pos")


def _sylvester(
    left: np.ndarray, right: np.ndarray, both: np.ndarray, ridge: float
) -> np.ndarray:
    """Solve for a kernel that is used as it is and transposed, by eigenvalues."""
    values, vectors = _spectrum(left)
    others, along = _spectrum(right)
    total = values[:, None] + others + _penalty(left, right, ridge)
    back = both if vectors is None else vectors.T @ both
    back = (back if along is None else back @ along) / total
    back = back if vectors is None else vectors @ back
    return back if along is None else back @ along.T


def _spectrum(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return eigenvalues and eigenvectors; None for those of a diagonal."""
    return (gram, None) if gram.ndim == 1 else np.linalg.eigh(gram)


def _penalty(left: np.ndarray, right: np.ndarray | None, ridge: float) -> float:
    both = ridge * _trace(left) / len(left)
    if right is not None:
        both += ridge * _trace(right) / len(right)
    return both or 1.0  # of inputs that are all zero


def _trace(gram: np.ndarray) -> float:
    return float(gram.sum() if gram.ndim == 1 else np.trace(gram))
