"""Visits: in which order the layers of a network are looked at, and which again.

What goes into a recurrent kernel depends on the kernel. So it is fitted twice: first on
the states that the network should have, those of the parents; and then, with all that
lies between its first use and its last, on the states that the network has by then.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Visit:
    """One look at a layer.

    Attributes:
        step: the number of the layer.
        is_again: whether it was looked at before.
        is_start: whether the networks are to come back to it.
        goes_back: whether they are to go back before.
    """

    step: int
    is_again: bool = False
    is_start: bool = False
    goes_back: bool = False


def visits_of(
    places: Sequence[Sequence[int]], is_led: Sequence[bool]
) -> Iterator[Visit]:
    """Say in which order to look at layers.

    Args:
        places: for each layer where it is used, in order; layers by where they come
            first.
        is_led: for each layer whether a use of it is on what one before it made.

    Yields:
        A visit for each, and a second one for those that come after the first use of a
        kernel and not after the last, if later uses are on what earlier ones made.
    """
    block: list[Visit] = []
    end = -1
    for step, (uses, leads) in enumerate(zip(places, is_led, strict=True)):
        if uses[0] > end:
            yield from block
            block = []
        if leads:
            end = max(end, uses[-1])
        is_in = uses[0] <= end
        yield Visit(step, is_start=is_in and not block)
        if is_in:
            block.append(Visit(step, is_again=True, goes_back=not block))
    yield from block
