import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
import zoo
from flax import nnx
from jax import lax

from jmudsc import Concat, Fixed, infer_spec, paths, Product, Site, Units
from jmudsc.derivation.program import run, trace
from jmudsc.derivation.taps import find_taps
from jmudsc.spec.axes import Family

MIXED = [("mlp", "linen"), ("vgg_max", "plain"), ("resnet20", "nnx")]


def spec_of(net):
    return infer_spec(net.apply_fn, net.variables, net.batch)


def named(sites):
    return {f"{nets.plain_name(path)}:{axis}" for path, axis in sites}


def draw(shapes, seed="derive"):
    return nets.random_leaves(shapes, seed)


# The networks of `nets`, in all three forms.


@pytest.mark.parametrize(("name", "form"), nets.CASES)
def test_a_network_has_the_labels_it_must_have(name, form):
    net, spec = nets.build(name, form), nets.spec_of(name, form)
    found = {
        (x.size, frozenset(named(x.sites)), x.parents) for x in spec.labels.values()
    }
    assert found == {(s.size, s.sites, ()) for s in net.symmetries}
    assert len(spec.labels) == len(net.symmetries)


@pytest.mark.parametrize(("name", "form"), nets.CASES)
def test_every_axis_has_a_label_or_a_reason(name, form):
    net, spec = nets.build(name, form), nets.spec_of(name, form)
    shapes = {path: x.shape for path, x in paths.flatten(net.variables).items()}
    sizes = {path: tuple(a.size for a in axes) for path, axes in spec.axes.items()}
    assert sizes == shapes
    labelled = {site for label in spec.labels.values() for site in label.sites}
    every = {Site(path, i) for path, shape in shapes.items() for i in range(len(shape))}
    assert labelled | set(spec.fixed) == every
    for site, why in spec.fixed.items():
        assert why.startswith("in part: ") == (site in labelled)
    assert all(spec.fixed.values())


@pytest.mark.parametrize(("name", "form"), nets.CASES)
def test_what_is_consumed_is_every_incoming_axis_and_nothing_else(name, form):
    net, spec = nets.build(name, form), nets.spec_of(name, form)
    used = set().union(*(s.used for s in net.symmetries))
    assert named(spec.consumed) == used | {net.input_site}
    assert net.input_site in named(spec.fixed)


@pytest.mark.parametrize(("name", "form"), nets.CASES)
def test_running_means_and_variances_are_the_statistics(name, form):
    net = nets.build(name, form)
    leaves = map(nets.plain_name, paths.flatten(net.variables))
    expected = {leaf for leaf in leaves if leaf.endswith(("/mean", "/var"))}
    assert set(map(nets.plain_name, nets.spec_of(name, form).statistics)) == expected


@pytest.mark.parametrize("name", nets.ARCHITECTURES)
def test_the_form_of_a_network_does_not_change_its_spec(name):
    def structure(form):
        spec = nets.spec_of(name, form)
        sites = {frozenset(named(label.sites)) for label in spec.labels.values()}
        fixed = {(nets.plain_name(p), i): why for (p, i), why in spec.fixed.items()}
        return sites, fixed

    assert structure("plain") == structure("linen") == structure("nnx")


@pytest.mark.parametrize("name", nets.ARCHITECTURES)
def test_the_three_forms_compute_the_same(name):
    outputs = [
        jax.jit(net.apply_fn)(net.variables, net.batch)
        for net in (nets.build(name, form) for form in nets.FORMS)
    ]
    assert nets.close(outputs[1], outputs[0])
    assert nets.close(outputs[2], outputs[0])


@pytest.mark.parametrize("form", nets.FORMS)
def test_labels_are_numbered_as_the_network_makes_them(form):
    spec = nets.spec_of("vgg_max", form)
    made = [sorted(named(label.sites))[0] for label in spec.labels.values()]
    assert list(spec.labels) == ["P_0", "P_1", "P_2", "P_3"]
    assert made == ["conv0/bias:0", "conv1/bias:0", "conv2/bias:0", "fc0/bias:0"]


