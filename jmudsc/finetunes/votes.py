"""Votes: of every entry the sign is elected, and what has it is summed or averaged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(eq=False)
class Ballot:
    """The votes of many entries that are counted a few at a time.

    Entries whose sum is 0 get the sign that most others have, which is known in the
    end: until then they have +, and what they are with - is kept.

    Attributes:
        most: how many more entries are elected above 0 than below, so far.
        undecided: the places of entries whose sum is 0, and what they are with -; of
            the last few entries only.
    """

    most: int = 0
    undecided: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)


def voted(
    parts: Sequence[np.ndarray],
    weights: Sequence[float] | None,
    majority: Callable[[], int] | None = None,
    ballot: Ballot | None = None,
) -> np.ndarray:
    """Elect the sign of the sum of each entry, and sum what has it.

    Args:
        parts: of each model, 0 where it does not take part.
        weights: of each model, to divide by the magnitudes of those that agree; None
            for the sum.
        majority: tells of which sign most elected entries are, for entries whose sum is
            0; None to take that of these parts.
        ballot: is told of these votes, in the place of `majority`.

    Returns:
        An array of the shape of each part.
    """
    total = summed(parts)
    signs, is_open = _signs(total), _open(parts, total)
    if ballot is not None:
        ballot.most += count_signs(total)
    if is_open is not None and ballot is not None:
        places = np.flatnonzero(is_open)
        few = [part[places] for part in parts]
        minus = np.full_like(few[0], -1)
        ballot.undecided = [(places, _agreeing(few, weights, minus))]
        signs[places] = 1
    elif is_open is not None:
        most = count_signs(total) if majority is None else majority()
        signs[is_open] = -1 if most < 0 else 1
    return _agreeing(parts, weights, signs)


def elected(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sign of the sum of each entry; 0 only where all parts are 0."""
    total = summed(parts)
    signs = _signs(total)
    if (is_open := _open(parts, total)) is not None:
        signs[is_open] = -1 if count_signs(total) < 0 else 1
    return signs


def summed(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sum of arrays, from the first to the last."""
    total = parts[0] + parts[1] if len(parts) > 1 else parts[0].copy()
    for part in parts[2:]:
        total += part
    return total


def count_signs(total: np.ndarray) -> int:
    """Return how many more entries are above 0 than below."""
    return int(np.count_nonzero(total > 0)) - int(np.count_nonzero(total < 0))


def _agreeing(
    parts: Sequence[np.ndarray], weights: Sequence[float] | None, signs: np.ndarray
) -> np.ndarray:
    """Return the sum of what has the elected sign, or its mean by weights."""
    sizes = [] if weights is None else [np.float32(abs(w)) for w in weights]
    agreeing, count = np.zeros_like(signs), np.zeros_like(signs)
    voters = np.zeros(signs.shape, np.int32 if len(parts) > 127 else np.int8)
    is_plain = all(size == 1 for size in sizes)
    for number, part in enumerate(parts):
        own = part * signs
        np.maximum(own, 0, out=own)
        agreeing += own
        if is_plain and sizes:
            np.add(voters, own > 0, out=voters, casting="unsafe")
        elif sizes:
            count += sizes[number] * (own > 0)
    if is_plain and sizes:
        np.maximum(voters, 1, out=voters)
        agreeing /= voters.astype(signs.dtype)
    elif sizes:
        count[count == 0] = 1
        agreeing /= count
    agreeing *= signs
    return agreeing


def _signs(total: np.ndarray) -> np.ndarray:
    above, below = (total > 0).view(np.int8), (total < 0).view(np.int8)
    return np.subtract(above, below).astype(total.dtype)


def _open(parts: Sequence[np.ndarray], total: np.ndarray) -> np.ndarray | None:
    """Return the entries that are not 0 in some part and sum to 0; None without any."""
    is_open = parts[0] != 0
    for part in parts[1:]:
        is_open |= part != 0
    is_open &= total == 0
    return is_open if is_open.any() else None
