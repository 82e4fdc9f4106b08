"""Held out: which calibration batches a merge is judged on, and which it may use."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import PyTree

HELD_OUT = 0.1


@dataclass(frozen=True)
class Split:
    """Calibration batches in two parts.

    Attributes:
        used: what a merge is made from, a re-iterable; None for no batches.
        owners: the owner of each of those; None if that is not known.
        judged: what it is judged on, a re-iterable.
        owners_judged: the owner of each of those; None if that is not known.
        is_held_out: whether nothing else reads what it is judged on; else that is what
            it was made from.
    """

    used: Iterable[PyTree] | None
    owners: tuple[int, ...] | None = None
    judged: Iterable[PyTree] = ()
    owners_judged: tuple[int, ...] | None = None
    is_held_out: bool = False


@dataclass(frozen=True)
class Picked:
    """Some of several batches, which can be gone through again.

    Attributes:
        batches: a re-iterable.
        is_picked: of the number of a batch, whether it is one of them.
    """

    batches: Iterable[PyTree]
    is_picked: Callable[[int], bool]

    def __iter__(self) -> Iterator[PyTree]:
        """Go through the batches that are picked."""
        for number, batch in enumerate(self.batches):
            if self.is_picked(number):
                yield batch


def is_held(number: int, share: float) -> bool:
    """Whether a batch is held out.

    Of any number of batches from the first on, a share of them is, rounded: which they
    are does not depend on how many come after, and they lie evenly among the others.

    Args:
        number: of the batch.
        share: of the batches that is held out, in [0, 1).

    Example:
        >>> [number for number in range(30) if is_held(number, 0.1)]
        [4, 14, 24]
    """
    return _rounded((number + 1) * share) > _rounded(number * share)


def split(
    batches: Iterable[PyTree] | None,
    share: float | None,
    owners: Sequence[int] | None = None,
) -> Split:
    """Hold out a share of the calibration batches.

    Of each owner the share of its own batches is held out. Where that would be no batch
    at all, or none of some owner, nothing is held out, and a merge is judged on what it
    was made from.

    Args:
        batches: a re-iterable; one that is no list is gone through as far as to its
            first batch that is held out. None for none.
        share: in [0, 1); 0 to hold nothing out, None to judge nothing.
        owners: for each batch the number of the model whose task it is from; None if
            that is not known.

    Returns:
        The two parts.
    """
    owned = None if owners is None else tuple(owners)
    if batches is None or share is None:
        return Split(batches, owned)
    held = _held(share, owned)
    judged, used = _picked(batches, held), _picked(batches, lambda n: not held(n))
    everyone = set() if owned is None else set(owned)
    heard = {owner for n, owner in enumerate(owned or ()) if held(n)}
    if heard != everyone or next(iter(judged), None) is None:
        return Split(batches, owned, batches, owned)
    if owned is None:
        return Split(used, None, judged, None, is_held_out=True)
    ours = tuple(owner for n, owner in enumerate(owned) if not held(n))
    theirs = tuple(owner for n, owner in enumerate(owned) if held(n))
    return Split(used, ours, judged, theirs, is_held_out=True)


def _held(share: float, owners: Sequence[int] | None) -> Callable[[int], bool]:
    """Return whether a batch is held out, by its number among those of its owner."""
    if owners is None:
        return lambda number: is_held(number, share)
    counts = dict.fromkeys(owners, 0)
    marks = []
    for owner in owners:
        marks.append(is_held(counts[owner], share))
        counts[owner] += 1
    return lambda number: number < len(marks) and marks[number]


def _picked(
    batches: Iterable[PyTree], is_picked: Callable[[int], bool]
) -> Iterable[PyTree]:
    if isinstance(batches, list | tuple):
        return [batch for number, batch in enumerate(batches) if is_picked(number)]
    return Picked(batches, is_picked)


def _rounded(value: float) -> int:
    return math.floor(value + 0.5 + 1e-9)