@pytest.mark.parametrize("form", nets.FORMS)
@pytest.mark.parametrize("name", ["vgg_max", "vgg_avg"])
def test_a_flattened_image_is_positions_times_channels(name, form):
    spec = nets.spec_of(name, form)
    (path,) = [p for p in spec.axes if nets.plain_name(p) == "fc0/kernel"]
    assert spec.axes[path] == (
        Product((Fixed(4), Units("P_2", 8))),
        Units("P_3", 8),
    )


def test_fixed_axes_say_why():
    assert nets.spec_of("vgg_max", "plain").fixed == {
        Site("fc0/kernel", 0): "in part: is treated by position in reduce_window_max",
        **{
            Site(f"conv{i}/kernel", axis): "is a spatial axis of a convolution"
            for i in range(3)
            for axis in range(2)
        },
        Site("conv0/kernel", 2): "meets an input of the network",
        Site("fc1/kernel", 1): "meets an output of the network",
        Site("fc1/bias", 0): "meets an output of the network",
    }


@pytest.mark.parametrize(("name", "form"), MIXED)
def test_shapes_are_enough(name, form):
    net = nets.build(name, form)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (net.variables, net.batch)
    )
    assert infer_spec(net.apply_fn, *abstract) == nets.spec_of(name, form)


def test_an_nnx_network_may_be_a_state_or_a_pure_dict():
    net = nets.build("mlp", "nnx")
    pure = nnx.to_pure_dict(net.variables)
    spec = infer_spec(net.apply_fn, pure, net.batch)
    of_state = spec_of(net)
    assert {f"{path}/value": axes for path, axes in spec.axes.items()} == of_state.axes
    assert named(spec.consumed) == named(of_state.consumed)


def test_a_resnet50_is_derived_from_shapes():
    shapes = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32)
        for name, shape in nets.shapes_of(nets.RESNET50).items()
    }
    assert sum(x.size for x in shapes.values()) == 25_557_032 + 53_120  # running
    apply_fn, variables = nets._linen(nets.RESNET50, shapes)
    images = jax.ShapeDtypeStruct((8, 224, 224, 3), jnp.float32)
    spec = infer_spec(apply_fn, variables, images)
    # the stem, one stream a stage, two inside each of 16 blocks
    assert len(spec.labels) == 1 + 4 + 2 * 16
    sizes = [label.size for label in spec.labels.values()]
    inside = {64: 3, 128: 4, 256: 6, 512: 3}
    expected = [64] + [4 * width for width in inside]
    expected += [width for width, blocks in inside.items() for _ in range(2 * blocks)]
    assert sorted(sizes) == sorted(expected)
    assert len(spec.statistics) == 2 * 53


# What a network is wrapped in does not matter.


@jax.custom_jvp
def softer(x):
    return jnp.tanh(x) + x


@softer.defjvp
def _softer_jvp(primals, tangents):
    return softer(*primals), tangents[0]


@jax.custom_vjp
def harder(x):
    return jnp.maximum(x, 0.1 * x)


harder.defvjp(lambda x: (harder(x), None), lambda _, g: (g,))

HIDDEN = {
    "jit": jax.jit(jnp.tanh),
    "remat": jax.checkpoint(jnp.tanh),
    "custom_jvp": softer,
    "custom_vjp": harder,
    "gelu": nn.gelu,
    "softplus": nn.softplus,
    "all": jax.jit(jax.checkpoint(lambda x: harder(softer(nn.silu(x))))),
}


def mlp_leaves():
    return draw({"w0": (6, 8), "b0": (8,), "w1": (8, 3)})


def mlp(hidden, v, x):
    return hidden(x @ v["w0"] + v["b0"][None]) @ v["w1"]


@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN)
def test_calls_inside_a_network_do_not_change_its_labels(hidden):
    spec = infer_spec(lambda v, x: mlp(hidden, v, x), mlp_leaves(), np.ones((4, 6)))
    units = Units("P_0", 8)
    assert spec.axes == {
        "b0": (units,),
        "w0": (Fixed(6), units),
        "w1": (units, Fixed(3)),
    }
    assert spec.consumed == {Site("w0", 0), Site("w1", 0)}


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint])
def test_a_wrapped_apply_fn_has_the_same_spec(wrap):
    net = nets.build("vgg_avg", "plain")
    spec = infer_spec(wrap(net.apply_fn), net.variables, net.batch)
    assert spec == nets.spec_of("vgg_avg", "plain")


