"""Merge fine-tunes of many parameters from disk to disk, and compare with copying.

Writes a base and two models of random numbers as sharded safetensors in bfloat16, laid
out as a language model is; copies them and merges them by each method in turns, each
time in a process of its own, of which the time on processors and the peak of memory are
measured; kills one merge (SIGKILL) in the middle, runs it again, and compares the bits.
Before every run the files are dropped from the page cache, and every run ends when what
it wrote is on disk.

    python scripts/bench_finetunes.py --parameters 1e9 --out /tmp/bench --memory 2
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

SHARD = 5 * 10**9
VOCABULARY, HEAD = 32_000, 128


def shapes_of(parameters: float) -> dict[str, tuple[int, ...]]:
    """Return the leaves of a language model of about so many parameters."""
    width = HEAD * max(1, round((parameters / (12 * 16)) ** 0.5 / HEAD))
    layer = {
        **{f"attention/{name}/kernel": (width, width) for name in "qkvo"},
        "mlp/gate/kernel": (width, 8 * width // 3),
        "mlp/up/kernel": (width, 8 * width // 3),
        "mlp/down/kernel": (8 * width // 3, width),
        "norm/scale": (width,),
    }
    ends = {
        "embed/embedding": (VOCABULARY, width),
        "head/kernel": (width, VOCABULARY),
    }
    size = lambda shapes: sum(int(np.prod(shape)) for shape in shapes.values())
    layers = max(1, round((parameters - size(ends)) / size(layer)))
    stack = {f"layers_{n}/{k}": x for n in range(layers) for k, x in layer.items()}
    return {**ends, **stack}


def write_models(out: Path, shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    """Write a base, and two models that are it with something small added."""
    writers = {name: Sharded(out / name, shapes) for name in ("base", "a", "b")}
    generator = np.random.Generator(np.random.SFC64(seed))
    for shape in shapes.values():
        count = int(np.prod(shape))
        base = generator.standard_normal(count, dtype=np.float32)
        base *= np.float32(0.02)
        writers["base"].add(base)
        for name in ("a", "b"):
            own = generator.standard_normal(count, dtype=np.float32)
            own *= np.float32(0.002)
            own += base
            writers[name].add(own)
    for writer in writers.values():
        writer.finish()


class Sharded:
    """Writes leaves one after another into safetensors files of limited size."""

    def __init__(self, folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
        folder.mkdir(parents=True)
        self.folder, self.place = folder, {}
        shards: list[dict[str, tuple[int, ...]]] = [{}]
        size = 0
        for name, shape in shapes.items():
            nbytes = 2 * int(np.prod(shape))
            if shards[-1] and size + nbytes > SHARD:
                shards.append({})
                size = 0
            shards[-1][name] = shape
            size += nbytes
        self.files = self._files(shards)
        self.current = next(self.files)

    def _files(self, shards: list[dict[str, tuple[int, ...]]]) -> Iterator:
        for number, leaves in enumerate(shards, start=1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            header, end = {}, 0
            for leaf, shape in leaves.items():
                start, end = end, end + 2 * int(np.prod(shape))
                entry = {"dtype": "BF16", "shape": shape, "data_offsets": (start, end)}
                header[leaf] = entry
                self.place[leaf] = name
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)
            with (self.folder / name).open("wb") as opened:
                opened.write(len(text).to_bytes(8, "little") + text)
                for _ in leaves:
                    yield opened
        yield None

    def add(self, leaf: np.ndarray) -> None:
        """Write the next leaf."""
        self.current.write(leaf.astype(ml_dtypes.bfloat16).view(np.uint16).data)
        self.current = next(self.files)

    def finish(self) -> None:
        """Write the index."""
        index = {"metadata": {}, "weight_map": self.place}
        path = self.folder / "model.safetensors.index.json"
        path.write_text(json.dumps(index))
        settle(self.folder)


def settle(folder: Path) -> None:
    """Write to disk what is in files, and drop it from the page cache."""
    for file in sorted(x for x in folder.rglob("*") if x.is_file()):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


@dataclass(frozen=True)
class Cost:
    """What a process took: seconds, those on processors, and GiB at the peak."""

    seconds: float
    used: float
    peak: float

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, {self.used:.1f} s of processors"


def ended(process: subprocess.Popen, start: float, what: str) -> Cost:
    """Wait for a process, and return what it took."""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{what} failed")
    seconds = time.perf_counter() - start
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20)


COPY = """
import os, shutil, sys
from pathlib import Path
out = Path(sys.argv[1])
for name in ("base", "a", "b"):
    shutil.copytree(out / name, out / "copy" / name)
