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

from jmudsc.finetunes.piece import Piece


def task_arithmetic(piece: Piece) -> np.ndarray:
    """Sum the weighted deltas (Ilharco et al. 2023, arXiv:2212.04089)."""
    return _summed(piece, piece.weighted)


def ties(piece: Piece) -> np.ndarray:
    """Keep the largest entries, elect a sign for each, average those that have it.

    Yadav et al. 2023, arXiv:2306.01708. Kept is what reaches the `threshold` of the
    evidence. The sign is that of the weighted sum; where the sum is 0, that of most
    other entries.
    """
    kept = trimmed(piece)
    if piece.options["agg"] == "sum":
        return functools.reduce(np.add, _agreeing(kept, _majority(piece, kept)))
    return _voted(piece, kept)


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
    kept = _agreeing(list(deltas), _majority(piece, list(deltas)))
    total = functools.reduce(
        np.add, [w * delta for w, delta in zip(weights, kept, strict=True)]
    )
    taking_part = functools.reduce(
        np.add, [w * (delta != 0) for w, delta in zip(weights, kept, strict=True)]
    )
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


def measured(piece: Piece) -> Mapping[str, Any]:
    """Find what entries must reach to be among the largest, if that is not known."""
    if "threshold" in piece.evidence:
        return piece.evidence
    pairs = zip(piece.deltas, piece.options["density"], strict=True)
    found = {"threshold": [_threshold(delta, density) for delta, density in pairs]}

    @functools.cache
    def majority() -> int:
        known = replace(piece, evidence=found)
        return sum(elected(trimmed(part))[1] for part in known.parts())

    return {**found, "majority": majority}


def trimmed(piece: Piece) -> list[np.ndarray]:
    """Return the weighted deltas with 0 for all but their largest entries."""
    triples = zip(
        piece.deltas, piece.weighted, piece.evidence["threshold"], strict=True
    )
    return [np.where(np.abs(d) >= least, w, 0) for d, w, least in triples]


def least_of_largest(values: np.ndarray, share: float) -> np.floating:
    """Return the least of the largest entries, of which there is this share.

    Args:
        values: at least one entry.
        share: of them that is kept, at least one.
    """
    flat = values.reshape(-1)
    kept = max(1, int(share * flat.size))
    return np.partition(flat, flat.size - kept)[flat.size - kept]


def elected(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, int]:
    """Return the sign of the sum of each entry, and that of most of them."""
    signs = np.sign(functools.reduce(np.add, parts))
    return signs, int(np.sum(signs, dtype=np.float64))


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


def _majority(piece: Piece, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the elected sign of each entry; 0 only where no model has one."""
    signs = np.sign(functools.reduce(np.add, parts))
    is_open = signs == 0
    has_any = functools.reduce(np.logical_or, [part != 0 for part in parts])
    if not (is_open & has_any).any():
        return signs
    majority = piece.evidence.get("majority")
    most = elected(parts)[1] if majority is None else majority()
    return np.where(is_open, -1 if most < 0 else 1, signs)


def _threshold(delta: np.ndarray, density: float) -> np.floating:
    if density >= 1:
        return delta.dtype.type(0)
    return least_of_largest(np.abs(delta), density)


def _agreeing(parts: Sequence[np.ndarray], signs: np.ndarray) -> list[np.ndarray]:
    return [np.where(np.sign(part) == signs, part, 0) for part in parts]


def _voted(piece: Piece, parts: Sequence[np.ndarray]) -> np.ndarray:
    kept = _agreeing(parts, _majority(piece, parts))
    total = functools.reduce(np.add, kept)
    if not piece.options["normalize"]:
        return total
    pairs = zip(piece.weights, kept, strict=True)
    count = functools.reduce(
        np.add, [np.float32(abs(w)) * (part != 0) for w, part in pairs]
    )
    return total / np.where(count == 0, 1, count).astype(total.dtype)


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
