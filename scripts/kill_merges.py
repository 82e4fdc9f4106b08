"""Kill merges at random moments, and see that nothing is lost or half done.

    python scripts/kill_merges.py --kills 20
    python scripts/kill_merges.py --kills 20 --ending "" --method mudsc-zip

Two decoders are written to disk and merged once, undisturbed. Then the same merge is
started again and again and killed (SIGKILL) after a random part of the time that it
takes, until it has been killed as often as asked. After every kill the output is either
not there or whole, by the digests of all its leaves; when a merge comes to its end it
must have the same bits, and nothing else may be left beside it.
"""

import argparse
import random
import subprocess
import tempfile
import time
from pathlib import Path

import decoders
from bench_disk import command, RECIPE, write_model

import jmudsc


def start(recipe: Path, memory: str) -> subprocess.Popen[bytes]:
    """Start a merge."""
    arguments, environment = command(recipe, "--memory", memory)
    return subprocess.Popen(
        arguments,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(recipe: Path, memory: str) -> float:
    """Merge to the end; return the seconds that it took."""
    began = time.perf_counter()
    child = start(recipe, memory)
    _, said = child.communicate()
    if child.returncode:
        raise SystemExit(f"{recipe}: the merge failed.\n{said.decode()}")
    return time.perf_counter() - began


def digests_of(place: Path) -> dict[str, str]:
    """Return the digests of all leaves, each compared with what is there."""
    jmudsc.load(place)
    return jmudsc.load_provenance(place)["digests"]


def main() -> None:
    """Kill, and tell what was seen."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--size", default="256x6", help="of the decoder")
    parser.add_argument("--method", default="weight-align", choices=jmudsc.METHODS)
    parser.add_argument("--ending", default=".safetensors", help='"" for orbax')
    parser.add_argument("--memory", default="0", help="GiB; 0 leaves models on disk")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    width, layers = decoders.size_of(given.size)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for number in range(2):
            write_model(folder / f"model-{number}{given.ending}", width, layers, number)
        recipes = {}
        for output in ("undisturbed", "killed"):
            recipes[output] = folder / f"{output}.yaml"
            fields = vars(given) | {"width": width, "output": output, "sequences": 4}
            recipes[output].write_text(RECIPE.format(**fields))
        whole = finish(recipes["undisturbed"], given.memory)
        expected = digests_of(folder / f"undisturbed{given.ending}")
        place = folder / f"killed{given.ending}"
        kills, ends, steps = 0, 0, []
        while kills < given.kills:
            child = start(recipes["killed"], given.memory)
            try:
                child.communicate(timeout=draw.uniform(0.2, 1.0) * whole)
            except subprocess.TimeoutExpired:
                child.kill()
                child.communicate()
                kills += 1
                journal = folder / f".{place.name}.jmudsc-journal"
                steps.append(len(list(journal.glob("*.npz"))))
            if place.exists():
                ends += 1
                check(place, expected)
                clear(folder, place)
        finish(recipes["killed"], given.memory)
        check(place, expected)
        left = sorted(x.name for x in folder.iterdir() if "killed" in x.name)
        beside = [f"killed{given.ending}.jmudsc"] if given.ending else []
        if left != sorted(["killed.yaml", place.name, *beside]):
            raise SystemExit(f"left behind: {left}")
    print(
        f"{given.method}, {given.ending or 'orbax'}: killed {kills} times, after "
        f"{steps} steps of matching were kept; {ends} merges in between came to their "
        f"end. Every output was whole, and the last one has the same {len(expected)} "
        f"digests as the undisturbed one, which took {whole:.0f} s."
    )


def check(place: Path, expected: dict[str, str]) -> None:
    """Stop unless an output is what it should be."""
    if digests_of(place) != expected:
        raise SystemExit(f"{place}: is not what it should be.")


def clear(folder: Path, place: Path) -> None:
    """Remove an output, to begin anew."""
    for name in (place.name, f"{place.name}.jmudsc", f".{place.name}.jmudsc-journal"):
        subprocess.run(["rm", "-rf", str(folder / name)], check=True)


if __name__ == "__main__":
    main()
