"""Time and memory of whole merges, stage by stage, beside three yardsticks.

    python scripts/bench_merge.py
    python scripts/bench_merge.py resnet20x1 resnet20x2 resnet20x4 resnet20x8
    python scripts/bench_merge.py vit-s vit-b decoder-10m decoder-100m --samples 16
    python scripts/bench_merge.py decoder-256x4 decoder-256x8 decoder-256x16
    python scripts/bench_merge.py --stages resnet20x4 vit-b --repairs resnet20x4

Pairs of networks from different initializations are merged by mudsc-zip; images and
tokens are random. A decoder is named by its size or by width x layers; its parameters
are bfloat16. In the same process are measured:

- average: a plain average by `jax.tree.map`;
- plain: matching and combining by dense permutation matrices and full re-scans
  (`plain_merge.py`), for networks without nested labels, with as many sweeps;
- floor: one jitted forward pass over the batches for every model, compilation
  included as it is in every pass of statistics, plus the products that co-moments
  consist of at the rate of a large matrix product.

With `--stages`, instead, all in one process: for every stage, repairs too, how many
programs are compiled, and the seconds of compiling, of waiting for devices and of work
of the host, first and again. Repairs, of the networks after `--repairs` or of all, are
begun while `--limit` seconds have not passed. The table is Markdown; `--json` writes a
file too.

Every network is measured in a process of its own: `first` is a merge in a new process,
compilation included, `again` the least of the merges after it. Where other work shares
the machine, `--clock cpu` measures processor time, of all threads together. Memory is
what the peak resident size of the process grew by in the first merge, the parents and
the batches not counted.
"""

import argparse
import functools
import multiprocessing
import re
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import decoders
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from plain_merge import is_plain, plain_combine, plain_match
from stage_table import Case, Options, print_stages

import jmudsc
from jmudsc.experiments import models
from jmudsc.matching.methods import TABLE
from jmudsc.matching.similarity import activation_similarity
from jmudsc.paths import flatten, unflatten
from jmudsc.tables import table

Clock = Callable[[], float]