def test_a_batch_may_be_any_tree():
    net = nets.build("mlp", "plain")
    spec = infer_spec(
        lambda v, batch: {"logits": net.apply_fn(v, batch["x"][0]), "y": batch["y"]},
        net.variables,
        {"x": [net.batch], "y": np.zeros(4, np.int32)},
    )
    assert spec == spec_of(net)


def labels_with_parents(spec):
    return {
        (
            label.size,
            tuple(spec.labels[parent].size for parent in label.parents),
            frozenset(named(label.sites)),
        )
        for label in spec.labels.values()
    }


def sites(text):
    return frozenset(text.split())


STREAM = """
embed/kernel:1 embed/bias:0 norm0/scale:0 norm0/bias:0 norm1/scale:0 norm1/bias:0
norm2/scale:0 norm2/bias:0 attention/query/kernel:0 attention/key/kernel:0
attention/value/kernel:0 attention/out/kernel:2 attention/out/bias:0 up/kernel:0
down/kernel:1 down/bias:0 head/kernel:0
"""
HEADS = """
attention/query/kernel:1 attention/query/bias:0 attention/key/kernel:1
attention/key/bias:0 attention/value/kernel:1 attention/value/bias:0
attention/out/kernel:0
"""
QUERY_KEY = """
attention/query/kernel:2 attention/query/bias:1 attention/key/kernel:2
attention/key/bias:1
"""
QUERY_KEY_NORM = """
attention/query_ln/scale:0 attention/query_ln/bias:0 attention/key_ln/scale:0
attention/key_ln/bias:0
"""
VALUE = "attention/value/kernel:2 attention/value/bias:1 attention/out/kernel:1"
HIDDEN_MLP = "up/kernel:1 up/bias:0 down/kernel:0"


def test_channels_of_a_head_are_nested_in_the_head():
    spec = spec_of(zoo.NETS["attention"]())
    assert labels_with_parents(spec) == {
        (12, (), sites(STREAM)),
        (3, (), sites(HEADS)),
        (4, (3,), sites(QUERY_KEY)),
        (4, (3,), sites(VALUE)),
        (20, (), sites(HIDDEN_MLP)),
    }
    assert not spec.statistics
    used = """
    embed/kernel:0 attention/query/kernel:0 attention/key/kernel:0
    attention/value/kernel:0 attention/out/kernel:0 attention/out/kernel:1 up/kernel:0
    down/kernel:0 head/kernel:0
    """
    assert {nets.plain_name(p) + f":{i}" for p, i in spec.consumed} == sites(used)


def test_channels_that_share_a_norm_are_not_nested_in_the_head():
    spec = spec_of(zoo.NETS["attention with normalized queries"]())
    shared = [x for x in labels_with_parents(spec) if x[0] == 4 and x[1] == ()]
    norms = {
        name
        for name in sites(QUERY_KEY_NORM)
        if name.removesuffix(":0") in {nets.plain_name(path) for path in spec.axes}
    }
    assert shared == [(4, (), sites(QUERY_KEY) | norms)]
    assert (4, (3,), sites(VALUE)) in labels_with_parents(spec)


def test_channels_of_a_group_are_nested_in_the_group():
    spec = spec_of(zoo.NETS["group norm"]())
    channels = "conv0/kernel:3 conv0/bias:0 norm/scale:0 norm/bias:0 conv1/kernel:2"
    assert labels_with_parents(spec) == {
        (4, (), sites(channels)),
        (3, (4,), sites(channels)),
    }
    groups, within = (Units(name, label.size) for name, label in spec.labels.items())
    assert spec.axes["params/norm/scale"] == (Product((groups, within)),)


def test_grouped_convolutions_have_groups_and_channels_in_them():
    spec = spec_of(zoo.grouped_conv())
    assert labels_with_parents(spec) == {
        (3, (), sites("in:3 grouped:3 out:2")),
        (4, (3,), sites("in:3 grouped:2")),
        (2, (3,), sites("grouped:3 out:2")),
    }
    assert spec.consumed == {Site("in", 2), Site("grouped", 2), Site("out", 2)}


