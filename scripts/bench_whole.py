"""A whole merge of two trained ResNet-20s beside the forward passes that it needs.

    python scripts/bench_whole.py A.npz B.npz --data-dir TFDS --dataset cifar10
    python scripts/bench_whole.py A.npz B.npz --images calibration.npz
    python scripts/bench_whole.py A.npz B.npz

The parents are npz files of leaf paths. Calibration images are those of a TFDS data
directory, or the array `images` of an npz file (standardized), or random. Merged by
mudsc-zip, with running statistics reset, in one process that has compiled nothing.

What a merge cannot do without: one forward pass over the images for each parent, for
the statistics, and one in training mode of the merged network, for the reset. They are
measured in the same process after the first merge, each twice: the first time with its
compilation. Seconds are of the wall and, for a machine that others use too, of the
processor.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jmudsc
from jmudsc.experiments import models
from jmudsc.tables import table


def parent(file: str) -> Any:
    """Return the variables in an npz file, in float32."""
    tree = jmudsc.load(file, ("params", "batch_stats"))
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def images_of(options: argparse.Namespace) -> np.ndarray:
    """Return calibration images, standardized."""
    count = options.samples
    if options.images:
        return np.load(options.images)["images"][:count].astype(np.float32)
    if options.data_dir is None:
        draw = np.random.default_rng(0)
        return draw.standard_normal((count, 32, 32, 3), np.float32)
    import tensorflow_datasets as tfds

    source: Any = tfds.data_source(
        options.dataset,
        split="train",
        data_dir=options.data_dir,
        builder_kwargs={"file_format": "array_record"},
    )
    images = np.stack([source[n]["image"] for n in range(count)]).astype(np.float32)
    return (images - images.mean((0, 1, 2))) / images.std((0, 1, 2))


def timed(call: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """Return what a call returns, and its seconds of wall and processor."""
    start = time.perf_counter(), time.process_time()
    made = jax.block_until_ready(call())
    return made, (time.perf_counter() - start[0], time.process_time() - start[1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Merge, run the passes, merge again, and print what each took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("parents", nargs=2)
    parser.add_argument("--images", help="an npz file with an array of that name")
    parser.add_argument("--data-dir", help="of TFDS")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--width", type=int, default=4, help="of the ResNet-20s")
    options = parser.parse_args(arguments)
    pair = [parent(file) for file in options.parents]
    outputs = pair[0]["params"]["Dense_0"]["kernel"].shape[1]
    model: Any = models.ResNet20(options.width, outputs)
    apply_fn, update_fn = models.apply_fn(model), models.update_fn(model)
    images = images_of(options)
    batches = [
        jnp.asarray(images[at : at + options.batch])
        for at in range(0, len(images), options.batch)
    ]
    results = []

    def merge() -> Any:
        key = jax.random.key(0)
        results.append(
            jmudsc.merge(apply_fn, pair, batches, update_fn=update_fn, key=key)
        )
        return results[-1].variables

    merged, first = timed(merge)
    evaluate = jax.jit(lambda v, x: apply_fn(v, x))
    update = jax.jit(lambda v, x: update_fn(v, x)["batch_stats"])

    def passes() -> Any:
        found = [evaluate(v, x) for v in pair for x in batches]
        return found, [update(merged, x) for x in batches]

    _, passes_first = timed(passes)
    _, passes_again = timed(passes)
    _, again = timed(merge)
    rows = {
        "merge, first": first,
        "merge, again": again,
        "passes, compilation included": passes_first,
        "passes": passes_again,
    }
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    cells = [[name, *(f"{x:.1f}" for x in pair)] for name, pair in rows.items()]
    print(table(["", "wall, s", "processor, s"], cells))
    print("\nStages of the first merge, wall, s:")
    for stage, taken in results[0].seconds.items():
        print(f"  {stage:28} {taken:.2f}   again {results[1].seconds[stage]:.2f}")
    for which, taken in (("first", first), ("again", again)):
        for clock, own, floor in zip(
            ("wall", "processor"), taken, passes_again, strict=True
        ):
            print(
                f"{which}, {clock}: {own / floor:.2f} times the passes; "
                f"1.3 times them and 3 s are {1.3 * floor + 3:.1f} s, it took {own:.1f}"
            )


if __name__ == "__main__":
    main()
