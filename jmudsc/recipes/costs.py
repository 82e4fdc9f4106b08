"""Costs: the memory and the time of each stage of a merge, from shapes alone."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import PyTree

from jmudsc.derivation.program import Program, shape_of
from jmudsc.derivation.taps import Tap
from jmudsc.matching.methods import Method
from jmudsc.matching.moment_cache import BUDGET
from jmudsc.matching.nested_labels import families, is_innermost, stacked_shape
from jmudsc.matching.passes import bytes_of_moments, passes_within
from jmudsc.matching.similarity import groups_mended
from jmudsc.merging.memory_budget import leaf_bytes, tree_bytes
from jmudsc.merging.prepare import Prepared
from jmudsc.paths import flatten
from jmudsc.recipes.flops import live_bytes, work_of
from jmudsc.recipes.machine_speed import Rates
from jmudsc.reordering.transport import form_of
from jmudsc.repairs.table import asked, Repair
from jmudsc.spec.permutation_spec import PermutationSpec

# How many sweeps of matching are taken to be needed, with nothing remembered between
# them, and how many equations of a model take as long to compile as one small program:
# about what was seen with small networks.
SWEEPS, EQUATIONS = 10, 30


@dataclass(frozen=True)
class Stage:
    """One stage of a merge.

    Attributes:
        name: what is done.
        host: what is in the memory of the host at once, and bytes of it. Where the
            device is the host, what is on the device comes on top.
        device: what is on the device at once, and bytes of it.
        seconds: an estimate; None where nothing tells.
        read: bytes that are read from checkpoints.
    """

    name: str
    host: Mapping[str, int] = field(default_factory=dict)
    device: Mapping[str, int] = field(default_factory=dict)
    seconds: float | None = None
    read: int = 0


# What is on the device besides all that is there anyway, in bytes, and the seconds.
Cost = tuple[Mapping[str, int], float]


@dataclass(frozen=True)
class Job:
    """What decides the costs of a merge.

    Attributes:
        prepared: what is merged, as shapes.
        program: the traced model, on one batch.
        taps: per label where its activations are read; from `find_taps`.
        batches: number of batches; None if that is not known.
        checked: whether the spec is checked.
        streamed: whether the models stay on disk.
        budget: bytes that statistics, and what is remembered of weights, may take.
    """

    prepared: Prepared
    program: Program
    taps: Mapping[str, Sequence[Tap]]
    batches: int | None
    checked: bool = True
    streamed: bool = False
    budget: int | None = None

    @property
    def spec(self) -> PermutationSpec:
        """The permutation spec of what is merged."""
        return self.prepared.spec

    @property
    def models(self) -> Sequence[PyTree]:
        """The shapes of the variables of each model."""
        return self.prepared.models

    @functools.cached_property
    def merged(self) -> Mapping[str, Any]:
        """The shapes of those leaves that are merged, by path."""
        return flatten(self.prepared.trunks[0])

    @property
    def method(self) -> Method:
        """How the models are merged; of several ways, that which costs the most."""
        return self.prepared.options.rows[-1]

    @functools.cached_property
    def passes(self) -> list[list[str]]:
        """The labels whose moments are gathered in each pass over the batches."""
        return passes_within(self.moments, self.budget)

    @functools.cached_property
    def moments(self) -> Mapping[str, int]:
        """The bytes of the moments of every label that is read anywhere."""
        read = [name for name, where in self.taps.items() if where]
        return {n: bytes_of_moments(self.spec, n, len(self.models)) for n in read}

    @property
    def balances(self) -> int:
        """How many values of alpha are tried."""
        return len(self.prepared.options.balances)

    @property
    def repairs(self) -> list[Repair]:
        """What is done after averaging that takes a pass over the batches."""
        return [row for row in asked(self.prepared.options) if row.needs_batches]


def stages_of(job: Job, rates: Rates) -> list[Stage]:
    """Estimate every stage of a merge.

    Memory is that of the arrays: not of programs, nor of what a compiler puts aside.
    Time is that of products and convolutions at the rate of a matrix product, of what
    they read and write, of compiling, and of solving assignments; it is more where the
    parts of a model are small, and reading and writing disks is not in it.

    Args:
        job: what is to be done.
        rates: how fast the machine is.

    Returns:
        The stages in order.
    """
    held = {} if job.streamed else {"models": sum(map(tree_bytes, job.models))}
    networks = len(job.models) if len(job.merged) < len(flatten(job.models[0])) else 1
    largest = max(map(tree_bytes, job.models))
    one = {"one model": largest} if job.streamed else held
    stages = [] if job.streamed else [Stage("loading", {"one model": largest}, held)]
    if job.checked:
        stages.append(_checking(job, rates, one))
    if job.method.activations:
        stages.append(_collecting(job, rates, one))
    if job.method.matches:
        stages.append(_matching(job, rates, held))
    combining = _combining(job, rates, held)
    # When they are written, when they are read back, and as files.
    written = 3 * networks * largest / rates.digested
    if job.streamed and not job.repairs:
        seconds = (combining.seconds or 0.0) + written
        leaf = max(map(leaf_bytes, job.merged.values()))
        parts = {"one merged leaf": leaf}
        return [*stages, Stage("writing", parts, combining.device, seconds)]
    out = {**held, "merged": networks * largest}
    stages.append(replace(combining, device={**out, **combining.device}))
    stages += [_repairing(row, job, rates, out) for row in job.repairs]
    leaf = max(map(leaf_bytes, flatten(job.models[0]).values()))
    return [*stages, Stage("writing", {"one leaf": leaf}, out, written)]


def _checking(job: Job, rates: Rates, held: Mapping[str, int]) -> Stage:
    first = job.models[0]
    floats = sum(
        math.prod(x.shape)
        for x in flatten(first).values()
        if jnp.issubdtype(x.dtype, jnp.floating)
    )
    device = {
        **held,
        "a noisy model": tree_bytes(first),
        "a permuted model": tree_bytes(first),
        "random numbers": 4 * floats,
        "activations": live_bytes(job.program),
    }
    programs = len(_leaf_kinds(job)) + _forward_programs(job)
    passes = 4 * _pass(job, rates)
    return Stage("checking the spec", {}, device, passes + programs * rates.program)


def _collecting(job: Job, rates: Rates, held: Mapping[str, int]) -> Stage:
    models, passes = len(job.models), len(job.passes)
    stage = "collecting activations"
    stage += f" in {passes} passes" if passes > 1 else ""
    groups = [sum(job.moments[name] for name in group) for group in job.passes]
    moments = max(groups, default=0)
    device = {
        **held,
        "activations": live_bytes(job.program),
        "moments": moments,
        "moments of a batch": moments,
    }
    compiled = (_forward_programs(job) + 3) * rates.program
    if job.batches is None:
        return Stage(stage, {}, device)
    grams = 0.0
    for name, where in job.taps.items():
        square = _square(job.spec, name, models) * _share(models, within=True)
        for tap in where:
            steps = math.prod(loop.params["length"] for loop in tap.place.loops)
            values = steps * math.prod(shape_of(tap.place.var)) * models
            grams += 2 * values / _units(job.spec, name, models) * square
    one = passes * models * _pass(job, rates) + grams / rates.flops
    return Stage(stage, {}, device, compiled + job.batches * one)


def _matching(job: Job, rates: Rates, held: Mapping[str, int]) -> Stage:
    models = len(job.models)
    squares = {n: 4 * _square(job.spec, n, models) for n in job.spec.labels}
    share = _share(models, within=job.method.zips)
    kept = squares if job.method.zips else _scaled(squares, share)
    known = {n for n, where in job.taps.items() if where}
    uses = job.method.activations
    from_disk = uses and len(job.passes) > 1
    similarities = [squares[n] for n in known] if uses else [0]
    host = {
        "similarities": 0 if from_disk else sum(similarities),
        "similarities of a label, and its moments": (
            2 * max(similarities) if from_disk else 0
        ),
        "one blend": 2 * max(squares.values(), default=0),
    }
    wide = [4 * models * math.prod(leaf.shape) for leaf in job.merged.values()]
    device = {
        **held,
        "one leaf of all models": 2 * max(wide, default=0),
        "its moments": 3 * max(kept.values(), default=0),
        "moments that are remembered": min(_remembered(job), 2 * _sited(job, kept)),
    }
    sweeps = SWEEPS if job.method.weights else 0
    grams = share * sum(_weight_flops(job, name) for name in job.spec.labels)
    solved = _solving(job, rates)
    programs = (len(_site_kinds(job)) if sweeps else 0) + 3 * len(set(squares.values()))
    once = sweeps * (grams / rates.flops + solved) + uses * solved
    seconds = job.balances * once + programs * rates.program
    return Stage("matching", host, device, seconds)


def _remembered(job: Job) -> int:
    """Return the bytes that what is remembered of weights may take."""
    if job.budget is None:
        return BUDGET
    held = 2 * sum(job.moments.values()) if len(job.passes) < 2 else 0
    return min(BUDGET, max(0, job.budget - held))


def _combining(job: Job, rates: Rates, out: Mapping[str, int]) -> Stage:
    models = len(job.models)
    wide = [4 * models * math.prod(leaf.shape) for leaf in job.merged.values()]
    moved = 2 * sum(wide) / rates.moved
    device = {**out, "one leaf of all models": 2 * max(wide, default=0)}
    compiled = len(_leaf_kinds(job)) * rates.program
    return Stage("combining", {}, device, job.balances * moved + compiled)


def _repairing(row: Repair, job: Job, rates: Rates, out: Mapping[str, int]) -> Stage:
    grams = work_of(job.program).grams / rates.flops if row.solves else 0.0
    layer_by_layer = row.reads == "layers"
    cost = _layerwise(job, rates, grams) if layer_by_layer else _updating(job, rates)
    more, seconds = cost
    known = seconds if job.batches is not None else None
    return Stage(row.stage, {}, {**out, **more}, known)


def _layerwise(job: Job, rates: Rates, more: float) -> Cost:
    """All networks go through all batches together, layer by layer."""
    networks, batches = len(job.models) + 1, job.batches or 1
    live = networks * batches * live_bytes(job.program)
    once = batches * (networks * _pass(job, rates) + more)
    # Equations are compiled one by one, those of one form once.
    forms = {
        (eqn.primitive.name, *(str(var.aval) for var in (*eqn.invars, *eqn.outvars)))
        for eqn in job.program.eqns
    }
    compiled = len(forms) * rates.program
    return {"activations of all batches": live}, job.balances * once + compiled


def _updating(job: Job, rates: Rates) -> Cost:
    updated, live = tree_bytes(job.models[0]), live_bytes(job.program)
    passes = job.balances * ((job.batches or 1) + 4) * _pass(job, rates)
    compiled = _forward_programs(job) * rates.program
    return {"updated": updated, "activations": live}, passes + compiled


def _pass(job: Job, rates: Rates) -> float:
    """Return the seconds of one forward pass of one model over one batch."""
    work = work_of(job.program)
    return work.flops / rates.flops + work.moved / rates.moved


def _forward_programs(job: Job) -> int:
    """Return as how many small programs the model is compiled."""
    return math.ceil(work_of(job.program).equations / EQUATIONS)


def _solving(job: Job, rates: Rates) -> float:
    """Return the seconds of the assignments of one sweep."""
    labels, models = job.spec.labels, len(job.models)
    total = 0.0
    for family in families(job.spec):
        for name in (name for name in family if not labels[name].fixed):
            label = labels[name]
            nested = label.parents[-1:] and label.parents[-1] in family
            sets = math.prod(labels[parent].size for parent in label.parents)
            pairs = sets * labels[label.parents[-1]].size if nested else sets
            is_zipped = job.method.zips and is_innermost(job.spec, name)
            if not is_zipped or nested:
                total += (models - 1) * pairs * rates.align * label.size**2
            if is_zipped:
                total += sets * rates.zipped * (models * label.size) ** 2
    return total


def _weight_flops(job: Job, name: str) -> float:
    """Return the operations of the Gram matrices of one label's weights."""
    models = len(job.models)
    per_parameter = models * _square(job.spec, name, models)
    per_parameter /= _units(job.spec, name, models)
    sizes = [
        math.prod(job.merged[site.path].shape)
        for site in job.spec.labels[name].sites
        if job.spec.is_evidence(site.path)
    ]
    return sum(2 * size * per_parameter for size in sizes)