def test_a_padded_shortcut_makes_a_stream_of_parts():
    spec = spec_of(zoo.padded_shortcut())
    assert labels_with_parents(spec) == {
        (4, (), sites("stem:3 down:2 up:3 head:0")),
        (6, (), sites("down:3 up:2")),
        (2, (), sites("up:3 head:0")),
        (3, (), sites("up:3 head:0")),
    }
    low, stream, high = spec.axes["head"][0].parts
    assert spec.axes["up"][3] == Concat((low, stream, high))
    assert spec.axes["stem"][3] == stream
    assert (low.size, stream.size, high.size) == (2, 4, 3)


def test_concatenated_branches_keep_their_labels():
    spec = spec_of(zoo.branches())
    a, b = spec.axes["a"][1], spec.axes["b"][1]
    assert (a.size, b.size) == (3, 4)
    assert spec.axes["out"] == (Concat((a, b, a)), Fixed(2))


def test_halves_that_are_multiplied_are_in_one_order():
    spec = spec_of(zoo.gated())
    units = Units("P_0", 5)
    assert spec.axes == {
        "in": (Fixed(6), Concat((units, units))),
        "out": (units, Fixed(2)),
    }


def test_a_tied_embedding_has_one_label_for_both_uses():
    spec = spec_of(zoo.tied_embedding())
    assert spec.axes == {"embedding": (Fixed(7), Units("P_0", 5))}


def test_a_recurrence_ties_both_sides_of_its_kernel():
    spec = spec_of(zoo.recurrence())
    hidden = Units("P_0", 6)
    assert spec.axes["again"] == (hidden, hidden)
    assert spec.consumed == {Site("in", 0), Site("again", 0), Site("out", 0)}


def test_scanned_layers_share_the_stream_and_have_units_of_their_own():
    spec = spec_of(zoo.scanned())
    stack, stream, hidden = (
        next(name for name, label in spec.labels.items() if label.size == size)
        for size in (4, 6, 5)
    )
    layer, inner = Units(stack, 4), Units(hidden, 5)
    assert spec.axes["up"] == (layer, Units(stream, 6), inner)
    assert spec.axes["down"] == (layer, inner, Units(stream, 6))
    assert spec.labels[stack].fixed == "is scanned over"
    assert spec.labels[stream].parents == spec.labels[stack].parents == ()
    assert spec.labels[hidden].parents == (stack,)


def test_layers_taken_from_one_kernel_by_index_have_units_of_their_own():
    spec = spec_of(zoo.stacked())
    assert [label.size for label in spec.labels.values()] == [5, 5, 5]
    members = tuple(Units(f"P_{i}", 5) for i in range(3))
    assert spec.axes["in"] == (Fixed(3, 0), Fixed(4), Family(0, members))
    assert spec.axes["out"] == (Fixed(3, 0), Family(0, members), Fixed(2))


def test_a_stack_that_meets_itself_has_one_order_in_all_its_layers():
    spec = spec_of(zoo.crossed_stack())
    units = Units("P_0", 4)
    assert spec.axes["in"] == (Fixed(3), units)
    assert spec.axes["mix"] == (units, Fixed(2))


def test_experts_are_permuted_with_the_router_and_units_in_each_of_them():
    spec = spec_of(zoo.experts())
    assert labels_with_parents(spec) == {
        (4, (), sites("router:1 up:0 down:0")),
        (5, (4,), sites("up:2 down:1")),
    }


# What may not be permuted.


