import re

import dense
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jmudsc import collect, infer_spec
from jmudsc.matching.cross_moments import cross_moments_over
from jmudsc.matching.moments import centered, merge_moments, moments_over
from jmudsc.matching.similarity import activation_similarity

# The co-moment is good to this share of the product of the deviations; the mean to this
# share of the deviation or a few units in its last place, which is what a mean of 1000
# deviations leaves of the co-moment when batches are merged.
STATE = 2e-6
STATE_OF_LARGE_MEANS = 1e-4


def one_shot(samples):
    """Compute count, mean and co-moment in float64."""
    x = np.asarray(samples, np.float64)
    centered = x - x.mean(axis=0)
    return len(x), x.mean(axis=0), centered.T @ centered


def assert_moments(moments, samples, tolerance=STATE):
    count, mean, comoment = one_shot(samples)
    assert moments.count == count
    assert moments.mean.dtype == moments.comoment.dtype == jnp.float32
    norms = np.sqrt(np.diag(comoment))
    worst = np.abs(moments.mean - mean) - 5e-7 * np.abs(mean)
    assert (worst <= tolerance * norms / np.sqrt(count)).all()
    error = np.abs(moments.comoment - comoment)
    assert (error <= tolerance * np.outer(norms, norms)).all()


def moments_of(units):
    return moments_over(len(units), [[centered(x) for x in units]])


def draw(samples, units, mean=0.0, seed=0):
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(samples, units)) @ generator.normal(
        size=(units, units)
    )
    deviation = mixed.std(axis=0)
    return (mixed + mean * deviation).astype(np.float32)


@pytest.mark.parametrize("mean", [0.0, 1.0, 1e3])
@pytest.mark.parametrize(
    "sizes", [[48], [1] * 48, [24, 24], [1, 46, 1], [5, 30, 2, 11]], ids=str
)
def test_streamed_moments_are_those_of_all_samples(mean, sizes):
    a, b = draw(48, 4, mean, seed=1), draw(48, 4, mean, seed=2)
    total = None
    for x, y in zip(
        np.split(a, np.cumsum(sizes)[:-1]),
        np.split(b, np.cumsum(sizes)[:-1]),
        strict=True,
    ):
        seen = moments_of([x, y])
        total = merge_moments(total, seen) if total else seen
    tolerance = STATE_OF_LARGE_MEANS if abs(mean) > 1 else STATE
    assert_moments(total, np.concatenate([a, b], axis=1), tolerance)
    similarity = activation_similarity(total)
    expected = dense.pearson(np.concatenate([a, b], axis=1).T)
    np.testing.assert_allclose(similarity, expected, atol=tolerance)


