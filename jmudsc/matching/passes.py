"""Passes: which labels' moments are gathered together, where not all have room."""

import math
from collections.abc import Mapping

from jmudsc.matching.nested_labels import stacked_shape
from jmudsc.spec.permutation_spec import PermutationSpec


def bytes_of_moments(spec: PermutationSpec, name: str, models: int) -> int:
    """Return how many bytes the moments of a label take.

    Args:
        spec: the permutation spec.
        name: the label.
        models: number of models.
    """
    *apart, stacked = stacked_shape(spec, name, models)
    return 4 * math.prod(apart) * (stacked**2 + stacked)


def passes_within(sizes: Mapping[str, int], budget: int | None) -> list[list[str]]:
    """Split labels into groups whose moments have room together.

    While a batch is added there are its own moments besides those of all batches
    before, so that a label takes twice what its moments do.

    Args:
        sizes: label -> bytes of its moments.
        budget: bytes that a group may take; None for as many as there are.

    Returns:
        The labels of every pass, at least one in each: a label that has no room by
        itself is alone. The largest labels come first.
    """
    if budget is None:
        return [list(sizes)]
    groups: list[list[str]] = []
    left: list[int] = []
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        held = 2 * sizes[name]
        free = [number for number, room in enumerate(left) if held <= room]
        if free:
            groups[free[0]].append(name)
            left[free[0]] -= held
        else:
            groups.append([name])
            left.append(budget - held)
    return groups
