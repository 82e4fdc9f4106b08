"""Data sets of the shipped experiments, as plain arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images.

    Attributes:
        images: standardised: mean 0 and deviation 1 over the training images.
        labels: class number of each image.
    """

    images: Float32[np.ndarray, "examples height width channels"]
    labels: Int32[np.ndarray, " examples"]

    def __len__(self) -> int:
        return len(self.labels)


def digits() -> tuple[Split, Split]:
    """Load scikit-learn's 1797 handwritten digits, 8x8 pixels, ten classes.

    Every fifth image of each class is a test image, so that both splits hold all
    classes, and all stretches of the collection, in the same shares.

    Returns:
        The training and the test images.
    """
    from sklearn.datasets import load_digits  # slow to import

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.float32)
    test = _occurrence(labels) % 5 == 4
    mean, deviation = images[~test].mean(), images[~test].std()
    images = (images - mean) / deviation
    labels = labels.astype(np.int32)
    return Split(images[~test], labels[~test]), Split(images[test], labels[test])


def only(split: Split, classes: Sequence[int]) -> Split:
    """Keep the images of some classes, in their order and with their labels.

    Raises:
        ValueError: if there are no classes, or no images of one of them.
    """
    present = np.unique(split.labels).tolist()
    if not classes:
        raise ValueError(
            "only: no classes asked for, at least one is needed; choose from "
            f"{present}."
        )
    if missing := [c for c in classes if c not in present]:
        raise ValueError(
            f"only: no images of the classes {missing}, each class asked for must have "
            f"some; choose one or more of {present}."
        )
    kept = np.isin(split.labels, list(classes))
    return Split(split.images[kept], split.labels[kept])


def batches(split: Split, size: int) -> list[np.ndarray]:
    """Cut the images into batches, in order; the last one may be smaller.

    Returns:
        A list, so that it can be gone through more than once.

    Raises:
        ValueError: if there are no images or the size is not positive.
    """
    if size < 1 or not len(split):
        raise ValueError(
            f"batches: {len(split)} images in batches of {size}, at least 1 of each is "
            "needed; check how the split was chosen."
        )
    return [split.images[i : i + size] for i in range(0, len(split), size)]


def _occurrence(labels: np.ndarray) -> np.ndarray:
    """Count, for every label, how often it occurred before."""
    before = np.zeros(len(labels), int)
    for label in np.unique(labels):
        same = labels == label
        before[same] = np.arange(same.sum())
    return before
