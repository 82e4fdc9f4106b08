"""Time and memory of merges of models that stay on disk.

    python scripts/bench_disk.py 10m 100m
    python scripts/bench_disk.py 256x4 256x16 256x64
    python scripts/bench_disk.py 1b --dir DIR

Pairs of decoders from different initializations, in bfloat16, are written to disk and
merged by `jmudsc merge --memory 0` in a process of its own, whose peak resident size is
taken; what Python, JAX and the tracing of a model take is in it. A decoder is named by
its size or by width x layers. With `--in-memory` the same merge is done with the models
in memory too, and the results are compared bit for bit.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import decoders
import jax
import numpy as np

import jmudsc
from jmudsc.checkpoints.save import save_variables
from jmudsc.lazy import LazyArray
from jmudsc.paths import flatten, unflatten
from jmudsc.recipes.report import table

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


def merged(recipe: Path, *options: str) -> tuple[float, float]:
    """Merge in a process of its own; return its seconds and its peak in GiB."""
    start = time.perf_counter()
    arguments, environment = command(recipe, *options)
    child = os.posix_spawn(sys.executable, arguments, environment)
    _, status, used = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{recipe}: the merge failed.")
    return time.perf_counter() - start, used.ru_maxrss / 2**20


def measure(name: str, folder: Path, options: argparse.Namespace) -> list[str]:
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
    for output, memory in (("streamed", "0"), ("whole", "1000")):
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
        for seconds, size in rows.values()
        for cell in (f"{seconds:.0f}", f"{size:.2f}")
    ]
    return [
        f"{width} x {layers}",
        f"{parameters / 1e6:.1f}",
        f"{2 * parameters / 2**30:.2f}",
        str(len(record["history"])),
        *cells,
    ]


def main() -> None:
    """Measure every decoder and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("sizes", nargs="+", help="10m, 100m, 1b, ... or WIDTHxLAYERS")
    parser.add_argument("--method", default="weight-align", choices=jmudsc.METHODS)
    parser.add_argument("--ending", default=".safetensors", help='"" for orbax')
    parser.add_argument("--sequences", type=int, default=4, help="of 128 tokens")
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
    header += ["seconds", "peak, GiB"]
    header += ["in memory: seconds", "peak, GiB"] if options.in_memory else []
    kind = jax.devices()[0].device_kind
    print(f"\n{kind}, jax {jax.__version__}, {options.method}\n")
    print(table(header, rows))


if __name__ == "__main__":
    main()
