import re

import dense
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from assignments import draw, shuffled, stay, zipped

from jmudsc import (
    combine,
    Concat,
    Fixed,
    infer_spec,
    PermutationSpec,
    permute,
    Product,
    random_permutations,
    Units,
)
from jmudsc.spec.permutation_spec import labels_of

FLAT = ("mlp", "cnn", "recurrent")  # nets without nested labels


def assert_same_bits(found, expected):
    assert sorted(found) == sorted(expected)
    for path, leaf in expected.items():
        np.testing.assert_array_equal(
            np.asarray(found[path]).view(np.uint8),
            np.asarray(leaf).view(np.uint8),
            path,
        )


def assert_close(found, expected, tolerance=1e-6):
    assert sorted(found) == sorted(expected)
    for path, leaf in expected.items():
        scale = np.abs(leaf).max()
        np.testing.assert_allclose(found[path], leaf, atol=tolerance * scale)


@pytest.mark.parametrize("models", [2, 3])
@pytest.mark.parametrize("name", tiny.NETS)
def test_a_network_merged_with_itself_is_itself_to_the_bit(name, models):
    spec, (v,) = tiny.spec_of(name), draw(name, 1)
    assert_same_bits(combine(spec, [v] * models, stay(spec, models)), v)


@pytest.mark.parametrize("models", [2, 3])
@pytest.mark.parametrize("name", tiny.NETS)
def test_a_network_merged_with_itself_permuted_is_itself_to_the_bit(name, models, key):
    spec, (v,) = tiny.spec_of(name), draw(name, 1)
    perms = [random_permutations(spec, k) for k in jax.random.split(key, models - 1)]
    copies = [permute(spec, v, planted) for planted in perms]
    rows = stay(spec, models)
    for number, planted in enumerate(perms, start=1):
        for label in rows:
            rows[label][number] = planted[label]
    assert_same_bits(combine(spec, [v, *copies], rows), v)


@pytest.mark.parametrize("kind", [shuffled, zipped])
@pytest.mark.parametrize("name", FLAT)
@pytest.mark.parametrize("weights", [None, (2.0, 2.0), (0.9, 0.1), (1.0, 3.0, 2.0)])
def test_combining_is_a_product_with_one_hot_matrices(name, kind, weights):
    models = 2 if weights is None else len(weights)
    spec, drawn = tiny.spec_of(name), draw(name, models)
    rows = kind(spec, models)
    shares = np.ones(models) if weights is None else np.asarray(weights)
    expected = dense.combined(spec, drawn, rows, shares / shares.sum())
    assert_close(combine(spec, drawn, rows, weights), expected)


@pytest.mark.parametrize("kind", [shuffled, zipped])
@pytest.mark.parametrize("models", [2, 3])
def test_a_kernel_by_hand(kind, models):
    """N M where a label is produced, U where it is consumed, then the mean."""
    spec, drawn = tiny.spec_of("mlp"), draw("mlp", models)
    rows = kind(spec, models)
    merged = combine(spec, drawn, rows)
    first, second = (tiny.label_at(spec, path, 0) for path in ("a/bias", "b/bias"))
    u, w = (dense.one_hot(rows[name]) for name in (first, second))
    m, n = (models * x / x.sum(axis=(0, 1)) for x in (u, w))
    by_hand = {
        "a/kernel": [v["a/kernel"] @ m[i] for i, v in enumerate(drawn)],
        "a/bias": [v["a/bias"] @ m[i] for i, v in enumerate(drawn)],
        "b/kernel": [u[i].T @ v["b/kernel"] @ n[i] for i, v in enumerate(drawn)],
        "c/kernel": [w[i].T @ v["c/kernel"] for i, v in enumerate(drawn)],
        "c/bias": [v["c/bias"] for v in drawn],
    }
    for path, parts in by_hand.items():
        np.testing.assert_allclose(merged[path], np.mean(parts, axis=0), atol=2e-6)


