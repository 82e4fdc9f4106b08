"""The thresholds hold for networks that were trained, from one base and from others."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from finetuned import fine_tunes

from jmudsc.finetunes.merge_finetunes import merge_finetunes
from jmudsc.finetunes.shared_start import apart, strangers_hint, wrong_base_hint
from jmudsc.lazy import in_memory

NET = tiny.MLP


def task(seed):
    """Inputs, and the classes that a teacher of the seed sees in them."""
    x = tiny.batch(NET, seed, 256)
    return x, np.argmax(NET.apply_fn(tiny.variables(NET, 100 + seed), x), axis=1)


@functools.partial(jax.jit, static_argnums=2)
def trained(variables, data, steps=300):
    x, y = data

    def loss(v):
        chances = jax.nn.log_softmax(NET.apply_fn(v, x))
        return -jnp.take_along_axis(chances, y[:, None], axis=1).mean()

    def step(v, _):
        return jax.tree.map(lambda p, g: p - 0.1 * g, v, jax.grad(loss)(v)), None

    return jax.lax.scan(step, variables, None, steps)[0]


@functools.cache
def base(seed):
    return trained(tiny.variables(NET, seed), task(0), 1000)


@functools.cache
def tuned(seed):
    return trained(base(0), task(seed))


def test_strangers_are_told_and_models_of_one_base_are_not():
    said = strangers_hint("x", [base(0), base(1)])
    assert said.startswith("x: the models are as far from each other as networks that")
    assert said.endswith("Use jmudsc.merge, which matches them first.")
    assert strangers_hint("x", [tuned(1), tuned(2)]) is None
    assert strangers_hint("x", [tuned(1), tuned(2), base(1)]) is None
    assert strangers_hint("x", [tuned(1)]) is None


def test_what_is_equal_is_counted():
    frozen = tuned(2) | {"a/kernel": tuned(1)["a/kernel"]}
    found = apart(tuned(1), frozen)
    assert (found.equal, found.leaves) == (1, 3)


def test_the_right_base_is_not_doubted_and_a_stranger_is():
    models = [tuned(1), tuned(2)]
    assert wrong_base_hint("x", models, base(0)) is None
    said = wrong_base_hint("x", models, base(1))
    assert said.startswith(
        "x: the base is as far from every model as one that was trained"
    )
    assert said.endswith("Pass the variables that the models were trained from.")


def test_a_base_farther_than_the_models_are_from_each_other_is_doubted():
    near = fine_tunes(BASE := tiny.variables(NET, 0), 3, size=0.05)
    said = wrong_base_hint("x", near[:2], fine_tunes(BASE, 1, seed=1, size=0.4)[0])
    assert "times as far from the models as they are from each other" in said
    assert wrong_base_hint("x", near[:2], near[2]) is None


def test_one_model_has_its_base_checked_too():
    assert wrong_base_hint("x", [tuned(1)], base(0)) is None
    assert wrong_base_hint("x", [tuned(1)], base(1)) is not None


def test_few_matrices_of_a_large_tree_are_read():
    read = []
    leaves = {f"layer_{n:02}/kernel": np.full((2, 2), n + 1.0) for n in range(64)}
    lazy = in_memory(leaves)
    seen = {p: _telling(leaf, read) for p, leaf in lazy.items()}
    found = apart(seen, leaves)
    assert found.leaves == len(read) == 16
    assert read[0] == "layer_00/kernel"
    assert read[-1] == "layer_60/kernel"


def _telling(leaf, read):
    from dataclasses import replace

    def fetch(names):
        read.extend(names)
        return leaf.fetch(names)

    return replace(leaf, fetch=fetch)


def test_trees_without_matrices_tell_nothing():
    assert apart({"b": np.ones(3)}, {"b": np.ones(3)}) is None
    assert strangers_hint("x", [{"b": np.ones(3)}, {"b": -np.ones(3)}]) is None
    assert wrong_base_hint("x", [{"b": np.ones(3)}], {"b": np.zeros(3)}) is None


@pytest.mark.parametrize("check", [True, False])
def test_merging_warns_of_a_wrong_base(caplog, check):
    models = [tuned(1), tuned(2)]
    with caplog.at_level(logging.WARNING):
        merge_finetunes(models, base(0), check=check)
        assert not caplog.records
        merge_finetunes(models, base(1), check=check)
        merge_finetunes([base(0), base(1)], method="linear", check=check)
    said = [record.message for record in caplog.records]
    assert len(said) == 2 * check
    if check:
        assert "probably a wrong one" in said[0]
        assert "Use jmudsc.merge" in said[1]
