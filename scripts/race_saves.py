"""Race and kill saves: what is at a path is always one whole state.

In pairs, two processes save over one checkpoint at the same time, over and over; then
one process is killed (SIGKILL) at a random moment while it does. After each the
checkpoint must load, be of one save alone, have the record of that save, and be
overwritten without complaint. A third process reads all the while.

    python scripts/race_saves.py --pairs 200 --kills 200
"""

import argparse
import dataclasses
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from jmudsc.checkpoints.formats import endings
from jmudsc.checkpoints.load import load
from jmudsc.checkpoints.provenance import Record
from jmudsc.checkpoints.save import save_with_record
from jmudsc.merging.save_result import load_provenance

ENDINGS = ["", *endings()]


@dataclasses.dataclass(frozen=True)
class Count:
    """What was seen.

    Attributes:
        runs: pairs of saves, or kills.
        reads: how often the checkpoint was read meanwhile.
        lost: runs after which there was no checkpoint, as before the first save ended.
        wrong: what was not as it must be.
    """

    runs: int
    reads: int
    lost: int
    wrong: tuple[str, ...]


def tree(number: int) -> dict[str, list[np.ndarray]]:
    """Return variables that tell which save they are of; some have one leaf more."""
    leaves = 2 + number % 2
    return {"w": [np.full((64, 64), number, np.float32) for _ in range(leaves)]}


def write(path: str, first: int, times: int) -> None:
    """Save over a checkpoint, some times, each with the next number."""
    print("ready", flush=True)
    for number in range(first, first + times):
        record = Record({"recipe": {"number": number}}, {"assignment": {}})
        save_with_record(path, tree(number), record, overwrite=True)


def check(path: Path) -> int:
    """Return the number of the save that a checkpoint is of; raises if of several."""
    found = load(path)
    number = int(found["w"][0][0, 0])
    jax.tree.map(np.testing.assert_array_equal, found, tree(number))
    return number


def check_record(path: Path) -> None:
    """Check that a checkpoint that nobody writes has its own record."""
    number, recipe = check(path), load_provenance(path)["recipe"]
    assert recipe == {"number": number}, f"{number} has the record of {recipe}"


def child(path: Path, first: int, times: int) -> subprocess.Popen[bytes]:
    """Start a process that saves over a checkpoint."""
    command = [sys.executable, __file__, "--write", str(path), str(first), str(times)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert started.stdout is not None
    assert started.stdout.readline() == b"ready\n"
    return started


def run(folder: Path, ending: str, number: int, kill: float | None) -> Count:
    """Let two processes save at once, or one until it is killed; look meanwhile."""
    path = folder / f"merged{ending}"
    times = 4 if kill is None else 10**6
    starts = [0, 1000] if kill is None else [0]
    children = [child(path, number + first, times) for first in starts]
    until, reads, wrong = time.time() + (kill or 120), 0, []
    while time.time() < until and any(x.poll() is None for x in children):
        try:
            check(path)
            reads += 1
        except FileNotFoundError:
            pass
        except (ValueError, AssertionError, OSError) as error:
            wrong.append(f"while saving: {error}")
    for one in children:
        if kill is not None:
            one.kill()
        one.communicate()
        if kill is None and one.returncode:
            wrong.append(f"a save ended with {one.returncode}")
    is_there = path.exists()
    try:
        if is_there:
            check_record(path)
        record = Record({"recipe": {"number": 1}}, {"assignment": {}})
        save_with_record(path, tree(1), record, overwrite=True)
        check_record(path)
        left = {x.name for x in folder.iterdir()} - {path.name, f"{path.name}.jmudsc"}
        assert not left, f"left behind: {left}"
    except (ValueError, AssertionError, OSError) as error:
        wrong.append(f"afterwards: {error}")
    return Count(1, reads, not is_there, tuple(wrong))


def main() -> None:
    """Race and kill, print what was seen; ends with 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--write", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.write:
        path, first, times = asked.write
        write(path, int(first), int(times))
        return
    moments, is_wrong = random.Random(0), False
    for what, count in (("pairs", asked.pairs), ("kills", asked.kills)):
        counts = []
        for number in range(count):
            kill = None if what == "pairs" else 0.02 + moments.random()
            with tempfile.TemporaryDirectory() as folder:
                ending = ENDINGS[number % len(ENDINGS)]
                counts.append(run(Path(folder), ending, number + 1, kill))
        wrong = [line for x in counts for line in x.wrong]
        is_wrong |= bool(wrong)
        print(
            f"{what}: {len(counts)}, read {sum(x.reads for x in counts)} times "
            f"meanwhile, {sum(x.lost for x in counts)} ended with nothing there, "
            f"{len(wrong)} wrong"
        )
        print("\n".join(wrong))
    sys.exit(is_wrong)


if __name__ == "__main__":
    main()