FIXING = {
    "unknown": (
        lambda h: jax.pure_callback(np.tanh, h, h),
        "is touched by pure_callback, which has no rule",
    ),
    "nearly the largest": (
        lambda h: lax.approx_max_k(h, 8)[0],
        "is treated by position in approx_top_k",
    ),
    "cumsum": (lambda h: jnp.cumsum(h, axis=1), "is run along by cumsum"),
    "iota": (
        lambda h: h * jnp.arange(8.0)[None],
        "has positions that are used by mul",
    ),
    "constant": (
        lambda h: h * np.linspace(0, 1, 8, dtype=np.float32)[None],
        "meets a constant that varies along it",
    ),
    "flip": (lambda h: jnp.flip(h, axis=1), "is treated by position in rev"),
    "fft": (lambda h: jnp.abs(jnp.fft.fft(h)), "is treated by position in fft"),
    "every third": (
        lambda h: jnp.concatenate([h[:, ::3], h[:, 3:]], axis=1),
        "is treated by position in slice",
    ),
}


@pytest.mark.parametrize(("fix", "reason"), FIXING.values(), ids=FIXING)
def test_units_treated_by_position_are_fixed_and_say_why(fix, reason):
    spec = infer_spec(lambda v, x: mlp(fix, v, x), mlp_leaves(), np.ones((4, 6)))
    assert not spec.labels
    sites = [Site("w0", 1), Site("b0", 0), Site("w1", 0)]
    assert [spec.fixed[site] for site in sites] == [reason] * 3


def test_every_primitive_without_a_rule_is_named():
    def apply_fn(v, x):
        h = x @ v["a"]
        h = jax.pure_callback(np.tanh, h, h)
        q = lax.linalg.householder_product(v["b"], jnp.ones(3))
        return h.sum(axis=1)[:, None] * q.sum()

    spec = infer_spec(apply_fn, draw({"a": (6, 8), "b": (8, 3)}), np.ones((4, 6)))
    assert spec.fixed[Site("a", 1)] == "is touched by pure_callback, which has no rule"
    for axis in range(2):
        reason = "is touched by householder_product, which has no rule"
        assert spec.fixed[Site("b", axis)] == reason


@pytest.mark.parametrize(
    "in_order", [lambda h: jnp.sort(h, axis=1), lambda h: lax.top_k(h, 8)[0]]
)
def test_what_is_put_in_order_may_be_permuted_before_and_not_after(in_order):
    spec = infer_spec(lambda v, x: mlp(in_order, v, x), mlp_leaves(), np.ones((4, 6)))
    units = Units("P_0", 8)
    assert spec.axes == {
        "b0": (units,),
        "w0": (Fixed(6), units),
        "w1": (Fixed(8), Fixed(3)),
    }
    assert spec.fixed[Site("w1", 0)] == "is in order of size"


def test_a_constant_that_does_not_vary_fixes_nothing():
    ones = np.ones(8, np.float32)
    spec = infer_spec(
        lambda v, x: mlp(lambda h: h * ones[None], v, x), mlp_leaves(), np.ones((4, 6))
    )
    assert list(spec.labels) == ["P_0"]


def test_an_unused_leaf_is_fixed():
    net = nets.build("mlp", "plain")
    leaves = {**net.variables, "unused": np.ones((2, 8), np.float32)}
    spec = infer_spec(net.apply_fn, leaves, net.batch)
    for axis in range(2):
        assert spec.fixed[Site("unused", axis)] == "is not used by apply_fn"
    assert spec.unread == {"unused"}
    rest = dataclasses.replace(
        spec,
        unread=frozenset(),
        axes={p: a for p, a in spec.axes.items() if p != "unused"},
        fixed={s: why for s, why in spec.fixed.items() if s.path != "unused"},
    )
    assert rest == spec_of(net)


def test_a_leaf_used_only_by_dead_code_is_fixed():
    net = nets.build("mlp", "plain")

    def apply_fn(v, x):
        jnp.sum(v["unused"])
        return net.apply_fn(v, x)

    leaves = {**net.variables, "unused": np.ones(8, np.float32)}
    spec = infer_spec(apply_fn, leaves, net.batch)
    assert spec.fixed[Site("unused", 0)] == "is not used by apply_fn"


def test_leaves_without_axes_and_of_size_one_need_no_label():
    def apply_fn(v, x):
        return mlp(lambda h: h * v["gain"] + v["one"][None], v, x)

    leaves = {**mlp_leaves(), "gain": np.float32(2), "one": np.ones(1, np.float32)}
    spec = infer_spec(apply_fn, leaves, np.ones((4, 6)))
    assert spec.axes["gain"] == ()
    assert spec.axes["one"] == (Fixed(1),)
    assert spec.fixed[Site("one", 0)] == "has one position"
    assert spec.labels["P_0"].size == 8


