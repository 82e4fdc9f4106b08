import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from assignments import draw as draw_models, shuffled, stay, zipped
from flax import nnx

from jmudsc import (
    combine,
    paths,
    permute,
    pool_batch_stats,
    random_permutations,
    reset_batch_stats,
)

MOMENTA = (0.0, 0.5, 0.9, 0.99, 0.999, 0.123456789)
SIZES = (8, 3, 5)  # of batches
EPSILON = 1e-5


class Net(nn.Module):
    """A layer and a norm for every momentum."""

    @nn.compact
    def __call__(self, x, train=False):
        for number, momentum in enumerate(MOMENTA):
            x = nn.Dense(4, name=f"dense{number}")(x)
            norm = nn.BatchNorm(
                use_running_average=not train,
                momentum=momentum,
                epsilon=EPSILON,
                name=f"norm{number}",
            )
            x = nn.relu(norm(x))
        return x


def update_linen(variables, x):
    _, updated = Net().apply(variables, x, train=True, mutable=["batch_stats"])
    return {**variables, **updated}


def draw(seed=0):
    """Return linen variables and batches; no leaf is as it was initialised."""
    generator = np.random.default_rng(seed)
    x = jnp.zeros((2, 4))
    variables = jax.eval_shape(Net().init, jax.random.key(0), x)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(generator.uniform(0.5, 2, leaf.shape), leaf.dtype),
        variables,
    )
    variables["params"]["step"] = jnp.asarray(7)
    for number in range(len(MOMENTA)):
        kernel = generator.normal(size=(4, 4)).astype(np.float32)
        variables["params"][f"dense{number}"]["kernel"] = jnp.asarray(kernel)
    sizes = [
        generator.normal(number, 1 + number, (n, 4)) for number, n in enumerate(SIZES)
    ]
    return variables, [jnp.asarray(batch, jnp.float32) for batch in sizes]


