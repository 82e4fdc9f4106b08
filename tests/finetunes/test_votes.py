"""Votes against the definition, entry by entry."""

import numpy as np
import pytest

from jmudsc.finetunes.votes import Ballot, count_signs, elected, summed, voted

PARTS = [
    np.array(part, np.float32)
    for part in (
        [3, 1, 0, -2, 1, 0, 1e-30, -1],
        [1, -1, 0, -1, 0, -4, 1e-30, 1],
        [-2, 0, 0, 5, -1, 0, -1e-30, 0],
    )
]
WEIGHTS = [1.0, 2.0, -0.5]


def by_hand(parts, weights, most):
    found = []
    for values in np.array(parts, np.float64).T:
        sign = np.sign(values.sum()) or (most if values.any() else 0)
        agree = np.sign(values) == sign if sign else np.zeros(len(values), bool)
        total = values[agree].sum()
        sizes = np.abs(weights)[agree].sum() if weights is not None else 1
        found.append(total / sizes if agree.any() else 0)
    return found


@pytest.mark.parametrize("weights", [None, [1.0, 1.0, -1.0], WEIGHTS])
@pytest.mark.parametrize("most", [1, -1])
def test_what_has_the_elected_sign_is_averaged(weights, most):
    found = voted(PARTS, weights, majority=lambda: most)
    np.testing.assert_allclose(found, by_hand(PARTS, weights, most), rtol=1e-6)


@pytest.mark.parametrize("most", [1, -1])
def test_a_ballot_settles_open_entries_in_the_end(most):
    ballot, expected = Ballot(), voted(PARTS, WEIGHTS, majority=lambda: most)
    found = voted(PARTS, WEIGHTS, ballot=ballot)
    ((places, minus),) = ballot.undecided
    assert places.tolist() == [1, 4, 7]
    assert ballot.most == count_signs(summed(PARTS))
    if most < 0:
        found[places] = minus
    assert found.tolist() == expected.tolist()


def test_without_either_these_entries_decide():
    ahead = count_signs(summed(PARTS))
    assert ahead == 3 - 1  # three sums are above 0, one below
    found = voted(PARTS, WEIGHTS)
    assert found.tolist() == voted(PARTS, WEIGHTS, majority=lambda: ahead).tolist()
    assert elected(PARTS).tolist() == [1, 1, 0, 1, 1, -1, 1, 1]


def test_many_models_can_vote():
    parts = [np.ones(3, np.float32)] * 200
    assert voted(parts, [1.0] * 200).tolist() == [1, 1, 1]
    assert voted(parts, None).tolist() == [200, 200, 200]
