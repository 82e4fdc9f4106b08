"""Fine-tune images: digits and photos brought to one size and number of channels."""

import os
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from jmudsc.experiments.datasets import load_splits, Split

CHANNELS = 3


@dataclass(frozen=True, eq=False)
class Pictures:
    """Training and test images of both kinds.

    Attributes:
        digits: training images of digits, classes from 0.
        photos: training images of photos, whose classes go on after the digits'.
        test_digits: test images of digits.
        test_photos: test images of photos.
        classes: of both kinds together.
    """

    digits: Split
    photos: Split
    test_digits: Split
    test_photos: Split
    classes: int

    def of(self, kind: str, test: bool = False) -> Split:
        """Return the images of a kind, `digits` or `photos`."""
        return getattr(self, f"test_{kind}" if test else kind)


def load_pictures(
    digits: str, photos: str, side: int, data_dir: str | os.PathLike[str] | None
) -> Pictures:
    """Load both kinds of images.

    Args:
        digits: the dataset of digits.
        photos: the dataset of photos.
        side: height and width that all images are brought to.
        data_dir: as for `load_splits`.

    Returns:
        The images, each kind standardized over its training images.

    Raises:
        FileNotFoundError: as `load_splits` does.
        ValueError: as `load_splits` does, or if images are smaller than `side`.
    """
    first = [_alike(s, side) for s in load_splits(digits, data_dir=data_dir)]
    offset = int(first[0].classes.max()) + 1
    second = [_alike(s, side, offset) for s in load_splits(photos, data_dir=data_dir)]
    count = int(second[0].classes.max()) + 1
    return Pictures(first[0], second[0], first[1], second[1], count)


def shrunk(
    images: Float[np.ndarray, "examples height width channels"], side: int
) -> Float[np.ndarray, "examples side side channels"]:
    """Make square images smaller by averaging, after filling up their edges with zeros.

    Raises:
        ValueError: if images are no squares, or smaller than `side`.
    """
    count, height, width, channels = images.shape
    if height != width or height < side:
        raise ValueError(
            f"images: expected squares of {side} pixels or more, got {height}x{width}. "
            "Choose a smaller side."
        )
    times = -(-height // side)
    before = (times * side - height) // 2
    edges = (before, times * side - height - before)
    wide = np.pad(images, ((0, 0), edges, edges, (0, 0)))
    return wide.reshape(count, side, times, side, times, channels).mean(axis=(2, 4))


def _alike(split: Split, side: int, offset: int = 0) -> Split:
    """Return images of a side and of three channels, standardized again."""
    images = shrunk(split.images - split.images.min(), side)
    images = _standard(images)
    if images.shape[-1] == 1:
        images = np.repeat(images, CHANNELS, axis=-1)
    return Split(images, split.classes + np.int32(offset))


def _standard(images: np.ndarray) -> Float32[np.ndarray, "..."]:
    shift, scale = images.mean(axis=(0, 1, 2)), images.std(axis=(0, 1, 2))
    return ((images - shift) / np.where(scale > 0, scale, 1)).astype(np.float32)