def statistics_by_hand(params, batches):
    """Average the mean and variance of every batch, weighted by its size."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    total = {}
    for batch in batches:
        x = np.asarray(batch, np.float64)
        for number in range(len(MOMENTA)):
            dense, norm = params[f"dense{number}"], params[f"norm{number}"]
            x = x @ dense["kernel"] + dense["bias"]
            seen = {"mean": x.mean(axis=0), "var": x.var(axis=0)}
            x = (x - seen["mean"]) / np.sqrt(seen["var"] + EPSILON)
            x = np.maximum(x * norm["scale"] + norm["bias"], 0)
            for name, value in seen.items():
                path = f"batch_stats/norm{number}/{name}"
                total[path] = total.get(path, 0) + len(batch) * value
    examples = sum(map(len, batches))
    return {path: value / examples for path, value in total.items()}


def assert_reset(found, before, expected, tolerance=2e-5):
    found, before = paths.flatten(found), paths.flatten(before)
    assert list(found) == list(before)
    for path, leaf in found.items():
        assert leaf.dtype == before[path].dtype
        if path in expected:
            wanted = expected[path]
            np.testing.assert_allclose(leaf, wanted, rtol=tolerance, atol=1e-6)
        else:
            np.testing.assert_array_equal(leaf, before[path])
    assert set(expected) <= set(found)


def test_statistics_become_the_mean_over_batches_whatever_the_momentum():
    variables, batches = draw()
    found = reset_batch_stats(update_linen, variables, batches)
    expected = statistics_by_hand(variables["params"], batches)
    assert_reset(found, variables, expected)


def test_statistics_do_not_depend_on_those_before_or_on_the_order_of_batches():
    variables, batches = draw()
    found = reset_batch_stats(update_linen, variables, batches)
    zeros = {
        **variables,
        "batch_stats": jax.tree.map(jnp.zeros_like, found["batch_stats"]),
    }
    other = reset_batch_stats(update_linen, zeros, iter(batches[::-1]))
    expected = paths.flatten({"batch_stats": found["batch_stats"]})
    assert_reset(other, zeros, expected, tolerance=1e-5)


def test_statistics_of_the_first_batch_are_reset_too():
    """Where they are already those of the first batch an update leaves them as is."""
    variables, batches = draw()
    once = reset_batch_stats(update_linen, variables, batches[:1])
    again = reset_batch_stats(update_linen, once, batches)
    assert_reset(again, once, statistics_by_hand(variables["params"], batches))


def test_statistics_in_bfloat16_are_only_rounded_at_the_end():
    variables, batches = draw()
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables["batch_stats"])
    found = reset_batch_stats(update_linen, {**variables, "batch_stats": half}, batches)
    expected = statistics_by_hand(variables["params"], batches)
    assert_reset(
        {"batch_stats": found["batch_stats"]}, {"batch_stats": half}, expected, 2**-8
    )


def test_nnx_networks_are_reset_too():
    class Small(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(4, 3, rngs=rngs)
            self.norm = nnx.BatchNorm(3, momentum=0.99, rngs=rngs)

        def __call__(self, x):
            return nnx.relu(self.norm(self.dense(x)))

    graph, state = nnx.split(Small(nnx.Rngs(0)))

    def update_fn(state, x):
        model = nnx.merge(graph, state)
        model(x)
        return nnx.state(model)

    _, batches = draw()
    found = reset_batch_stats(update_fn, state, batches)
    kernel, bias = (
        np.asarray(state["dense"][name][...], np.float64) for name in ("kernel", "bias")
    )
    y = [np.asarray(x, np.float64) @ kernel + bias for x in batches]
    names = [path for path in paths.flatten(state) if "/mean" in path or "/var" in path]
    values = [
        np.average([f(x, axis=0) for x in y], axis=0, weights=SIZES)
        for f in (np.mean, np.var)
    ]
    assert_reset(found, state, dict(zip(names, values, strict=True)))


def update_plain(variables, x):
    return {
        **variables,
        "mean": 0.9 * variables["mean"] + 0.1 * x.mean(axis=0),
        "seen": variables["seen"] + 1,
        "share": variables["share"] + 1,
    }


def plain():
    return {
        "mean": np.zeros(3, np.float32),
        "scale": np.ones(3, np.float32),
        "seen": np.int32(41),
        "share": np.float32(41),
    }


def test_counters_stay_as_they_are():
    batches = [np.full((2, 3), value, np.float32) for value in (1, 3)]
    found = reset_batch_stats(update_plain, plain(), batches)
    np.testing.assert_allclose(found["mean"], [2, 2, 2], rtol=1e-6)
    assert found["seen"] == found["share"] == 41
    assert found["seen"].dtype == np.int32


def test_a_batch_counts_by_its_number_of_examples():
    def update_fn(variables, batch):
        return {"mean": 0.5 * variables["mean"] + 0.5 * batch["x"].mean()}

    batches = [
        {"x": np.full(n, value, np.float32), "y": np.zeros(1)}
        for n, value in ((1, 8.0), (3, 0.0))
    ]
    found = reset_batch_stats(update_fn, {"mean": np.float32(5)}, batches)
    np.testing.assert_allclose(found["mean"], 2, rtol=1e-6)


def test_equal_batches_are_traced_once():
    traced = []

    def update_fn(variables, x):
        traced.append(x.shape)
        return update_plain(variables, x)

    batches = [np.ones((n, 3), np.float32) for n in (4, 4, 2, 4)]
    reset_batch_stats(update_fn, plain(), batches)
    assert set(traced) == {(4, 3), (2, 3)}
    assert len(traced) == 2


def test_no_batches_are_refused():
    text = (
        "reset_batch_stats: expected at least one batch, got none. Pass a list of "
        "batches; an iterator may have been read before."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        reset_batch_stats(update_plain, plain(), [])


def test_an_update_that_moves_nothing_is_refused():
    text = (
        "reset_batch_stats: update_fn: expected it to move at least one running "
        "statistic, got none on batch 0. Run the model in training mode and return "
        "its updated variables."
    )
    for update_fn in (
        lambda variables, x: variables,
        lambda variables, x: {**variables, "share": variables["share"] + 1},
    ):
        with pytest.raises(ValueError, match=re.escape(text)):
            reset_batch_stats(update_fn, plain(), [np.ones((2, 3), np.float32)])


def test_an_update_that_changes_the_tree_is_refused():
    def update_fn(variables, x):
        more = {**update_plain(variables, x), "loss": x.sum()}
        del more["scale"]
        return more

    text = (
        "reset_batch_stats: update_fn: expected variables of the structure it was "
        "given, got others. The difference is:\n"
        "  loss\n"
        "  scale\n"
        "Return all variables, not only those that were updated."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        reset_batch_stats(update_fn, plain(), [np.ones((2, 3), np.float32)])


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_statistics_that_are_not_finite_are_refused(number, bad):
    batches = [np.ones((2, 3), np.float32) for _ in range(2)]
    batches[number][1, 2] = bad
    text = (
        f"reset_batch_stats: mean: expected finite values, got others after batch "
        f"{number}. Check the range of the input."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        reset_batch_stats(update_plain, plain(), batches)


MEAN, VARIANCE = "norm/mean", "norm/var"


def mixture(models, rows, shares):
    """Pool unit by unit: the mean and variance of draws from all that share one."""
    size = rows.shape[1]
    mean, variance = np.zeros(size), np.zeros(size)
    for merged in range(size):
        members = [
            (shares[i], float(model[MEAN][j]), float(model[VARIANCE][j]))
            for i, model in enumerate(models)
            for j in np.flatnonzero(rows[i] == merged)
        ]
        w, m, v = np.array(members).T
        w = w / w.sum()
        mean[merged] = (w * m).sum()
        variance[merged] = (w * (v + m**2)).sum() - mean[merged] ** 2
    return {MEAN: mean, VARIANCE: variance}


@pytest.mark.parametrize("assign", [stay, shuffled, zipped])
@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 5.0)])
def test_statistics_become_those_of_the_mixture(assign, weights):
    spec, models = tiny.spec_of("cnn"), draw_models("cnn", 3)
    rows = assign(spec, 3)
    merged = combine(spec, models, rows, weights)
    found = pool_batch_stats(spec, models, rows, merged, weights)
    shares = np.array(weights or (1, 1, 1)) / np.sum(weights or (1, 1, 1))
    name = tiny.label_at(spec, MEAN, 0)
    expected = mixture(models, rows[name], shares)
    for path, leaf in merged.items():
        if path in expected:
            np.testing.assert_allclose(found[path], expected[path], rtol=1e-5)
        else:
            np.testing.assert_array_equal(found[path], leaf)


def test_a_network_and_itself_permuted_keep_their_statistics(key):
    spec, parent = tiny.spec_of("cnn"), draw_models("cnn", 1)[0]
    perms = random_permutations(spec, key)
    rows = {n: np.stack([stay(spec, 1)[n][0], perms[n]]) for n in spec.labels}
    models = [parent, permute(spec, parent, perms)]
    merged = combine(spec, models, rows)
    found = pool_batch_stats(spec, models, rows, merged)
    for path in (MEAN, VARIANCE):
        np.testing.assert_array_equal(found[path], parent[path])


def test_a_mean_far_above_the_standard_deviation_does_not_cancel():
    spec, models = tiny.spec_of("cnn"), draw_models("cnn", 2)
    for number, model in enumerate(models):
        model[MEAN] = np.full(6, 1e4 + number, np.float32)
        model[VARIANCE] = np.full(6, 1e-2, np.float32)
    rows = stay(spec, 2)
    found = pool_batch_stats(spec, models, rows, combine(spec, models, rows))
    np.testing.assert_allclose(found[VARIANCE], 0.26, rtol=1e-5)


def test_bfloat16_stays_and_is_rounded_at_the_end():
    spec, models = tiny.spec_of("cnn"), draw_models("cnn", 2)
    half = [{p: jnp.asarray(x, jnp.bfloat16) for p, x in m.items()} for m in models]
    rows = stay(spec, 2)
    found = pool_batch_stats(spec, half, rows, combine(spec, half, rows))
    expected = mixture(half, rows[tiny.label_at(spec, MEAN, 0)], (0.5, 0.5))
    for path, value in expected.items():
        assert found[path].dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(found[path], float), value, rtol=2**-8)


def test_a_spec_that_pairs_nothing_is_refused():
    text = (
        "pool_batch_stats: spec: expected at least one running mean paired with a "
        "variance, got none. Derive the spec with infer_spec, or leave networks "
        "without BatchNorm as they are."
    )
    spec, models = (
        dataclasses.replace(tiny.spec_of("cnn"), variances={}),
        draw_models("cnn", 2),
    )
    rows = stay(spec, 2)
    with pytest.raises(ValueError, match=re.escape(text)):
        pool_batch_stats(spec, models, rows, combine(spec, models, rows))
