import re

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
import scipy.linalg
import tiny
import zoo
from assignments import draw, shuffled, stay, zipped
from mlp import images, preactivations

from jmudsc import combine, infer_spec, permute, random_permutations, refit
from jmudsc.repairs.least_squares import refit_layers
from jmudsc.repairs.merger import Merger
from jmudsc.repairs.normal_equations import shift_of, solve, Uses
from jmudsc.repairs.regression import Regression

MLP = tiny.MLP


def error(v, models, rows, spec, x, shares):
    """Square the distance of a first layer from the mean of its parents."""
    wanted = wanted_first(models, rows, spec, x, shares)
    return np.square(preactivations(v, x)["a"] - wanted).mean(axis=0)


def wanted_first(models, rows, spec, x, shares):
    row = rows[tiny.label_at(spec, "a/bias", 0)]
    total, weight = np.zeros((len(x), 8)), np.zeros(8)
    for model, own, share in zip(models, row, shares, strict=True):
        np.add.at(total.T, own, share * preactivations(model, x)["a"].T)
        np.add.at(weight, own, share)
    return total / weight


@pytest.mark.parametrize("assign", [stay, shuffled, zipped])
def test_no_unit_comes_further_from_its_parents_than_the_average(assign):
    """In a first layer of zipped networks the average does not fit the biases."""
    spec, models, x = tiny.spec_of("mlp"), draw("mlp", 2), images()
    rows = assign(spec, 2)
    merged = combine(spec, models, rows)
    found = refit(
        spec, MLP.apply_fn, models, rows, merged, [x[:20], x[20:]], target="ensemble"
    )
    before, after = (
        error(v, models, rows, spec, x, (0.5, 0.5)) for v in (merged, found)
    )
    assert (after <= before + 1e-9).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("assign", [shuffled, zipped])
def test_the_last_map_comes_nearer_to_the_outputs_of_the_parents(assign, seed):
    spec, models, x = tiny.spec_of("mlp"), draw("mlp", 2), images()
    rows = assign(spec, 2, seed)
    merged = combine(spec, models, rows)
    found = refit(
        spec, MLP.apply_fn, models, rows, merged, [x], ridge=1e-4, target="ensemble"
    )
    wanted = np.mean([MLP.apply_fn(m, x) for m in models], axis=0)
    half = {**found, **{p: merged[p] for p in ("c/kernel", "c/bias")}}
    errors = [np.square(MLP.apply_fn(v, x) - wanted).mean() for v in (found, half)]
    assert errors[0] < errors[1]
    assert errors[0] < np.square(MLP.apply_fn(merged, x) - wanted).mean()


def assert_is_fitted(found, merged, into, wanted, ridge):
    """Hold the second layer against ridge regression, written as least squares."""
    kernel = np.asarray(merged["b/kernel"], float)
    n, d = into.shape
    penalty = np.sqrt(n * ridge * into.var(axis=0).mean()) * np.eye(d)
    left = np.block([[into, np.ones((n, 1))], [penalty, np.zeros((d, 1))]])
    right = np.concatenate([wanted, penalty @ kernel])
    expected = np.linalg.lstsq(left, right, rcond=None)[0]
    np.testing.assert_allclose(found["b/kernel"], expected[:-1], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found["b/bias"], expected[-1], rtol=1e-3, atol=1e-5)


def test_a_layer_is_what_least_squares_give():
    spec, models, x = tiny.spec_of("mlp"), draw("mlp", 2), images()
    rows, ridge, weights = shuffled(spec, 2), 0.1, (0.75, 0.25)
    merged = combine(spec, models, rows, weights)
    options = {"ridge": ridge, "weights": weights, "target": "ensemble"}
    found = refit(spec, MLP.apply_fn, models, rows, merged, [x], **options)
    into = np.maximum(preactivations(found, x)["a"], 0)
    row = rows[tiny.label_at(spec, "b/bias", 0)]
    wanted = sum(
        w * preactivations(m, x)["b"][:, r.argsort()]
        for w, m, r in zip(weights, models, row, strict=True)
    )
    assert_is_fitted(found, merged, into, wanted, ridge)


@pytest.mark.parametrize("name", ["attention", "grouped convolution", "experts"])
def test_a_network_and_itself_permuted_stay_as_they_are(name, key):
    net = zoo.NETS[name]()
    spec = infer_spec(net.apply_fn, net.variables, net.batch)
    perms = random_permutations(spec, key)
    rows = {n: np.stack([stay(spec, 1)[n][0], perms[n]]) for n in spec.labels}
    models = [net.variables, permute(spec, net.variables, perms)]
    merged = combine(spec, models, rows)
    found = refit(spec, net.apply_fn, models, rows, merged, [net.batch])
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(merged), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=5e-6)