def test_moments_merge_in_any_order():
    parts = [moments_of([draw(n, 3, seed=n)]) for n in (4, 9, 2)]
    left = merge_moments(merge_moments(parts[0], parts[1]), parts[2])
    right = merge_moments(parts[2], merge_moments(parts[1], parts[0]))
    assert left.count == right.count
    np.testing.assert_allclose(left.mean, right.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(left.comoment, right.comoment, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("samples", [1000, 200_000])
def test_many_samples_with_a_large_mean_lose_nothing(samples):
    x = draw(samples, 32, mean=1e3)
    assert_moments(moments_of([x]), x)
    similarity = activation_similarity(moments_of([x]))
    np.testing.assert_allclose(similarity, dense.pearson(x.T), atol=STATE)


@pytest.mark.parametrize("samples", [7, 1000, 200_000])
def test_units_that_never_change_have_correlation_0(samples):
    constants = np.float32([0, 0.1, -3.3, 123.456, 1e-30])
    x = np.concatenate(
        [np.tile(constants, (samples, 1)), draw(samples, 2, mean=10.0)], axis=1
    )
    similarity = activation_similarity(moments_of([x, x]))
    changing = np.array([False] * 5 + [True] * 2)
    changing = np.concatenate([changing, changing])
    assert (similarity[~changing] == 0).all()
    assert (similarity[:, ~changing] == 0).all()
    assert (similarity[np.ix_(changing, changing)] != 0).all()


def test_correlations_are_symmetric_and_at_most_one():
    x = draw(200, 6, mean=100.0)
    copies = np.concatenate([x, -x, 3 * x], axis=1)
    similarity = activation_similarity(moments_of([copies]))
    assert (similarity == similarity.T).all()
    assert np.abs(similarity).max() <= 1
    np.testing.assert_allclose(np.diag(similarity), 1, atol=1e-5)
    np.testing.assert_allclose(np.diag(similarity[:6, 6:12]), -1, atol=1e-5)
    np.testing.assert_allclose(np.diag(similarity[:6, 12:]), 1, atol=1e-5)


# Activations by hand, one (samples, units) array per label.


def relu(x):
    return np.maximum(x, 0)


def mlp_units(v, x):
    first = relu(x @ v["a/kernel"] + v["a/bias"])
    return {"a/bias": first, "b/bias": relu(first @ v["b/kernel"] + v["b/bias"])}


def convolved(x, kernel):
    """A 3 x 3 convolution with a border of zeros, by sums over shifted images."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = x.shape[1:3]
    return sum(
        padded[:, i : i + rows, j : j + columns] @ kernel[i, j]
        for i in range(3)
        for j in range(3)
    )


def cnn_units(v, x):
    y = convolved(x, v["a/kernel"])
    y = (y - v["norm/mean"]) / np.sqrt(v["norm/var"] + 1e-5)
    first = relu(y * v["norm/scale"] + v["norm/bias"])
    second = relu(convolved(first, v["b/kernel"]) + v["b/bias"])
    return {"norm/bias": first.reshape(-1, 6), "b/bias": second.reshape(-1, 5)}


@pytest.mark.parametrize(
    ("name", "units", "models"),
    [("mlp", mlp_units, 1), ("mlp", mlp_units, 3), ("cnn", cnn_units, 2)],
)
def test_collected_moments_are_those_of_activations_by_hand(name, units, models):
    """Over all examples, and all positions of an image."""
    net, spec = tiny.NETS[name], tiny.spec_of(name)
    batches = [tiny.batch(net, seed, size) for seed, size in enumerate((5, 8, 5))]
    every = [tiny.variables(net, seed) for seed in range(models)]
    moments = collect(spec, net.apply_fn, every, batches)
    wide = [{path: leaf.astype(np.float64) for path, leaf in v.items()} for v in every]
    seen = [units(v, np.concatenate(batches)) for v in wide]
    assert sorted(moments) == sorted(spec.labels)
    for path in seen[0]:
        found = moments[tiny.label_at(spec, path, 0)]
        samples = np.concatenate([model[path] for model in seen], axis=1)
        assert_moments(found, samples)
        np.testing.assert_allclose(
            activation_similarity(found), dense.pearson(samples.T), atol=1e-5
        )


def test_queries_and_keys_are_both_read():
    net, spec = tiny.ATTENTION, tiny.spec_of("attention")
    every, x = [tiny.variables(net, seed) for seed in range(2)], tiny.batch(net, 0, 6)
    moments = collect(spec, net.apply_fn, every, [x[:2], x[2:]])
    read = [
        [np.asarray(y, np.float64).reshape(6 * 4, -1) for y in tiny.heads(v, x)]
        for v in every
    ]
    keyed = np.concatenate([np.concatenate([q, k]) for q, k, _ in read], axis=1)
    assert_moments(moments[spec.axes["q/kernel"][2].label], keyed)
    # The values are read after mixing, at the operand of their last contraction.
    values = moments[spec.axes["v/kernel"][2].label]
    assert values.count == 6 * 4
    assert len(values.mean) == 2 * 3 * 5


def test_the_mixed_values_are_what_goes_into_the_last_product():
    net, spec = tiny.ATTENTION, tiny.spec_of("attention")
    v, x = tiny.variables(net, 0), tiny.batch(net, 0, 6)
    moments = collect(spec, net.apply_fn, [v], [x])
    q, k, values = (np.asarray(y, np.float64) for y in tiny.heads(v, x))
    scores = np.exp(np.einsum("bthc,bshc->bhts", q, k))
    weights = scores / scores.sum(axis=-1, keepdims=True)
    mixed = np.einsum("bhts,bshc->bthc", weights, values).reshape(24, -1)
    assert_moments(moments[spec.axes["v/kernel"][2].label], mixed)


def test_statistics_are_float32_whatever_the_parameters_are():
    net, spec = tiny.MLP, tiny.spec_of("mlp")
    v = {
        path: jnp.asarray(x, jnp.bfloat16) for path, x in tiny.variables(net, 0).items()
    }
    x = jnp.asarray(tiny.batch(net, 0, 500), jnp.bfloat16)
    for found in collect(spec, net.apply_fn, [v, v], [x, x + 1]).values():
        assert found.mean.dtype == found.comoment.dtype == jnp.float32
        units = len(found.mean) // 2
        similarity = activation_similarity(found)
        # The two models are the same, in every block and to the last bit of the sums.
        np.testing.assert_allclose(
            similarity[:units, :units], similarity[:units, units:], atol=1e-6
        )


def test_batches_of_one_shape_are_traced_once():
    traced = []

    def apply_fn(variables, x):
        traced.append(x.shape)
        return tiny.MLP.apply_fn(variables, x)

    batches = [tiny.batch(tiny.MLP, seed, size) for seed, size in enumerate((4, 4, 7))]
    every = [tiny.variables(tiny.MLP, seed) for seed in range(3)]
    collect(tiny.spec_of("mlp"), apply_fn, every, [*batches, *batches])
    assert sorted(traced) == [(4, 5), (7, 5)]


def test_batches_may_be_any_tree_and_are_read_once():
    net, spec = tiny.MLP, tiny.spec_of("mlp")
    v, x = tiny.variables(net, 0), tiny.batch(net, 0)

    def apply_fn(variables, batch):
        return net.apply_fn(variables, batch["image"])

    batches = ({"image": part, "label": None} for part in np.split(x, 2))
    found = collect(spec, apply_fn, [v], batches)
    expected = collect(spec, net.apply_fn, [v], [x])
    for name in spec.labels:
        np.testing.assert_allclose(
            found[name].comoment, expected[name].comoment, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("derived", [False, True])
def test_a_label_that_no_activation_has_is_left_out(derived):
    """The label between two kernels that are multiplied, before any input comes."""
    net, spec = tiny.LOW_RANK, tiny.low_rank_spec()
    v, x = tiny.variables(net, 0), tiny.batch(net, 0)
    if derived:
        spec = infer_spec(net.apply_fn, v, x)
    rank, hidden = (axis.label for axis in spec.axes["up/kernel"])
    assert sorted(spec.labels) == sorted([rank, hidden])
    moments = collect(spec, net.apply_fn, [v], [x])
    assert list(moments) == [hidden]
    samples = relu(x @ (v["down/kernel"] @ v["up/kernel"]))
    assert_moments(moments[hidden], samples)


def test_no_batches_are_refused():
    text = (
        "collect: expected at least one batch, got none. Pass a list of batches; an "
        "iterator may have been read before."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        collect(
            tiny.spec_of("mlp"), tiny.MLP.apply_fn, [tiny.variables(tiny.MLP, 0)], []
        )


def test_activations_that_are_not_finite_are_refused():
    net, spec = tiny.MLP, tiny.spec_of("mlp")
    good, bad = tiny.variables(net, 0), tiny.variables(net, 1)
    bad["a/bias"][[2, 5]] = np.inf
    first, second = (tiny.label_at(spec, path, 0) for path in ("a/bias", "b/bias"))
    inside = bad["b/kernel"][[2, 5]]
    later = int(((inside > 0).any(axis=0)).sum())  # inf, or the nan of inf - inf
    text = (
        "collect: expected finite activations, got others in batch 1:\n"
        f"  {first}: 2 of 8 units of model 1 are NaN or infinite\n"
        f"  {second}: {later} of 6 units of model 1 are NaN or infinite\n"
        "Check the range of the input."
    )
    poison = {**good, "a/bias": good["a/bias"]}

    def apply_fn(variables, batch):
        x, share = batch
        mixed = variables["a/bias"]
        safe = jnp.where(jnp.isfinite(mixed), mixed, 0)
        return net.apply_fn({**variables, "a/bias": jnp.where(share, mixed, safe)}, x)

    x = tiny.batch(net, 0)
    batches = [(x, np.False_), (x, np.True_)]
    with pytest.raises(ValueError, match=re.escape(text)):
        collect(spec, apply_fn, [poison, bad], batches)


def test_models_that_the_spec_does_not_fit_are_refused():
    v = tiny.variables(tiny.MLP, 0)
    other = {**v, "a/bias": np.ones(9, np.float32)}
    text = (
        "collect: expected variables that the spec fits, got others:\n"
        "  a/bias: the spec says shape (8,), got (9,)\n"
        "Derive it from these variables with infer_spec."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        collect(
            tiny.spec_of("mlp"),
            tiny.MLP.apply_fn,
            [v, other],
            [tiny.batch(tiny.MLP, 0)],
        )


@pytest.mark.parametrize("mean", [0.0, 1.0, 1e3])
@pytest.mark.parametrize("known", [0, 1, 2, 3])
def test_moments_over_sets_are_those_of_all_their_samples(known, mean):
    sets = [[draw(n, 4, mean, 2 * n), draw(n, 4, mean, 2 * n + 1)] for n in (30, 1, 9)]
    before = [moments_of(units) for units in sets[:known]]
    parts = [[centered(x) for x in units] for units in sets[known:]]
    for moments in before:
        moments.comoment.flags.writeable = False  # what is known stays as it is
    found = moments_over(2, parts, before)
    every = np.concatenate([np.concatenate(units, axis=1) for units in sets])
    tolerance = STATE_OF_LARGE_MEANS if abs(mean) > 1 else STATE
    assert_moments(found, every, tolerance)
    np.testing.assert_array_equal(found.comoment, found.comoment.T)
    crossed = cross_moments_over(2, parts, [cross_of(units) for units in sets[:known]])
    scale = np.abs(found.comoment).max()
    block = found.comoment[:4, 4:]
    np.testing.assert_allclose(crossed.product[0], block, atol=1e-5 * scale)
    np.testing.assert_allclose(crossed.mean.ravel(), found.mean, rtol=1e-6, atol=1e-6)
    square = crossed.square.ravel()
    np.testing.assert_allclose(square, np.diag(found.comoment), rtol=1e-4)


def cross_of(units):
    return cross_moments_over(2, [[centered(x) for x in units]])
