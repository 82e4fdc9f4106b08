"""Many random programs: what is derived must leave their outputs as they are.

Half of the families are in `test_fuzz_rest`, so that two processes share the work.
"""

import pytest
from programs import check_programs, PROGRAMS_EACH


@pytest.mark.slow
@pytest.mark.parametrize("family", [None, "ties", "windows"])
def test_random_programs_compute_the_same_with_permuted_leaves(family):
    """A sixth of the programs is of each family."""
    check_programs(11, range(PROGRAMS_EACH), family)