def _share(models: int, within: bool) -> float:
    """Return the share of the blocks of a Gram matrix that are multiplied."""
    return (models + 1 if within else models - 1) / (2 * models)


def _sited(job: Job, squares: Mapping[str, int]) -> int:
    """Return the bytes of the moments of every label and group of leaves."""
    groups = {n: groups_mended(job.spec, n, len(job.models)) for n in job.spec.labels}
    return sum(squares[name] * len(sites) for name, sites in groups.items())


def _leaf_kinds(job: Job) -> set[Any]:
    """Return what is different between leaves for the compiler."""
    return {_leaf_kind(job, path) for path in job.merged}


def _site_kinds(job: Job) -> set[Any]:
    """Return what is different between places of labels for the compiler."""
    return {
        (_leaf_kind(job, site.path), site.axis)
        for label in job.spec.labels.values()
        for site in label.sites
    }


def _leaf_kind(job: Job, path: str) -> Any:
    leaf = job.merged[path]
    return leaf.shape, str(leaf.dtype), form_of(job.spec, path)


def _units(spec: PermutationSpec, name: str, models: int) -> int:
    """Return the units of a label in all models."""
    return models * math.prod(spec.row_shape(name))


def _square(spec: PermutationSpec, name: str, models: int) -> int:
    """Return how many pairs of units are compared, of one model too."""
    *apart, stacked = stacked_shape(spec, name, models)
    return math.prod(apart) * stacked**2


def _scaled(sizes: Mapping[str, int], share: float) -> dict[str, int]:
    return {name: round(size * share) for name, size in sizes.items()}
