"""What every stage of a merge compiles and takes: for `bench_merge.py --stages`.

Rows of Markdown are printed as they come, and a JSON file is written anew after each,
so that what ends too early has shown the rest. Stages that repair come last, for all
networks, and only while there is time.
"""

import bisect
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
        running: seconds that this thread waited for a device, or for what it had the
            libraries do in threads of their own.
        host: seconds of processor time of this thread, the compiler's left out.
    """

    programs: int
    compiling: float
    running: float
    host: float

    @property
    def seconds(self) -> float:
        """How long it took in all."""
        return self.compiling + self.running + self.host


class Options(NamedTuple):
    """What is measured.

    Attributes:
        method: of the merge.
        limit: seconds after which no further repair is begun.
        repaired: the networks that are repaired too.
        file: where the figures are written as JSON; None for nowhere.
    """

    method: str
    limit: float
    repaired: Sequence[str]
    file: str | None


Stage = Callable[[], Any]
HEADER = (
    "| network | stage | programs | compiling, s | running, s | host, s |\n"
    "|:--|:--|--:|--:|--:|--:|"
)


class ThreadClock:
    """Reads the processor time of the thread that makes it, all the time."""

    def __init__(self) -> None:
        """Begin to read."""
        self.clock = time.pthread_getcpuclockid(threading.get_ident())
        self.walls: list[float] = [time.time()]
        self.used: list[float] = [time.clock_gettime(self.clock)]
        self.ended = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while not self.ended.wait(0.01):
            self.read()

    def read(self) -> float:
        """Return the processor time now, and remember it."""
        used = time.clock_gettime(self.clock)
        self.walls.append(time.time())
        self.used.append(used)
        return used

    def between(self, start: float, end: float) -> float:
        """Return the processor time that was used between two times of the wall."""
        first = max(bisect.bisect_right(self.walls, start) - 1, 0)
        last = min(bisect.bisect_left(self.walls, end), len(self.used) - 1)
        return max(self.used[last] - self.used[first], 0.0)


def cost_of(stage: Stage) -> Cost:
    """Run a stage to its end."""
    clock = ThreadClock()
    with programs(anew=False) as compiled:
        start, used = time.perf_counter(), clock.read()
        jax.block_until_ready(stage())
        taken, used = time.perf_counter() - start, clock.read() - used
    clock.ended.set()
    spans = zip(compiled.ends, compiled.durations, strict=True)
    in_compiler = sum(clock.between(end - x, end) for end, x in spans)
    host = min(max(used - in_compiler, 0.0), taken - compiled.seconds)
    running = taken - compiled.seconds - host
    return Cost(len(compiled.names), compiled.seconds, running, host)


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
        yield "refit", lambda: jmudsc.refit(*parts, networks.batches)
        yield "rescale", lambda: jmudsc.repair(*parts, networks.batches)


class Printed:
    """The table so far, on standard output and in a file."""

    def __init__(self, options: Options) -> None:
        """Print what stands above the table."""
        device = jax.devices()[0].device_kind
        self.file = options.file
        self.content: dict[str, Any] = {
            "device": device,
            "jax": jax.__version__,
            "method": options.method,
            "rows": [],
        }
        print(f"{device}, jax {jax.__version__}, {options.method}; first / again\n")
        print(HEADER, flush=True)

    def add(self, network: str, stage: str, first: Cost, again: Cost | None) -> None:
        """Print what a stage took the first time, and the next."""
        after = [format(x, ".2f") for x in again[1:]] if again else ["-"] * 3
        pairs = zip((format(x, ".2f") for x in first[1:]), after, strict=True)
        count = f"{first.programs} / {again.programs if again else '-'}"
        cells = [network, stage, count, *map(" / ".join, pairs)]
        print(f"| {' | '.join(cells)} |", flush=True)
        both = {"first": first._asdict(), "again": again and again._asdict()}
        self.content["rows"].append({"network": network, "stage": stage, **both})
        if self.file:
            Path(self.file).write_text(json.dumps(self.content, indent=1))


def _sum(costs: Mapping[str, Cost]) -> Cost:
    columns = [sum(column) for column in zip(*costs.values(), strict=True)]
    return Cost(int(columns[0]), *columns[1:])


def print_stages(cases: Mapping[str, Callable[[], Case]], options: Options) -> None:
    """Measure all stages of all networks.

    Args:
        cases: name -> draws a pair of networks and its batches.
        options: what is measured.
    """
    start = time.perf_counter()
    jax.block_until_ready(jnp.ones((8, 8)) @ jnp.ones((8, 8)))  # what starts is started
    printed, totals, merges = Printed(options), [], {}
    for name, case in cases.items():
        networks = case()
        jax.block_until_ready((networks.pair, networks.batches))
        merges[name] = Merge(networks, options.method)
        first = {stage: cost_of(call) for stage, call in merges[name].stages()}
        again = {stage: cost_of(call) for stage, call in merges[name].stages()}
        for stage, cost in first.items():
            printed.add(name, stage, cost, again[stage])
        both = _sum(first), _sum(again)
        printed.add(name, "all of it", *both)
        totals.append((name, "merge", *(x.seconds for x in both)))
    for name, merge in merges.items():
        for stage, call in merge.repairs() if name in options.repaired else ():
            if time.perf_counter() - start > options.limit:
                totals.append((name, stage, float("nan"), float("nan")))
                continue
            cost = cost_of(call)
            late = time.perf_counter() - start > options.limit
            later = None if late else cost_of(call)
            printed.add(name, stage, cost, later)
            seconds = later.seconds if later else float("nan")
            totals.append((name, stage, cost.seconds, seconds))
    print("\nSeconds in all (nan: not begun, for want of time):\n")
    for name, what, *both in totals:
        print(f"- {name}, {what}: {both[0]:.1f} the first time, {both[1]:.1f} again")
    print(f"\nIt took {time.perf_counter() - start:.0f} s.")
