import re

import numpy as np
import pytest

from jmudsc.experiments.datasets import batches, digits, only, Split


@pytest.fixture(scope="module")
def splits():
    return digits()


def toy(classes):
    classes = np.array(classes, np.int32)
    images = np.arange(len(classes) * 4, dtype=np.float32).reshape(-1, 2, 2, 1)
    return Split(images, classes)


def test_splits_are_disjoint_and_cover_every_digit(splits):
    from sklearn.datasets import load_digits

    train, test = splits
    raw = load_digits().images
    rows = np.concatenate([train.images, test.images]).reshape(len(raw), -1)
    # standardizing is affine, so ranks of whole images are those of the raw ones
    low, high = rows.min(), rows.max()
    restored = np.round((rows - low) / (high - low) * 16).astype(int)
    assert sorted(map(tuple, restored)) == sorted(
        map(tuple, raw.reshape(len(raw), -1).astype(int))
    )


def test_no_test_image_is_a_training_image(splits):
    train, test = splits
    seen = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in seen for image in test.images)


def test_splits_hold_each_class_in_the_same_share(splits):
    train, test = splits
    count = [np.bincount(split.classes, minlength=10) for split in splits]
    share = count[1] / (count[0] + count[1])
    assert len(train) + len(test) == 1797
    assert (np.abs(share - 0.2) < 0.01).all()


def test_training_images_are_standardized(splits):
    train, _ = splits
    assert train.images.dtype == np.float32
    assert train.classes.dtype == np.int32
    assert train.images.shape == (len(train), 8, 8, 1)
    assert abs(train.images.mean()) < 1e-5
    assert abs(train.images.std() - 1) < 1e-5


def test_digits_are_the_same_every_time(splits):
    for one, other in zip(splits, digits(), strict=True):
        assert np.array_equal(one.images, other.images)
        assert np.array_equal(one.classes, other.classes)


def test_only_keeps_images_with_their_classes_in_order():
    split = toy([2, 0, 1, 2, 0])
    kept = only(split, [2, 1])
    assert kept.classes.tolist() == [2, 1, 2]
    assert np.array_equal(kept.images, split.images[[0, 2, 3]])


def test_only_of_two_halves_is_the_whole(splits):
    train, _ = splits
    halves = [only(train, range(5)), only(train, range(5, 10))]
    assert sum(map(len, halves)) == len(train)


def test_batches_join_to_the_images_and_can_be_read_twice():
    split = toy(range(7))
    cut = batches(split, 3)
    assert [len(batch) for batch in cut] == [3, 3, 1]
    for _ in range(2):
        assert np.array_equal(np.concatenate(cut), split.images)


def test_a_class_without_images_is_an_error():
    message = (
        "only: expected classes of which there are images, got 5, 9 too. Choose from "
        "0, 1."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        only(toy([0, 1, 0]), [5, 1, 9])


def test_asking_for_no_class_is_an_error():
    message = "only: expected one or more classes, got none. Choose from 0, 1."
    with pytest.raises(ValueError, match=re.escape(message)):
        only(toy([0, 1, 0]), [])


@pytest.mark.parametrize(("count", "size"), [(0, 4), (3, 0)])
def test_no_images_or_no_size_is_an_error(count, size):
    message = (
        "batches: expected one or more images in batches of one or more, got "
        f"{count} images in batches of {size}. Check how the split was chosen."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        batches(toy([0] * count), size)
