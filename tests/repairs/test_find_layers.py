import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
import zoo

from jmudsc import infer_spec
from jmudsc.derivation.program import trace
from jmudsc.repairs.find_layers import find_layers
from jmudsc.repairs.layers import Linear, Norm, Shared
from jmudsc.repairs.leaf_entries import read, write


def layers_of(net):
    spec = infer_spec(net.apply_fn, net.variables, net.batch)
    return find_layers(trace(net.apply_fn, net.variables, net.batch), spec)


def names(layers):
    """Write `kernel bias` per map, `norm mean variance` per norm."""
    lines = []
    for layer in layers.steps:
        if isinstance(layer, Norm):
            found = ["norm", layer.mean.path, layer.variance.path]
        else:
            found = [layer.kernel.path, *([layer.bias.path] if layer.bias else [])]
        lines.append(" ".join(map(nets.plain_name, found)))
    return lines


@pytest.mark.parametrize("form", nets.FORMS)
def test_dense_layers_are_found_with_their_biases(form):
    expected = [f"fc{i}/kernel fc{i}/bias" for i in range(3)]
    layers = layers_of(nets.build("mlp", form))
    assert names(layers) == expected
    assert not layers.skipped


@pytest.mark.parametrize("form", nets.FORMS)
def test_convolutions_are_found_with_their_biases(form):
    kinds = ["conv0", "conv1", "conv2", "fc0", "fc1"]
    expected = [f"{name}/kernel {name}/bias" for name in kinds]
    assert names(layers_of(nets.build("vgg_max", form))) == expected


@pytest.mark.parametrize("form", nets.FORMS)
def test_every_convolution_of_a_residual_network_goes_into_its_norm(form):
    layers = layers_of(nets.build("resnet20", form))
    *convolutions, head = [s for s in layers.steps if isinstance(s, Linear)]
    assert len(convolutions) == 21
    assert all(layer.is_normed for layer in convolutions)
    assert not head.is_normed
    norms = [line for line in names(layers) if line.startswith("norm")]
    kinds = [line.split()[1].removesuffix("/mean") for line in norms]
    assert norms == [f"norm {name}/mean {name}/var" for name in kinds]
    assert len(set(kinds)) == 21


def test_heads_have_one_bias_entry_per_channel():
    layers = layers_of(zoo.NETS["attention"]())
    parts = ("query", "key", "value", "out")
    expected = [f"attention/{part}/kernel attention/{part}/bias" for part in parts]
    assert names(layers)[1:5] == expected
    assert layers.steps[1].bias.index.shape == (1, 1, 3, 4)


SHARED = {
    "tied embedding": [("embedding", 2, [False, True], [False, True])],
    "recurrence": [
        ("in", 4, [False] * 4, [False] * 4),
        ("again", 3, [False] * 3, [False, True, True]),
    ],
}


@pytest.mark.parametrize("name", SHARED)
def test_the_uses_of_a_kernel_are_one_layer(name):
    layers = layers_of(zoo.NETS[name]())
    assert not layers.skipped
    assert [
        (
            layer.uses[0].kernel.path,
            len(layer.uses),
            [use.is_turned for use in layer.uses],
            [use.is_led for use in layer.uses],
        )
        for layer in layers.steps
        if isinstance(layer, Shared)
    ] == SHARED[name]


def test_scanned_layers_are_kernels_of_their_own():
    layers = layers_of(zoo.NETS["scanned layers"]())
    inside = [name for _ in range(4) for name in ("up", "down")]
    assert names(layers) == ["in", *inside, "out"]
    positions = [layer.kernel.index.min() for layer in layers.steps[1:-1:2]]
    size = layers.steps[1].kernel.index.size
    assert positions == [0, size, 2 * size, 3 * size]
    assert [list(layer.at.values()) for layer in layers.steps[1:-1:2]] == [
        [n] for n in range(4)
    ]


@pytest.mark.parametrize(
    ("reason", "kernel_of"),
    [
        ("is used more than once", lambda v: v["a"] * v["b"].sum()),
        (
            "is computed with, in a way that cannot be undone, before it is contracted",
            lambda v: jnp.exp(v["a"]),
        ),
    ],
)
def test_what_cannot_be_written_back_is_told_with_the_reason(reason, kernel_of):
    def apply_fn(v, x):
        y = jnp.tanh(x @ kernel_of(v)) @ v["b"]
        return y + v["b"].sum() if "more" in reason else y

    net = zoo.of_plain(apply_fn, {"a": (3, 4), "b": (4, 2)}, (5, 3))
    path = "b" if "more" in reason else "a"
    assert layers_of(net).skipped[path] == reason


def test_a_kernel_that_is_computed_has_the_leaves_that_say_what_it_is():
    def apply_fn(v, x):
        return jnp.tanh(x @ (v["a"] * v["gain"][None])) @ v["b"]

    net = zoo.of_plain(apply_fn, {"a": (3, 4), "gain": (4,), "b": (4, 2)}, (5, 3))
    first, _ = layers_of(net).steps
    assert first.kernel.paths == ("a",)


def test_what_is_added_to_an_output_is_a_bias_only_with_one_entry_per_unit():
    def apply_fn(v, x):
        y = jnp.tanh(x @ v["a"] + v["position"][None])
        y = jnp.tanh(y @ v["b"] + v["scalar"][None, None])
        y = jnp.tanh(y @ v["c"] + v["used"][None, None]) + v["used"][None, None]
        return y @ v["d"] + x

    shapes = {"a": (3, 4), "position": (5, 4), "b": (4, 6), "scalar": (1,)}
    shapes |= {"c": (6, 4), "used": (4,), "d": (4, 3)}
    net = zoo.of_plain(apply_fn, shapes, (2, 5, 3))
    assert names(layers_of(net)) == ["a", "b", "c", "d"]


def test_a_bias_is_found_behind_reshapes_transposes_and_casts():
    def apply_fn(v, x):
        y = jax.lax.dot_general(v["a"], x, (((0,), (2,)), ((), ())))  # units first
        y = jnp.transpose(y, (1, 2, 0)).astype(jnp.bfloat16).reshape(10, 4)
        y = jnp.tanh(y + v["bias"].astype(jnp.bfloat16)[None])
        return y.astype(jnp.float32) @ v["b"]

    shapes = {"a": (3, 4), "bias": (4,), "b": (4, 2)}
    layers = layers_of(zoo.of_plain(apply_fn, shapes, (2, 5, 3)))
    assert names(layers) == ["a bias", "b"]
    np.testing.assert_array_equal(
        layers.steps[0].bias.index, np.arange(4)[:, None, None]
    )


def test_slices_of_a_stack_are_kernels_of_their_own():
    net = zoo.NETS["stacked layers"]()
    layers = layers_of(net)
    assert names(layers) == ["in"] * 3 + ["out"] * 3
    for position, layer in enumerate(layers.steps[:3]):
        leaf = net.variables["in"]
        np.testing.assert_array_equal(read(leaf, layer.kernel.index), leaf[position])
        changed = write(leaf, layer.kernel.index, np.zeros((4, 5), np.float32))
        assert not np.asarray(changed[position]).any()
        others = np.arange(3) != position
        np.testing.assert_array_equal(changed[others], leaf[others])
