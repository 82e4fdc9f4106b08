"""Time and memory of merges of models that stay on disk.

    python scripts/bench_disk.py 10m 100m
    python scripts/bench_disk.py 256x4 256x16 256x64
    python scripts/bench_disk.py 256x4 256x8 256x16 512x4 1024x4 --method mudsc-zip
    python scripts/bench_disk.py 1b --dir DIR

Pairs of decoders from different initializations, in bfloat16, are written to disk and
merged by `jmudsc merge --memory` (0 GiB if no other is given) in a process of its own,
whose peak resident size and processor time, of all threads together, are taken; what
Python, JAX and the tracing of a model take is in it. A decoder is named by its size or
by width x layers. With `--in-memory` the same merge is done with all in memory too, and
the results are compared bit for bit. Where three decoders or more differ in width
alone, or in layers, the growth of the processor time is fitted.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import decoders
import jax
import numpy as np

import jmudsc
from jmudsc.checkpoints.save import save_variables
from jmudsc.lazy import LazyArray
from jmudsc.paths import flatten, unflatten
from jmudsc.tables import table

RECIPE = """
models: [model-0{ending}, model-1{ending}]
apply_fn: {{factory: decoders:apply_fn, width: {width}}}
batches: {{factory: decoders:tokens, sequences: {sequences}, batch: 2}}
method: {method}
output: {output}{ending}
"""


def write_model(file: Path, width: int, layers: int, seed: int) -> None:
    """Write a decoder leaf by leaf."""
    shapes = decoders.shapes(width, layers)
    leaves = flatten(shapes)

    def fetch(names: Sequence[str]) -> Mapping[str, np.ndarray]:
        return {n: np.asarray(decoders.draw(n, leaves[n].shape, seed)) for n in names}

    lazy = {n: LazyArray(n, x.shape, x.dtype, fetch) for n, x in leaves.items()}
    save_variables(file, unflatten(shapes, lazy))


def command(recipe: Path, *options: str) -> tuple[list[str], dict[str, str]]:
    """Return arguments and environment of `jmudsc merge`, with decoders at hand."""
    code = "from jmudsc.cli import main; main()"
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    scripts = os.pathsep.join([str(Path(__file__).parent), *filter(None, paths)])
    arguments = [sys.executable, "-c", code, "merge", str(recipe), *options]
    return arguments, {**os.environ, "PYTHONPATH": scripts}


class Taken(NamedTuple):
    """What a process took."""

    wall: float  # seconds
    processor: float  # seconds, of all threads together
    peak: float  # GiB


def merged(recipe: Path, *options: str) -> Taken:
    """Merge in a process of its own."""
    start = time.perf_counter()
    arguments, environment = command(recipe, *options)
    child = os.posix_spawn(sys.executable, arguments, environment)
    _, status, used = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{recipe}: the merge failed.")
    processor = used.ru_utime + used.ru_stime
    return Taken(time.perf_counter() - start, processor, used.ru_maxrss / 2**20)


class Row(NamedTuple):
    """What is known of a decoder."""

    width: int
    layers: int
    sweeps: int
    cells: list[str]
    processor: float


def measure(name: str, folder: Path, options: argparse.Namespace) -> Row:
    """Write a pair, merge it, and return a row of the table."""
    width, layers = decoders.size_of(name)
    ending = options.ending
    for seed in range(2):
        file = folder / f"model-{seed}{ending}"
        if not file.exists():
            write_model(file, width, layers, seed)
    leaves = flatten(decoders.shapes(width, layers)).values()
    parameters = sum(x.size for x in leaves)
    blank = {"width": width, "ending": ending, "method": options.method}
    rows = {}
    for output, memory in (("streamed", str(options.memory)), ("whole", "1000")):
        if output == "whole" and not options.in_memory:
            continue
        recipe = folder / f"{output}.yaml"
        sequences = options.sequences
        recipe.write_text(RECIPE.format(**blank, output=output, sequences=sequences))
        rows[output] = merged(recipe, "--memory", memory, "--overwrite")
    record = jmudsc.load_provenance(folder / f"streamed{ending}")
    if "whole" in rows:
        whole = jmudsc.load_provenance(folder / f"whole{ending}")
        if whole["digests"] != record["digests"]:
            raise SystemExit(f"{name}: the results differ.")
    cells = [
        cell
        for taken in rows.values()
        for cell in (
            f"{taken.wall:.0f}",
            f"{taken.processor:.0f}",
            f"{taken.peak:.2f}",
        )
    ]
    sweeps = len(record["history"])
    cells = [
        f"{width} x {layers}",
        f"{parameters / 1e6:.1f}",
        f"{2 * parameters / 2**30:.2f}",
        str(sweeps),
        *cells,
    ]
    return Row(width, layers, sweeps, cells, rows["streamed"].processor)


def print_growth(rows: Sequence[Row]) -> None:
    """Fit powers of the processor time, and of that by the sweeps."""
    for grows, stays in (("layers", "width"), ("width", "layers")):
        for value in sorted({getattr(row, stays) for row in rows}):
            members = [row for row in rows if getattr(row, stays) == value]
            if len(members) > 2:
                size = np.log([getattr(row, grows) for row in members])
                whole = np.log([row.processor for row in members])
                sweep = whole - np.log([row.sweeps for row in members])
                powers = [np.polyfit(size, times, 1)[0] for times in (whole, sweep)]
                print(
                    f"{stays} {value}: processor time grows as {grows}^{powers[0]:.2f},"
                    f" divided by the sweeps as {grows}^{powers[1]:.2f}"
                )


def main() -> None:
    """Measure every decoder and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("sizes", nargs="+", help="10m, 100m, 1b, ... or WIDTHxLAYERS")
    parser.add_argument("--method", default="weight-align", choices=jmudsc.METHODS)
    parser.add_argument("--ending", default=".safetensors", help='"" for orbax')
    parser.add_argument("--sequences", type=int, default=4, help="of 128 tokens")
    parser.add_argument("--memory", type=float, default=0, help="GiB; see jmudsc merge")
    parser.add_argument("--in-memory", action="store_true", help="compare")
    parser.add_argument("--dir", type=Path, help="to keep models in; else temporary")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=options.dir) as temporary:
        for size in options.sizes:
            folder = (options.dir or Path(temporary)) / f"decoder-{size}"
            folder.mkdir(parents=True, exist_ok=True)
            rows.append(measure(size, folder, options))
            print(f"measured {size}", flush=True)
    header = ["decoder", "10^6 parameters", "GiB of a model", "sweeps"]
    columns = ["seconds", "processor, s", "peak, GiB"]
    header += columns
    header += [f"in memory: {columns[0]}", *columns[1:]] if options.in_memory else []
    kind = jax.devices()[0].device_kind
    print(f"\n{kind}, jax {jax.__version__}, {options.method}\n")
    print(table(header, [row.cells for row in rows]))
    print_growth(rows)


if __name__ == "__main__":
    main()
