"""What a program does with its leaves, against what is known of small networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jmudsc.derivation.program import trace
from jmudsc.finetunes.kernels import kernels_of, layouts_by_use


def layouts(apply_fn, variables, batch):
    kernels = kernels_of(trace(apply_fn, variables, batch))
    return layouts_by_use(kernels, {p: np.shape(x) for p, x in variables.items()})


def letters(apply_fn, shapes, batch):
    variables = {path: np.ones(shape, np.float32) for path, shape in shapes.items()}
    found = layouts(apply_fn, variables, np.ones(batch, np.float32))
    return {path: layout.letters for path, layout in found.items()}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlp", {"a/kernel": "io", "a/bias": "o"}),
        ("cnn", {"a/kernel": "iiio", "c/kernel": "io", "norm/scale": "o"}),
        ("attention", {"q/kernel": "ioo", "out/kernel": "iio", "q/bias": "oo"}),
        ("experts", {"b/kernel": "bio", "a/bias": "oo"}),
        ("recurrent", {"state/kernel": "io"}),
    ],
)
def test_axes_are_what_contractions_make_of_them(name, expected):
    net = tiny.NETS[name]
    found = letters(net.apply_fn, net.shapes, (2, *net.input_shape))
    assert {path: found[path] for path in expected} == expected


def test_a_kernel_stored_the_other_way_is_seen_to_be():
    apply_fn = lambda v, x: x @ v["w"].T
    assert letters(apply_fn, {"w": (5, 3)}, (2, 3)) == {"w": "oi"}


def test_a_reshaped_kernel_is_followed():
    def apply_fn(v, x):
        return jnp.einsum("bi,iho->bho", x, v["w"].reshape(3, 2, 4))

    assert letters(apply_fn, {"w": (3, 8)}, (2, 3)) == {"w": "io"}


def test_a_table_that_is_looked_up_in_is_no_matrix_even_if_it_is_multiplied_with_too():
    def apply_fn(v, x):
        return v["table"][x] @ v["table"].T

    kernels = kernels_of(
        trace(apply_fn, {"table": np.ones((7, 3), np.float32)}, np.zeros(2, np.int32))
    )
    assert layouts_by_use(kernels, {"table": (7, 3)})["table"].letters == "oo"


def test_a_depthwise_kernel_is_no_matrix_and_a_grouped_one_is_several():
    def conv(groups):
        def apply_fn(v, x):
            return jax.lax.conv_general_dilated(
                x,
                v["w"],
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
            )

        return apply_fn

    assert letters(conv(4), {"w": (3, 3, 1, 4)}, (2, 5, 5, 4)) == {"w": "oooo"}
    variables = {"w": np.ones((3, 3, 2, 6), np.float32)}
    found = layouts(conv(2), variables, np.ones((2, 5, 5, 4), np.float32))["w"]
    assert found.sizes((3, 3, 2, 6)) == (2, 18, 3)
    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 6))
    second = kernel[..., 3:].transpose(2, 0, 1, 3).reshape(18, 3)
    np.testing.assert_array_equal(found.matrices(kernel)[1], second)


def test_layers_of_a_loop_and_loops_in_loops_are_stacked():
    def apply_fn(v, x):
        def inner(h, layer):
            return jnp.tanh(h @ layer[0] + layer[1][None]), None

        def outer(h, layers):
            return jax.lax.scan(inner, h, layers)[0] @ v["shared"], None

        return jax.lax.scan(outer, x, (v["w"], v["b"]))[0]

    shapes = {"w": (2, 3, 4, 4), "b": (2, 3, 4), "shared": (4, 4)}
    found = letters(apply_fn, shapes, (5, 4))
    assert found == {"w": "llio", "b": "llo", "shared": "io"}


def test_a_leaf_that_is_only_added_or_computed_with_is_no_matrix():
    def apply_fn(v, x):
        return x @ (v["down"] @ v["up"]) + v["square"][None, 0]

    shapes = {"down": (3, 2), "up": (2, 4), "square": (4, 4)}
    assert set(letters(apply_fn, shapes, (2, 3)).values()) == {"oo"}


def test_a_kernel_used_both_ways_is_no_matrix():
    apply_fn = lambda v, x: x @ v["w"] @ v["w"].T
    assert letters(apply_fn, {"w": (3, 5)}, (2, 3)) == {"w": "oo"}
