import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jmudsc import (
    collect,
    infer_spec,
    merge,
    permute,
    random_permutations,
    reset_batch_stats,
)
from jmudsc.matching.coordinate_descent import match
from jmudsc.matching.methods import TABLE
from jmudsc.merging.separate import restrict, trunk_fn

ZIPS = [name for name, row in TABLE.items() if row.zips]


def residual(v, x):
    """Three blocks on one stream, then a norm and a head."""
    x = x @ v["in/kernel"]
    for block in range(3):
        hidden = jnp.tanh(x @ v[f"{block}/up"] + v[f"{block}/bias"][None])
        x = x + hidden @ v[f"{block}/down"]
    x = x * v["norm/scale"][None] + v["norm/bias"][None]
    return x @ v["out/kernel"]


STREAM = tiny.Tiny(
    residual,
    {
        "in/kernel": (5, 6),
        **{f"{block}/up": (6, 8) for block in range(3)},
        **{f"{block}/bias": (8,) for block in range(3)},
        **{f"{block}/down": (8, 6) for block in range(3)},
        "norm/scale": (6,),
        "norm/bias": (6,),
        "out/kernel": (6, 3),
    },
    (5,),
)
NETS = {"stream": STREAM, **tiny.NETS}


@functools.cache
def spec_of(name):
    net = NETS[name]
    return infer_spec(net.apply_fn, tiny.variables(net, 0), tiny.batch(net, 0, 2))


def batches_of(net):
    return [tiny.batch(net, seed, 48) for seed in range(2)]


@functools.cache
def copies(name):
    """Return a network and its copy with all units permuted."""
    parent = tiny.variables(NETS[name], 3)
    perms = random_permutations(spec_of(name), jax.random.key(1))
    return [parent, permute(spec_of(name), parent, perms)]


def merged(name, models, **options):
    net = NETS[name]
    options = {"key": jax.random.key(0), **options}
    return merge(net.apply_fn, models, batches_of(net), **options)


def assert_computes(net, variables, expected, tolerance=2e-5):
    x = tiny.batch(net, 7)
    found, wanted = net.apply_fn(variables, x), net.apply_fn(expected, x)
    np.testing.assert_allclose(found, wanted, atol=tolerance * np.abs(wanted).max())


CUTS = [
    ("mlp", ["c/*"]),
    ("mlp", ["b/*", "c/*"]),
    ("mlp", ["c/bias"]),
    ("cnn", ["c/kernel"]),
    ("attention", ["out/kernel"]),
    ("experts", ["c/kernel"]),
]
STREAMS = [
    ("stream", ["out/*", "norm/*"]),
    ("stream", ["1/*", "2/*", "norm/*", "out/*"]),
    ("attention", ["out/kernel"]),
]


@pytest.mark.parametrize(("name", "separate"), CUTS + STREAMS, ids=str)
def test_permuted_copies_with_heads_of_their_own_compute_what_they_did(name, separate):
    models = copies(name)
    result = merged(name, models, method="activation-align", separate=separate)
    for network in result.networks:
        assert_computes(NETS[name], network, models[0])


REPAIRS = [
    {"refit": "least-squares"},
    {"repair": "rescale"},
]


@pytest.mark.parametrize("repairs", REPAIRS, ids=["refit", "repair"])
@pytest.mark.parametrize(("name", "separate"), [CUTS[1], STREAMS[1]], ids=str)
def test_permuted_copies_are_repaired_to_what_they_did(name, separate, repairs):
    """Also where a head makes units of the trunk, which is in the merged order."""
    models = copies(name)
    options = {"method": "activation-align", "separate": separate, **repairs}
    result = merged(name, models, **options)
    for network in result.networks:
        assert_computes(NETS[name], network, models[0], 1e-4)
    assert set(result.changes) == {
        path for path in models[0] if not path.startswith("norm/")
    }


@pytest.mark.parametrize("method", ["average", "mudsc-zip"])
def test_heads_are_fitted_to_their_own_parent(method):
    """The refit solves the head's own least squares on what the merged trunk makes."""
    net, separate = tiny.MLP, ["c/*"]
    models = [tiny.variables(net, seed) for seed in range(2)]
    options = {"method": method, "separate": separate, "ridge": 1e-6}
    plain = merged("mlp", models, **options).networks
    result = merged("mlp", models, refit="least-squares", **options)
    for network, model, before in zip(result.networks, models, plain, strict=True):
        x = np.concatenate(batches_of(net))
        hidden = x
        for layer in "ab":
            kernel, bias = (
                np.asarray(network[f"{layer}/{n}"]) for n in ("kernel", "bias")
            )
            hidden = np.maximum(hidden @ kernel + bias, 0)
        ones = np.ones((len(x), 1))
        wanted = net.apply_fn(model, x)
        best = np.linalg.lstsq(np.hstack([hidden, ones]), wanted)[0]
        np.testing.assert_allclose(network["c/kernel"], best[:-1], atol=1e-3)
        np.testing.assert_allclose(network["c/bias"], best[-1], atol=1e-3)
        gap, before_gap = (
            np.square(net.apply_fn(v, x) - wanted).mean() for v in (network, before)
        )
        assert gap < before_gap
    for path in ("a/kernel", "b/bias"):
        np.testing.assert_array_equal(*(v[path] for v in result.networks))


