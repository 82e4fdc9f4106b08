"""Chains: networks of square layers, and that two searches found the same."""

import jax.numpy as jnp
import numpy as np
import tiny


def chain(v, x):
    for number in range(3):
        x = jnp.tanh(x @ v[f"{number}/kernel"] + v[f"{number}/bias"][None])
    return x @ v["out/kernel"]


def chain_of(units):
    leaves = {f"{number}/kernel": (units, units) for number in (1, 2)}
    leaves |= {f"{number}/bias": (units,) for number in range(3)}
    ends = {"0/kernel": (5, units), "out/kernel": (units, 2)}
    return tiny.Tiny(chain, ends | leaves, (5,))


def assert_same(found, expected):
    assert found.history == expected.history
    assert found.converged == expected.converged
    for name, rows in expected.assignment.items():
        np.testing.assert_array_equal(found.assignment[name], rows)
