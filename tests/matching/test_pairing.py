"""What holds for every pairing that a method names."""

import numpy as np
import pytest

from jmudsc import align, zip_units
from jmudsc.matching.methods import TABLE
from jmudsc.matching.pairing import ALIGN, Candidates, PairingOptions, ZIP

ROWS = {row.pairing.name: row.pairing for row in TABLE.values() if row.pairing}
UNITS = 6


def candidates(similarity, models):
    grid = similarity.reshape(models, UNITS, models, UNITS)
    return Candidates(
        models, UNITS, lambda i, j: grid[i, :, j], lambda: similarity.copy()
    )


def drawn(seed, models):
    square = np.random.default_rng(seed).uniform(-1, 1, (models * UNITS,) * 2)
    return np.maximum(square, square.T)


@pytest.mark.parametrize("models", [2, 3])
@pytest.mark.parametrize("name", ROWS)
def test_every_merged_unit_is_reached(name, models):
    rows = ROWS[name].pair(candidates(drawn(0, models), models), PairingOptions())
    assert rows.shape == (models, UNITS)
    assert set(rows.ravel()) == set(range(UNITS))
    if not ROWS[name].merges_own:
        assert (np.sort(rows, axis=1) == np.arange(UNITS)).all()
        assert (rows[0] == np.arange(UNITS)).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ROWS)
def test_a_planted_permutation_is_found(name, seed):
    order = np.random.default_rng(seed).permutation(UNITS)
    same = np.eye(UNITS)
    similarity = np.block([[same, same[:, order]], [same[order], same]])
    rows = ROWS[name].pair(candidates(similarity, 2), PairingOptions())
    assert (rows[1] == rows[0][order]).all()


def test_a_pairing_is_the_public_function_of_its_name():
    similarity, options = drawn(1, 3), PairingOptions(a=0.3, b=0.5, reference="mean")
    found = ALIGN.pair(candidates(similarity, 3), options)
    assert (found == align(similarity, 3, reference="mean")).all()
    found = ZIP.pair(candidates(similarity, 3), options)
    assert (found == zip_units(similarity, 3, a=0.3, b=0.5)).all()
