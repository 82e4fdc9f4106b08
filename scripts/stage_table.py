"""What every stage of a merge compiles: for `bench_merge.py --stages`.

Rows are printed as they come, so that what ends too early has shown the rest. Stages
that repair come last, for all networks, and only while there is time.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jmudsc

sys.path.append(str(Path(__file__).parents[1] / "tests" / "rig"))

from compiled import programs


class Case(NamedTuple):
    """A pair of networks and its batches."""

    apply_fn: Callable[[Any, Any], Any]
    pair: list[Any]
    batches: list[Any]
    size: float  # what grows: width or layers
    update_fn: Callable[[Any, Any], Any] | None = None


class Cost(NamedTuple):
    """What a stage took.

    Attributes:
        programs: how many were compiled.
        compiling: seconds that the compiler took.
        rest: all other seconds: tracing, running, work of the host.
    """

    programs: int
    compiling: float
    rest: float


Stage = Callable[[], Any]
HEADER = (
    "network         stage       programs        compiling, s     all else, s\n"
    "                            first / again   first / again    first / again"
)


def cost_of(stage: Stage) -> Cost:
    """Run a stage to its end."""
    with programs(anew=False) as compiled:
        start = time.perf_counter()
        jax.block_until_ready(stage())
        taken = time.perf_counter() - start
    return Cost(len(compiled.names), compiled.seconds, taken - compiled.seconds)


class Merge:
    """A merge in parts, each of which uses what those before it gave."""

    def __init__(self, networks: Case, method: str) -> None:
        """Begin a merge; nothing is computed."""
        self.networks, self.method = networks, method
        self.key = jax.random.key(0)
        self.given: dict[str, Any] = {}

    def stages(self) -> Iterator[tuple[str, Stage]]:
        """Yield the stages of a merge, without repairs that compile much."""
        apply_fn, update_fn, pair, batches = (
            getattr(self.networks, x)
            for x in ("apply_fn", "update_fn", "pair", "batches")
        )
        given, first = self.given, (pair[0], batches[0])

        def keeping(name: str, compute: Stage) -> Stage:
            def stage() -> Any:
                given[name] = compute()
                return jax.tree.map(lambda x: getattr(x, "comoment", x), given[name])

            return stage

        yield "deriving", keeping("spec", lambda: jmudsc.infer_spec(apply_fn, *first))
        spec = given["spec"]
        check = jmudsc.check_spec
        yield "checking", lambda: check(spec, apply_fn, *first, key=self.key)
        collect = jmudsc.collect
        yield (
            "statistics",
            keeping("moments", lambda: collect(spec, apply_fn, pair, batches)),
        )
        options = {"method": self.method, "key": self.key}
        match = jmudsc.match
        yield (
            "matching",
            keeping("match", lambda: match(spec, pair, given["moments"], **options)),
        )
        rows = given["match"].assignment
        yield "combining", keeping("merged", lambda: jmudsc.combine(spec, pair, rows))
        if update_fn is not None:
            reset = jmudsc.reset_batch_stats
            yield "resetting", lambda: reset(update_fn, given["merged"], batches)

    def repairs(self) -> Iterator[tuple[str, Stage]]:
        """Yield what may follow, each from the plain average."""
        networks, given = self.networks, self.given
        rows = given["match"].assignment
        parts = given["spec"], networks.apply_fn, networks.pair, rows, given["merged"]
        yield "rescale", lambda: jmudsc.repair(*parts, networks.batches)
        yield "refit", lambda: jmudsc.refit(*parts, networks.batches)


def print_row(network: str, stage: str, first: Cost, again: Cost | None) -> None:
    """Print what a stage took the first time, and the next."""
    after = again or Cost(0, float("nan"), float("nan"))
    count = f"{first.programs} / {after.programs if again else '-'}"
    compiling = f"{first.compiling:.2f} / {after.compiling:.2f}"
    rest = f"{first.rest:.2f} / {after.rest:.2f}"
    print(f"{network:15} {stage:11} {count:15} {compiling:16} {rest}", flush=True)


def print_stages(
    cases: Mapping[str, Callable[[], Case]], method: str, limit: float
) -> None:
    """Measure all stages of all networks.

    Args:
        cases: name -> draws a pair of networks and its batches.
        method: of the merge.
        limit: seconds after which no further repair is begun.
    """
    start = time.perf_counter()
    jax.block_until_ready(jnp.ones((8, 8)) @ jnp.ones((8, 8)))  # what starts is started
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {method}")
    print(HEADER, flush=True)
    merges = {}
    for name, case in cases.items():
        networks = case()
        jax.block_until_ready((networks.pair, networks.batches))
        merges[name] = Merge(networks, method)
        first = {stage: cost_of(call) for stage, call in merges[name].stages()}
        again = {stage: cost_of(call) for stage, call in merges[name].stages()}
        for stage, cost in first.items():
            print_row(name, stage, cost, again[stage])
        for costs in (first, again):
            total = [sum(column) for column in zip(*costs.values(), strict=True)]
            which = "first" if costs is first else "again"
            print(f"{name:15} all, {which}: {sum(total[1:]):.2f} s", flush=True)
    for name, merge in merges.items():
        for stage, call in merge.repairs():
            if time.perf_counter() - start > limit:
                print(f"{name:15} {stage:11} not begun: no time is left", flush=True)
                continue
            first_cost = cost_of(call)
            late = time.perf_counter() - start > limit
            print_row(name, stage, first_cost, None if late else cost_of(call))