def test_a_batch_is_fitted_to_what_its_owner_makes_of_it():
    spec, models, x = tiny.spec_of("mlp"), draw("mlp", 2), images()
    rows, ridge, owners = shuffled(spec, 2), 0.1, [1, 0, 1]
    batches = [x[:20], x[20:30], x[30:]]
    merged = combine(spec, models, rows)
    parts = spec, MLP.apply_fn, models, rows, merged, batches
    found = refit(*parts, ridge=ridge, owners=owners)
    row = rows[tiny.label_at(spec, "b/bias", 0)]
    wanted = np.concatenate(
        [
            preactivations(models[owner], batch)["b"][:, row[owner].argsort()]
            for owner, batch in zip(owners, batches, strict=True)
        ]
    )
    into = np.maximum(preactivations(found, x)["a"], 0)
    assert_is_fitted(found, merged, into, wanted, ridge)


def test_units_without_one_of_the_owner_follow_the_mean():
    """With zip a merged unit may have members of one model only.

    A first layer, which is affine in x, fits the mean of what is wanted of it exactly.
    """
    spec, models, x = tiny.spec_of("mlp"), draw("mlp", 2), images()
    rows = zipped(spec, 2)
    row = rows[tiny.label_at(spec, "a/bias", 0)]
    own = np.full((2, len(x), 8), np.nan)
    for n, unit in np.ndindex(2, 8):
        if unit in row[n]:
            members = preactivations(models[n], x)["a"][:, row[n] == unit]
            own[n, :, unit] = members.mean(axis=1)
    assert np.isnan(own).any()
    mean = wanted_first(models, rows, spec, x, (0.5, 0.5))
    wanted = np.where(np.isnan(own), mean, own).mean(axis=0)
    parts = spec, MLP.apply_fn, models, rows, combine(spec, models, rows)
    found = refit(*parts, [x, x], owners=[0, 1], ridge=1e-7)
    used = [unit for unit in range(8) if unit in row]
    first = preactivations(found, x)["a"]
    np.testing.assert_allclose(first[:, used], wanted[:, used], atol=1e-3)


@pytest.mark.parametrize("name", ["attention", "grouped convolution"])
def test_with_owners_a_network_and_itself_permuted_stay_too(name, key):
    net = zoo.NETS[name]()
    spec = infer_spec(net.apply_fn, net.variables, net.batch)
    perms = random_permutations(spec, key)
    rows = {n: np.stack([stay(spec, 1)[n][0], perms[n]]) for n in spec.labels}
    models = [net.variables, permute(spec, net.variables, perms)]
    merged = combine(spec, models, rows)
    parts = spec, net.apply_fn, models, rows, merged, [net.batch] * 2
    found = refit(*parts, owners=[1, 0])
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(merged), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=5e-6)


@pytest.mark.parametrize(
    ("owners", "text"),
    [
        (
            [0, 0],
            "refit: owners: expected for each batch the number of the model whose "
            "task it is from, each of 0 to 1 at least once, got no batch of model "
            "1. Count the batches of each task.",
        ),
        (
            [0, 1, 2, -1],
            "refit: owners: expected for each batch the number of the model whose "
            "task it is from, each of 0 to 1 at least once, got -1, 2. Count the "
            "batches of each task.",
        ),
        (
            [0, 1, 1],
            "refit: owners: expected one for each of the 2 batches, got 3. Count "
            "the batches of each task.",
        ),
    ],
)
def test_owners_that_do_not_fit_are_refused(owners, text):
    spec, models, x = tiny.spec_of("mlp"), draw("mlp", 2), images()
    rows = stay(spec, 2)
    parts = spec, MLP.apply_fn, models, rows, combine(spec, models, rows)
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        refit(*parts, [x[:20], x[20:]], owners=owners)


def test_a_model_of_all_the_weight_is_returned():
    spec, models, x = tiny.spec_of("mlp"), draw("mlp", 2), images()
    rows = {name: row.copy() for name, row in shuffled(spec, 2).items()}
    for name, label in spec.labels.items():
        rows[name][0] = np.arange(label.size)
    merged = combine(spec, models, rows, (1.0, 0.0))
    found = refit(spec, MLP.apply_fn, models, rows, merged, [x], weights=(1.0, 0.0))
    for path, leaf in models[0].items():
        np.testing.assert_allclose(found[path], leaf, rtol=1e-5, atol=1e-6)


def as_dense(conv):
    """Write a 3x3 convolution without padding as a dense layer on its windows."""

    def apply_fn(v, x):
        y = jax.nn.relu(conv(v, x) + v["bias"][None])
        return y @ v["out"]

    return apply_fn


