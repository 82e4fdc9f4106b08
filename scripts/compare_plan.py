"""What a plan guesses of the time of a merge, beside the time that the merge takes.

    python scripts/compare_plan.py

Two ResNet-20 of each width, drawn at random, are merged by mudsc-zip over 1,000 random
images. Seconds are wall time, compiling included; the guess is made just before.
"""

import time
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jmudsc
from jmudsc.derivation.program import trace
from jmudsc.derivation.taps import find_taps
from jmudsc.experiments.models import apply_fn, init, ResNet20, update_fn
from jmudsc.merging.inputs import Inputs
from jmudsc.merging.options import MergeOptions
from jmudsc.merging.prepare import prepare
from jmudsc.recipes.costs import Job, stages_of
from jmudsc.recipes.machine_speed import measure_rates
from jmudsc.tables import table

WIDTHS, SHAPE, SIZE, BATCHES = (1, 4), (32, 32, 3), 100, 10


def guessed(model: nn.Module) -> dict[str, float | None]:
    """Guess the seconds of each stage."""
    first = init(model, jax.random.key(0), SHAPE)
    make = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), first)
    batch = jax.ShapeDtypeStruct((SIZE, *SHAPE), jnp.float32)
    inputs = Inputs(apply_fn(model), [make, make])
    options = MergeOptions(method="mudsc-zip", update_fn=update_fn(model))
    prepared = prepare("compare_plan", inputs, batch, options)
    program = trace(apply_fn(model), make, batch)
    job = Job(prepared, program, find_taps(program, prepared.spec), BATCHES)
    return {stage.name: stage.seconds for stage in stages_of(job, measure_rates())}


def taken(model: nn.Module) -> dict[str, float]:
    """Merge and return the seconds of each stage."""
    parents = [init(model, jax.random.key(seed), SHAPE) for seed in (0, 1)]
    draws = np.random.default_rng(0).normal(size=(BATCHES, SIZE, *SHAPE))
    seconds: dict[str, float] = {}
    tell, end = clock(seconds)
    jmudsc.merge(
        apply_fn(model),
        parents,
        list(draws.astype(np.float32)),
        key=jax.random.key(0),
        update_fn=update_fn(model),
        progress=tell,
    )
    end()
    return seconds


def clock(
    seconds: dict[str, float],
) -> tuple[Callable[[str, int, int | None], None], Callable[[], None]]:
    """Return what tells `seconds` when a stage begins, and when the last one ends."""
    now = ["", time.perf_counter()]

    def tell(stage: str, done: int, total: int | None) -> None:
        name = stage.partition(" (")[0]
        if name != now[0]:
            moment = time.perf_counter()
            seconds[str(now[0])] = moment - float(now[1])
            now[:] = [name, moment]

    return tell, lambda: tell("", 0, None)


def main() -> None:
    """Print a table."""
    columns = []
    for width in WIDTHS:
        model = ResNet20(width=width, outputs=64)
        columns += [guessed(model), taken(model)]
    stages = [stage for stage in columns[1] if stage and stage in columns[0]]
    rows = [
        [stage, *(f"{column[stage]:.0f}" for column in columns)] for stage in stages
    ]
    header = ["stage"]
    for width in WIDTHS:
        header += [f"guess, width {width}", f"merge, width {width}"]
    print(table(header, rows))


if __name__ == "__main__":
    main()
