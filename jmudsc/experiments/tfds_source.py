"""TFDS source: images that TFDS has prepared on disk, read without TensorFlow."""

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from jmudsc.paths import did_you_mean

# Means and standard deviations of the colors of ImageNet, of values in [0, 1].
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_MANY = 1000  # examples that are read at once


def open_source(
    name: str, split: str, data_dir: str | os.PathLike[str] | None, decoders: Any = None
) -> Any:
    """Open a split of a prepared dataset.

    Args:
        name: of the dataset in TFDS.
        split: such as `train` or `train[:1000]`.
        data_dir: where TFDS keeps its datasets; None for its own place.
        decoders: as `tfds.data_source` takes them: how features are decoded.

    Returns:
        A sequence of examples, each a dict.

    Raises:
        FileNotFoundError: if the dataset is not prepared there, with the command that
            prepares it.
        ValueError: if TFDS knows no such dataset or split, or it was prepared in a
            format that cannot be read by position.
    """
    import tensorflow_datasets as tfds  # slow to import

    builder: Any
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        hint = did_you_mean(name, _known(tfds)) or "."
        raise ValueError(
            f"{data_dir or 'TFDS'}: expected a dataset that is there or that TFDS "
            f'knows, got "{name}"{hint} tfds.list_builders() lists what TFDS knows.'
        ) from error
    folder = data_dir or builder.data_dir_root
    command = f"tfds build {name} --data_dir {folder} --file_format array_record"
    if not builder.is_prepared():
        raise FileNotFoundError(
            f"{folder}: expected {name} to be prepared there, did not find it. Run\n"
            f"  {command}\n"
            "once (this needs TensorFlow, reading does not), or choose another "
            "data_dir."
        )
    kept = builder.info.file_format
    if kept is None or kept.value != "array_record":
        raise ValueError(
            f"{builder.data_dir}: expected a dataset stored as array_record, which can "
            f"be read by position, got {kept and kept.value}. Remove it and run\n"
            f"  {command}"
        )
    return builder.as_data_source(split=split, decoders=decoders)


def read_classes(source: Any) -> Int32[np.ndarray, " examples"]:
    """Read the class of every example."""
    return np.array([x["label"] for x in _examples(source)], np.int32)


def read_images(source: Any) -> tuple[np.ndarray, np.ndarray]:
    """Read all images, as `uint8`, and their classes into memory.

    Args:
        source: from `open_source`; its images must be of one size.

    Returns:
        The images, (examples, height, width, channels), and their classes.
    """
    examples = list(_examples(source))
    images = np.stack([x["image"] for x in examples])
    return images, np.array([x["label"] for x in examples], np.int32)


@dataclass(frozen=True, eq=False)
class Stream:
    """Batches of images read from disk anew in every pass, for what is too big.

    Images are scaled so that the shorter side has 8/7 of `side`, cut in the middle, and
    standardized by the colors of ImageNet. Going through it gives arrays of images, as
    `collect`, `merge` and `reset_batch_stats` take them.

    Attributes:
        source: from `open_source`.
        indices: which examples, in which order.
        size: images of a batch; the last one may be smaller.
        side: height and width of an image.
    """

    source: Any
    indices: Sequence[int]
    size: int
    side: int = 224

    def __len__(self) -> int:
        return -(-len(self.indices) // self.size)

    def __iter__(self) -> Iterator[Float32[np.ndarray, "batch side side channels"]]:
        for start in range(0, len(self.indices), self.size):
            chosen = [int(i) for i in self.indices[start : start + self.size]]
            examples = self.source.__getitems__(chosen)
            yield np.stack([_prepared(x["image"], self.side) for x in examples])


def stream(
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None,
    *,
    size: int,
    side: int = 224,
    classes: Sequence[int] | None = None,
) -> Stream:
    """Stream a dataset that is too big for memory, such as `imagenet2012`.

    Args:
        name: as for `open_source`.
        split: as for `open_source`.
        data_dir: as for `open_source`.
        size: images of a batch.
        side: height and width of an image.
        classes: keep the images of these only, which takes a pass over the classes;
            all, if None.

    Returns:
        Batches that can be gone through more than once.

    Raises:
        FileNotFoundError: as `open_source` does.
        ValueError: as `open_source` does, or if there are no images.
    """
    source = open_source(name, split, data_dir)
    indices = np.arange(len(source))
    if classes is not None:
        indices = indices[np.isin(_classes(name, split, data_dir), list(classes))]
    if not len(indices) or size < 1:
        raise ValueError(
            "stream: expected one or more images in batches of one or more, got "
            f"{len(indices)} images in batches of {size}. Choose another split, other "
            "classes or another size."
        )
    return Stream(source, indices.tolist(), size, side)


def _classes(
    name: str, split: str, data_dir: str | os.PathLike[str] | None
) -> np.ndarray:
    import tensorflow_datasets as tfds

    skip = {"image": tfds.decode.SkipDecoding()}
    return read_classes(open_source(name, split, data_dir, decoders=skip))


def _examples(source: Any) -> Iterator[Any]:
    for start in range(0, len(source), _MANY):
        yield from source.__getitems__(range(start, min(start + _MANY, len(source))))


def _prepared(image: np.ndarray, side: int) -> np.ndarray:
    if image.shape[:2] != (side, side):
        image = _scaled(image, side)
    mean, std = np.array(_IMAGENET, np.float32)
    return (image / np.float32(255) - mean) / std


def _scaled(image: np.ndarray, side: int) -> np.ndarray:
    """Scale the shorter side to 8/7 of a side, with no aliasing, and cut the middle."""
    short = round(side * 8 / 7)
    scale = short / min(image.shape[:2])
    rows, columns = (
        _weights(size, max(short, round(size * scale)), side)
        for size in image.shape[:2]
    )
    return np.einsum("ip,pqc,jq->ijc", rows, image, columns, optimize=True)


@functools.lru_cache(maxsize=256)
def _weights(length: int, target: int, side: int) -> Float32[np.ndarray, "side length"]:
    """Return what the middle pixels are made of when a length becomes a target."""
    scale, first = length / target, (target - side) // 2
    centers = (np.arange(first, first + side) + 0.5) * scale - 0.5
    away = np.abs(np.arange(length) - centers[:, None]) / max(scale, 1)
    weights = np.maximum(1 - away, 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _known(tfds: Any) -> list[str]:
    return tfds.list_builders(with_community_datasets=False)
