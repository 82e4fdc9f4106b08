import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jmudsc import collect, combine, match, permute, random_permutations
from jmudsc.landscape.losses import (
    barrier,
    losses_between,
    losses_on_plane,
    measure_by,
    mixed,
    with_sum,
)
from jmudsc.landscape.plane import plane_through

NET = tiny.MLP
STEPS = np.linspace(0, 1, 5)


def squared_error(seed):
    """The loss of one task: to compute what a network with other weights does."""
    x = tiny.batch(NET, seed)
    y = NET.apply_fn(tiny.variables(NET, 100 + seed), x)
    return lambda variables: jnp.mean((NET.apply_fn(variables, x) - y) ** 2)


@pytest.fixture(scope="module")
def losses():
    return {"a": squared_error(1), "b": squared_error(2)}


@pytest.fixture(scope="module")
def networks():
    return {name: tiny.variables(NET, seed) for seed, name in enumerate("ABMX")}


def test_the_corners_of_a_plane_have_the_losses_of_the_networks(losses, networks):
    plane, measure = plane_through(networks), measure_by(losses)
    assert plane.corners == ("A", "B", "M")
    assert plane.distances == {"A": 0, "B": 0, "M": 0, "X": plane.distances["X"]}
    for name in plane.corners:
        x, y = plane.places[name]
        found = losses_on_plane(measure, plane, [x], [y])
        for task, loss in losses.items():
            expected = jax.jit(loss)(networks[name])
            np.testing.assert_allclose(found[task], [[expected]], rtol=1e-6)


def test_a_quadratic_loss_has_its_exact_values():
    a, b, c = (
        {"w": jnp.array(w)} for w in ([1.0, 0.0, 0.0], [1.0, 2.0, 0.0], [1.0, 1.0, 3.0])
    )
    measure = measure_by({"square": lambda v: (v["w"] ** 2).sum()})
    plane = plane_through({"a": a, "b": b, "c": c})
    assert plane.places == {"a": (0, 0), "b": (2, 0), "c": (1, 3)}
    xs, ys = np.array([-1.0, 0, 2]), np.array([0, 1.5])
    found = losses_on_plane(measure, plane, xs, ys)["square"]
    np.testing.assert_allclose(found, 1 + xs**2 + ys[:, None] ** 2, rtol=1e-6)
    line = losses_between(measure, a, {"w": -a["w"]}, STEPS)["square"]
    np.testing.assert_allclose(line, (1 - 2 * STEPS) ** 2, atol=1e-7)
    assert barrier(line, STEPS) == 0  # convex: never above the line of its ends
    assert barrier(-line, STEPS) == pytest.approx(1)


def test_a_barrier_is_over_the_line_between_unequal_ends():
    assert barrier([1.0, 5.0, 3.0], [0.0, 0.5, 1.0]) == 3
    assert barrier([0.0, 2.0, 4.0], [0.0, 0.5, 1.0]) == 0
    assert np.isnan(barrier([0.0, np.nan, 1.0], [0.0, 0.5, 1.0]))


def test_a_permuted_copy_has_a_barrier_until_it_is_aligned(losses, networks, key):
    spec, first = tiny.spec_of("mlp"), networks["A"]
    second = permute(spec, first, random_permutations(spec, key))
    measure = measure_by({"itself": error_of(first)})
    before = losses_between(measure, first, second, STEPS)["itself"]
    assert barrier(before, STEPS) > 0.01
    models = [first, second]
    moments = collect(spec, NET.apply_fn, models, [tiny.batch(NET, 0, 64)])
    found = match(spec, models, moments, method="activation-align", key=key).assignment
    aligned = combine(spec, models, found, [0.0, 1.0])
    after = losses_between(measure, first, aligned, STEPS)["itself"]
    assert barrier(after, STEPS) == pytest.approx(0, abs=1e-9)


def error_of(network):
    x = tiny.batch(NET, 0)
    y = NET.apply_fn(network, x)
    return lambda variables: jnp.mean((NET.apply_fn(variables, x) - y) ** 2)


def test_losses_that_cannot_be_traced_are_called_as_they_are(losses, networks):
    eager = {t: lambda v, loss=loss: float(loss(v)) for t, loss in losses.items()}
    three = tuple(networks[name] for name in "ABM")
    mixture = {"a": losses["a"], "b": eager["b"]}
    expected = measure_by(losses)(three, (0.2, 0.3, 0.5))
    for functions in (eager, mixture):
        found = measure_by(functions)(three, (0.2, 0.3, 0.5))
        assert found == pytest.approx(expected, rel=1e-5)


def test_losses_that_can_be_traced_are_compiled_once(networks):
    calls = []

    def loss(variables):
        calls.append(1)
        return variables["c/bias"].sum()

    measure, plane = measure_by({"a": loss}), plane_through(networks)
    losses_on_plane(measure, plane, [0.0, 1.0, 2.0], [0.0, 1.0])
    losses_between(measure, networks["A"], networks["B"], STEPS)
    assert len(calls) == 2  # once to see whether it can be


def test_variables_are_settled_before_they_are_measured(networks):
    settle = lambda v: {**v, "c/bias": np.full(3, 5, np.float32)}
    losses = {"a": lambda v: v["c/bias"].sum(), "b": lambda v: float(v["a/bias"][0])}
    found = measure_by(losses, settle)([networks["A"], networks["B"]], [1.0, 0.0])
    assert found == {"a": 15, "b": pytest.approx(float(networks["A"]["a/bias"][0]))}


def test_sums_are_taken_in_float32_and_keep_dtypes():
    first = {"w": jnp.array([1.0], jnp.bfloat16), "steps": jnp.array(3)}
    second = {"w": jnp.array([2.0], jnp.bfloat16), "steps": jnp.array(4)}
    found = mixed([first, second], np.array([0.5, 0.5], np.float32))
    assert found["w"].dtype == jnp.bfloat16
    assert found["w"][0] == 1.5
    assert found["steps"] == 3


def test_the_sum_of_one_task_is_left_out():
    assert with_sum({"a": 1.0}) == {"a": 1.0}
    assert with_sum({"a": 1.0, "b": 2.0}) == {"a": 1.0, "b": 2.0, "sum": 3.0}


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "NoneType"),
        ("low", "str"),
        (np.zeros(2), "ndarray of shape [2]"),
        (np.array(1j), "ndarray"),
    ],
    ids=["none", "text", "array", "complex"],
)
def test_losses_must_be_numbers(value, kind, networks):
    expected = (
        f'loss "a": expected a real number, got a {kind}. Return the mean over the '
        "samples, say."
    )
    measure = measure_by({"a": lambda v: [float(v["c/bias"][0]), value][1]})
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        measure([networks["A"]], [1.0])
