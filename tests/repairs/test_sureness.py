"""How much each parent counts for each sample."""

import numpy as np

from jmudsc.repairs.sureness import shares_by_sureness, sureness

DRAW = np.random.default_rng(0)
ROWS = DRAW.normal(size=(7, 3)) * np.arange(1, 8)[:, None]


def test_sureness_is_the_squared_distance_from_the_mean_output():
    apart = [
        sum((x - m) ** 2 for x, m in zip(r, ROWS.mean(0), strict=True)) for r in ROWS
    ]
    found = sureness([ROWS], [np.arange(7)], 7)
    np.testing.assert_allclose(found, np.array(apart) / np.mean(apart))
    np.testing.assert_allclose(found.mean(), 1)


def test_it_does_not_depend_on_the_scale_of_the_outputs():
    found = sureness([ROWS], [np.arange(7)], 7)
    np.testing.assert_allclose(sureness([5 * ROWS + 2], [np.arange(7)], 7), found)


def test_places_of_a_sample_and_several_outputs_are_averaged():
    of = np.array([0, 0, 1, 2, 2, 2, 2])
    one = ((ROWS - ROWS.mean(0)) ** 2).sum(axis=1)
    means = np.array([one[of == n].mean() for n in range(3)])
    first = means / means.mean()
    np.testing.assert_allclose(sureness([ROWS], [of], 3), first)
    both = sureness([ROWS, np.ones((3, 2))], [of, np.arange(3)], 3)
    np.testing.assert_allclose(both, (first + 1) / 2)


def test_shares_are_in_proportion_to_sureness_and_to_the_average():
    sure = np.array([[1.0, 3.0, 0.0], [1.0, 1.0, 0.0]])
    found = shares_by_sureness(sure, (0.5, 0.5))
    np.testing.assert_allclose(found, [[0.5, 0.75, 0.5], [0.5, 0.25, 0.5]])
    found = shares_by_sureness(sure, (0.75, 0.25))
    np.testing.assert_allclose(found, [[0.75, 0.9, 0.75], [0.25, 0.1, 0.25]])