def test_pooled_statistics_are_those_of_the_trunk():
    models = [tiny.variables(tiny.CNN, seed) for seed in range(2)]
    options = {"method": "average", "separate": ["c/*"], "repair": "pooled"}
    networks = merged("cnn", models, **options).networks
    whole = merged("cnn", models, method="average", repair="pooled").variables
    for network in networks:
        for path in ("norm/mean", "norm/var"):
            np.testing.assert_allclose(network[path], whole[path], rtol=1e-6)


@pytest.mark.parametrize("method", ["mudsc-align", "mudsc-zip"])
def test_other_heads_on_a_shared_trunk_compute_what_they_did(method):
    """The heads have nothing in common, only the trunks are permuted copies."""
    net = tiny.MLP
    first, second = copies("mlp")
    second = {**second, "c/kernel": second["c/kernel"] ** 3, "c/bias": np.ones(3)}
    second["c/bias"] = second["c/bias"].astype(np.float32)
    result = merged("mlp", [first, second], method=method, separate=["c/*"])
    for network, model in zip(result.networks, [first, second], strict=True):
        assert_computes(net, network, model)
    for path in first:
        same = np.array_equal(*(network[path] for network in result.networks))
        assert same == (not path.startswith("c/"))


def twins(seed):
    """Return a network in which units 0 and 1 of the first layer are the same."""
    v = tiny.variables(tiny.MLP, seed)
    v["a/kernel"][:, 1], v["a/bias"][1] = v["a/kernel"][:, 0], v["a/bias"][0]
    return v


def test_units_of_a_model_that_become_one_are_read_together():
    """Two models with twins have 14 kinds of units; 16 are merged to 8, twins first."""
    net, models = tiny.MLP, [twins(0), twins(1)]
    result = merged(
        "mlp", models, method="activation-zip", separate=["b/*", "c/*"], frozen=[]
    )
    (label,) = result.spec.labels
    rows = result.assignment[label]
    assert (rows[:, 0] == rows[:, 1]).all()
    for network, model, row in zip(result.networks, models, rows, strict=True):
        u = np.eye(8)[row]
        np.testing.assert_allclose(
            network["b/kernel"], u.T @ model["b/kernel"], atol=1e-6
        )
        for path in ("b/bias", "c/kernel", "c/bias"):
            np.testing.assert_array_equal(network[path], model[path])
        # As if every unit had the activation of its merged unit.
        x = tiny.batch(net, 7)
        trunk = jax.nn.relu(x @ network["a/kernel"] + network["a/bias"][None])
        own = jax.nn.relu(trunk[:, row] @ model["b/kernel"] + model["b/bias"][None])
        expected = own @ model["c/kernel"] + model["c/bias"][None]
        np.testing.assert_allclose(net.apply_fn(network, x), expected, atol=1e-4)


@pytest.mark.parametrize("method", ["activation-zip", "average"])
@pytest.mark.parametrize(("name", "separate"), CUTS[1:], ids=str)
def test_strangers_are_merged_up_to_a_depth(name, separate, method):
    net = NETS[name]
    models = [tiny.variables(net, seed) for seed in range(3)]
    result = merged(name, models, method=method, separate=separate)
    assert len(result.networks) == 3
    assert jax.tree.structure(result.networks[1]) == jax.tree.structure(models[1])
    for network in result.networks:
        assert np.isfinite(net.apply_fn(network, tiny.batch(net, 0))).all()
    assert result.variables is result.networks[0]
    assert result.recipe["separate"] == separate


def test_the_trunk_is_merged_as_if_there_were_no_heads():
    """Its spec, activations and merge are those of the network cut off before them."""
    models = [tiny.variables(tiny.MLP, seed) for seed in range(2)]

    def cut(v, x):
        x = jax.nn.relu(x @ v["a/kernel"] + v["a/bias"][None])
        return jax.nn.relu(x @ v["b/kernel"] + v["b/bias"][None]).sum(axis=1)

    trunks = [{p: x for p, x in v.items() if p[0] != "c"} for v in models]
    batches = batches_of(tiny.MLP)
    spec = restrict(spec_of("mlp"), trunks[0])
    moments = collect(spec, cut, trunks, batches)
    found = match(spec, trunks, moments, method="activation-zip", key=jax.random.key(0))
    result = merged("mlp", models, method="activation-zip", separate="c/*")
    assert list(result.assignment) == list(found.assignment)
    for name, rows in found.assignment.items():
        np.testing.assert_array_equal(result.assignment[name], rows)


