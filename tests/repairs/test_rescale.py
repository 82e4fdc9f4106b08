import logging
import re

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
import tiny
import zoo
from assignments import draw, shuffled, stay, zipped
from mlp import images, preactivations

from jmudsc import combine, infer_spec, permute, random_permutations, repair
from jmudsc.repairs.merger import Merger
from jmudsc.repairs.rescale import rescale_layers

MLP = tiny.MLP


def targets(models, rows, shares, values):
    """Average a statistic over all units of all models that share a merged unit."""
    total, weight = np.zeros(values[0].size), np.zeros(values[0].size)
    for own, row, share in zip(values, rows, shares, strict=True):
        np.add.at(total, row, share * own)
        np.add.at(weight, row, share)
    return total / weight


@pytest.mark.parametrize("assign", [stay, shuffled, zipped])
@pytest.mark.parametrize("weights", [None, (3.0, 1.0)])
def test_every_unit_gets_mean_and_standard_deviation_of_its_parents(assign, weights):
    spec, models, x = tiny.spec_of("mlp"), draw("mlp", 2), images()
    rows = assign(spec, 2)
    merged = combine(spec, models, rows, weights)
    batches = [x[:7], x[7:40], x[40:]]
    found = repair(spec, MLP.apply_fn, models, rows, merged, batches, weights)
    shares = np.array(weights or (1, 1)) / np.sum(weights or (1, 1))
    for layer, y in preactivations(found, x).items():
        name = tiny.label_at(spec, f"{layer}/bias", 0)
        for statistic in (np.mean, np.std):
            parents = [statistic(preactivations(m, x)[layer], axis=0) for m in models]
            expected = targets(models, rows[name], shares, parents)
            np.testing.assert_allclose(
                statistic(y, axis=0), expected, rtol=1e-4, atol=1e-5
            )
    for path in ("c/kernel", "c/bias"):
        np.testing.assert_array_equal(found[path], merged[path])


@pytest.mark.parametrize("name", ["grouped convolution", "experts"])
def test_a_network_and_itself_permuted_stay_as_they_are(name, key):
    net = zoo.NETS[name]()
    spec = infer_spec(net.apply_fn, net.variables, net.batch)
    perms = random_permutations(spec, key)
    rows = {n: np.stack([stay(spec, 1)[n][0], perms[n]]) for n in spec.labels}
    models = [net.variables, permute(spec, net.variables, perms)]
    merged = combine(spec, models, rows)
    found = repair(spec, net.apply_fn, models, rows, merged, [net.batch])
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(merged), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)


def test_channels_inside_heads_are_repaired_too():
    spec, models = tiny.spec_of("attention"), draw("attention", 2)
    x, rows = tiny.batch(tiny.ATTENTION, 0), stay(spec, 2)
    merged = combine(spec, models, rows)
    found = repair(spec, tiny.ATTENTION.apply_fn, models, rows, merged, [x])
    for part, _ in enumerate("qkv"):
        y, *parents = [
            np.std(tiny.heads(v, x)[part], axis=(0, 1)) for v in (found, *models)
        ]
        np.testing.assert_allclose(y, np.mean(parents, axis=0), rtol=1e-4)


def test_what_was_done_is_told_for_every_layer():
    spec, models, x = tiny.spec_of("cnn"), draw("cnn", 2), tiny.batch(tiny.CNN, 0)
    rows = stay(spec, 2)
    merged = combine(spec, models, rows)
    _, notes = rescale_layers(
        Merger(spec, tiny.CNN.apply_fn, models, rows, (0.5, 0.5)), merged, [x]
    )
    rescaled = "rescaled to the parents' mean and standard deviation"
    fixed = "left alone: its units may not be permuted"
    reset = "reset to what goes into it in the merged network"
    assert notes == {
        "a/kernel": "left to the norm that follows",
        "norm/mean": reset,
        "norm/var": reset,
        "b/kernel": rescaled,
        "b/bias": rescaled,
        "c/kernel": fixed,
        "c/bias": fixed,
    }


