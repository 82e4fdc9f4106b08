"""Random programs of the families that `test_fuzz_many` leaves out."""

import pytest
from program_families import FAMILIES
from programs import check_programs, PROGRAMS_EACH

THERE = ("ties", "windows")


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in THERE])
def test_random_programs_compute_the_same_with_permuted_leaves(family):
    check_programs(11, range(PROGRAMS_EACH), family)
