"""What is legal and probably not meant is said, and what is meant is not."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jmudsc import infer_spec, merge, permute, random_permutations
from jmudsc.matching.coordinate_descent import Match
from jmudsc.merging.candidate import Candidate
from jmudsc.merging.doubts import (
    doubts_of_merge,
    doubts_of_models,
    shared_units,
    units_in_place,
)
from jmudsc.merging.inputs import Inputs
from jmudsc.merging.options import MergeOptions
from jmudsc.merging.prepare import prepare

NET = tiny.MLP
MODELS = [tiny.variables(NET, seed) for seed in range(2)]
BATCHES = [tiny.batch(NET, seed, 32) for seed in range(2)]
SPEC = tiny.spec_of("mlp")
SIZES = {name: label.size for name, label in SPEC.labels.items()}


def warnings_of(caplog, apply_fn, models, batches, **options):
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="jmudsc"):
        given = {"key": jax.random.key(0), "held_out": None, **options}
        merge(apply_fn, models, batches, **given)
    return caplog.messages


def doubts(assignment, network=MODELS[0], batches=None, changes=None, **options):
    options = MergeOptions(**options)
    prepared = prepare("merge", Inputs(NET.apply_fn, MODELS), BATCHES[0], options)
    candidate = Candidate(Match(assignment), [network], changes or {})
    return doubts_of_merge(prepared, candidate, batches)


def orders(*seeds):
    """Return an assignment in which every model has an order of its own."""
    rows = [random_permutations(SPEC, jax.random.key(seed)) for seed in seeds]
    return {name: np.stack([row[name] for row in rows]) for name in SIZES}


def apart(shared):
    """Return a zip in which models share as many units of each label."""
    return {
        name: np.stack(
            [
                np.minimum(np.arange(size), (size + shared) // 2 - 1),
                np.maximum(np.arange(size), (size - shared) // 2),
            ]
        ).astype(np.int32)
        for name, size in SIZES.items()
    }


def noisy(variables, size):
    generator = np.random.default_rng(0)
    return {
        path: (leaf + size * generator.normal(size=leaf.shape)).astype(leaf.dtype)
        for path, leaf in variables.items()
    }


@pytest.mark.parametrize("method", ["weight-align", "mudsc-align", "activation-align"])
def test_networks_trained_apart_are_merged_without_a_word(method, caplog):
    assert warnings_of(caplog, NET.apply_fn, MODELS, BATCHES, method=method) == []


TWICE = (
    "models: expected networks that differ, got some that are the same to the last "
    "bit: {}. Leave one of them out, or give weights if it is to count twice."
)


def test_a_network_that_is_on_the_list_twice_is_pointed_out(caplog):
    copy = {path: leaf.copy() for path, leaf in MODELS[0].items()}
    found = warnings_of(caplog, NET.apply_fn, [MODELS[0], copy], BATCHES)
    assert found == [f"merge: {TWICE.format('0 and 1')}"]
    several = [MODELS[0], MODELS[1], copy, MODELS[1]]
    assert doubts_of_models(several) == [TWICE.format("0 and 2, 1 and 3")]
    assert doubts_of_models([MODELS[0], noisy(MODELS[0], 1e-6)]) == []


def test_networks_of_other_shapes_or_leaves_are_not_the_same():
    less = {path: leaf for path, leaf in MODELS[0].items() if path != "c/bias"}
    wide = {**MODELS[0], "c/bias": np.zeros((1, 3), np.float32)}
    assert doubts_of_models([MODELS[0], less, wide]) == []


START = (
    "models: expected networks trained apart, got {} of 14 units that stay in place, "
    "as in networks that were trained from one start. Use jmudsc.merge_finetunes with "
    "base=, the network that they started from."
)


@pytest.mark.parametrize("method", ["weight-align", "weight-zip", "activation-zip"])
def test_networks_that_share_a_start_are_pointed_out(method, caplog):
    models = [MODELS[0], noisy(MODELS[0], 1e-3)]
    found = warnings_of(caplog, NET.apply_fn, models, BATCHES, method=method)
    assert found == [f"merge: {START.format(14)}"]


def test_an_average_has_nothing_to_say_of_a_start(caplog):
    models = [MODELS[0], noisy(MODELS[0], 1e-3)]
    assert warnings_of(caplog, NET.apply_fn, models, BATCHES, method="average") == []


def test_units_in_place_are_counted_in_any_order():
    row = orders(3)
    both = {name: np.concatenate([rows, rows]) for name, rows in row.items()}
    assert units_in_place(SPEC, both) == (14, 14)
    swapped = {name: rows.copy() for name, rows in both.items()}
    rows = next(iter(swapped.values()))
    rows[1, :2] = rows[1, 1::-1]
    assert units_in_place(SPEC, swapped) == (12, 14)
    assert doubts(swapped, method="weight-align") == []
    held = dataclasses.replace(SPEC.labels["P_0"], fixed="is held")
    spec = dataclasses.replace(SPEC, labels={**SPEC.labels, "P_0": held})
    assert units_in_place(spec, both) == (6, 6)


def test_narrow_networks_side_by_side_are_pointed_out():
    assert shared_units(SPEC, apart(0)) == (0, 14)
    assert doubts(apart(0), method="weight-zip") == [
        "models: expected units that they share, got 0 of 14 merged units made of more "
        "than one model: the zip put narrower networks side by side. Use a method that "
        "aligns, a larger alpha, or networks that have more in common."
    ]
    assert shared_units(SPEC, apart(2)) == (4, 14)
    assert doubts(apart(2), method="weight-zip") == []
    assert shared_units(SPEC, orders(0, 1)) == (14, 14)


def test_a_refit_that_fits_little_is_pointed_out(caplog):
    net = tiny.ENDLESS
    models = [tiny.variables(net, seed) for seed in range(2)]
    batches = [tiny.batch(net, 0, 32)]
    options = {"method": "weight-align", "refit": "least-squares"}
    assert warnings_of(caplog, net.apply_fn, models, batches, **options) == [
        "merge: refit: expected most parameters to be fitted, got 42 of 91: the others "
        "are in no linear layer that can be (a kernel is used inside a while). See "
        "changes in the result for what was done with each leaf."
    ]
    assert warnings_of(caplog, NET.apply_fn, MODELS, BATCHES, **options) == []


def constant(count):
    kernel = MODELS[0]["c/kernel"].copy()
    kernel[:, :count] = 0
    return {**MODELS[0], "c/kernel": kernel}


@pytest.mark.parametrize("count", [1, 3])
def test_outputs_that_are_constant_are_pointed_out(count):
    found = doubts(orders(0, 1), constant(count), BATCHES, method="weight-align")
    assert found == [
        f"outputs: expected outputs that vary over the batches, got {count} of 3 "
        "outputs of the merged network with one value for all samples, while they vary "
        "in the models. Try another method or alpha, more batches, or a refit."
    ]


def test_outputs_that_are_constant_in_the_models_too_are_not(caplog):
    models = [{**model, "c/kernel": 0 * model["c/kernel"]} for model in MODELS]
    assert warnings_of(caplog, NET.apply_fn, models, BATCHES) == []


def test_of_separate_heads_each_is_compared_with_its_own_model(caplog):
    models = [constant(1), MODELS[1]]
    found = warnings_of(
        caplog, NET.apply_fn, models, BATCHES, separate="c/*", method="mudsc-align"
    )
    assert found == []


UNREAD = (
    "merge: {} not read by apply_fn and {} in place while units of others move:\n{}\n"
    'Pass alike={{"ema/*": "params/*"}}, say, with patterns of these leaves and of '
    "those that they move like, or take them out of the variables."
)


def test_leaves_that_are_left_behind_are_named(caplog):
    models = [{**model, "ema/a/bias": 2 * model["a/bias"]} for model in MODELS]
    given = caplog, NET.apply_fn, models, BATCHES
    one = UNREAD.format("1 leaf is", "stays", "  ema/a/bias")
    assert warnings_of(*given) == [one]
    assert warnings_of(*given, method="average") == []
    assert warnings_of(*given, frozen="*") == []
    assert warnings_of(*given, alike={"ema/*": "*"}) == []
    models = [{**model, "ema/b/bias": model["b/bias"]} for model in models]
    two = UNREAD.format("2 leaves are", "stay", "  ema/a/bias\n  ema/b/bias")
    assert warnings_of(caplog, NET.apply_fn, models, BATCHES) == [two]


def test_a_spec_that_is_given_tells_as_much(caplog):
    models = [{**model, "ema/a/bias": 2 * model["a/bias"]} for model in MODELS]
    spec = infer_spec(NET.apply_fn, models[0], BATCHES[0])
    by_hand = dataclasses.replace(spec, unread=frozenset())
    for given in (spec, by_hand):
        found = warnings_of(caplog, NET.apply_fn, models, BATCHES, spec=given)
        assert found == [UNREAD.format("1 leaf is", "stays", "  ema/a/bias")]
    alike = {"spec": spec, "alike": {"ema/*": "*"}}
    assert warnings_of(caplog, NET.apply_fn, models, BATCHES, **alike) == []


def test_a_loss_is_pointed_out_once(caplog):
    loss = lambda v, x: jnp.square(NET.apply_fn(v, x)).mean()
    (found,) = warnings_of(caplog, loss, MODELS, BATCHES, method="weight-align")
    assert found.startswith("merge: apply_fn: expected outputs with an axis for the")


def test_merge_carries_what_is_alike(key):
    models = [
        {**model, **{f"ema/{path}": 2 * leaf for path, leaf in model.items()}}
        for model in MODELS
    ]
    for method in ("mudsc-zip", "mudsc-align"):
        result = merge(
            NET.apply_fn, models, BATCHES, key=key, method=method, alike={"ema/*": "*"}
        )
        plain = merge(NET.apply_fn, MODELS, BATCHES, key=key, method=method)
        assert result.recipe["alike"] == {"ema/*": "*"}
        for path, leaf in plain.variables.items():
            np.testing.assert_array_equal(result.variables[path], leaf)
            np.testing.assert_allclose(
                result.variables[f"ema/{path}"], 2 * leaf, rtol=1e-6
            )


def test_the_machine_is_recorded(key):
    result = merge(NET.apply_fn, MODELS, BATCHES, key=key, method="average")
    kind, _, cores = result.recipe["machine"].partition(", ")
    assert kind == jax.devices()[0].device_kind
    assert int(cores.split()[0]) >= 1


def test_a_permuted_network_is_no_network_that_shares_a_start(caplog, key):
    permuted = permute(SPEC, MODELS[0], random_permutations(SPEC, key))
    found = warnings_of(caplog, NET.apply_fn, [MODELS[0], permuted], BATCHES)
    assert found == []
