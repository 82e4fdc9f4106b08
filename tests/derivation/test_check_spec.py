import dataclasses
import re

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
import tiny
import zoo

from jmudsc import check_spec, infer_spec, override, PermutationSpec, Units
from jmudsc.spec.permutation_spec import labels_of

# Every form of the smaller networks, one form of those slow to compile.
CASES = [case for case in nets.CASES if case[0] in ("mlp", "vgg_max")]
CASES += [("resnet20", "linen"), ("bottleneck", "nnx")]


def relabelled(spec, changes, sizes=None):
    """A spec with other axes for some leaves, and its label records built anew."""
    axes = {**spec.axes, **changes}
    sizes = {name: label.size for name, label in spec.labels.items()} | (sizes or {})
    return dataclasses.replace(spec, axes=axes, labels=labels_of(axes, sizes, {}))


@pytest.mark.parametrize(("name", "form"), CASES)
def test_a_derived_spec_is_accepted(name, form, key):
    net = nets.build(name, form)
    check_spec(
        nets.spec_of(name, form), net.apply_fn, net.variables, net.batch, key=key
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["mlp", "vgg_avg", "resnet20"])
def test_a_derived_spec_is_accepted_in_half_precision(name, seed):
    net = nets.build(name, "plain")
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), net.variables)
    batch = jnp.asarray(net.batch, jnp.bfloat16)
    spec = infer_spec(net.apply_fn, half, batch)
    check_spec(spec, net.apply_fn, half, batch, key=jax.random.key(seed))


def test_a_spec_without_labels_is_accepted(key):
    net = nets.build("mlp", "plain")
    spec = infer_spec(lambda v, x: (net.apply_fn(v, x), v), net.variables, net.batch)
    assert not spec.labels
    check_spec(spec, net.apply_fn, net.variables, net.batch, key=key)


def refused(labels):
    names = ", ".join(labels)
    return pytest.raises(
        ValueError,
        match=re.escape(
            f"check_spec: expected outputs that stay as they are when {names} "
            f"{'is' if len(labels) == 1 else 'are'} permuted, got changes of more"
        ),
    )


def test_a_norm_scale_with_another_label_of_its_size_is_refused(key):
    net, spec = nets.build("resnet20", "plain"), nets.spec_of("resnet20", "plain")
    own, other = (spec.axes[f"s1b{block}_norm0/scale"][0].label for block in (1, 2))
    wrong = relabelled(spec, {"s1b1_norm0/scale": (Units(other, 6),)})
    with refused(sorted([own, other], key=list(spec.labels).index)):
        check_spec(wrong, net.apply_fn, net.variables, net.batch, key=key)


@pytest.mark.parametrize("stat", ["mean", "var"])
def test_a_running_statistic_with_another_label_is_refused(stat, key):
    net, spec = nets.build("bottleneck", "plain"), nets.spec_of("bottleneck", "plain")
    own, other = (spec.axes[f"s3b0_norm{i}/scale"][0].label for i in (0, 1))
    wrong = relabelled(spec, {f"s3b0_norm0/{stat}": (Units(other, 4),)})
    with refused([own, other]):
        check_spec(wrong, net.apply_fn, net.variables, net.batch, key=key)


def test_a_label_split_in_two_is_refused(key):
    net, spec = nets.build("mlp", "plain"), nets.spec_of("mlp", "plain")
    half = Units("P_x", 8)
    wrong = relabelled(
        spec, {"fc1/kernel": (half, spec.axes["fc1/kernel"][1])}, {"P_x": 8}
    )
    with refused(["P_0", "P_x"]):
        check_spec(wrong, net.apply_fn, net.variables, net.batch, key=key)


def test_an_output_with_a_label_is_refused(key):
    net, spec = nets.build("mlp", "plain"), nets.spec_of("mlp", "plain")
    out = Units("P_out", 3)
    changes = {"fc2/kernel": (spec.axes["fc2/kernel"][0], out), "fc2/bias": (out,)}
    wrong = relabelled(spec, changes, {"P_out": 3})
    with refused(["P_out"]):
        check_spec(wrong, net.apply_fn, net.variables, net.batch, key=key)