for file in sorted((out / "copy").rglob("*.safetensors")):
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
"""


def copy_models(out: Path) -> Cost:
    """Copy base and models until they are on disk."""
    for name in ("base", "a", "b"):
        settle(out / name)
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", COPY, str(out)])
    cost = ended(process, start, "copying")
    shutil.rmtree(out / "copy")
    return cost


def start_merge(out: Path, method: str, memory: float) -> subprocess.Popen:
    """Start a merge in a process of its own."""
    recipe = out / f"{method}.yaml"
    models = [{"path": "a"}, {"path": "b"}]
    content = {"base": "base", "models": models, "method": method}
    recipe.write_text(json.dumps({**content, "output": f"{method}.safetensors"}))
    command = "from jmudsc.cli import main; main()"
    arguments = ["merge", str(recipe), "--memory", str(memory)]
    return subprocess.Popen(
        [sys.executable, "-c", command, *arguments], stdout=subprocess.DEVNULL
    )


def merge(out: Path, method: str, memory: float) -> Cost:
    """Merge until the result is on disk."""
    for name in ("base", "a", "b"):
        settle(out / name)
    start = time.perf_counter()
    return ended(start_merge(out, method, memory), start, f"{method}: the merge")


def killed_and_run_again(
    out: Path, method: str, memory: float, leaves: int
) -> tuple[int, float]:
    """Kill a merge when half is done; return how many leaves, and seconds to go on."""
    process = start_merge(out, method, memory)
    log = out / f".{method}.safetensors.jmudsc-journal" / "done"
    while _lines(log) < leaves / 2:
        time.sleep(0.01)
        if process.poll() is not None:
            sys.exit(f"{method}: the merge came to its end before it was killed")
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = _lines(log)
    if (out / f"{method}.safetensors").exists():
        sys.exit(f"{method}: there is an output though the merge was killed")
    return done, merge(out, method, memory).seconds


def _lines(log: Path) -> int:
    """Return how many leaves a log tells of."""
    return max(0, log.read_text().count("\n") - 1) if log.exists() else 0


def remove(output: Path) -> None:
    """Remove a merge, with its record."""
    output.unlink()
    shutil.rmtree(f"{output}.jmudsc")


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def main() -> None:
    """Write, copy, merge, kill and merge again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=float, default=1e9)
    parser.add_argument("--out", type=Path, required=True, help="a folder to make")
    parser.add_argument("--methods", nargs="+", default=["task_arithmetic", "ties"])
    parser.add_argument("--memory", type=float, default=4.0, help="GiB")
    parser.add_argument("--rounds", type=int, default=1, help="of copying and merging")
    parser.add_argument("--keep", action="store_true", help="leave the files")
    options = parser.parse_args()
    out, shapes = options.out, shapes_of(options.parameters)
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    print(f"{total:,} parameters in {len(shapes)} leaves", flush=True)
    if not out.exists():
        write_models(out, shapes, seed=0)
    for method in options.methods:
        output, expected = out / f"{method}.safetensors", ""
        for _ in range(options.rounds):
            if output.exists():
                remove(output)
            copied = copy_models(out)
            cost = merge(out, method, options.memory)
            print(
                f"copying base and models: {copied}\n{method}: {cost}, "
                f"{cost.seconds / copied.seconds:.2f} times as long as copying, peak "
                f"{cost.peak:.2f} GiB",
                flush=True,
            )
        expected = digest(output)
        remove(output)
        done, again = killed_and_run_again(out, method, options.memory, len(shapes))
        same = digest(output) == expected
        print(
            f"{method}, killed with {done} of {len(shapes)} leaves merged: again in "
            f"{again:.1f} s, {'the same bits' if same else 'OTHER BITS'}",
            flush=True,
        )
        remove(output)
    if not options.keep:
        shutil.rmtree(out)


if __name__ == "__main__":
    main()
