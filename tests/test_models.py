import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmudsc import models, paths
from jmudsc.models import apply_fn, init, MLP, ResNet20, update_fn

SHAPE = (8, 8, 1)
MLP_SMALL = MLP((16, 12), 5)
RESNET_SMALL = ResNet20(1, 5)


@pytest.fixture(scope="module")
def resnet():
    return init(RESNET_SMALL, jax.random.key(0), SHAPE)


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (6, *SHAPE))


def same(a, b):
    return jax.tree.map(np.array_equal, a, b)


def test_init_depends_on_the_key_and_on_nothing_else(key):
    first, again = (init(MLP_SMALL, key, SHAPE) for _ in range(2))
    other = init(MLP_SMALL, jax.random.key(7), SHAPE)
    assert all(jax.tree.leaves(same(first, again)))
    kernels = [p for p in paths.flatten(first) if p.endswith("kernel")]
    equal = paths.flatten(same(first, other))
    assert len(kernels) == 3
    assert not any(equal[path] for path in kernels)


@pytest.mark.parametrize("model", [MLP_SMALL, RESNET_SMALL])
def test_init_has_the_tree_of_linen(model, key):
    ours = init(model, key, SHAPE)
    linen = jax.eval_shape(model.init, key, jnp.zeros((1, *SHAPE)))
    assert jax.tree.structure(ours) == jax.tree.structure(linen)
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, linen)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(ours))


def test_kernels_keep_the_scale_of_activations(resnet):
    for path, leaf in paths.flatten(resnet).items():
        if path.endswith("kernel"):
            fan_in = np.prod(leaf.shape[:-1])
            # the sample deviation of n normals is within 5 / sqrt(2 n) of 1
            sample = float(leaf.std()) * np.sqrt(fan_in / 2)
            assert abs(sample - 1) < 5 / np.sqrt(2 * leaf.size), path


def test_without_norms_there_are_biases_and_no_statistics(key):
    variables = init(ResNet20(1, 5, norm=False), key, SHAPE)
    leaves = paths.flatten(variables)
    assert list(variables) == ["params"]
    assert len([p for p in leaves if p.endswith("kernel")]) == 22
    assert {p.replace("kernel", "bias") for p in leaves if p.endswith("kernel")} == {
        p for p in leaves if p.endswith("bias")
    }


def test_no_two_kernels_share_their_draw(resnet):
    kernels = [v for p, v in paths.flatten(resnet).items() if p.endswith("kernel")]
    firsts = [float(k.ravel()[0]) * np.sqrt(np.prod(k.shape[:-1])) for k in kernels]
    assert len(set(np.round(firsts, 5))) == len(kernels)


def test_evaluation_does_not_depend_on_the_other_images(resnet, images):
    forward = jax.jit(apply_fn(RESNET_SMALL))
    others = images.at[1:].multiply(3.0)
    np.testing.assert_allclose(
        forward(resnet, images)[0], forward(resnet, others)[0], rtol=1e-5, atol=1e-5
    )


def test_update_changes_the_batch_statistics_and_nothing_else(resnet, images):
    after = jax.jit(update_fn(RESNET_SMALL))(resnet, images)
    assert jax.tree.structure(after) == jax.tree.structure(resnet)
    assert all(jax.tree.leaves(same(after["params"], resnet["params"])))
    assert not any(jax.tree.leaves(same(after["batch_stats"], resnet["batch_stats"])))


def test_update_leaves_a_network_without_statistics_as_it_is(key, images):
    variables = init(MLP_SMALL, key, SHAPE)
    assert list(variables) == ["params"]
    after = update_fn(MLP_SMALL)(variables, images)
    assert all(jax.tree.leaves(same(after, variables)))


def test_equal_models_share_their_functions():
    assert apply_fn(MLP((4,), 2)) is apply_fn(MLP((4,), 2))
    assert update_fn(ResNet20(1, 2)) is update_fn(ResNet20(1, 2))
    assert apply_fn(MLP((4,), 2)) is not apply_fn(MLP((4,), 3))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (2, 1)])
def test_training_convolves_as_evaluation_does(stride, size, key):
    x = jax.random.normal(key, (2, *size, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
    expected = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    got = models._convolve(x, kernel, (stride, stride), "SAME")
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_resnet_has_twenty_weighted_layers_on_its_longest_path(resnet):
    kernels = [p for p in paths.flatten(resnet) if p.endswith("kernel")]
    shortcuts = [p for p in kernels if "_ConvNorm_2" in p]
    assert len(kernels) - len(shortcuts) == 20
    assert len(shortcuts) == 2


@pytest.mark.parametrize("width", [1, 3])
def test_width_multiplies_the_channels_of_each_stage(width, images):
    shapes = jax.eval_shape(ResNet20(width, 5).init, jax.random.key(0), images)
    sizes = {leaf.shape[-1] for leaf in jax.tree.leaves(shapes["batch_stats"])}
    assert sizes == {16 * width, 32 * width, 64 * width}
