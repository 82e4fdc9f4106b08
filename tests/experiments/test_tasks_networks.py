import functools

import jax
import numpy as np
import pytest

from jmudsc import infer_spec, merge, paths, permute, random_permutations
from jmudsc.experiments.models import apply_fn, init, update_fn
from jmudsc.experiments.tasks import TASKS
from jmudsc.experiments.tasks_networks import (
    HEAD,
    network_of,
    ResNetEncoder,
    VGGEncoder,
)

SHAPE = (8, 8, 3)
RESNET = ResNetEncoder(1, (1, 1), norm=None)
VGG = VGGEncoder(((6,), (8,)))


@functools.cache
def network(name, trunk=RESNET):
    return network_of(trunk, TASKS[name], SHAPE, classes=5, code=3)


def images(seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(32, *SHAPE)).astype(np.float32)


def drawn(net, seed):
    """Draw variables in which no two units are alike, not even by their norms."""
    rng = np.random.default_rng(seed)
    leaves = paths.flatten(init(net, jax.random.key(seed), SHAPE))
    moved = {
        path: leaf
        if path.endswith("kernel")
        else leaf + rng.uniform(0, 0.5, leaf.shape)
        for path, leaf in leaves.items()
    }
    moved = {path: np.asarray(leaf, np.float32) for path, leaf in moved.items()}
    return paths.unflatten(init(net, jax.random.key(seed), SHAPE), moved)


@pytest.mark.parametrize("trunk", [RESNET, VGG], ids=["resnet", "vgg"])
@pytest.mark.parametrize("name", TASKS)
def test_outputs_have_the_shape_of_targets(name, trunk, key):
    net = network(name, trunk)
    made = jax.eval_shape(net.init, key, images(0))
    found = jax.eval_shape(net.apply, made, images(0)).shape
    labels = np.zeros(32, np.int32)
    targets = jax.eval_shape(TASKS[name].objective.examples, key, images(0), labels)[1]
    answers = {"classification": (5,), "rotation": (4,)}
    assert found == (32, *answers.get(name, targets.shape[1:]))


def test_equal_networks_share_their_functions():
    one, two = (
        network_of(ResNetEncoder(1, (1, 1), norm=None), TASKS["edges"], SHAPE, 5, 3)
        for _ in range(2)
    )
    assert apply_fn(one) is apply_fn(two)
    assert update_fn(one) is not update_fn(network("rotation"))


def test_encoders_halve_images_between_stages(key):
    for trunk, channels in ((RESNET, 32), (VGG, 8)):
        made = jax.eval_shape(trunk.init, key, images(0))
        assert jax.eval_shape(trunk.apply, made, images(0)).shape == (
            32,
            4,
            4,
            channels,
        )


def test_a_permuted_copy_with_another_head_keeps_both_functions(key):
    """A network that classifies, and its trunk permuted below a decoder."""
    trunk = ResNetEncoder(1, (1,), norm=None)
    answer, decode = (network(name, trunk) for name in ("classification", "edges"))
    one, two = drawn(answer, 0), drawn(decode, 1)
    ours, theirs = paths.flatten(one), paths.flatten(two)
    theirs |= {path: leaf for path, leaf in ours.items() if "/trunk/" in path}
    two = paths.unflatten(two, theirs)
    spec = infer_spec(apply_fn(decode), two, images(0))
    two = permute(spec, two, random_permutations(spec, jax.random.key(2)))
    result = merge(
        [apply_fn(answer), apply_fn(decode)],
        [one, two],
        [images(1), images(2)],
        method="mudsc-zip",
        key=key,
        separate=HEAD,
    )
    pairs = zip((answer, decode), result.networks, (one, two), strict=True)
    for net, merged, parent in pairs:
        found, wanted = (apply_fn(net)(v, images(3)) for v in (merged, parent))
        np.testing.assert_allclose(found, wanted, atol=3e-4 * np.abs(wanted).max())
    assert not any(path.startswith("params/head") for path in result.spec.axes)
