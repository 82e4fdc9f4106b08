import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jmudsc.experiments.datasets import Split
from jmudsc.experiments.tasks import (
    check_tasks,
    Examples,
    examples_of,
    NOISE,
    steepness,
    TASKS,
)

NAMES = tuple(TASKS)


def toy(count=300, channels=3, size=6):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, size, size, channels)).astype(np.float32)
    return Split(images, rng.integers(0, 4, count).astype(np.int32))


def joined(examples: Examples):
    return np.concatenate(examples.inputs), np.concatenate(examples.targets)


def test_a_constant_image_has_no_edges():
    values = jnp.asarray([0.1, -3.3, 1e4])[:, None, None, None]
    assert (steepness(jnp.broadcast_to(values, (3, 7, 5, 3))) == 0).all()


def test_edges_are_those_of_sobel():
    images = toy(4).images
    brightness = images.astype(float).mean(axis=-1)
    sides = [
        [ndimage.sobel(image, axis=axis, mode="nearest") for axis in (1, 0)]
        for image in brightness
    ]
    expected = np.hypot(*np.swapaxes(sides, 0, 1))[..., None] / 8
    np.testing.assert_allclose(steepness(jnp.asarray(images)), expected, atol=1e-6)


def test_a_slope_of_one_is_one_steep():
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None, None], (8, 8, 1))
    np.testing.assert_allclose(steepness(jnp.asarray(ramp[None]))[0, 1:-1], 1)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_have_the_shape_of_the_images_and_all_are_there(name, key):
    split = toy()
    inputs, targets = joined(examples_of(name, split, key))
    assert inputs.shape == split.images.shape
    assert len(targets) == len(split)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_key_gives_the_same_bits(name, key):
    one, again, other = (
        joined(examples_of(name, toy(), k)) for k in (key, key, jax.random.key(1))
    )
    assert all(map(np.array_equal, one, again))
    is_random = name in ("denoising", "rotation")
    assert np.array_equal(one[0], other[0]) != is_random


def test_targets_are_what_they_are_called(key):
    split = toy()
    found = {name: joined(examples_of(name, split, key)) for name in NAMES}
    np.testing.assert_array_equal(found["classification"][1], split.classes)
    for name in ("autoencoding", "denoising", "colorization"):
        np.testing.assert_array_equal(found[name][1], split.images)
    np.testing.assert_array_equal(found["autoencoding"][0], split.images)
    noise = found["denoising"][0] - split.images
    assert abs(float(noise.std()) - NOISE) < 0.01
    gray = found["colorization"][0]
    assert (gray == gray[..., :1]).all()
    np.testing.assert_allclose(gray[..., 0], split.images.mean(axis=-1), atol=1e-6)


def test_turning_back_gives_the_images(key):
    split = toy()
    turned, quarters = joined(examples_of("rotation", split, key))
    back = [np.rot90(x, -n) for x, n in zip(turned, quarters, strict=True)]
    np.testing.assert_array_equal(np.stack(back), split.images)
    assert np.bincount(quarters).min() > 40


def test_tasks_that_cannot_be_learned_are_said_at_once():
    names = ("edge", "colorization", "rotation")
    message = (
        "tasks: expected tasks for images of 8x6x1, got some that do not suit them:\n"
        '  edge: there is no such task; did you mean "edges"?\n'
        "  colorization: needs images in color.\n"
        "  rotation: needs square images.\n"
        "Choose from classification, autoencoding, denoising, edges, rotation, "
        "colorization."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        check_tasks("tasks", names, (8, 6, 1))
    check_tasks("tasks", NAMES, (8, 8, 3))
