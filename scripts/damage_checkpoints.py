"""Damage checkpoints: flip a bit or cut a file, and see that no load is silent.

A small tree is saved in every format. Then, in a copy, one random bit of one random
file is flipped, or the file is cut at a random place, and the checkpoint is loaded.
Either there is one sentence (a `ValueError` or `FileNotFoundError` that names the
checkpoint), or it is counted as silent: it loaded, to the same bits or, worse, to
others.

    python scripts/damage_checkpoints.py --times 2000
"""

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmudsc.checkpoints.formats import FORMATS
from jmudsc.checkpoints.load import load
from jmudsc.merging.result import MergeResult
from jmudsc.merging.save_result import load_provenance, save
from jmudsc.spec.permutation_spec import PermutationSpec


def tree() -> dict[str, Any]:
    """Return variables with leaves of several types, in containers of all kinds."""
    keys = jax.random.split(jax.random.key(0), 3)
    dense = {"kernel": jax.random.normal(keys[0], (24, 16)), "bias": jnp.zeros(16)}
    layers = [{"scale": jnp.ones(8, jnp.bfloat16)}, (jnp.int32(3), None)]
    return {"params": {"Dense_0": dense, "layers": layers}, "empty": {}}


def saved(folder: Path) -> dict[str, Path]:
    """Save the tree in every format; return format -> folder with nothing else."""
    result = MergeResult(
        tree(), PermutationSpec({}, {}), {"P_0": np.zeros((2, 4), np.int32)}
    )
    places = {}
    for row in FORMATS:
        places[row.name] = folder / row.name
        save(path_of(row.name, places[row.name]), result, notes={"report.md": "#"})
    return places


def path_of(name: str, folder: Path) -> Path:
    """Return the checkpoint of a format in a folder."""
    row = next(row for row in FORMATS if row.name == name)
    return folder / f"merged{''.join(row.endings[:1])}"


def damage(folder: Path, draw: random.Random) -> str:
    """Flip a bit or cut a file of a folder; return what was done."""
    files = [x for x in folder.rglob("*") if x.is_file() and x.stat().st_size]
    files = sorted(x for x in files if x.suffix != ".md")  # for people to read
    file = draw.choice(files)
    content = bytearray(file.read_bytes())
    place = draw.randrange(len(content))
    name = file.relative_to(folder)
    if draw.random() < 0.25:
        file.write_bytes(content[:place])
        return f"{name} cut after {place} of {len(content)} bytes"
    bit = draw.randrange(8)
    content[place] ^= 1 << bit
    file.write_bytes(content)
    return f"{name} with bit {bit} of byte {place} of {len(content)} flipped"


def outcome(path: Path, expected: Mapping[str, Any]) -> str:
    """Load a checkpoint and its record, and say what came of it."""
    try:
        found = load(path)
        load_provenance(path)
    except (ValueError, FileNotFoundError) as error:
        is_told = str(error).startswith(str(path)) and "expected" in str(error)
        return "sentence" if is_told else f"another error: {error!r}"
    except Exception as error:  # noqa: BLE001 whatever else it is
        return f"another error: {error!r}"
    if jax.tree.structure(found) != jax.tree.structure(expected):
        return "silent, another tree"
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    same = all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)
    return "silent, the same bits" if same else "silent, other bits"


def trial(places: Mapping[str, Path], seed: int) -> tuple[str, str, str]:
    """Damage a copy of a checkpoint; return its format, what was done, the outcome."""
    draw = random.Random(seed)
    name = draw.choice(sorted(places))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(places[name], Path(folder) / name))
        done = damage(copy, draw)
        return name, done, outcome(path_of(name, copy), tree())


def main() -> None:
    """Damage and load; ends with 1 unless every time there was a sentence."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--times", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        places = saved(Path(folder))
        trials = [trial(places, given.seed + n) for n in range(given.times)]
    for name in places:
        counts = Counter(x[:40] for at, _, x in trials if at == name)
        print(f"{name}: " + ", ".join(f"{n} {x}" for x, n in sorted(counts.items())))
    wrong = [x for x in trials if x[2] != "sentence"]
    print("\n".join(": ".join(x) for x in wrong[:40]))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
