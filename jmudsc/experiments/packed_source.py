"""Packed source: datasets in one npz file, for machines without TFDS.

The file has `NAME/SPLIT/images`, `uint8[examples, height, width, channels]`, and
`NAME/SPLIT/classes` for every split. `scripts/pack_datasets.py` writes it.
"""

import os
import re
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from jmudsc.paths import did_you_mean

_SPLIT = re.compile(r"(\w+)(?:\[(\d*):(\d*)\])?")


def is_packed(data_dir: str | os.PathLike[str] | None) -> bool:
    """Whether a place of datasets is a packed file."""
    return data_dir is not None and Path(data_dir).suffix == ".npz"


def read_packed(
    file: str | os.PathLike[str], name: str, split: str
) -> tuple[np.ndarray, Int32[np.ndarray, " examples"]]:
    """Read the images of a split, as `uint8`, and their classes.

    Args:
        file: an npz file.
        name: of the dataset.
        split: such as `train`, `train[:1000]` or `train[1000:3000]`.

    Returns:
        The images, (examples, height, width, channels), and their classes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it has no such split, or fewer images of it.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(
            f"{file}: expected a file of packed datasets, got no such file. Write it "
            "with scripts/pack_datasets.py, or check the path."
        )
    parsed = _SPLIT.fullmatch(split)
    if parsed is None:
        raise ValueError(
            f'{file}: expected a split such as "train" or "train[:1000]", got '
            f'"{split}". Change the config.'
        )
    key, first, last = parsed.groups()
    with np.load(file) as stored:
        there = sorted({each.rpartition("/")[0] for each in stored.files})
        if (path := f"{name}/{key}") not in there:
            hint = did_you_mean(path, there) or "."
            raise ValueError(
                f"{file}: expected one of {', '.join(there)}, got {path}{hint} Pack "
                "this dataset too."
            )
        images, classes = stored[f"{path}/images"], stored[f"{path}/classes"]
    start, stop = int(first or 0), int(last or len(images))
    if not start < stop <= len(images):
        raise ValueError(
            f"{file}: expected a part of the {len(images)} images of {path}, got "
            f'"{split}". Pack more images, or ask for fewer.'
        )
    return images[start:stop], classes[start:stop].astype(np.int32)
