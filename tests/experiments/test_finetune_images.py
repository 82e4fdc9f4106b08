import re

import numpy as np
import pytest

from jmudsc.experiments.finetune_images import load_pictures, shrunk


def test_images_are_filled_up_and_averaged():
    """By hand: 6 pixels become 8 with one of zeros at each edge, then 4."""
    image = np.arange(36.0).reshape(1, 6, 6, 1)
    found = shrunk(image, 4)[0, :, :, 0]
    assert found.shape == (4, 4)
    assert found[0, 0] == image[0, 0, 0, 0] / 4
    assert found[1, 1] == image[0, 1:3, 1:3, 0].mean()
    assert found.sum() * 4 == image.sum()
    assert np.array_equal(shrunk(image, 6), image)


@pytest.mark.parametrize("shape", [(1, 6, 4, 1), (1, 4, 4, 1)])
def test_images_that_are_no_squares_or_too_small_are_refused(shape):
    message = (
        f"images: expected squares of 5 pixels or more, got {shape[1]}x{shape[2]}. "
        "Choose a smaller side."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        shrunk(np.zeros(shape), 5)


def test_both_kinds_have_one_shape_and_classes_of_their_own():
    pictures = load_pictures("digits", "digits", 4, None)
    assert pictures.classes == 20
    assert sorted(set(pictures.digits.classes)) == list(range(10))
    assert sorted(set(pictures.test_photos.classes)) == list(range(10, 20))
    for kind in ("digits", "photos"):
        images = pictures.of(kind).images
        assert images.shape[1:] == pictures.of(kind, test=True).images.shape[1:]
        assert images.shape[1:] == (4, 4, 3)
        assert images.dtype == np.float32
        assert abs(images.mean()) < 1e-4
        assert abs(images.std() - 1) < 1e-4
