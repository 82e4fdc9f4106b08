"""Visits: in which order the layers of a network are looked at, and which again.

What goes into a recurrent kernel depends on the kernel. So it is fitted twice: first on
the states that the network should have, those of the parents; and then, with all that
lies between its first use and its last, on the states that the network has by then.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jmudsc.repairs.layers import Layer, Linear, uses_of


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
    places: Sequence[Sequence[int]], layers: Sequence[Layer]
) -> Iterator[Visit]:
    """Say in which order to look at layers.

    Args:
        places: for each layer where it is used, in order.
        layers: the layers, by where they come first.

    Yields:
        A visit for each, and a second one for those that come after the first use of a
        kernel and not after the last, if later uses are on what earlier ones made.
    """
    block: list[Visit] = []
    end = -1
    for step, layer in enumerate(layers):
        first, *_, last = (*places[step], places[step][-1])
        if first > end:
            yield from block
            block = []
        if any(isinstance(use, Linear) and use.is_led for use in uses_of(layer)):
            end = max(end, last)
        is_in = first <= end
        yield Visit(step, is_start=is_in and not block)
        if is_in:
            block.append(Visit(step, is_again=True, goes_back=not block))
    yield from block
