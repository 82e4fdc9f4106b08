"""Compare the refit of convolutions by lags with that by copies of all windows.

The network is deep, has one axis of space, and long kernels: a chain of convolutions of
32 channels with kernel 41. Both ways run in one process, each twice; the second run,
whose programs are compiled, counts. First the moments of one layer alone are compared,
then whole refits, unless `--layers 0`. All layers and positions take about ten minutes
on two cores; `--layers 3 --positions 120000` two.
"""

import argparse
import time

import jax
import numpy as np

import jmudsc
from jmudsc.repairs import regression
from jmudsc.repairs.contractions import form_of

CHANNELS, WINDOW, LENGTH = 32, 41, 5000


def apply_fn(variables, x):
    """Compute three outputs at every position."""
    for name in sorted(variables):
        if name == "last":
            continue
        kernel, bias = variables[name]["kernel"], variables[name]["bias"]
        y = jax.lax.conv_general_dilated(
            x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )
        x = jax.nn.relu(y + bias[None, None])
    return x @ variables["last"]["kernel"]


def draw(seed, layers):
    """Draw the variables of a network."""
    generator = np.random.default_rng(seed)
    variables = {}
    for number in range(layers):
        into = 4 if number == 0 else CHANNELS
        shape = WINDOW, into, CHANNELS
        kernel = generator.normal(size=shape) * np.sqrt(2 / (WINDOW * into))
        bias = generator.normal(size=CHANNELS) / 5
        variables[f"conv{number:02}"] = {"kernel": kernel, "bias": bias}
    last = generator.normal(size=(CHANNELS, 3)) / np.sqrt(CHANNELS)
    variables["last"] = {"kernel": last}
    return jax.tree.map(np.float32, variables)


def timed(*arguments):
    """Return the refitted variables, and processor seconds of a second run."""
    jmudsc.refit(*arguments)
    start = time.process_time()
    found = jmudsc.refit(*arguments)
    jax.block_until_ready(found)
    return found, time.process_time() - start


def ratio_of_moments(positions):
    """Return how many times longer the moments of one layer take by copies."""
    generator = np.random.default_rng(3)
    x = generator.normal(size=(positions // LENGTH, LENGTH, CHANNELS))
    residual = generator.normal(size=(1, positions, CHANNELS)).astype(np.float32)
    shape = WINDOW, CHANNELS, CHANNELS
    convolve = lambda x, kernel: jax.lax.conv_general_dilated(
        x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    x = x.astype(np.float32)
    (eqn,) = jax.make_jaxpr(convolve)(x, np.zeros(shape, np.float32)).eqns
    form, seconds = form_of(eqn, 1), []
    assert form is not None
    for way in (regression.moments_by_copies, regression.moments_by_lags):
        compiled = jax.jit(lambda x, r, way=way: way(form, x, r, shape))
        jax.block_until_ready(compiled(x, residual))
        start = time.process_time()
        jax.block_until_ready(compiled(x, residual))
        seconds.append(time.process_time() - start)
    return seconds[0] / seconds[1]


def main():
    """Run both ways and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=17)
    parser.add_argument("--positions", type=int, default=200_000)
    asked = parser.parse_args()
    print(f"moments of one layer: ratio {ratio_of_moments(asked.positions):.1f}")
    if not asked.layers:
        return
    models = [draw(seed, asked.layers) for seed in (0, 1)]
    generator = np.random.default_rng(2)
    batches = [
        generator.normal(size=(8, LENGTH, 4)).astype(np.float32)
        for _ in range(max(asked.positions // (8 * LENGTH), 1))
    ]
    spec = jmudsc.infer_spec(apply_fn, models[0], batches[0])
    rows = {n: np.stack([np.arange(x.size)] * 2) for n, x in spec.labels.items()}
    rows = {n: row.astype(np.int32) for n, row in rows.items()}
    merged = jmudsc.combine(spec, models, rows)
    arguments = spec, apply_fn, models, rows, merged, batches
    by_lags, fast = timed(*arguments)
    regression.lags_are_cheaper = lambda *_: False
    jax.clear_caches()
    by_copies, slow = timed(*arguments)
    gaps = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max() / np.abs(b).max()), by_lags, by_copies
    )
    count = sum(x.size for x in jax.tree.leaves(models[0]))
    positions = sum(batch.shape[0] * LENGTH for batch in batches)
    print(f"{count} parameters, {positions} positions")
    print(f"processor seconds: copies {slow:.1f}, lags {fast:.1f}")
    gap = max(jax.tree.leaves(gaps))
    print(f"ratio {slow / fast:.1f}, largest relative gap {gap:.1e}")


if __name__ == "__main__":
    main()