def test_a_leaf_that_is_an_output_is_fixed():
    spec = infer_spec(
        lambda v, x: (x @ v["w"], v["w"]), draw({"w": (3, 4)}), np.ones((2, 3))
    )
    assert not spec.labels
    assert spec.fixed[Site("w", 1)] == "meets an output of the network"


def test_a_random_key_among_the_variables_does_no_harm():
    def apply_fn(v, x):
        return mlp(jnp.tanh, v, x)

    leaves = {**mlp_leaves(), "rng": jax.random.key(0), "count": np.uint32(3)}
    spec = infer_spec(apply_fn, leaves, np.ones((4, 6)))
    assert spec.axes["rng"] == spec.axes["count"] == ()
    assert spec.labels["P_0"].size == 8


def test_dropout_that_is_on_fixes_its_units():
    def apply_fn(v, x):
        keep = jax.random.bernoulli(v["rng"], 0.5, (4, 8))
        return mlp(lambda h: jnp.where(keep, h, 0), v, x)

    leaves = {**mlp_leaves(), "rng": jax.random.key(0)}
    spec = infer_spec(apply_fn, leaves, np.ones((4, 6)))
    assert not spec.labels
    assert spec.fixed[Site("b0", 0)] == "is treated by position in random_bits"


# Kernels that are computed before they are used.


COMPUTED = {
    "scaled": lambda v: v["kernel"] * v["gain"][None],
    "scale first": lambda v: jnp.broadcast_to(v["gain"], (8, 3)) * v["kernel"],
    "in half precision": lambda v: v["kernel"].astype(jnp.bfloat16),
    "transposed twice": lambda v: v["kernel"].T.T,
    "standardised": lambda v: v["kernel"] - v["kernel"].mean(0, keepdims=True),
    "split and joined": lambda v: jnp.concatenate(jnp.split(v["kernel"], 2)),
}


@pytest.mark.parametrize("kernel", COMPUTED.values(), ids=COMPUTED)
def test_the_incoming_axis_of_a_computed_kernel_is_consumed(kernel):
    leaves = {**draw({"in": (6, 8), "kernel": (8, 3), "gain": (3,)})}

    def apply_fn(v, x):
        return jnp.tanh(x @ v["in"]) @ kernel(v)

    spec = infer_spec(apply_fn, leaves, np.ones((4, 6), np.float32))
    assert {s for s in spec.consumed if s.path != "in"} == {Site("kernel", 0)}


def test_an_added_low_rank_kernel_is_consumed_too():
    def apply_fn(v, x):
        return jnp.tanh(x @ v["in"]) @ (v["kernel"] + v["down"] @ v["up"])

    leaves = draw({"in": (6, 8), "kernel": (8, 5), "down": (8, 2), "up": (2, 5)})
    spec = infer_spec(apply_fn, leaves, np.ones((4, 6), np.float32))
    assert spec.consumed == {
        Site("in", 0),
        Site("kernel", 0),
        Site("down", 0),
        Site("up", 0),
    }


def test_a_kernel_on_the_left_is_consumed():
    def apply_fn(v, x):
        return (v["out"] @ jnp.tanh(v["in"] @ x.T)).T

    spec = infer_spec(apply_fn, draw({"in": (8, 6), "out": (3, 8)}), np.ones((4, 6)))
    assert spec.consumed == {Site("in", 1), Site("out", 1)}


# Taps.


def tapped(net, spec):
    """Per label the values at its taps."""
    program = trace(net.apply_fn, net.variables, net.batch)
    taps = find_taps(program, spec)
    args = [*jax.tree.leaves(net.variables), *jax.tree.leaves(net.batch)]
    places = [tap.place for where in taps.values() for tap in where]
    values = iter(jax.jit(lambda args: run(program, args, places))(args))
    return {
        name: [(np.asarray(next(values)), tap.axes) for tap in where]
        for name, where in taps.items()
    }


