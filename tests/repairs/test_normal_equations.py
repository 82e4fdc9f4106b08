import jax.numpy as jnp
import numpy as np
import pytest

from jmudsc.repairs.normal_equations import gain, shift_of, solve, Uses
from jmudsc.repairs.regression import Regression

ROWS, COLUMNS, COUNT, RIDGE = 5, 3, 40, 0.1


def drawn(seed, rows, columns):
    draw = np.random.default_rng(seed)
    return draw.standard_normal((COUNT, rows)) + 0.5, draw.standard_normal(
        (COUNT, columns)
    )


def of_samples(x, z, has_shift=False, is_turned=False):
    both = np.concatenate([x, z], axis=1)
    mean = both.mean(axis=0)
    comoment = (x - mean[: x.shape[1]]).T @ (both - mean)
    total = Regression(
        len(x), jnp.asarray(mean[None, None]), jnp.asarray(comoment[None])
    )
    return Uses(total, has_shift, is_turned)


def of_numbers(numbers, z, is_turned=False):
    """Moments of a lookup: how often each row, and what is missing from it."""
    hot = np.eye(ROWS)[numbers]
    sums = np.concatenate([hot.sum(axis=0)[:, None], hot.T @ z], axis=1)
    total = Regression(len(z), jnp.zeros((1, 1, 0)), jnp.asarray(sums[None]))
    return Uses(total, False, is_turned)


def loss(parts, change, penalty):
    """Mean residual of uses, straight and turned, and the penalty."""
    total = penalty * np.square(change).sum()
    for x, z, has_shift, is_turned in parts:
        left = z - x @ (change.T if is_turned else change)
        left = left - left.mean(axis=0) if has_shift else left
        total += np.square(left).sum() / sum(len(x) for x, *_ in parts)
    return total


def spread(x, has_shift):
    return np.square(x - x.mean(axis=0) * has_shift).sum() / x.shape[1]


@pytest.mark.parametrize("has_shift", [False, True])
@pytest.mark.parametrize("is_turned", [False, True])
def test_no_change_is_better_for_two_uses_than_the_solution(has_shift, is_turned):
    second = (COLUMNS, ROWS) if is_turned else (ROWS, COLUMNS)
    one, two = drawn(0, ROWS, COLUMNS), drawn(1, *second)
    parts = [(*one, False, False), (*two, has_shift, is_turned)]
    uses = [of_samples(*part) for part in parts]
    change = solve(uses, RIDGE)
    penalty = RIDGE * sum(spread(x, shift) for x, _, shift, _ in parts) / (2 * COUNT)
    best = loss(parts, change[0], penalty)
    nothing = loss(parts, 0 * change[0], penalty)
    np.testing.assert_allclose(gain(uses, change, RIDGE), nothing - best, rtol=1e-4)
    draw = np.random.default_rng(2)
    for _ in range(50):
        other = change[0] + 1e-2 * draw.standard_normal(change[0].shape)
        assert loss(parts, other, penalty) > best
        np.testing.assert_allclose(
            gain(uses, other[None], RIDGE),
            nothing - loss(parts, other, penalty),
            rtol=1e-4,
        )


def test_a_bias_takes_what_is_left_on_average():
    x, z = drawn(0, ROWS, COLUMNS)
    back, forth = of_samples(x, z, True), of_samples(z, x, True, True)
    change = solve([back, forth], RIDGE)
    np.testing.assert_allclose(
        shift_of(back, change)[0, 0], (z - x @ change[0]).mean(axis=0), atol=1e-5
    )
    np.testing.assert_allclose(
        shift_of(forth, change)[0, 0], (x - z @ change[0].T).mean(axis=0), atol=1e-5
    )


@pytest.mark.parametrize("turned", [None, "dense", "lookup"])
def test_a_lookup_is_a_product_with_what_is_1_at_a_number(turned):
    draw = np.random.default_rng(0)
    numbers, z = draw.integers(ROWS - 1, size=COUNT), drawn(0, ROWS, COLUMNS)[1]
    sparse, dense = [of_numbers(numbers, z)], [of_samples(np.eye(ROWS)[numbers], z)]
    if turned == "dense":
        more = of_samples(*drawn(1, COLUMNS, ROWS), False, True)
        sparse, dense = [*sparse, more], [*dense, more]
    if turned == "lookup":
        sparse = [of_samples(*drawn(1, COLUMNS, ROWS)), of_numbers(numbers, z, True)]
        dense = [sparse[0], of_samples(np.eye(ROWS)[numbers], z, False, True)]
    expected = solve(dense, RIDGE)
    np.testing.assert_allclose(solve(sparse, RIDGE), expected, rtol=1e-4, atol=1e-6)
    assert gain(sparse, expected, RIDGE) == pytest.approx(
        gain(dense, expected, RIDGE), rel=1e-4
    )


def test_a_row_that_is_never_looked_up_stays():
    numbers, z = np.arange(COUNT) % (ROWS - 1), drawn(0, ROWS, COLUMNS)[1]
    change = solve([of_numbers(numbers, z)], RIDGE)
    assert not change[0, -1].any()
    assert change[0, :-1].all()
