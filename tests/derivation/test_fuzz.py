"""Random programs: what is derived must leave their outputs as they are."""

import jax
import numpy as np
import pytest
from program_families import FAMILIES
from programs import fault, random_program

PROGRAMS = 10
MANY = 2000


def check(seed, numbers, family=None):
    with jax.numpy_rank_promotion("allow"):
        for number in numbers:
            program = random_program(np.random.default_rng((seed, number)), 10, family)
            assert fault(program) is None, f"program {(seed, number)}\n{program}"


@pytest.mark.parametrize("seed", range(4))
def test_random_programs_compute_the_same_with_permuted_leaves(seed):
    """More of them: scripts/fuzz_derivation.py."""
    check(seed, range(PROGRAMS))


@pytest.mark.parametrize("family", FAMILIES)
def test_programs_of_a_family_compute_the_same_with_permuted_leaves(family):
    check(7, range(2 * PROGRAMS), family)


@pytest.mark.slow
@pytest.mark.parametrize("family", [None, *FAMILIES])
def test_many_random_programs_compute_the_same_with_permuted_leaves(family):
    count = MANY // (len(FAMILIES) + 1)
    check(11, range(count + 1), family)
