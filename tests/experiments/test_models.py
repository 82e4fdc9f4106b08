import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmudsc import paths
from jmudsc.derivation.check_spec import check_spec
from jmudsc.derivation.infer_spec import infer_spec
from jmudsc.experiments import convnets
from jmudsc.experiments.convnets import ResNet
from jmudsc.experiments.models import (
    apply_fn,
    BottleneckResNet,
    init,
    MLP,
    NETWORKS,
    ResNet20,
    update_fn,
    VGG,
    ViT,
)

SHAPE = (8, 8, 1)
MLP_SMALL = MLP((16, 12), 5)
RESNET_SMALL = ResNet20(1, 5)
VIT_SMALL = ViT(outputs=5, patch=4, width=12, depth=2, heads=3)

# Streams and inner channels of the three stages: a GroupNorm of 4 groups in each makes
# a label of groups with channels nested.
STAGES = "16 32 64 16 16 16 32 32 32 64 64 64"
LABELS = {
    "mlp": (MLP_SMALL, "16 12"),
    "vgg": (VGG(5, ((4,), (6, 6), (7,))), "4 6 6 7"),
    "vgg, layer": (VGG(5, ((4,), (6,)), "layer"), "4 6"),
    "resnet20": (RESNET_SMALL, STAGES),
    "resnet20, layer": (ResNet20(1, 5, "layer"), STAGES),
    "resnet20, none": (ResNet20(1, 5, None), STAGES),
    "resnet20, group": (
        ResNet20(1, 5, "group", 4),
        " ".join(f"4 {int(size) // 4}/4" for size in STAGES.split()),
    ),
    "resnet": (ResNet(1, 5, (1, 1, 1)), "16 32 64 16 32 64"),
    "bottleneck": (
        BottleneckResNet(5, (2, 1), width=4),
        "4 16 32 4 4 4 4 8 8",
    ),
    "vit": (VIT_SMALL, "12 " + "3 4/3 4/3 48 " * 2),
}


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


@pytest.mark.parametrize("model", [MLP_SMALL, RESNET_SMALL, VIT_SMALL])
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
    variables = init(ResNet20(1, 5, norm=None), key, SHAPE)
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
    got = convnets._convolve(x, kernel, (stride, stride), "SAME")
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


def labels_of(spec):
    """Write the size of each label, and behind it those of its parents."""
    labels = spec.labels.values()
    nested = [(x.size, *(spec.labels[n].size for n in x.parents)) for x in labels]
    return sorted("/".join(map(str, sizes)) for sizes in nested)


@pytest.mark.parametrize("name", LABELS)
def test_a_network_has_the_labels_it_must_have_and_they_hold(name, key):
    model, expected = LABELS[name]
    images = jax.random.normal(key, (2, 16, 16, 1))
    variables = init(model, key, images.shape[1:])
    spec = infer_spec(apply_fn(model), variables, images)
    assert labels_of(spec) == sorted(expected.split())
    assert not any(label.fixed for label in spec.labels.values())
    check_spec(spec, apply_fn(model), variables, images, key=key)


def labels_of_size(model, size):
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return labels_of(infer_spec(apply_fn(model), variables, images))


def test_a_resnet50_has_four_streams_and_two_labels_a_block():
    found = labels_of_size(BottleneckResNet(512), 64)
    inner = [64] * 6 + [128] * 8 + [256] * 12 + [512] * 6
    assert found == sorted(map(str, [64, 256, 512, 1024, 2048, *inner]))


def test_a_small_vit_of_the_paper_has_one_stream_and_four_labels_a_block():
    model = ViT(512, patch=16, width=384, depth=12, heads=6)
    found = labels_of_size(model, 224)
    assert found == sorted(["384", *["6", "64/6", "64/6", "1536"] * 12])


def test_training_mode_changes_nothing_where_there_are_no_statistics(key, images):
    for model in (VIT_SMALL, ResNet20(1, 5, "group", 4)):
        variables = init(model, key, SHAPE)
        forward = jax.jit(model.apply, static_argnames="train")
        trained = forward(variables, images, train=True)
        expected = forward(variables, images)
        np.testing.assert_allclose(trained, expected, rtol=1e-4, atol=1e-4)


def test_heads_are_no_inputs_of_a_query(key):
    model = ViT(outputs=5, patch=4, width=96, depth=1, heads=3)
    leaves = paths.flatten(init(model, key, SHAPE))
    query = next(v for p, v in leaves.items() if p.endswith("query/kernel"))
    assert query.shape == (96, 3, 32)
    assert float(query.std()) * np.sqrt(96 / 2) == pytest.approx(1, abs=0.05)
    positions = leaves["params/positions"]
    assert float(positions.std()) == pytest.approx(0.02, rel=0.2)
    assert not leaves["params/token"].any()


def test_patches_that_do_not_divide_the_image_are_an_error(key):
    message = (
        "ViT: expected a patch that divides both sides of images of 8x8, got 3. Choose "
        "another patch."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        init(ViT(outputs=5, patch=3, width=12, depth=1, heads=3), key, SHAPE)


def test_a_norm_that_is_not_there_is_an_error(key):
    message = (
        "model: expected norm to be one of batch, group, layer or None, got "
        '"batchnorm". Change the model.'
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        init(VGG(5, ((4,),), "batchnorm"), key, SHAPE)


def test_every_network_has_a_name():
    assert {type(model) for model, _ in LABELS.values()} == set(NETWORKS.values())
