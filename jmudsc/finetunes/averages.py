"""Averages: models of one task, or checkpoints of one run, become their mean."""

import functools
import math
from numbers import Real

import numpy as np

from jmudsc.finetunes.piece import Piece

# Which share of a step survives, of checkpoints that lie x of a window back.
DECAYS = {"linear": lambda x: 1 - x, "minus-sqrt": lambda x: 1 - math.sqrt(x)}


def linear(piece: Piece) -> np.ndarray:
    """Return the weighted sum, over the sum of the weights where they are normalized.

    Wortsman et al. 2022 (model soups, arXiv:2203.05482), section 2.
    """
    total = sum(piece.weights) if piece.options["normalize"] else 1.0
    return _summed(piece, [weight / total for weight in piece.weights])


def mean(piece: Piece) -> np.ndarray:
    """Return the mean of the models."""
    return _summed(piece, [1 / len(piece.models)] * len(piece.models))


def summed_deltas(piece: Piece) -> np.ndarray:
    """Return the sum of what was trained into each model."""
    return functools.reduce(np.add, piece.deltas)


def window(piece: Piece) -> np.ndarray:
    """Return the mean of checkpoints of one run, given oldest first."""
    options = piece.options
    decay = options["decay"]
    shares = shares_of_window(options["weights"], decay, len(piece.models))
    return _summed(piece, shares)


def shares_of_window(
    weights: str, decay: float | str | None, models: int
) -> list[float]:
    """Return the share of each checkpoint of a window, oldest first.

    Args:
        weights: `mean`; `ema`, an exponential moving average that starts from the
            oldest; `wsm`, what decaying the learning rate over the window would have
            given (Tian et al. 2025, arXiv:2507.17634): what is left of the step after
            checkpoint j is `w_j`, so its share is `w_j - w_(j+1)`.
        decay: the number that `ema` keeps of what was, 0.9 if None; for `wsm` the name
            of the decay, `minus-sqrt` if None. It weights the oldest most; `linear`
            gives the plain mean.
        models: number of checkpoints.

    Returns:
        Shares that sum to 1.

    Example:
        >>> [round(share, 3) for share in shares_of_window("wsm", "minus-sqrt", 4)]
        [0.5, 0.207, 0.159, 0.134]
    """
    if weights == "ema":
        kept = 0.9 if decay is None else float(decay)
        newer = [(1 - kept) * kept ** (models - 1 - j) for j in range(1, models)]
        return [kept ** (models - 1), *newer]
    if weights == "wsm":
        decayed = DECAYS["minus-sqrt" if decay is None else str(decay)]
        left = [decayed(j / models) for j in range(models)] + [0.0]
        return [left[j] - left[j + 1] for j in range(models)]
    return [1 / models] * models


def decay_problems(options: dict, models: int) -> list[str]:
    """Return what is wrong with the decay of a window, given its weights."""
    weights, decay = options["weights"], options["decay"]
    if decay is None:
        return []
    if weights == "mean":
        return [f'decay: expected None for weights="mean", got {decay!r}']
    is_name = isinstance(decay, str)
    if is_name != (weights == "wsm"):
        kind = '"linear" or "minus-sqrt"' if weights == "wsm" else "a number in [0, 1]"
        return [f'decay: expected {kind} for weights="{weights}", got {decay!r}']
    return []


def weight_problems(options: dict, models: int) -> list[str]:
    """Return what is wrong with weights that are to be divided by their sum."""
    weight = options["weight"]
    each = [weight] * models if isinstance(weight, Real) else weight
    is_known = isinstance(each, (list, tuple)) and all(
        isinstance(w, Real) for w in each
    )
    if options.get("normalize") and is_known and sum(each) == 0:
        return [f"weight: expected a sum other than 0 to normalize by, got {weight!r}"]
    return []


def _summed(piece: Piece, shares: list[float]) -> np.ndarray:
    parts = [
        model if share == 1 else share * model
        for share, model in zip(shares, piece.models, strict=True)
    ]
    return functools.reduce(np.add, parts)
