"""Job: all that decides what every leaf becomes, and the leaves of all models."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np

from jmudsc.digests import digest_of
from jmudsc.finetunes.leaf_layout import Layout
from jmudsc.finetunes.method import Method
from jmudsc.finetunes.piece import Piece
from jmudsc.finetunes.settings import Spot, value_at
from jmudsc.lazy import present
from jmudsc.sharding import to_host

# What is known of a piece of a leaf before it is merged, by path and number.
Evidence = Callable[[str, int], Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class LeafPlan:
    """How one leaf is merged.

    Attributes:
        path: the leaf.
        method: the row of the method.
        settings: option -> what was given for it, or its default.
        layout: how it is cut.
        depth: how deep in the network it lies.
        copied: why it is not merged but taken from the base, or the first model; None
            if it is merged.
        is_statistic: whether it is a running statistic: they are averaged.
    """

    path: str
    method: Method
    settings: Mapping[str, Any]
    layout: Layout
    depth: float = 0.0
    copied: str | None = None
    is_statistic: bool = False

    @property
    def cuts_matrices(self) -> bool:
        """Whether its pieces are matrices."""
        method = self.method
        by_column = method.by_column
        wanted = method.cuts == "matrices" or (
            by_column is not None and self.settings[by_column[0]] == by_column[1]
        )
        return wanted and self.layout.is_matrix and not self.is_statistic


@dataclass(frozen=True, eq=False)
class Job:
    """A merge that is to be done.

    Attributes:
        base: path -> leaf of the base; None without one.
        models: the same of each model.
        plans: path -> how the leaf is merged.
        entropy: the numbers that random numbers are drawn from.
        evidence: method -> what it learned beforehand.
        vectors: what leaves become that hold no matrix, where a method merges
            matrices: `average`, `sum` or `zero` of their deltas.
        calibrate: the least share of a model that a calibration counts; None for no
            calibration.
        made: filled with what methods made of leaves before it is scaled, path ->
            pieces, for merges at several scales; None for not keeping it.
    """

    base: Mapping[str, Any] | None
    models: tuple[Mapping[str, Any], ...]
    plans: Mapping[str, LeafPlan]
    entropy: tuple[int, ...] = ()
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    vectors: str = "average"
    calibrate: Mapping[str, float] | None = None
    made: dict[str, list[np.ndarray]] | None = None

    @property
    def donors(self) -> Mapping[str, Any]:
        """The leaves of the base, or of the first model without one."""
        return self.models[0] if self.base is None else self.base

    def donor(self, path: str) -> Any:
        """Return the leaf of the base, or of the first model without one."""
        return self.donors[path]

    def with_settings(self, **settings: Any) -> "Job":
        """Return the job with other settings for all leaves."""
        plans = {
            path: replace(plan, settings={**plan.settings, **settings})
            for path, plan in self.plans.items()
        }
        return replace(self, plans=plans)

    def with_method(self, method: Method) -> "Job":
        """Return the job with another method for all leaves, whatever is set kept."""
        plans = {path: replace(p, method=method) for path, p in self.plans.items()}
        return replace(self, plans=plans)


@dataclass(frozen=True, eq=False)
class Leaves:
    """One leaf of the base and all models, on the host.

    Attributes:
        plan: how it is merged.
        donor: as it is in the base, or the first model without one.
        stored_base: as it is stored; None where the method takes no base.
        stored_models: of each model, likewise.
        is_same: whether all are equal, so that there is nothing to merge.
    """

    plan: LeafPlan
    donor: np.ndarray
    stored_base: np.ndarray | None
    stored_models: tuple[np.ndarray, ...]
    is_same: bool

    @cached_property
    def wide(self) -> np.dtype:
        """In which numbers it is merged: float32, or its own if wider."""
        return np.dtype(jnp.promote_types(self.donor.dtype, jnp.float32))

    @cached_property
    def base(self) -> np.ndarray:
        """That of the base in these numbers; zeros where the method takes none."""
        if self.stored_base is None:
            return np.zeros(self.donor.shape, self.wide)
        return widened(self.stored_base, self.wide)

    @cached_property
    def models(self) -> tuple[np.ndarray, ...]:
        """That of each model in these numbers."""
        return tuple(widened(model, self.wide) for model in self.stored_models)


def read(job: Job, path: str) -> Leaves:
    """Read one leaf of the base and all models.

    Args:
        job: the merge.
        path: a leaf of floating-point numbers.
    """
    plan = job.plans[path]
    models = tuple(_host(model[path]) for model in job.models)
    base = None if job.base is None else _host(job.base[path])
    donor = models[0] if base is None else base
    used = None if plan.method.base == "unused" else base
    reference = models[0] if used is None else used
    is_same = all(_equal(reference, model) for model in models)
    return Leaves(plan, reference if is_same else donor, used, models, is_same)


def pieces(job: Job, leaves: Leaves) -> Iterator[Piece]:
    """Yield the pieces of a leaf.

    Args:
        job: the merge.
        leaves: the leaf.
    """
    plan, layout = leaves.plan, leaves.plan.layout
    cut = layout.matrices if plan.cuts_matrices else layout.runs
    base, models = cut(leaves.base), [cut(model) for model in leaves.models]
    for number in range(len(base)):
        spot = spot_of(leaves, number, len(base))
        yield Piece(
            base[number],
            tuple(model[number] for model in models),
            options_at(plan, spot, len(models)),
            evidence_of(job, plan, number),
            _drawing(job.entropy, plan.path, number),
        )


def spot_of(leaves: Leaves, number: int, count: int) -> Spot:
    """Return where in the network one of the pieces of a leaf is."""
    plan = leaves.plan
    own = plan.layout.depth(leaves.donor.shape, number, count)
    return Spot(plan.path, plan.depth if own is None else own)


def evidence_of(job: Job, plan: LeafPlan, number: int) -> Mapping[str, Any]:
    """Return what a method learned of a piece beforehand."""
    learned = job.evidence.get(plan.method.name)
    return learned(plan.path, number) if learned else {}


def options_at(plan: LeafPlan, spot: Spot, models: int) -> dict[str, Any]:
    """Return the value of every option of a leaf's method at a spot."""
    return {
        option.name: value_at(option, plan.settings[option.name], spot, models)
        for option in plan.method.options
    }


def widened(leaf: np.ndarray, wide: np.dtype) -> np.ndarray:
    """Return a leaf in wider numbers; bfloat16 is the upper half of float32."""
    if leaf.dtype == jnp.bfloat16 and wide == np.float32:
        return (leaf.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(wide)
    return leaf.astype(wide, copy=False)


def _host(leaf: Any) -> np.ndarray:
    return np.asarray(to_host(present(leaf)))


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays have the same bits."""
    if a is b or a.dtype != b.dtype or a.shape != b.shape:
        return a is b
    ours, theirs = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
    start = 1 << 12  # where others differ
    return bool(
        np.array_equal(ours[:start], theirs[:start]) and np.array_equal(ours, theirs)
    )


def _drawing(
    entropy: tuple[int, ...], path: str, number: int
) -> Callable[[int], np.random.Generator]:
    """Return what draws for each model, whatever is drawn for other leaves."""
    named = int(digest_of([path.encode()])[:16], 16)

    def draw(model: int) -> np.random.Generator:
        seed = np.random.SeedSequence([*entropy, named, number, model])
        return np.random.Generator(np.random.Philox(seed))

    return draw
