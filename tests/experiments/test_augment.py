import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmudsc.experiments.augment import AUGMENTS, crop, flip

IMAGES = jnp.arange(1.0, 1 + 40 * 6 * 5 * 2).reshape(40, 6, 5, 2)


def test_flipping_mirrors_about_half_the_images_and_keeps_the_others(key):
    flipped = flip(key, IMAGES)
    mirrored = (flipped == IMAGES[:, :, ::-1]).all(axis=(1, 2, 3))
    kept = (flipped == IMAGES).all(axis=(1, 2, 3))
    assert (mirrored ^ kept).all()
    assert 8 < mirrored.sum() < 32


def test_cropping_moves_each_image_by_its_own_offset(key):
    moved = np.asarray(crop(key, IMAGES, 2))
    padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)))
    offsets = set()
    for image, wide in zip(moved, padded, strict=True):
        fits = [
            (i, j)
            for i in range(5)
            for j in range(5)
            if np.array_equal(image, wide[i : i + 6, j : j + 5])
        ]
        assert len(fits) == 1
        offsets |= set(fits)
    assert {i for i, _ in offsets} == {j for _, j in offsets} == set(range(5))


@pytest.mark.parametrize("name", AUGMENTS)
def test_an_augmentation_is_pure_keeps_shapes_and_can_be_jitted(name, key):
    change = AUGMENTS[name]
    once = change(key, IMAGES)
    assert once.shape == IMAGES.shape
    assert np.array_equal(once, jax.jit(change)(key, IMAGES))
    other = change(jax.random.key(1), IMAGES)
    assert np.array_equal(once, other) == (name == "none")