@pytest.mark.parametrize("weights", [None, (0.75, 0.25), (1.0, 0.0)])
def test_merging_equal_units_of_one_model_keeps_the_function(weights):
    net, spec = tiny.MLP, tiny.spec_of("mlp")
    v = tiny.variables(net, 0)
    for path, axis in (("a/kernel", 1), ("a/bias", 0)):  # 8 units, 4 of a kind
        v[path] = np.repeat(np.take(v[path], range(4), axis), 2, axis)
    label = tiny.label_at(spec, "a/bias", 0)
    rows = stay(spec, 2)
    rows[label][:] = [[0, 0, 2, 2, 4, 4, 6, 6], [1, 1, 3, 3, 5, 5, 7, 7]]
    merged = combine(spec, [v, v], rows, weights)
    x = tiny.batch(net, 0)
    np.testing.assert_allclose(
        net.apply_fn(merged, x), net.apply_fn(v, x), rtol=1e-4, atol=1e-5
    )


def test_weights_are_shares():
    spec, drawn = tiny.spec_of("mlp"), draw("mlp", 2)
    rows = shuffled(spec, 2)
    assert_same_bits(combine(spec, drawn, rows), combine(spec, drawn, rows, (7.0, 7.0)))
    assert_close(
        combine(spec, drawn, rows, (3.0, 1.0)), combine(spec, drawn, rows, [0.75, 0.25])
    )


@pytest.mark.parametrize("name", tiny.NETS)
def test_all_the_weight_on_one_model_returns_it(name, key):
    spec, (a, b) = tiny.spec_of(name), draw(name, 2)
    perms = random_permutations(spec, key)
    rows = stay(spec, 2)
    for label in rows:
        rows[label][1] = perms[label]
    moved = permute(spec, b, perms)
    for weights, expected in (((1.0, 0.0), a), ((0.0, 1.0), b)):
        merged = combine(spec, [a, moved], rows, weights)
        for path, leaf in expected.items():
            np.testing.assert_array_equal(merged[path], leaf)


def test_the_order_of_the_models_does_not_matter():
    spec, drawn = tiny.spec_of("cnn"), draw("cnn", 3)
    rows = zipped(spec, 3)
    turned = {name: row[[2, 0, 1]] for name, row in rows.items()}
    other = combine(spec, [drawn[2], drawn[0], drawn[1]], turned, (3.0, 1.0, 2.0))
    assert_close(combine(spec, drawn, rows, (1.0, 2.0, 3.0)), other)


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (jnp.bfloat16, zipped),
        (jnp.float8_e4m3fn, shuffled),
    ],
)
def test_low_precision_is_averaged_in_float32_and_comes_back(dtype, kind):
    spec = tiny.spec_of("mlp")
    drawn = [
        {path: jnp.asarray(leaf, dtype) for path, leaf in v.items()}
        for v in draw("mlp", 2)
    ]
    wide = [{path: np.asarray(x, np.float32) for path, x in v.items()} for v in drawn]
    rows = kind(spec, 2)
    merged, expected = combine(spec, drawn, rows), combine(spec, wide, rows)
    for path, leaf in merged.items():
        assert leaf.dtype == dtype
        # The last bit may differ where float32 is half-way between two values.
        np.testing.assert_allclose(
            leaf.astype(np.float32),
            jnp.asarray(expected[path], dtype).astype(np.float32),
            rtol=float(jnp.finfo(dtype).eps),
        )


def with_leaf(spec, path, *sizes):
    axes = dict(sorted({**spec.axes, path: tuple(map(Fixed, sizes))}.items()))
    return PermutationSpec(axes, spec.labels, consumed=spec.consumed)


@pytest.mark.parametrize(
    ("leaves", "expected"),
    [
        ([np.int32(7), np.int32(7)], 7),
        ([np.int32(2**24 + 1), np.int32(2**24 + 1)], 2**24 + 1),
        ([np.int32(100), np.int32(203)], 152),
        ([np.uint8(250), np.uint8(254)], 252),
        ([np.bool_(True), np.bool_(False)], True),
        ([np.int32([1, 5]), np.int32([1, 8])], [1, 6]),
    ],
)
def test_leaves_that_are_not_floating_point(leaves, expected):
    spec = with_leaf(tiny.spec_of("mlp"), "step", *leaves[0].shape)
    drawn = [{**v, "step": x} for v, x in zip(draw("mlp", 2), leaves, strict=True)]
    merged = combine(spec, drawn, shuffled(spec, 2))["step"]
    assert merged.dtype == leaves[0].dtype
    np.testing.assert_array_equal(merged, expected)


