"""Task vectors: what fine-tuning added, thinned out, voted on by sign, and summed.

All methods have one form: the delta of each model is thinned out and weighted; entries
whose sign loses the vote are left out; the rest is summed, and divided by the weights
that took part if the method normalises.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np

from jmudsc.finetunes.largest import thresholds
from jmudsc.finetunes.piece import Entries, Piece
from jmudsc.finetunes.votes import count_signs, elected, summed, voted


def task_arithmetic(piece: Piece) -> np.ndarray:
    """Sum the weighted deltas (Ilharco et al. 2023, arXiv:2212.04089)."""
    return _summed(piece, piece.weighted)


def ties(piece: Piece) -> np.ndarray:
    """Keep the largest entries, elect a sign for each, average those that have it.

    Yadav et al. 2023, arXiv:2306.01708. Kept is what reaches the `threshold` of the
    evidence. The sign is that of the weighted sum; where the sum is 0, that of most
    other entries.
    """
    weights = piece.weights if piece.options["normalize"] else None
    weights = None if piece.options["agg"] == "sum" else weights
    known = piece.evidence
    return voted(trimmed(piece), weights, known.get("majority"), known.get("ballot"))


def dare_linear(piece: Piece) -> np.ndarray:
    """Drop entries at random, scale up the others, and sum (arXiv:2311.03099)."""
    return _summed(piece, _dropped(piece))


def dare_ties(piece: Piece) -> np.ndarray:
    """Drop entries at random, scale up the others, and vote as TIES does."""
    return _voted(piece, _dropped(piece))


def breadcrumbs(piece: Piece) -> np.ndarray:
    """Leave out the largest and the smallest entries, and sum (arXiv:2312.06795)."""
    return _summed(piece, _middles(piece))


def breadcrumbs_ties(piece: Piece) -> np.ndarray:
    """Leave out the largest and the smallest entries, and vote as TIES does."""
    return _voted(piece, _middles(piece))


def della_linear(piece: Piece) -> np.ndarray:
    """Drop entries at random, small ones more often, and sum (arXiv:2406.11617)."""
    return _summed(piece, _pruned(piece))


def della(piece: Piece) -> np.ndarray:
    """Drop entries at random, small ones more often, and vote as TIES does."""
    return _voted(piece, _pruned(piece))


def sce(piece: Piece) -> np.ndarray:
    """Keep entries that vary most between models, weight models by mean square, vote.

    Wan et al. 2024 (FuseChat, arXiv:2408.07990), section 3.3: select, calculate, erase.
    """
    deltas = np.stack(piece.deltas)
    share = piece.options["select_topk"]
    if share < 1:
        variance = deltas.var(axis=0)
        deltas = np.where(variance >= least_of_largest(variance, share), deltas, 0)
    squares = np.square(deltas.astype(np.float64)).reshape(len(deltas), -1).sum(axis=1)
    if squares.sum() == 0:
        return np.zeros_like(piece.base)
    weights = (squares / squares.sum()).astype(deltas.dtype)
    signs = elected(list(deltas))
    kept = [delta * (delta * signs > 0) for delta in deltas]
    pairs = list(zip(weights, kept, strict=True))
    total = functools.reduce(np.add, [w * delta for w, delta in pairs])
    taking_part = functools.reduce(np.add, [w * (delta != 0) for w, delta in pairs])
    return total / np.where(taking_part == 0, 1, taking_part)


def ram(piece: Piece) -> np.ndarray:
    """Take what one model changed as it is, average what several changed.

    For sparse deltas, as reinforcement learning leaves them.
    """
    least = piece.options["epsilon"]
    changed = [np.abs(delta) > least for delta in piece.deltas]
    count = functools.reduce(np.add, [each.astype(np.int32) for each in changed])
    pairs = zip(changed, piece.weighted, strict=True)
    total = functools.reduce(np.add, [np.where(c, part, 0) for c, part in pairs])
    return total / np.maximum(count, 1).astype(total.dtype)


def measured(entries: Entries) -> Mapping[str, Any]:
    """Find what entries must reach to be among the largest, if that is not known."""
    if "threshold" in entries.evidence:
        return entries.evidence
    found = {"threshold": thresholds(entries, entries.options["density"])}
    return {**found, "majority": functools.cache(lambda: majority_of(entries, found))}


def majority_of(entries: Entries, evidence: Mapping[str, Any]) -> int:
    """Return how many more entries are elected above 0 than below.

    Args:
        entries: of all models.
        evidence: with the `threshold` of each model.
    """
    parts = (replace(part, evidence=evidence) for part in entries.parts())
    return sum(count_signs(summed(trimmed(part))) for part in parts)


def trimmed(piece: Piece) -> list[np.ndarray]:
    """Return the weighted deltas with 0 for all but their largest entries."""
    triples = zip(
        piece.deltas, piece.weighted, piece.evidence["threshold"], strict=True
    )
    return [w * (np.abs(d) >= least) for d, w, least in triples]


def least_of_largest(values: np.ndarray, share: float) -> np.floating:
    """Return the least of the largest entries, of which there is this share.

    Args:
        values: at least one entry.
        share: of them that is kept, at least one.
    """
    flat = values.reshape(-1)
    kept = max(1, int(share * flat.size))
    return np.partition(flat, flat.size - kept)[flat.size - kept]


def scope_problems(options: dict, models: int) -> list[str]:
    """Return what is wrong with a density, if it is to be one of the whole tree."""
    density = options["density"]
    each = density if isinstance(density, (list, tuple)) else [density]
    if options["scope"] == "tensor" or all(isinstance(x, Real) for x in each):
        return []
    return [
        f'density: expected one number for each model with scope="tree", got '
        f"{density!r}"
    ]


def epsilon_problems(options: dict, models: int) -> list[str]:
    """Return what is wrong with the densities that `epsilon` spans."""
    epsilon, density = options["epsilon"], options["density"]
    each = density if isinstance(density, (list, tuple)) else [density]
    if not all(isinstance(x, Real) for x in (epsilon, *each)):
        return []
    return [
        f"epsilon: expected density - epsilon > 0 and density + epsilon <= 1, got "
        f"density {one:g} and epsilon {epsilon:g}"
        for one in each
        if one - epsilon <= 0 or one + epsilon > 1
    ]


def _voted(piece: Piece, parts: Sequence[np.ndarray]) -> np.ndarray:
    return voted(parts, piece.weights if piece.options["normalize"] else None)


def _summed(piece: Piece, parts: Sequence[np.ndarray]) -> np.ndarray:
    total = functools.reduce(np.add, parts)
    return total / sum(piece.weights) if piece.options["normalize"] else total


def _random(piece: Piece, model: int) -> np.ndarray:
    assert piece.draw is not None
    return piece.draw(model).random(piece.base.shape, dtype=np.float32)


def _dropped(piece: Piece) -> list[np.ndarray]:
    return [
        _kept_at_random(piece, model, part, np.float32(density))
        for model, (part, density) in enumerate(
            zip(piece.weighted, piece.options["density"], strict=True)
        )
    ]


def _pruned(piece: Piece) -> list[np.ndarray]:
    """Drop entries by chances that fall evenly from the smallest to the largest."""
    spread, parts = piece.options["epsilon"], []
    for model, part in enumerate(piece.weighted):
        flat = np.abs(part).reshape(-1)
        rank = np.empty(flat.size)
        rank[np.argsort(flat, kind="stable")] = np.linspace(-1, 1, flat.size)
        density = piece.options["density"][model]
        if flat.size > 1:
            density = np.clip(density + spread * rank.reshape(part.shape), 0, 1)
        parts.append(_kept_at_random(piece, model, part, np.float32(density)))
    return parts


def _kept_at_random(
    piece: Piece, model: int, part: np.ndarray, chance: np.ndarray | np.float32
) -> np.ndarray:
    is_kept = _random(piece, model) < chance
    rescale = piece.options["rescale"]
    if rescale == "expectation":
        return np.where(is_kept, part / np.maximum(chance, np.float32(1e-6)), 0)
    kept = np.where(is_kept, part, 0)
    if rescale == "l1":
        before, after = (float(np.abs(x).sum(dtype=np.float64)) for x in (part, kept))
        return kept * part.dtype.type(before / after) if after else kept
    return kept


def _middles(piece: Piece) -> list[np.ndarray]:
    pairs = zip(piece.weighted, piece.options["density"], strict=True)
    return [_middle(part, d, piece.options["gamma"]) for part, d in pairs]


def _middle(part: np.ndarray, density: float, gamma: float) -> np.ndarray:
    """Keep `density` of the entries, none of the `gamma` largest while that can be."""
    flat = part.reshape(-1)
    kept = max(1, int(density * flat.size))
    above = min(int(gamma * flat.size), flat.size - kept)
    order = np.argsort(np.abs(flat), kind="stable")
    chosen = order[flat.size - above - kept : flat.size - above]
    found = np.zeros_like(flat)
    found[chosen] = flat[chosen]
    return found.reshape(part.shape)