@pytest.mark.parametrize("form", nets.FORMS)
def test_an_mlp_is_read_after_each_activation(form):
    net = nets.build("mlp", form)
    leaf = {nets.plain_name(p): x for p, x in paths.flatten(net.variables).items()}
    h0 = np.maximum(net.batch @ leaf["fc0/kernel"] + leaf["fc0/bias"], 0)
    h1 = np.maximum(h0 @ leaf["fc1/kernel"] + leaf["fc1/bias"], 0)
    values = tapped(net, spec_of(net))
    for name, expected in {"P_0": h0, "P_1": h1}.items():
        ((value, axes),) = values[name]
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
        assert axes == (Fixed(4), Units(name, expected.shape[1]))


@pytest.mark.parametrize("form", nets.FORMS)
def test_a_residual_stream_is_read_where_it_is_last_summed_over(form):
    net, spec = nets.build("resnet20", form), nets.spec_of("resnet20", form)
    program = trace(net.apply_fn, net.variables, net.batch)
    taps = find_taps(program, spec)
    shapes = {}
    for name, label in spec.labels.items():
        (used,) = {s.used for s in net.symmetries if s.sites == named(label.sites)}
        (tap,) = taps[name]
        shapes |= dict.fromkeys(used, tap.place.var.aval.shape)
    assert shapes["head/kernel:0"] == (4, 6)  # pooled
    assert shapes["s1b0_short/kernel:2"] == (4, 8, 8, 6)
    assert shapes["s2b0_short/kernel:2"] == (4, 4, 4, 6)
    assert shapes["s2b1_conv1/kernel:2"] == (4, 2, 2, 6)


def test_a_flattened_image_is_read_with_its_positions_told_apart():
    net = nets.build("vgg_avg", "plain")
    ((value, axes),) = tapped(net, spec_of(net))["P_2"]
    assert value.shape == (4, 32)
    assert axes == (Fixed(4), Product((Fixed(4), Units("P_2", 8))))


def test_queries_and_keys_are_both_read():
    def apply_fn(v, x):
        q, k = x @ v["q"], jnp.tanh(x @ v["k"])
        return (q @ k.T) @ x

    leaves = draw({"q": (6, 5), "k": (6, 5)})
    net = nets.Net(apply_fn, leaves, draw({"x": (4, 6)})["x"])
    (q, _), (k, _) = tapped(net, spec_of(net))["P_0"]
    np.testing.assert_allclose(q, net.batch @ leaves["q"], rtol=1e-5)
    k = k if k.shape == (4, 5) else k.T
    np.testing.assert_allclose(k, np.tanh(net.batch @ leaves["k"]), rtol=1e-5)


def test_a_label_that_is_never_summed_over_is_read_where_it_was_last_seen():
    def apply_fn(v, x):
        return (jnp.tanh(x @ v["w"]) * v["scale"][None]).max(axis=1)

    leaves = draw({"w": (6, 5), "scale": (5,)})
    net = nets.Net(apply_fn, leaves, draw({"x": (4, 6)})["x"])
    ((value, _),) = tapped(net, spec_of(net))["P_0"]
    expected = np.tanh(net.batch @ leaves["w"]) * leaves["scale"]
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_a_label_without_activations_has_no_taps():
    def apply_fn(v, x):
        return x @ (v["down"] @ v["up"])

    leaves = draw({"down": (6, 2), "up": (2, 5)})
    net = nets.Net(apply_fn, leaves, draw({"x": (4, 6)})["x"])
    assert tapped(net, spec_of(net)) == {"P_0": []}


def test_taps_follow_a_spec_written_by_hand():
    net = nets.build("mlp", "plain")
    names = {"P_0": "first", "P_1": "second"}
    spec = spec_of(net)
    spec = dataclasses.replace(
        spec,
        axes={
            p: tuple(a.renamed(names) for a in axes) for p, axes in spec.axes.items()
        },
        labels={names[name]: label for name, label in spec.labels.items()},
    )
    ((_, axes),) = tapped(net, spec)["second"]
    assert axes == (Fixed(4), Units("second", 7))
