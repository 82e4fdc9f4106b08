"""Random programs: what is derived must leave their outputs as they are."""

import jax
import numpy as np
import pytest
from programs import fault, random_program

PROGRAMS = 10


@pytest.mark.parametrize("seed", range(4))
def test_random_programs_compute_the_same_with_permuted_leaves(seed):
    """More of them: scripts/fuzz_derivation.py."""
    with jax.numpy_rank_promotion("allow"):
        for number in range(PROGRAMS):
            program = random_program(np.random.default_rng((seed, number)))
            assert fault(program) is None, f"program {(seed, number)}\n{program}"