CLOCKS: Mapping[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
BLENDS = tuple(row.name for row in TABLE.values() if row.blends)
SMALL = ("resnet20x1", "resnet20x2", "vit-s", "decoder-10m")
VITS = {"s": (384, 6), "b": (768, 12)}
STAGES: tuple[str, ...] = (
    "deriving",
    "checking",
    "statistics",
    "matching",
    "combining",
)


def case_of(name: str, samples: int | None, batch: int | None) -> Case:
    """Draw the pair and the batches that a name stands for."""
    if match := re.fullmatch(r"resnet20x(\d+)", name):
        width = int(match[1])
        model = models.ResNet20(width, 10)
        return _images(model, 32, samples or 1000, batch or 100, width)
    if match := re.fullmatch(r"vit-([sb])", name):
        width, heads = VITS[match[1]]
        model = models.ViT(1000, 16, width, 12, heads)
        return _images(model, 224, samples or 64, batch or 16, width)
    if name.startswith("decoder-"):
        width, layers = decoders.size_of(name.removeprefix("decoder-"))
        return _decoder(width, layers, samples or 32, batch or 8)
    raise SystemExit(f"{name} is no network; see scripts/bench_merge.py --help")


def _images(model: Any, side: int, samples: int, batch: int, size: float) -> Case:
    images = jnp.zeros((2, side, side, 3))
    init = jax.jit(lambda key: model.init(key, images))
    pair = [init(jax.random.key(seed)) for seed in range(2)]
    draw = np.random.default_rng(0)
    shape = (batch, side, side, 3)
    batches = [
        jnp.asarray(draw.standard_normal(shape, np.float32))
        for _ in range(samples // batch)
    ]
    update_fn = models.update_fn(model) if "batch_stats" in pair[0] else None
    return Case(models.apply_fn(model), pair, batches, size, update_fn)


def _decoder(width: int, layers: int, samples: int, batch: int) -> Case:
    every = decoders.shapes(width, layers)
    pair = [
        unflatten(
            every,
            {p: decoders.draw(p, x.shape, seed) for p, x in flatten(every).items()},
        )
        for seed in range(2)
    ]
    batches = decoders.tokens(samples, batch)
    return Case(decoders.apply_fn(width), pair, batches, layers)


def seconds(clock: Clock, call: Callable[[], Any], repeats: int = 1) -> float:
    """Return the least time of some calls, their results waited for."""
    times = []
    for _ in range(repeats):
        start = clock()
        jax.block_until_ready(call())
        times.append(clock() - start)
    return min(times)


def peak() -> float:
    """Return the peak resident size of the process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Merge(NamedTuple):
    """What a merge went through, and the seconds of its stages."""

    spec: jmudsc.PermutationSpec
    moments: Mapping[str, jmudsc.Moments]
    match: jmudsc.Match
    seconds: Mapping[str, float]


def merge(case: Case, method: str, key: jax.Array, clock: Clock) -> Merge:
    """Merge as `jmudsc.merge` does, in parts."""
    first = case.pair[0], case.batches[0]
    start = clock()
    spec = jmudsc.infer_spec(case.apply_fn, *first)
    derived = clock()
    jmudsc.check_spec(spec, case.apply_fn, *first, key=key)
    checked = clock()
    moments = jmudsc.collect(spec, case.apply_fn, case.pair, case.batches)
    jax.block_until_ready([m.comoment for m in moments.values()])
    collected = clock()
    match = jmudsc.match(spec, case.pair, moments, method=method, alpha=0.5, key=key)
    matched = clock()
    jax.block_until_ready(jmudsc.combine(spec, case.pair, match.assignment))
    ends = start, derived, checked, collected, matched, clock()
    taken = dict(zip(STAGES, np.diff(ends).tolist(), strict=True))
    return Merge(spec, moments, match, taken)


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Measure one network; what was not measured is left out."""
    clock = CLOCKS[options.clock]
    case = case_of(name, options.samples, options.batch)
    jax.block_until_ready((case.pair, case.batches))
    before = peak()
    key = jax.random.key(0)
    first = merge(case, options.method, key, clock)
    row = {"MiB": peak() - before, "sweeps": len(first.match.history)}
    row["parameters"] = sum(x.size for x in jax.tree.leaves(case.pair[0]))
    row["labels"], row["size"] = len(first.spec.labels), case.size
    later, forward = [], []
    for _ in range(options.repeats):  # in turn, for other work comes and goes
        later.append(merge(case, options.method, key, clock).seconds)
        apply = jax.jit(lambda v, x: case.apply_fn(v, x))  # compiled anew, as above
        forward.append(seconds(clock, functools.partial(_forward, apply, case)))
    for stage in STAGES:
        row[f"{stage}, first"] = first.seconds[stage]
        row[stage] = min(times[stage] for times in later)
    row["forward"] = min(forward)
    products = sum(2.0 * m.count * m.mean.size**2 for m in first.moments.values())
    row["products"] = products / matrix_rate(clock)
    average = jax.jit(lambda a, b: jax.tree.map(lambda x, y: (x + y) / 2, a, b))
    seconds(clock, lambda: average(*case.pair))
    row["average"] = seconds(clock, lambda: average(*case.pair), 3)
    widest = max(label.size for label in first.spec.labels.values())
    if is_plain(first.spec) and widest <= options.plain_up_to:
        row |= _plain(first, case, key, clock)
    return row


def _forward(apply: Callable[[Any, Any], Any], case: Case) -> list[Any]:
    return [apply(variables, x) for x in case.batches for variables in case.pair]


def matrix_rate(clock: Clock, size: int = 2048) -> float:
    """Return operations per second of a large float32 matrix product."""
    x = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(lambda x: jnp.matmul(x, x, precision=lax.Precision.HIGHEST))
    seconds(clock, lambda: product(x))
    return 2.0 * size**3 / seconds(clock, lambda: product(x), 5)


def _plain(ours: Merge, case: Case, key: jax.Array, clock: Clock) -> dict[str, float]:
    leaves = [{p: np.asarray(x) for p, x in flatten(v).items()} for v in case.pair]
    activation = {name: activation_similarity(m) for name, m in ours.moments.items()}
    start = clock()
    sweeps = len(ours.match.history)
    found = plain_match(ours.spec, leaves, activation, 0.5, key, sweeps)
    middle = clock()
    plain_combine(ours.spec, leaves, found)
    return {"plain matching": middle - start, "plain combining": clock() - middle}


def print_tables(rows: Mapping[str, Mapping[str, float]], clock: str) -> None:
    """Print the stages of every network, then the yardsticks and the ratios."""
    first = {
        name: [f"{row['parameters'] / 1e6:.2f}", f"{row['labels']:.0f}"]
        + [_pair(row, stage) for stage in STAGES]
        + [f"{row['sweeps']:.0f}", f"{row['MiB']:.0f}"]
        for name, row in rows.items()
    }
    header = ["network", "parameters, 10^6", "labels", *STAGES, "sweeps", "MiB"]
    print(f"Seconds ({clock}), first / again:\n")
    print(table(header, [[name, *cells] for name, cells in first.items()]))
    second = []
    for name, row in rows.items():
        floor = row["forward"] + row["products"]
        ours = row["matching"] + row["combining"]
        plain = row.get("plain matching", np.nan) + row.get("plain combining", np.nan)
        ours_first = row["matching, first"] + row["combining, first"]
        ratios = [_or_dash(plain / x, ".1f") for x in (ours_first, ours)]
        second.append(
            [
                name,
                f"{row['forward']:.2f}",
                f"{row['products']:.2f}",
                f"{row['statistics'] / floor:.2f}",
                f"{ours / row['statistics']:.2f}",
                f"{row['average']:.4f}",
                _or_dash(plain, ".1f"),
                " / ".join(ratios),
            ]
        )
    header = [
        "network",
        "forward",
        "products",
        "statistics/floor",
        "(matching+combining)/statistics",
        "average",
        "plain",
        "plain/ours, first / again",
    ]
    print("\nYardsticks, seconds, and ratios:\n")
    print(table(header, second))


def print_growth(rows: Mapping[str, Mapping[str, float]]) -> None:
    """Fit powers, within families of networks that differ in one size."""
    families: dict[str, list[Mapping[str, float]]] = {}
    for name, row in rows.items():
        family = re.sub(r"(?<=x)\d+$", "N", name)
        families.setdefault(family, []).append(row)
    for family, members in families.items():
        if len(members) > 2:
            size = np.log([row["size"] for row in members])
            sweep = np.log([row["matching"] / row["sweeps"] for row in members])
            whole = np.log([row["matching"] for row in members])
            powers = [np.polyfit(size, times, 1)[0] for times in (whole, sweep)]
            print(
                f"\n{family}: matching again takes time proportional to "
                f"N^{powers[0]:.2f}, a sweep of it to N^{powers[1]:.2f}."
            )


def _pair(row: Mapping[str, float], stage: str) -> str:
    return f"{row[f'{stage}, first']:.2f} / {row[stage]:.2f}"


def _or_dash(value: float, form: str) -> str:
    return "-" if np.isnan(value) else format(value, form)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each network in a process of its own and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("networks", nargs="*", default=SMALL, help="see the script")
    parser.add_argument("--method", default="mudsc-zip", choices=BLENDS)
    parser.add_argument("--samples", type=int, help="images, or sequences of tokens")
    parser.add_argument("--batch", type=int, help="of these per batch")
    parser.add_argument("--clock", default="wall", choices=CLOCKS)
    parser.add_argument("--repeats", type=int, default=3, help="of the merge")
    parser.add_argument(
        "--plain-up-to", type=int, default=256, help="units of a label; it is slow"
    )
    parser.add_argument("--stages", action="store_true", help="what is compiled")
    parser.add_argument("--limit", type=float, default=300, help="with --stages")
    parser.add_argument("--repairs", nargs="*", help="with --stages: of which networks")
    parser.add_argument("--json", help="with --stages: a file to write")
    options = parser.parse_args(arguments)
    if options.stages:
        sizes = options.samples, options.batch
        cases = {n: functools.partial(case_of, n, *sizes) for n in options.networks}
        repaired = options.networks if options.repairs is None else options.repairs
        measured = Options(options.method, options.limit, repaired, options.json)
        print_stages(cases, measured)
        return
    rows = {}
    spawn = multiprocessing.get_context("spawn")
    for name in options.networks:
        with ProcessPoolExecutor(1, mp_context=spawn) as process:
            rows[name] = process.submit(measure, name, options).result()
        print(f"measured {name}", flush=True)
    print(
        f"\n{jax.devices()[0].device_kind}, jax {jax.__version__}, {options.method}\n"
    )
    print_tables(rows, options.clock)
    print_growth(rows)


if __name__ == "__main__":
    main()
