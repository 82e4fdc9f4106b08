"""Time and memory of matching one label, by its number of units.

Compares `zip_units` with a plain transcription of its definition, in one run and on the
same matrices, and fits how its time grows:

    python scripts/bench_matching.py
    python scripts/bench_matching.py --sizes 128 256 512 --plain-up-to 512

Seconds are wall time, the best of three runs (the plain one runs once); memory is the
peak of what numpy allocates during a call, by tracemalloc, the similarity matrix itself
not counted.
"""

import argparse
import math
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from jmudsc.matching.assignment import align, zip_units

SIZES = (128, 256, 512, 1024, 2048)


def plain_zip(
    similarity: np.ndarray, models: int, a: float = 0.5, b: float = 1.0
) -> np.ndarray:
    """Zip by the definition: look at every allowed pair again before every merge."""
    total = len(similarity)
    units = total // models
    s = similarity.copy()
    model = np.arange(total) // units
    allowed = np.triu(np.ones((total, total), bool), k=1)
    budget = [math.floor(b * ((total - units) // models) + 1e-9)] * models
    if budget[0] == 0:
        allowed &= model[:, None] != model
    root = np.arange(total)
    for _ in range(total - units):
        pairs = np.where(allowed, s, -np.inf)
        i, j = np.unravel_index(pairs.argmax(), pairs.shape)
        root[root == j] = i
        s[i] = s[:, i] = np.minimum(s[i], s[j]) * s.dtype.type(a)
        allowed[j] = allowed[:, j] = False
        if model[i] == model[j]:
            budget[model[i]] -= 1
            if budget[model[i]] == 0:
                allowed &= (model[:, None] != model[i]) | (model != model[i])
    numbers = np.cumsum(root == np.arange(total)) - 1
    return numbers[root].reshape(models, units)


def draw_similarity(units: int, seed: int = 0) -> np.ndarray:
    """Correlate random units with a noisy copy of them, in another order."""
    generator = np.random.default_rng(seed)
    first = generator.standard_normal((units, 64))
    noise = generator.standard_normal((units, 64))
    second = first[generator.permutation(units)] + 1.5 * noise
    correlation = np.corrcoef(np.concatenate([first, second])).astype(np.float32)
    return np.maximum(correlation, correlation.T)


def seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """Return the least wall time of some calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def peak_mib(call: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Return the peak memory of a call in MiB, and its result."""
    tracemalloc.start()
    result = call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20, result


def check_align(similarity: np.ndarray, assignment: np.ndarray) -> None:
    """Check that matching is one-to-one and no swap of two partners improves it."""
    units = assignment.shape[1]
    partner = assignment[1].argsort()
    assert (assignment[1][partner] == np.arange(units)).all()
    block = similarity[:units, units:][:, partner].astype(np.float64)
    swapped = block + block.T - np.add.outer(block.diagonal(), block.diagonal())
    assert swapped.max() <= 0


def main() -> None:
    """Print one row per size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument(
        "--plain-up-to", type=int, default=1024, help="the plain one takes minutes"
    )
    options = parser.parse_args()
    align(np.eye(4), 2)  # imports scipy
    print(f"{'':>6}{'align':>18}{'zip':>18}{'plain zip':>18}")
    print(f"{'units':>6}" + f"{'seconds':>10}{'MiB':>8}" * 3 + f"{'plain/zip':>11}")
    times = []
    for units in options.sizes:
        similarity = draw_similarity(units)
        row = f"{units:>6}"
        memory, aligned = peak_mib(lambda s=similarity: align(s, 2))
        check_align(similarity, aligned)
        row += f"{seconds(lambda s=similarity: align(s, 2)):>10.4f}{memory:>8.1f}"
        memory, zipped = peak_mib(lambda s=similarity: zip_units(s, 2))
        times.append(seconds(lambda s=similarity: zip_units(s, 2)))
        row += f"{times[-1]:>10.4f}{memory:>8.1f}"
        if units <= options.plain_up_to:
            start = time.perf_counter()
            memory, expected = peak_mib(lambda s=similarity: plain_zip(s, 2))
            slow = time.perf_counter() - start
            assert np.array_equal(zipped, expected)
            row += f"{slow:>10.3f}{memory:>8.1f}{slow / times[-1]:>11.1f}"
        print(row, flush=True)
    if len(options.sizes) > 1:
        growth = np.polyfit(np.log(options.sizes), np.log(times), 1)[0]
        print(f"zip takes time proportional to units^{growth:.2f}")


if __name__ == "__main__":
    main()