def test_running_statistics_become_those_of_the_merged_network():
    spec, models, x = tiny.spec_of("cnn"), draw("cnn", 2), tiny.batch(tiny.CNN, 0)
    rows = stay(spec, 2)
    merged = combine(spec, models, rows)
    found = repair(spec, tiny.CNN.apply_fn, models, rows, merged, [x[:5], x[5:]])
    y = np.asarray(tiny.conv(x, merged["a/kernel"]), float)
    np.testing.assert_allclose(found["norm/mean"], y.mean(axis=(0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(found["norm/var"], y.var(axis=(0, 1, 2)), rtol=1e-4)


def test_without_a_bias_only_the_standard_deviation_is_repaired():
    def apply_fn(v, x):
        return jnp.tanh(x @ v["in"]) @ v["out"]

    shapes, x = {"in": (5, 8), "out": (8, 3)}, images()
    models = [nets.random_leaves(shapes, seed) for seed in "ab"]
    spec = infer_spec(apply_fn, models[0], x)
    rows = stay(spec, 2)
    merged = combine(spec, models, rows)
    found, notes = rescale_layers(
        Merger(spec, apply_fn, models, rows, (0.5, 0.5)), merged, [x]
    )
    assert (
        notes["in"]
        == "rescaled to the parents' standard deviation; there is no bias to shift"
    )
    expected = np.mean([np.std(x @ m["in"], axis=0) for m in models], axis=0)
    np.testing.assert_allclose(np.std(x @ found["in"], axis=0), expected, rtol=1e-4)


def test_a_unit_that_never_changes_is_left_alone():
    spec, models, x = tiny.spec_of("mlp"), draw("mlp", 2), images()
    for model in models:
        model["a/kernel"][:, 3] = 0
        model["b/kernel"][:, 2] *= 1e-12
    rows = stay(spec, 2)
    merged = combine(spec, models, rows)
    found = repair(spec, MLP.apply_fn, models, rows, merged, [x])
    assert all(np.isfinite(leaf).all() for leaf in found.values())
    for layer, unit in (("a", 3), ("b", 2)):
        for leaf in ("kernel", "bias"):
            path = f"{layer}/{leaf}"
            np.testing.assert_array_equal(
                found[path][..., unit], merged[path][..., unit]
            )


@pytest.mark.parametrize("name", ["tied embedding", "recurrence"])
def test_kernels_that_cannot_be_repaired_stay_and_are_told(name, caplog):
    net = zoo.NETS[name]()
    spec = infer_spec(net.apply_fn, net.variables, net.batch)
    models = [net.variables, jax.tree.map(lambda leaf: 2 * leaf, net.variables)]
    rows = stay(spec, 2)
    merged = combine(spec, models, rows)
    found, notes = rescale_layers(
        Merger(spec, net.apply_fn, models, rows, (0.5, 0.5)), merged, [net.batch]
    )
    for path, why in notes.items():
        if why.startswith("is "):
            np.testing.assert_array_equal(found[path], merged[path])
    repair(spec, net.apply_fn, models, rows, merged, [net.batch])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert re.match(
        r"repair: (1 leaf stays as it is|\d leaves stay as they are):\n  \w+ is used",
        record.message,
    )


def test_bfloat16_stays():
    spec, x = tiny.spec_of("mlp"), images()
    models = [
        {path: jnp.asarray(leaf, jnp.bfloat16) for path, leaf in model.items()}
        for model in draw("mlp", 2)
    ]
    rows = stay(spec, 2)
    found = repair(spec, MLP.apply_fn, models, rows, combine(spec, models, rows), [x])
    assert {leaf.dtype for leaf in found.values()} == {jnp.dtype(jnp.bfloat16)}
    y = preactivations(found, x)["a"]
    parents = [preactivations(m, x)["a"].std(axis=0) for m in models]
    np.testing.assert_allclose(y.std(axis=0), np.mean(parents, axis=0), rtol=2e-2)


def test_batches_are_needed():
    spec, models = tiny.spec_of("mlp"), draw("mlp", 2)
    rows = stay(spec, 2)
    merged = combine(spec, models, rows)
    text = (
        "repair: expected at least one batch, got none. Pass a list of batches; an "
        "iterator may have been read before."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        repair(spec, MLP.apply_fn, models, rows, merged, [])


def test_activations_that_are_not_finite_are_refused():
    spec, models, x = tiny.spec_of("mlp"), draw("mlp", 2), images().copy()
    rows = stay(spec, 2)
    merged = combine(spec, models, rows)
    x[3, 2] = np.inf
    text = (
        "repair: a/kernel: expected finite activations, got 8 of 8 units that are "
        "not. Check the range of the input."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        repair(spec, MLP.apply_fn, models, rows, merged, [x])


def test_a_network_that_changes_with_the_batch_is_refused():
    def apply_fn(v, x):
        x = jnp.tanh(x @ v["in"])
        return x @ v["out"] if len(x) > 4 else x.sum(axis=1)

    shapes = {"in": (5, 8), "out": (8, 3)}
    models = [nets.random_leaves(shapes, seed) for seed in "ab"]
    spec = infer_spec(apply_fn, models[0], images())
    rows = stay(spec, 2)
    merged = combine(spec, models, rows)
    text = (
        "repair: expected apply_fn to have the same layers for all batches, got "
        "others for some. Pass batches of one shape."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        repair(spec, apply_fn, models, rows, merged, [images(), images()[:3]])