def test_a_convolution_is_fitted_as_the_dense_layer_of_its_windows():
    def convolved(v, x):
        y = jax.lax.conv_general_dilated(
            x, v["in"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y.reshape(-1, 6)

    def dense(v, x):
        windows = [x[:, i : i + 3, j : j + 3] for i in range(2) for j in range(3)]
        x = jnp.stack(windows, axis=1).reshape(-1, 18)
        return x @ v["in"].reshape(18, 6)

    shapes, x = {"in": (3, 3, 2, 6), "bias": (6,), "out": (6, 3)}, draw_images()
    models = [nets.random_leaves(shapes, seed) for seed in "ab"]
    found = []
    for layer in (convolved, dense):
        apply_fn = as_dense(layer)
        spec = infer_spec(apply_fn, models[0], x)
        rows = shuffled(spec, 2)
        merged = combine(spec, models, rows)
        found.append(refit(spec, apply_fn, models, rows, merged, [x[:3], x[3:]]))
    for path in shapes:
        np.testing.assert_allclose(found[0][path], found[1][path], rtol=1e-3, atol=1e-5)


def draw_images():
    return np.random.default_rng(0).normal(size=(9, 4, 5, 2)).astype(np.float32)


def test_running_statistics_are_those_of_the_fitted_network():
    spec, models, x = tiny.spec_of("cnn"), draw("cnn", 2), tiny.batch(tiny.CNN, 0)
    rows = stay(spec, 2)
    merged = combine(spec, models, rows)
    found, notes = refit_layers(
        Merger(spec, tiny.CNN.apply_fn, models, rows, (0.5, 0.5)), merged, [x]
    )
    y = np.asarray(tiny.conv(x, found["a/kernel"]), float)
    np.testing.assert_allclose(
        found["norm/mean"], y.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(found["norm/var"], y.var(axis=(0, 1, 2)), rtol=1e-4)
    assert notes["norm/var"] == "reset to what goes into it in the merged network"
    assert notes["a/kernel"] == notes["c/bias"] == "refit by least squares"


def test_bfloat16_stays():
    spec, x = tiny.spec_of("mlp"), images()
    models = [
        {path: jnp.asarray(leaf, jnp.bfloat16) for path, leaf in model.items()}
        for model in draw("mlp", 2)
    ]
    rows = stay(spec, 2)
    found = refit(spec, MLP.apply_fn, models, rows, combine(spec, models, rows), [x])
    assert {leaf.dtype for leaf in found.values()} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("has_shift", [True, False])
def test_the_solution_is_that_of_ridge_regression(has_shift):
    generator = np.random.default_rng(0)
    x, r = generator.normal(1, 1, (30, 4)), generator.normal(2, 1, (30, 3))
    both = np.concatenate([x, r], axis=1)
    mean = both.mean(axis=0)
    comoment = (both - mean)[:, :4].T @ (both - mean)
    total = Regression(30, jnp.asarray(mean[None, None]), jnp.asarray(comoment[None]))
    change = solve([Uses(total, has_shift)], 0.5)
    shift = shift_of(Uses(total, has_shift), change)
    middle = mean if has_shift else 0 * mean
    a, b = (both - middle)[:, :4], (both - middle)[:, 4:]
    penalty = np.sqrt(0.5 * np.square(a).sum() / 4) * np.eye(4)
    left, right = np.concatenate([a, penalty]), np.concatenate([b, np.zeros((4, 3))])
    expected = scipy.linalg.lstsq(left, right)[0]
    np.testing.assert_allclose(change[0], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(shift[0, 0], mean[4:] - mean[:4] @ change[0], rtol=1e-6)


def test_inputs_that_are_all_zero_change_nothing():
    total = Regression(5, jnp.zeros((2, 1, 7)), jnp.zeros((2, 4, 7)))
    change = solve([Uses(total, True)], 1e-2)
    shift = shift_of(Uses(total, True), change)
    assert not change.any()
    assert not shift.any()


@pytest.mark.parametrize("ridge", [0.0, -1.0, np.inf, np.nan])
def test_a_ridge_that_is_not_above_zero_is_refused(ridge):
    spec, models = tiny.spec_of("mlp"), draw("mlp", 2)
    text = f"refit: ridge: expected a finite number above 0, got {ridge}. Try 0.01."
    with pytest.raises(ValueError, match=re.escape(text)):
        refit(spec, MLP.apply_fn, models, {}, models[0], [images()], ridge=ridge)


def test_activations_that_are_not_finite_are_refused():
    spec, models, x = tiny.spec_of("mlp"), draw("mlp", 2), images().copy()
    rows = stay(spec, 2)
    x[3, 2] = np.inf
    text = (
        "refit: a/kernel: expected finite activations, got some that are not. "
        "Check the range of the input."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        refit(spec, MLP.apply_fn, models, rows, combine(spec, models, rows), [x])