# Net, rows to override, parents to override, the labels that must be named.
VGG, GROUPED = ("vgg_avg", "plain"), "grouped convolution"
BROKEN = {
    "a bias with another label of its size": (
        VGG,
        {"conv1/bias": "P_0"},
        {},
        ["P_0", "P_1"],
    ),
    "an incoming axis with another label of its size": (
        VGG,
        {"conv2/kernel": "3, 3, P_3, P_2"},
        {},
        ["P_1", "P_3"],
    ),
    "a label missing on a bias": (VGG, {"conv1/bias": (None,)}, {}, ["P_1"]),
    "a label missing on an incoming axis": (
        VGG,
        {"conv1/kernel": (None, None, None, "P_1")},
        {},
        ["P_0"],
    ),
    "factors the other way round": (VGG, {"fc0/kernel": "P_2*4, P_3"}, {}, ["P_2"]),
    "one label more in a product": (VGG, {"fc0/kernel": "room*P_2, P_3"}, {}, ["room"]),
    "a part too many": (VGG, {"fc0/bias": "a+5"}, {}, ["P_3", "a"]),
    "two labels joined on some of their leaves": (
        VGG,
        {"conv1/bias": "P_0", "conv1/kernel": "3, 3, P_0, P_0"},
        {},
        ["P_0", "P_1"],
    ),
    "a label joined with a spatial axis": (
        VGG,
        {"conv2/kernel": "here, 3, P_1, P_2"},
        {},
        ["here"],
    ),
    "values in the order of queries": (
        "attention",
        {"v/kernel": "6, P_0, P_1", "out/kernel": "P_0, P_2, 2"},
        {},
        ["P_1", "P_2"],
    ),
    "heads missing on the way out": (
        "attention",
        {"out/kernel": "3, P_2, 2"},
        {"P_2": ()},
        ["P_0"],
    ),
    "channels that are nested in no head on a bias": (
        "attention",
        {"q/bias": "3, P_1"},
        {"P_1": ()},
        ["P_0"],
    ),
    "groups and channels the other way round": (
        GROUPED,
        {"out": "1, 1, P_2*P_0, 5"},
        {},
        ["P_0", "P_2"],
    ),
    "channels of a group with those of another layer's": (
        "stacked layers",
        {"out": "3#0, {P_0|P_2|P_1}#0, 2"},
        {},
        ["P_1", "P_2"],
    ),
}


def narrow_attention():
    """Attention with as many channels in a head for values as for queries."""
    shapes = {**tiny.ATTENTION.shapes, "v/kernel": (6, 3, 4), "out/kernel": (3, 4, 2)}
    batch = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32)
    leaves = nets.random_leaves(shapes, "narrow")
    return nets.Net(tiny.ATTENTION.apply_fn, leaves, batch)


def net_and_spec(case):
    if not isinstance(case, str):
        return nets.build(*case), nets.spec_of(*case)
    net = narrow_attention() if case == "attention" else zoo.NETS[case]()
    return net, infer_spec(net.apply_fn, net.variables, net.batch)


@pytest.mark.parametrize(
    ("case", "rows", "parents", "labels"), BROKEN.values(), ids=BROKEN
)
def test_a_spec_broken_by_hand_is_refused_by_the_labels_at_fault(
    case, rows, parents, labels, key
):
    net, spec = net_and_spec(case)
    wrong = override(spec, rows, parents=parents)
    with refused(labels):
        check_spec(wrong, net.apply_fn, net.variables, net.batch, key=key)


def test_a_label_wrongly_said_to_be_nested_is_refused(key):
    def apply_fn(v, x):
        """The units, one order for all groups, since the groups are summed over."""
        hidden = jnp.tanh(jnp.einsum("bi,igu->bgu", x, v["in"])) * v["gain"][None]
        return hidden.sum(axis=1).max(axis=1)

    shapes = {"in": (3, 2, 5), "gain": (2, 5)}
    variables, x = nets.random_leaves(shapes, "groups"), np.ones((4, 3), np.float32)
    spec = infer_spec(apply_fn, variables, x)
    groups, units = spec.labels
    assert spec.labels[groups].parents == (units,)  # not the other way round
    check_spec(spec, apply_fn, variables, x, key=key)
    wrong = override(spec, {}, parents={units: groups, groups: ()})
    with refused([units]):
        check_spec(wrong, apply_fn, variables, x, key=key)


def test_labels_joined_on_all_their_leaves_are_a_smaller_group_and_accepted(key):
    net, spec = net_and_spec(VGG)
    rows = {
        p: ", ".join(map(str, row)).replace("P_1", "P_0")
        for p, row in spec.axes.items()
    }
    joined = override(spec, rows)
    assert "P_1" not in joined.labels
    check_spec(joined, net.apply_fn, net.variables, net.batch, key=key)


@pytest.mark.parametrize("seed", range(8))
def test_two_units_are_always_exchanged(seed):
    """Half of all permutations of two units leave both in place and prove nothing."""
    variables = {"a": np.array([1, 2], np.float32)}
    axes = {"a": (Units("P_0", 2),)}
    spec = PermutationSpec(axes, labels_of(axes, {"P_0": 2}, {}))
    with refused(["P_0"]):
        check_spec(
            spec,
            lambda v, x: v["a"][0] * x,
            variables,
            np.ones(3),
            key=jax.random.key(seed),
        )


