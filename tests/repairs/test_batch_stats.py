import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jmudsc import paths, reset_batch_stats

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
        "reset_batch_stats: update_fn moved no running statistic on batch 0, at least "
        "one is needed; run the model in training mode and return its updated "
        "variables."
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
        "reset_batch_stats: update_fn changed the tree, it must return variables of "
        "the same structure; the difference is:\n"
        "  loss\n"
        "  scale"
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        reset_batch_stats(update_fn, plain(), [np.ones((2, 3), np.float32)])


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_statistics_that_are_not_finite_are_refused(number, bad):
    batches = [np.ones((2, 3), np.float32) for _ in range(2)]
    batches[number][1, 2] = bad
    text = (
        f"reset_batch_stats: mean is not finite after batch {number}, it must be; "
        "check the range of the input."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        reset_batch_stats(update_plain, plain(), batches)
