"""Many random programs: what is derived must leave their outputs as they are."""

import pytest
from program_families import FAMILIES
from programs import check_programs

PROGRAMS = 2000


@pytest.mark.slow
@pytest.mark.parametrize("family", [None, *FAMILIES])
def test_random_programs_compute_the_same_with_permuted_leaves(family):
    """A sixth of them is of each family; about an eighth of a second for each."""
    count = -(-PROGRAMS // (len(FAMILIES) + 1))
    check_programs(11, range(count), family)