def test_activations_are_read_where_the_heads_begin():
    net, spec = tiny.MLP, spec_of("mlp")
    models = [tiny.variables(net, seed) for seed in range(2)]
    trunk = [path for path in models[0] if path[0] != "c"]
    cut = trunk_fn(net.apply_fn, models[0], trunk)
    parts = restrict(spec, dict.fromkeys(trunk))
    trunks = [{path: v[path] for path in trunk} for v in models]
    batches = batches_of(net)
    whole = collect(spec, net.apply_fn, models, batches)
    found = collect(parts, cut, trunks, batches)
    for name, moments in found.items():
        np.testing.assert_allclose(moments.mean, whole[name].mean, rtol=1e-5)
        np.testing.assert_allclose(
            moments.comoment, whole[name].comoment, rtol=1e-4, atol=1e-3
        )


def classify(v, x):
    x = jax.nn.relu(x @ v["trunk/0"])
    x = jax.nn.relu(x @ v["trunk/1"])
    return x @ v["classes"]


def reconstruct(v, x):
    x = jax.nn.relu(x @ v["trunk/0"])
    x = jax.nn.relu(x @ v["trunk/1"])
    y = jnp.tanh(jnp.repeat(x[:, None], 4, axis=1) @ v["decoder/0"])
    return {"image": y @ v["decoder/1"], "mean": y.mean(axis=1) @ v["decoder/2"]}


def other_heads():
    """Return a classifier and an autoencoder on permuted copies of one trunk."""
    shapes = {"trunk/0": (5, 8), "trunk/1": (8, 6), "classes": (6, 3)}
    shapes |= {"decoder/0": (6, 7), "decoder/1": (7, 2), "decoder/2": (7, 4)}
    generator = np.random.default_rng(0)
    drawn = {p: generator.normal(size=s).astype(np.float32) for p, s in shapes.items()}
    first, second = generator.permutation(8), generator.permutation(6)
    one = {p: drawn[p] for p in ("classes", "trunk/0", "trunk/1")}
    two = {p: x for p, x in drawn.items() if p != "classes"}
    two["trunk/0"] = two["trunk/0"][:, first]
    two["trunk/1"] = two["trunk/1"][first][:, second]
    two["decoder/0"] = two["decoder/0"][second]
    return [one, two], [classify, reconstruct]


@pytest.mark.parametrize("method", ["activation-align", "mudsc-align", "mudsc-zip"])
def test_networks_of_different_tasks_are_merged_but_for_their_heads(method, key):
    models, functions = other_heads()
    batches = batches_of(tiny.MLP)
    result = merge(
        functions, models, batches, method=method, key=key, separate=["cl*", "decoder*"]
    )
    x = batches[0]
    for network, model, apply_fn in zip(
        result.networks, models, functions, strict=True
    ):
        found, wanted = apply_fn(network, x), apply_fn(model, x)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
    assert set(result.spec.axes) == {"trunk/0", "trunk/1"}


def update_cnn(v, x):
    y = tiny.conv(x, v["a/kernel"])
    seen = {"norm/mean": y.mean(axis=(0, 1, 2)), "norm/var": y.var(axis=(0, 1, 2))}
    return {**v, **{path: 0.9 * v[path] + 0.1 * leaf for path, leaf in seen.items()}}


def test_running_statistics_are_reset_in_every_network():
    net = tiny.CNN
    models = [tiny.variables(net, seed) for seed in range(2)]
    options = {"method": "activation-zip", "separate": ["c/*"]}
    before = merged("cnn", models, **options).networks
    after = merged("cnn", models, update_fn=update_cnn, **options).networks
    for old, new in zip(before, after, strict=True):
        expected = reset_batch_stats(update_cnn, old, batches_of(net))
        for path, leaf in expected.items():
            np.testing.assert_array_equal(new[path], leaf)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.int32])
def test_separate_leaves_keep_their_dtype(dtype):
    models = [
        {**v, "c/kernel": (10 * v["c/kernel"]).astype(dtype)} for v in copies("mlp")
    ]
    result = merged("mlp", models, method="activation-align", separate="c/*")
    expected = jnp.asarray(models[0]["c/kernel"])
    for network in result.networks:
        assert network["c/kernel"].dtype == expected.dtype
        np.testing.assert_array_equal(network["c/kernel"], expected)


