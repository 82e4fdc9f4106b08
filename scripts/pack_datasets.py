"""Pack datasets that TFDS has prepared into one npz file.

    python scripts/pack_datasets.py --data-dir DIR --out images.npz --side 16

`jmudsc experiment CONFIG --data-dir images.npz` then needs no TFDS.
"""

import argparse
from pathlib import Path

import numpy as np

from jmudsc.experiments.finetune_images import shrunk
from jmudsc.experiments.tfds_source import open_source, read_images


def main() -> None:
    """Read, make smaller if that is asked for, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--names", nargs="+", default=["mnist", "cifar10"])
    parser.add_argument("--side", type=int, default=None, help="pixels of a side")
    parser.add_argument("--images", type=int, default=None, help="of each training set")
    options = parser.parse_args()
    arrays = {}
    for name in options.names:
        for split in ("train", "test"):
            images, classes = read_images(open_source(name, split, options.data_dir))
            kept = options.images if split == "train" else None
            images, classes = images[:kept], classes[:kept]
            if options.side is not None:
                small = shrunk(images.astype(np.float32), options.side)
                images = np.round(small).astype(np.uint8)
            arrays[f"{name}/{split}/images"] = images
            arrays[f"{name}/{split}/classes"] = classes.astype(np.uint8)
    np.savez_compressed(options.out, **arrays)
    print(f"Wrote {options.out}, {options.out.stat().st_size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
