import re

import jax.numpy as jnp
import numpy as np
import pytest

from jmudsc import infer_spec
from jmudsc.derivation.explain_failure import explain_failure

VARIABLES = {"in": np.ones((4, 8), np.float32), "out": np.ones((8, 2), np.float32)}
X, Y = np.ones((16, 4), np.float32), np.ones((16, 2), np.float32)


def network(variables, x):
    return jnp.tanh(x @ variables["in"]) @ variables["out"]


def swapped(x, variables):
    return network(variables, x)


def with_target(variables, x, y):
    return network(variables, x) - y


CASES = {
    "swapped": (
        swapped,
        X,
        "apply_fn: expected a function of (variables, batch), got one of (batch, "
        "variables). Swap its arguments.",
    ),
    "a tuple": (
        network,
        (X, Y),
        "apply_fn: expected batches that it takes, got a tuple of 2, while it takes "
        "entry 0 alone. Pass batches [batch[0] for batch in batches], or let apply_fn "
        "read that entry.",
    ),
    "a dict": (
        network,
        {"label": Y, "x": X},
        "apply_fn: expected batches that it takes, got a dict of 2, while it takes "
        "entry 'x' alone. Pass batches [batch['x'] for batch in batches], or let "
        "apply_fn read that entry.",
    ),
    "one by one": (
        with_target,
        (X, Y),
        "apply_fn: expected a function of (variables, batch), got one that takes the 2 "
        "entries of a batch one by one. Pass lambda variables, batch: "
        "apply_fn(variables, *batch).",
    ),
    "by name": (
        with_target,
        {"y": Y, "x": X},
        "apply_fn: expected a function of (variables, batch), got one that takes the 2 "
        "entries of a batch one by one. Pass lambda variables, batch: "
        "apply_fn(variables, **batch).",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_likely_mistake_is_named(name):
    apply_fn, batch, sentence = CASES[name]
    assert explain_failure(apply_fn, VARIABLES, batch) == sentence
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        infer_spec(apply_fn, VARIABLES, batch)


@pytest.mark.parametrize(
    ("batch", "note"),
    [
        (np.ones((16, 5), np.float32), "a batch of float32[16, 5]"),
        ([X[:, 1:], Y], "a batch, a list with 0: float32[16, 3], 1: float32[16, 2]"),
        ({}, "a batch, a dict with no array"),
    ],
)
def test_another_failure_stays_as_it_is_and_is_told_the_batch(batch, note):
    with pytest.raises(TypeError) as error:
        infer_spec(network, VARIABLES, batch)
    assert f"apply_fn fails on variables and {note}." in error.value.__notes__