@pytest.mark.parametrize("method", ZIPS)
def test_what_makes_units_apart_cannot_follow_a_zip(method):
    models = [tiny.variables(STREAM, seed) for seed in range(2)]
    (stream,) = (n for n, x in spec_of("stream").labels.items() if x.size == 6)
    text = (
        "merge: expected labels whose units merged leaves alone make, as separate "
        "leaves cannot follow a zip, got 1 whose units separate leaves make too:\n"
        f"  {stream}: 2/down:1, norm/bias:0, norm/scale:0\n"
        "Use a method that aligns, freeze these labels, or separate from where no "
        "residual stream goes on."
    )
    separate = ["2/*", "norm/*", "out/*"]
    with pytest.raises(ValueError, match=re.escape(text)):
        merged("stream", models, method=method, separate=separate)
    result = merged("stream", models, method=method, separate=separate, frozen=[stream])
    assert len(result.networks) == 2


def test_activations_that_separate_leaves_come_before_cannot_be_read():
    models = [tiny.variables(tiny.MLP, seed) for seed in range(2)]
    (late,) = (n for n, x in spec_of("mlp").labels.items() if x.size == 6)
    text = (
        "merge: expected every label of merged leaves to have activations before the "
        f"separate leaves, got 1 without:\n  {late}\nUse a method that compares "
        "weights alone, or merge what comes before these labels too."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        merged("mlp", models, method="activation-align", separate=["b/kernel", "c/*"])
    result = merged("mlp", models, method="weight-align", separate=["b/kernel", "c/*"])
    assert list(result.assignment) == list(spec_of("mlp").labels)


def test_patterns_that_match_nothing_are_listed():
    text = (
        "merge: expected every pattern to match a leaf of any model, got some that "
        "match none:\n"
        '  "c/kernal"; did you mean "c/kernel"?\n'
        "Patterns are of whole leaf paths."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        merged("mlp", copies("mlp"), separate=["c/bias", "c/kernal"])


@pytest.mark.parametrize("only", [["c/*"], ["a/*", "c/kernel"]], ids=str)
def test_a_refit_of_some_leaves_may_name_those_that_are_separate(only):
    models = [tiny.variables(tiny.MLP, seed) for seed in range(2)]
    options = {"separate": ["c/*"], "method": "activation-align"}
    plain = merged("mlp", models, **options).networks
    result = merged("mlp", models, refit="least-squares", only=only, **options)
    parts = {pattern[0] for pattern in only}
    for network, before in zip(result.networks, plain, strict=True):
        changed = {p for p, x in network.items() if not np.array_equal(x, before[p])}
        assert changed == {p for p in before if p[0] in parts}


def test_leaves_to_refit_that_are_not_there_are_listed():
    text = (
        "merge: only: expected every pattern to match a leaf, got some that match "
        "none:\n"
        '  "c/kernal"; did you mean "c/kernel"?\n'
        "Patterns are of whole leaf paths."
    )
    options = {"refit": "least-squares", "only": ["a/*", "c/kernal"]}
    for separate in ([], ["c/*"]):
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            merged("mlp", copies("mlp"), separate=separate, **options)


def test_something_must_be_left_to_merge():
    text = (
        "merge: separate: expected it to leave at least one leaf to merge, got "
        "patterns that match all 6. Name fewer leaves."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        merged("mlp", copies("mlp"), separate="*")


def test_trunks_that_differ_are_refused():
    first, second = copies("mlp")
    second = {**second, "a/bias": np.ones(9, np.float32), "d": np.ones(2, np.float32)}
    text = (
        "merge: expected models with the same leaves, shapes and dtypes, got some that "
        "differ:\n  model 1 has d, model 0 has not\n  a/bias is float32[8]"
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        merged("mlp", [first, second], separate="c/*")


def test_heads_that_tie_the_trunk_otherwise_are_refused(key):
    (one, two), (apply_fn, _) = other_heads()

    def by_position(v, x):
        x = jax.nn.relu(jax.nn.relu(x @ v["trunk/0"]) @ v["trunk/1"])
        return jnp.cumsum(x, axis=1) @ v["decoder/0"]

    text = (
        "merge: expected model 1 to tie the units of the trunk as model 0 does, got a "
        "difference:\n"
        "  trunk/1 is (P_0, 6), in model 0 (P_0, P_1)\n"
        "Make the leaves by whose use the models differ separate too."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        merge(
            [apply_fn, by_position],
            [one, {path: x for path, x in two.items() if path[-2:] != "/2"}],
            batches_of(tiny.MLP),
            key=key,
            separate=["cl*", "decoder*"],
        )


def test_a_function_for_every_model_is_for_heads(key):
    models, functions = other_heads()
    text = (
        "merge: apply_fn: expected one function, as all leaves are merged, got "
        "several. Pass separate= with the leaves of the heads."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        merge(functions, models, batches_of(tiny.MLP), key=key)
    text = (
        "merge: apply_fn: expected one function for all 2 models or one for each, "
        "got 1. Pass as many as models."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        merge(
            functions[:1],
            models,
            batches_of(tiny.MLP),
            key=key,
            separate=["cl*", "decoder*"],
        )
