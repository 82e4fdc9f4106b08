"""Datasets: the images of the shipped experiments, as plain arrays."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float32, Int32

from jmudsc.experiments.packed_source import is_packed, read_packed
from jmudsc.experiments.tfds_source import open_source, read_images


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their classes.

    Attributes:
        images: standardized: over the training images the mean is 0 and the standard
            deviation 1.
        classes: the number of each image's class.
    """

    images: Float32[np.ndarray, "examples height width channels"]
    classes: Int32[np.ndarray, " examples"]

    def __len__(self) -> int:
        return len(self.classes)


def digits() -> tuple[Split, Split]:
    """Load scikit-learn's 1797 handwritten digits, 8x8 pixels, ten classes.

    Every fifth image of each class is a test image, so that both splits hold all
    classes, and all stretches of the collection, in the same shares.

    Returns:
        The training and the test images.
    """
    from sklearn.datasets import load_digits  # slow to import

    images, classes = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.float32)
    test = _occurrence(classes) % 5 == 4
    images = (images - images[~test].mean()) / images[~test].std()
    classes = classes.astype(np.int32)
    return Split(images[~test], classes[~test]), Split(images[test], classes[test])


def load_splits(
    name: str,
    train: str = "train",
    test: str = "test",
    data_dir: str | os.PathLike[str] | None = None,
) -> tuple[Split, Split]:
    """Load the training and the test images of a dataset into memory.

    Every channel is standardized by its mean and standard deviation over the training
    images.

    Args:
        name: `digits`, which needs nothing on disk, or of an image dataset in TFDS:
            `mnist`, `fashion_mnist`, `cifar10`, `cifar100`.
        train: the training split; TFDS understands `train[:10000]` too.
        test: the test split.
        data_dir: where TFDS keeps its datasets, None for its own place; or an npz file
            of packed datasets.

    Returns:
        The training and the test images.

    Raises:
        FileNotFoundError: if the dataset is not prepared, with the command that
            prepares it, or there is no such file.
        ValueError: if there is no such dataset or split, or images differ in size.
    """
    if name == "digits":
        return _digits_splits(train, test)
    if data_dir is not None and is_packed(data_dir):
        pairs = [read_packed(data_dir, name, split) for split in (train, test)]
    else:
        pairs = _read_prepared(name, (train, test), data_dir)
    (images, classes), (test_images, test_classes) = pairs
    shift, scale = _standard(images)
    return (
        Split((images - shift) * scale, classes),
        Split((test_images - shift) * scale, test_classes),
    )


def _read_prepared(
    name: str, splits: Sequence[str], data_dir: str | os.PathLike[str] | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Read splits that TFDS has prepared."""
    sources = [open_source(name, split, data_dir) for split in splits]
    if None in (shape := sources[0].dataset_info.features["image"].shape):
        raise ValueError(
            f"{name}: expected images of one size, to hold them in memory, got images "
            f"of shape {shape}. Read them with tfds_source.stream."
        )
    return [read_images(source) for source in sources]


def only(split: Split, classes: Sequence[int]) -> Split:
    """Keep the images of some classes, in their order.

    Raises:
        ValueError: if there are no classes, or no images of one of them.
    """
    present = np.unique(split.classes).tolist()
    if not classes:
        raise ValueError(
            "only: expected one or more classes, got none. Choose from "
            f"{_listed(present)}."
        )
    if missing := [c for c in classes if c not in present]:
        raise ValueError(
            f"only: expected classes of which there are images, got {_listed(missing)} "
            f"too. Choose from {_listed(present)}."
        )
    kept = np.isin(split.classes, list(classes))
    return Split(split.images[kept], split.classes[kept])


def some(key: jax.Array, split: Split, count: int | None) -> Split:
    """Draw some of the images; all of them, in order, if there are not more.

    Args:
        key: decides which.
        split: to draw from.
        count: how many; None for all.

    Returns:
        The images drawn, with their classes.
    """
    if count is None or count >= len(split):
        return split
    chosen = np.asarray(jax.random.permutation(key, len(split)))[:count]
    return Split(split.images[chosen], split.classes[chosen])


def batches(split: Split, size: int) -> list[np.ndarray]:
    """Cut the images into batches, in order; the last one may be smaller.

    Returns:
        A list, so that it can be gone through more than once.

    Raises:
        ValueError: if there are no images or the size is not positive.
    """
    if size < 1 or not len(split):
        raise ValueError(
            "batches: expected one or more images in batches of one or more, got "
            f"{len(split)} images in batches of {size}. Check how the split was chosen."
        )
    return [split.images[i : i + size] for i in range(0, len(split), size)]


def _listed(classes: Sequence[int]) -> str:
    return ", ".join(map(str, classes))


def _occurrence(classes: np.ndarray) -> np.ndarray:
    """Count, for every image, how often its class occurred before."""
    before = np.zeros(len(classes), int)
    for each in np.unique(classes):
        same = classes == each
        before[same] = np.arange(same.sum())
    return before


def _digits_splits(train: str, test: str) -> tuple[Split, Split]:
    if (train, test) != ("train", "test"):
        raise ValueError(
            'digits: expected the splits "train" and "test", got '
            f'"{train}" and "{test}". Name these, or take another dataset.'
        )
    return digits()


def _standard(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of every channel and one over its standard deviation, exactly.

    Pixels are bytes: counts of the 256 values say all, and take no memory.
    """
    values = np.arange(256.0)
    means, scales = [], []
    for channel in range(images.shape[-1]):
        share = np.bincount(images[..., channel].ravel(), minlength=256)
        share = share / share.sum()
        mean = share @ values
        means.append(mean)
        variance = share @ (values - mean) ** 2
        scales.append(1 / np.sqrt(variance) if variance else 1)
    return np.array(means, np.float32), np.array(scales, np.float32)