def test_the_error_names_the_sites_and_the_size_of_the_change(key):
    net, spec = nets.build("mlp", "plain"), nets.spec_of("mlp", "plain")
    wrong = relabelled(
        spec,
        {"fc0/bias": (dataclasses.replace(spec.axes["fc0/bias"][0], label="P_x"),)},
        {"P_x": 8},
    )
    with pytest.raises(ValueError, match="check_spec") as error:
        check_spec(wrong, net.apply_fn, net.variables, net.batch, key=key)
    text = re.sub(r"outputs by \d\.\de[-+]\d\d; ", "outputs by N; ", str(error.value))
    assert (
        text
        == """\
check_spec: expected outputs that stay as they are when P_0, P_x are permuted, got \
changes of more than 9.8e-04 of the largest output:
  P_0 changes outputs by N; it is on fc0/kernel:1, fc1/kernel:0
  P_x changes outputs by N; it is on fc0/bias:0
Correct these labels, or derive the spec with infer_spec."""
    )


def test_labels_that_are_wrong_only_together_are_all_named():
    def apply_fn(v, x):
        """Doubles the input if neither rows nor columns are in their first order."""
        rows = v["a"][0].sum() > v["a"][1].sum()
        columns = v["a"][:, 0].sum() > v["a"][:, 1].sum()
        return x * (1 + (rows & columns))

    axes = {"a": (Units("P_0", 2), Units("P_1", 2))}
    spec = PermutationSpec(axes, labels_of(axes, {"P_0": 2, "P_1": 2}, {}))
    variables = {"a": np.array([[0, 1], [2, 3]], np.float32)}
    message = """\
check_spec: expected outputs that stay as they are when all labels together are \
permuted, got changes of more than 9.8e-04 of the largest output:
  P_0 changes outputs by 0.0e+00; it is on a:0
  P_1 changes outputs by 0.0e+00; it is on a:1
Correct these labels, or derive the spec with infer_spec."""
    for seed in range(6):  # no draw leaves a label in place
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            check_spec(spec, apply_fn, variables, np.ones(3), key=jax.random.key(seed))


@pytest.mark.parametrize("leaf", ["fc0/bias", "fc1/bias"])
def test_an_error_cannot_hide_behind_a_zero_bias(leaf, key):
    net = nets.build("mlp", "plain")
    zero = {n: x * (not n.endswith("bias")) for n, x in net.variables.items()}
    spec = nets.spec_of("mlp", "plain")
    (units,) = spec.axes[leaf]
    wrong = relabelled(spec, {leaf: (Units("P_x", units.size),)}, {"P_x": units.size})
    with refused([units.label, "P_x"]):
        check_spec(wrong, net.apply_fn, zero, net.batch, key=key)


def test_an_error_cannot_hide_behind_units_that_are_alike(key):
    net = nets.build("resnet20", "plain")
    fresh = {  # as initialised: scales are one, means zero
        name: np.full_like(x, name.endswith(("scale", "var")))
        if not name.endswith("kernel")
        else x
        for name, x in net.variables.items()
    }
    spec = nets.spec_of("resnet20", "plain")
    wrong = relabelled(spec, {"s0b0_norm0/mean": (Units("P_x", 6),)}, {"P_x": 6})
    (own,) = spec.axes["s0b0_norm0/mean"]
    with refused([own.label, "P_x"]):
        check_spec(wrong, net.apply_fn, fresh, net.batch, key=key)


def test_a_smaller_tolerance_refuses_rounding(key):
    net = nets.build("mlp", "plain")
    with pytest.raises(ValueError, match=re.escape("of more than 1.0e-12 of")):
        check_spec(
            nets.spec_of("mlp", "plain"),
            net.apply_fn,
            net.variables,
            net.batch,
            key=key,
            tolerance=1e-12,
        )


def test_outputs_that_are_not_finite_are_refused(key):
    net = nets.build("mlp", "plain")

    def apply_fn(v, x):
        return {"logits": net.apply_fn(v, x), "loss": jnp.log(-jnp.abs(x)).sum()}

    message = (
        'check_spec: expected finite outputs, got NaN or infinity in "loss". Check the '
        "variables and the range of the batch."
    )
    spec = infer_spec(apply_fn, net.variables, net.batch)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_spec(spec, apply_fn, net.variables, net.batch, key=key)


def test_a_spec_of_another_network_is_refused(key):
    net, spec = nets.build("mlp", "plain"), nets.spec_of("mlp", "plain")
    message = """\
check_spec: expected variables that the spec fits, got others:
  extra: is not in the spec
Derive it from these variables with infer_spec."""
    leaves = {**net.variables, "extra": np.ones(3, np.float32)}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_spec(spec, net.apply_fn, leaves, net.batch, key=key)


def test_integer_leaves_and_outputs_are_compared_too(key):
    net = nets.build("mlp", "plain")

    def apply_fn(v, x):
        return net.apply_fn(v, x).argmax(axis=1), v["step"]

    leaves = {**net.variables, "step": np.int32(7)}
    spec = infer_spec(apply_fn, leaves, net.batch)
    check_spec(spec, apply_fn, leaves, net.batch, key=key)
