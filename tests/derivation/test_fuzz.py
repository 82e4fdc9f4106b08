"""Random programs: what is derived must leave their outputs as they are."""

import pytest
from program_families import FAMILIES
from programs import check_programs

PROGRAMS = 10


@pytest.mark.parametrize("seed", range(4))
def test_random_programs_compute_the_same_with_permuted_leaves(seed):
    """More of them: scripts/fuzz_derivation.py."""
    check_programs(seed, range(PROGRAMS))


@pytest.mark.parametrize("family", FAMILIES)
def test_programs_of_a_family_compute_the_same_with_permuted_leaves(family):
    check_programs(7, range(2 * PROGRAMS), family)