def test_a_leaf_without_entries_stays_as_it_is():
    def apply_fn(v, x):
        nothing = jnp.zeros((len(x), 0)) @ v["nothing"]
        return jnp.maximum(x @ v["in"] + nothing, 0) @ v["out"]

    shapes = {"in": (5, 4), "nothing": (0, 4), "out": (4, 2)}
    model = {name: jnp.ones(shape) for name, shape in shapes.items()}
    spec = infer_spec(apply_fn, model, jnp.ones((7, 5)))
    zipped = {name: np.array([[0, 0, 1, 1], [2, 2, 3, 3]]) for name in spec.labels}
    merged = combine(spec, [model, model], zipped)
    assert merged["nothing"].shape == (0, 4)
    np.testing.assert_array_equal(merged["in"], model["in"])


def test_a_random_key_is_taken_from_the_first_model():
    spec = with_leaf(tiny.spec_of("mlp"), "rng")
    drawn = [{**v, "rng": jax.random.key(i)} for i, v in enumerate(draw("mlp", 2))]
    merged = combine(spec, drawn, stay(spec, 2))["rng"]
    assert jax.random.key_data(merged).tolist() == [0, 0]


@pytest.mark.parametrize("models", [2, 3])
@pytest.mark.parametrize("channels", ["shuffled", "zipped"])
def test_nested_labels_move_with_their_parents(channels, models):
    """Heads and their channels at once, as one matrix over (head, channel)."""
    spec, drawn = tiny.spec_of("attention"), draw("attention", models)
    rows = shuffled(spec, models)
    head, value = (axis.label for axis in spec.axes["v/kernel"][1:])
    if channels == "zipped":
        generator = np.random.default_rng(0)
        for merged in range(3):
            spare = generator.integers(5, size=(models - 1) * 5)
            flat = generator.permutation(np.concatenate([np.arange(5), spare]))
            rows[value][:, merged] = flat.reshape(models, 5)
    merged = combine(spec, drawn, rows)
    for model_leaf, sizes in (("v/kernel", (3, 5)), ("k/kernel", (3, 4))):
        channel = spec.axes[model_leaf][2].label
        u = np.zeros((models, *sizes, *sizes))
        for i, h, c in np.ndindex(models, *sizes):
            to = rows[head][i, h]
            u[i, h, c, to, rows[channel][i, to, c]] = 1
        m = models * u / u.sum(axis=(0, 1, 2))
        expected = np.mean(
            [
                np.einsum("dhc,hcij->dij", v[model_leaf], m[i])
                for i, v in enumerate(drawn)
            ],
            axis=0,
        )
        np.testing.assert_allclose(merged[model_leaf], expected, atol=2e-6)
        if model_leaf == "v/kernel":
            out = [
                np.einsum("hcd,hcij->ijd", v["out/kernel"], u[i])
                for i, v in enumerate(drawn)
            ]
            np.testing.assert_allclose(
                merged["out/kernel"], np.mean(out, axis=0), atol=2e-6
            )


def test_a_fused_kernel_merges_as_its_parts():
    head, inner, value = Units("head", 3), Units("inner", 4), Units("value", 5)
    parts = [Product((head, inner)), Product((head, inner)), Product((head, value))]
    sizes = {"head": 3, "inner": 4, "value": 5}
    parents = {"inner": ("head",), "value": ("head",)}
    fused = {"qkv": (Fixed(6), Concat(tuple(parts)))}
    split = {name: (Fixed(6), part) for name, part in zip("kqv", parts, strict=True)}
    specs = [PermutationSpec(x, labels_of(x, sizes, parents)) for x in (fused, split)]
    generator = np.random.default_rng(0)
    whole = [
        {"qkv": generator.normal(size=(6, 39)).astype(np.float32)} for _ in range(2)
    ]
    apart = [
        dict(zip("kqv", np.split(v["qkv"], [12, 24], 1), strict=True)) for v in whole
    ]
    rows = shuffled(specs[0], 2)
    merged = combine(specs[0], whole, rows)["qkv"]
    pieces = combine(specs[1], apart, rows)
    expected = np.concatenate([pieces[name] for name in "kqv"], axis=1)
    np.testing.assert_array_equal(merged, expected)


