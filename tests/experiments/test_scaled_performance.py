import re

import jax.numpy as jnp
import numpy as np
import pytest

from jmudsc.experiments.scaled_performance import (
    best_constant,
    constant_loss,
    mean_loss,
    scaled_performance,
)
from jmudsc.experiments.tasks import Examples, TASKS

ANSWERS = Examples(
    [np.zeros((5, 2, 2, 1), np.float32), np.zeros((3, 2, 2, 1), np.float32)],
    [np.array([0, 1, 2, 2, 2], np.int32), np.array([2, 0, 2], np.int32)],
)
RNG = np.random.default_rng(0)
PICTURES = Examples(
    ANSWERS.inputs,
    [RNG.normal(size=(n, 2, 2, 1)).astype(np.float32) for n in (5, 3)],
)
CASES = {"classification": ANSWERS, "edges": PICTURES}


def shifted(variables, inputs):
    """Return a constant, as a network would: `variables` for every input."""
    return jnp.broadcast_to(variables, (len(inputs), *variables.shape))


def test_a_parent_is_1_and_a_constant_0():
    assert scaled_performance(2.3, 0.4, 0.4) == 1
    assert scaled_performance(2.3, 0.4, 2.3) == 0
    assert scaled_performance(2.0, 1.0, 4.0) == -2


@pytest.mark.parametrize("name", CASES)
def test_the_best_constant_has_scaled_performance_0(name):
    task, examples = TASKS[name], CASES[name]
    constant = constant_loss(task, examples, examples)
    output = jnp.asarray(best_constant(task, examples))
    loss = mean_loss(shifted, output, task, examples)
    assert scaled_performance(constant, constant - 1, loss) == 0


@pytest.mark.parametrize("name", CASES)
def test_no_other_constant_is_better(name):
    task, examples = TASKS[name], CASES[name]
    best = best_constant(task, examples)
    constant = constant_loss(task, examples, examples)
    for step in 0.1 * RNG.normal(size=(10, *best.shape)).astype(np.float32):
        assert mean_loss(shifted, jnp.asarray(best + step), task, examples) > constant


def test_the_loss_of_a_constant_is_known_by_hand():
    share = np.array([2, 1, 5]) / 8
    found = constant_loss(TASKS["classification"], ANSWERS, ANSWERS)
    assert found == pytest.approx(-(share * np.log(share)).sum(), rel=1e-6)
    every = np.concatenate(PICTURES.targets)
    found = constant_loss(TASKS["edges"], PICTURES, PICTURES)
    assert found == pytest.approx(every.var(axis=0).mean(), rel=1e-6)


def test_every_example_counts_once_whatever_the_batches():
    """The last batch is filled up, which must not show."""
    task = TASKS["edges"]
    whole = Examples(
        [np.concatenate(PICTURES.inputs)], [np.concatenate(PICTURES.targets)]
    )
    output = jnp.ones((2, 2, 1))
    found = [mean_loss(shifted, output, task, x) for x in (PICTURES, whole)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_parent_no_better_than_a_constant_is_an_error():
    message = (
        "scaled_performance: expected a parent with a loss below that of the best "
        "constant, 2, got 2. Train the parent longer."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        scaled_performance(2.0, 2.0, 1.0)


def test_a_loss_that_is_not_finite_is_an_error():
    message = (
        "mean_loss: expected a finite loss, got nan. Check the variables, and that "
        "every answer occurs in the training images."
    )
    output = jnp.full((2, 2, 1), jnp.nan)
    with pytest.raises(ValueError, match=re.escape(message)):
        mean_loss(shifted, output, TASKS["edges"], PICTURES)
