"""Refinement: cuts of sizes, by brute force on positions."""

import itertools
import math

import numpy as np
import pytest

from jmudsc.derivation.terms.refinement import (
    common_blocks,
    common_factors,
    common_parts,
)


def ends(sizes):
    return set(itertools.accumulate(sizes))


@pytest.mark.parametrize("seed", range(20))
def test_parts_are_cut_exactly_where_either_has_an_end(seed):
    generator = np.random.default_rng(seed)
    ends_of = (sorted({*generator.integers(1, 30, 4), 30}) for _ in range(2))
    a, b = (np.diff([0, *found]).tolist() for found in ends_of)
    for sizes, cuts in zip((a, b), common_parts(a, b), strict=True):
        assert [sum(cut) for cut in cuts] == sizes
        assert ends(itertools.chain(*cuts)) == ends(a) | ends(b)


@pytest.mark.parametrize(
    ("whole", "counts", "sizes"),
    [
        (24, (4, 6), [4, 2, 2, 4, 4, 2, 2, 4]),
        (12, (2, 6), [2, 2, 2, 2, 2, 2]),
        (6, (3, 2), [2, 1, 1, 2]),
        (5, (1, 5), [1, 1, 1, 1, 1]),
    ],
)
def test_blocks_end_where_a_group_of_either_ends(whole, counts, sizes):
    assert common_blocks(whole, counts) == sizes


@pytest.mark.parametrize(
    ("a", "b", "cuts"),
    [
        ((2, 6), (4, 3), ([[2], [2, 3]], [[2, 2], [3]], 3)),
        ((8, 3), (2, 2, 6), ([[2, 2, 2], [3]], [[2], [2], [2, 3]], 4)),
        ((6, 4), (4, 6), ([[6], [4]], [[4], [6]], 0)),
        ((5, 6, 2), (5, 4, 3), ([[5], [6], [2]], [[5], [4], [3]], 1)),
        ((7,), (7,), ([[7]], [[7]], 1)),
    ],
)
def test_factors_are_cut_into_common_ones_until_one_does_not_divide(a, b, cuts):
    assert common_factors(a, b) == cuts


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_factors_make_the_factors_and_the_first_are_the_same(seed):
    generator = np.random.default_rng(seed)

    def factors(size):
        made = []
        while size > 1:
            options = [n for n in range(2, size + 1) if size % n == 0]
            made.append(int(generator.choice(options)))
            size //= made[-1]
        return made

    a, b = factors(360), factors(360)
    *cuts, same = common_factors(a, b)
    for sizes, pieces in zip((a, b), cuts, strict=True):
        assert [math.prod(piece) for piece in pieces] == sizes
    left, right = ([*itertools.chain(*pieces)] for pieces in cuts)
    assert left[:same] == right[:same]
    if left[same:]:
        assert max(left[same], right[same]) % min(left[same], right[same])
    else:
        assert not right[same:]