def test_the_tree_keeps_its_structure():
    axes = {"layers/0/kernel": (Fixed(2), Units("P", 3)), "layers/1": (Units("P", 3),)}
    spec = PermutationSpec(axes, labels_of(axes, {"P": 3}, {}))
    v = {"layers": ({"kernel": np.ones((2, 3))}, np.ones(3)), "none": None}
    merged = combine(spec, [v, v], stay(spec, 2))
    assert jax.tree.structure(merged) == jax.tree.structure(v)


@pytest.mark.parametrize(
    "weights",
    [(1.0,), (1.0, 1.0, 1.0), (-0.5, 1.5), (float("nan"), 1.0), (float("inf"), 1.0)],
)
def test_weights_that_are_no_shares_are_refused(weights):
    spec, drawn = tiny.spec_of("mlp"), draw("mlp", 2)
    text = (
        "combine: expected 2 finite weights of at least 0, one per model, got "
        f"{list(weights)}. Leave them out for equal shares."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        combine(spec, drawn, stay(spec, 2), weights)


def test_weights_that_are_all_0_are_refused():
    spec, drawn = tiny.spec_of("mlp"), draw("mlp", 2)
    text = (
        "combine: expected a weight above 0, got [0.0, 0.0]. Leave them out for equal "
        "shares."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        combine(spec, drawn, stay(spec, 2), (0.0, 0.0))


def test_an_assignment_that_does_not_fit_is_refused_with_all_its_faults():
    spec, drawn = tiny.spec_of("attention"), draw("attention", 2)
    rows = stay(spec, 2)
    head, inner, value = rows
    assert spec.labels[value].size == 5
    del rows[head]
    rows[inner] = rows[inner].astype(np.float32)
    rows[value][1, 2, 3] = 5
    rows["stray"] = np.zeros((2, 3), np.int32)
    text = (
        "combine: expected an assignment that fits the spec, got another:\n"
        f"  {head}: is missing\n"
        f"  {inner}: expected int[2, 3, 4], got float32[2, 3, 4]\n"
        f"  {value}: expected merged units in 0..4, got 0..5\n"
        "  stray: is no label of the spec\n"
        "Pass the assignment that match returned for this spec."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        combine(spec, drawn, rows)


def test_an_assignment_of_fewer_models_is_refused():
    spec, drawn = tiny.spec_of("recurrent"), draw("recurrent", 3)
    (label,) = spec.labels
    text = f"  {label}: expected int[3, 7], got int32[2, 7]\n"
    with pytest.raises(ValueError, match=re.escape(text)):
        combine(spec, drawn, stay(spec, 2))


def test_models_that_differ_are_refused():
    spec, (a, b) = tiny.spec_of("mlp"), draw("mlp", 2)
    half = {**b, "a/bias": b["a/bias"].astype(np.float16)}
    text = (
        "combine: expected models with the same leaves, shapes and dtypes, got some "
        "that differ:\n"
        "  a/bias is float32[8] in model 0, float16[8] in model 1\n"
        "Merge checkpoints of one architecture; rename or cast leaves first."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        combine(spec, [a, half], stay(spec, 2))


def test_a_spec_of_other_variables_is_refused():
    spec, drawn = tiny.spec_of("mlp"), draw("mlp", 2)
    more = [{**v, "d/bias": np.ones(2, np.float32)} for v in drawn]
    text = (
        "combine: expected variables that the spec fits, got others:\n"
        "  d/bias: is not in the spec\n"
        "Derive it from these variables with infer_spec."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        combine(spec, more, stay(spec, 2))


def test_values_in_the_merged_order_are_averaged_as_asked(key):
    spec, drawn = tiny.spec_of("attention"), draw("attention", 3)
    perms = [random_permutations(spec, k) for k in jax.random.split(key, 3)]
    rows = {name: np.stack([p[name] for p in perms]) for name in spec.labels}

    def median(values, shares):
        assert len(shares) == len(values) == 3
        return jnp.median(jnp.stack(values), axis=0)

    moved = [permute(spec, v, p) for v, p in zip(drawn, perms, strict=True)]
    merged = combine(spec, moved, rows, average=median)
    back = [
        combine(spec, [v, v], {n: r[[i, i]] for n, r in rows.items()})
        for i, v in enumerate(moved)
    ]
    for path, leaf in merged.items():
        np.testing.assert_array_equal(leaf, np.median([v[path] for v in back], axis=0))
        np.testing.assert_array_equal(back[1][path], drawn[1][path])
