"""Refinement: how two ways to put an axis together are both cut, by sizes alone.

Parts side by side are cut wherever those of either way end, factors into common ones.
GroupNorms of 4 and of 6 groups on one stream of 24 channels have no common factors, but
common blocks: between two ends of groups channels may still be permuted.
"""

import itertools
from collections.abc import Sequence

Cuts = list[list[int]]  # per part or factor the sizes of its pieces


def common_parts(a: Sequence[int], b: Sequence[int]) -> tuple[Cuts, Cuts]:
    """Cut parts of one sum, each where a part of the other ends.

    Args:
        a: sizes of the parts of one.
        b: of the other; they have the same sum.

    Returns:
        The sizes of the pieces, part by part.
    """
    ends = {0, *itertools.accumulate(a), *itertools.accumulate(b)}
    return _cut(a, sorted(ends)), _cut(b, sorted(ends))


def common_blocks(whole: int, counts: Sequence[int]) -> list[int]:
    """Return the sizes of the blocks between the ends of equal parts.

    Args:
        whole: number of positions.
        counts: into how many parts each way cuts them; divisors of `whole`.

    Returns:
        The sizes, in order.
    """
    ends = {end for n in counts for end in range(0, whole + 1, whole // n)}
    return [b - a for a, b in itertools.pairwise(sorted(ends))]


def common_factors(a: Sequence[int], b: Sequence[int]) -> tuple[Cuts, Cuts, int]:
    """Cut factors of one product into common ones, from the first on.

    Args:
        a: sizes of the factors of one, all above 1.
        b: of the other; they have the same product.

    Returns:
        The sizes of the pieces, factor by factor, and how many of the first pieces are
        the same; fewer than all where a factor does not divide the other.
    """
    cuts: tuple[Cuts, Cuts] = [[]], [[]]
    ahead, same = ([*a], [*b]), 0
    while ahead[0] and ahead[1]:
        small, large = sorted((ahead[0][0], ahead[1][0]))
        if large % small:
            break
        same += 1
        for side in range(2):
            cuts[side][-1].append(small)
            ahead[side][0] //= small
            if ahead[side][0] == 1:
                del ahead[side][0]
                cuts[side].append([])
    for side in range(2):
        cuts[side][-1] += ahead[side][:1]
        cuts[side].extend([size] for size in ahead[side][1:])
    return [*filter(None, cuts[0])], [*filter(None, cuts[1])], same


def _cut(sizes: Sequence[int], ends: Sequence[int]) -> Cuts:
    cuts, start = [], 0
    for size in sizes:
        within = [end for end in ends if start <= end <= start + size]
        cuts.append([b - a for a, b in itertools.pairwise(within)])
        start += size
    return cuts
