"""Costs finetuned: memory, reading and time of a merge of fine-tunes, from shapes."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jmudsc.derivation.program import Program, trace
from jmudsc.finetunes.job import Job, LeafPlan
from jmudsc.finetunes.leaf_memory import leaf_memory
from jmudsc.finetunes.matrix_work import svd
from jmudsc.finetunes.merge_finetunes import reads_all
from jmudsc.finetunes.request import Request
from jmudsc.finetunes.shared_start import looked_at, MOST_OF_EACH
from jmudsc.finetunes.task_batches import examples_in
from jmudsc.merging.memory_budget import leaf_bytes, tree_bytes
from jmudsc.recipes.costs import Stage
from jmudsc.recipes.flops import live_bytes, work_of
from jmudsc.recipes.machine_speed import Rates
from jmudsc.repairs.table import asked, Repair

# How often a merge goes through the entries of a leaf, in float32; and how much slower
# an operation of a decomposition in float64 is than one of a product in float32: about
# what was seen.
_PASSES, _SLOWER = 8, 8
# How often a threshold of the whole tree takes all leaves, before they are merged.
_THRESHOLD_PASSES = 3


@dataclass(frozen=True, eq=False)
class _Costs:
    """What decides the costs.

    Attributes:
        job: what every leaf becomes.
        request: what is asked for, of shapes.
        rates: how fast the machine is.
        program: the traced model, on one batch of so many `examples`; None without one.
    """

    job: Job
    request: Request
    rates: Rates
    program: Program | None = None
    examples: int = 1

    @property
    def trees(self) -> list[Mapping[str, Any]]:
        """The leaves of all models, and of the base."""
        base = [] if self.job.base is None else [self.job.base]
        return [*self.job.models, *base]

    @property
    def plans(self) -> list[LeafPlan]:
        """How those leaves are merged that are not copied."""
        return [plan for plan in self.job.plans.values() if plan.copied is None]

    def read(self, plans: Iterable[LeafPlan]) -> int:
        """Return the bytes of some leaves in all models, and in the base."""
        paths = [plan.path for plan in plans]
        return sum(leaf_bytes(tree[path]) for tree in self.trees for path in paths)

    def passes(self, examples: int) -> float:
        """Return the seconds of forward passes of one model over some examples."""
        assert self.program is not None
        work = work_of(self.program)
        once = work.flops / self.rates.flops + work.moved / self.rates.moved
        return examples / self.examples * once


def finetuned_stages(job: Job, request: Request, rates: Rates) -> list[Stage]:
    """Estimate every stage of a merge of fine-tunes.

    Memory is that of the arrays. Time is that of what is computed; reading and writing
    disks is not in it.

    Args:
        job: what every leaf is to become, of shapes.
        request: what is asked for, of shapes.
        rates: how fast the machine is.

    Returns:
        The stages in order.
    """
    costs = _Costs(job, request, rates)
    if request.apply_fn is not None and request.tasks is not None:
        batch = next(request.tasks.of(0, 2))
        program = trace(request.first_fn, request.donor, batch)
        costs = _Costs(job, request, rates, program, examples_in(batch))
    stages, held = [], {}
    if reads_all(job, request):
        held = {"models": sum(map(tree_bytes, costs.trees))}
        stages.append(Stage("loading", {}, held, read=held["models"]))
    if request.common.check and not held:
        stages.append(_starting(costs))
    stages += [*_thresholds(costs), *_learning(costs, held)]
    stages.append(_merging(costs, held))
    repairs = asked(request.common.repairs)
    out = {**held, "merged": tree_bytes(job.donors)} if held else {}
    stages += [_repairing(row, costs, out) for row in repairs]
    merged = tree_bytes(job.donors)
    leaf = max(map(leaf_bytes, job.donors.values()), default=0)
    seconds = 3 * merged / rates.digested
    return [*stages, Stage("writing", {"one leaf": leaf}, out, seconds, merged)]


def _starting(costs: _Costs) -> Stage:
    """A few matrices of all are compared."""
    paths = looked_at(costs.job.donors)
    sizes = {
        path: min(math.prod(costs.job.donors[path].shape), MOST_OF_EACH)
        for path in paths
    }
    read = sum(sizes[p] * tree[p].dtype.itemsize for tree in costs.trees for p in paths)
    widest = max(sizes.values(), default=0)
    pairs = math.comb(len(costs.trees), 2)
    seconds = pairs * 24 * read / len(costs.trees) / costs.rates.moved
    return Stage(
        "looking for a shared start", {"two matrices": 32 * widest}, {}, seconds, read
    )


def _thresholds(costs: _Costs) -> list[Stage]:
    """All leaves are gone through, where the largest of the whole tree are kept."""
    own = [p for p in costs.plans if p.settings.get("scope") == "tree"]
    if not own:
        return []
    read = _THRESHOLD_PASSES * costs.read(own)
    host = {"one leaf": max(costs.read([plan]) for plan in own)}
    seconds = _PASSES * read / costs.rates.moved
    return [Stage("finding thresholds", host, {}, seconds, read)]


def _learning(costs: _Costs, held: Mapping[str, int]) -> list[Stage]:
    """The models go through their own data, where the method wants that."""
    methods = {plan.method.name: plan.method for plan in costs.plans}
    wanted = [row for row in methods.values() if row.needs_data]
    if not wanted or costs.program is None:
        return []
    models = len(costs.job.models)
    samples = max(p.settings.get("samples") or 0 for p in costs.plans)
    grams = 0
    for plan in costs.plans:
        if plan.method.needs_data and plan.layout.is_matrix:
            count, size, _ = plan.layout.sizes(tuple(costs.job.donors[plan.path].shape))
            grams += 8 * models * count * size**2
    device = {**held, "activations": live_bytes(costs.program)}
    forward = models * costs.passes(samples)
    backward = 3 if any(row.learns == "gradients" for row in wanted) else 1
    host = {"moments of inputs": grams} if backward == 1 else {}
    return [Stage("learning from data", host, device, backward * forward)]


def _merging(costs: _Costs, held: Mapping[str, int]) -> Stage:
    largest = max(costs.plans, key=lambda p: _one_leaf(costs, p), default=None)
    host = {"one leaf of all": 0 if largest is None else _one_leaf(costs, largest)}
    read = costs.read(costs.plans)
    entries = sum(
        math.prod(tree[plan.path].shape) for tree in costs.trees for plan in costs.plans
    )
    once = _PASSES * 4 * entries / costs.rates.moved
    once += _SLOWER * sum(_work(costs, p) for p in costs.plans) / costs.rates.flops
    seconds = _times(costs) * once
    return Stage("merging", host, held, seconds, 0 if held else read)


def _times(costs: _Costs) -> int:
    """Return how often all leaves are merged."""
    runs = {plan.method.runs for plan in costs.plans}
    if "greedy" in runs:
        return 2 * len(costs.job.models)
    return 1


def _one_leaf(costs: _Costs, plan: LeafPlan) -> int:
    """Return the bytes that merging one leaf takes, what it becomes among them."""
    return leaf_memory(costs.job, plan) + leaf_bytes(costs.job.donors[plan.path])


def _work(costs: _Costs, plan: LeafPlan) -> float:
    """Return the operations of the linear algebra of one leaf."""
    shape, layout = tuple(costs.job.donors[plan.path].shape), plan.layout
    if plan.is_statistic or not layout.is_matrix:
        return 0.0
    count, rows, columns = layout.sizes(shape)
    work = plan.method.work
    each = 0.0 if work is None else work(rows, columns, len(costs.job.models))
    return count * (each + (svd(rows, columns) if costs.job.calibrate else 0.0))


def _repairing(row: Repair, costs: _Costs, held: Mapping[str, int]) -> Stage:
    if costs.program is None or not row.needs_batches:
        return Stage(row.stage, {}, held)
    networks = 1 + len(costs.job.models)
    device = {**held, "activations of a batch": networks * live_bytes(costs.program)}
    return Stage(row.stage, {}, device)
