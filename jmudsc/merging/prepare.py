"""Prepare: the spec, the trunk and the heads, which take no more than shapes to find.

`merge` prepares with models, a plan with the shapes of models.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.derivation.evaluation_mode import unread_statistics, warn_of_mode
from jmudsc.derivation.infer_spec import spec_of_program
from jmudsc.derivation.program import Program, trace, unread
from jmudsc.merging.inputs import Inputs, per_model
from jmudsc.merging.options import MergeOptions
from jmudsc.merging.separate import take_apart, trunk_fn, TrunkAndHeads, trunks_of
from jmudsc.merging.watch import Watch
from jmudsc.reordering.combine import shares_of
from jmudsc.spec.alike import left_behind, move_alike
from jmudsc.spec.check_variables import check_same
from jmudsc.spec.freeze import freeze
from jmudsc.spec.permutation_spec import PermutationSpec
from jmudsc.types import ApplyFn, UpdateFn

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """Models of which it is known what is merged.

    Attributes:
        options: of the merge.
        shares: the share of each model, summing to 1.
        apply_fns: `(variables, batch) -> outputs` of each model.
        update_fns: `(variables, batch) -> variables` of each; None for none.
        models: their variables.
        trunks: what is merged of each: its variables, or where leaves are separate, all
            others by path.
        apart: the spec of what is merged, and the heads.
    """

    options: MergeOptions
    shares: tuple[float, ...]
    apply_fns: Sequence[ApplyFn]
    update_fns: Sequence[UpdateFn | None]
    models: Sequence[PyTree]
    trunks: Sequence[PyTree]
    apart: TrunkAndHeads

    @property
    def spec(self) -> PermutationSpec:
        """The spec of what is merged."""
        return self.apart.spec

    @property
    def trunk_fn(self) -> ApplyFn:
        """The function `(trunk, batch)` in which labels have their activations."""
        whole = self.apply_fns[0]
        if not self.options.separate:
            return whole
        return trunk_fn(whole, self.models[0], paths.flatten(self.trunks[0]))

    @property
    def networks(self) -> list[tuple[PermutationSpec, ApplyFn, PyTree]]:
        """Spec, function and variables of each model; of the first without heads."""
        return list(zip(self.apart.specs, self.apply_fns, self.models, strict=False))


def prepare(
    where: str,
    inputs: Inputs,
    batch: PyTree | None,
    options: MergeOptions,
    watch: Watch | None = None,
) -> Prepared:
    """Derive the spec, freeze what stays, and take trunk and heads apart.

    Models and batch may be arrays, on disk or not, or `jax.ShapeDtypeStruct`s: nothing
    is asked but shapes and dtypes. Whether the heads can follow is for `check_carried`
    and `check_read` to say.

    Args:
        where: the caller, named in errors.
        inputs: what is merged; its batches are not read.
        batch: the first of them; None where there are none, which takes a spec.
        options: of the merge, `checked`.
        watch: told when a spec is derived.

    Returns:
        The models, prepared.

    Raises:
        TypeError: if a leaf is no array.
        ValueError: if the models differ, a pattern matches nothing, a leaf cannot move
            like another, functions or weights are not one for each model, or the specs
            do not fit the models or each other.
    """
    models, patterns = inputs.models, options.separate
    count = len(models)
    apply_fns = per_model(where, "apply_fn", inputs.apply_fn, count, patterns)
    update_fns = per_model(where, "update_fn", options.update_fn, count, patterns)
    shares = shares_of(where, options.weights, count)
    trunks = trunks_of(where, models, patterns) if patterns else models
    check_same(where, trunks)
    _check_only(where, models, options.only)
    networks = list(zip(apply_fns, models, strict=True))[: None if patterns else 1]
    programs = _programs(where, networks, batch)
    if inputs.spec is None:
        with (watch or Watch()).stage("deriving the spec", "deriving"):
            specs = [spec_of_program(program) for program in programs]
    else:
        specs = _given(inputs.spec, len(networks), programs)
    specs = [move_alike(where, spec, options.alike) for spec in specs]
    if options.frozen:
        specs[0] = freeze(specs[0], options.frozen)
    if programs and any(row.matches for row in options.rows):
        _warn_of_unread(where, specs[0], programs[0])
    apart = take_apart(where, specs, models, trunks)
    return Prepared(options, shares, apply_fns, update_fns, models, trunks, apart)


def _check_only(where: str, models: Sequence[PyTree], only: Sequence[str]) -> None:
    """Check that what is refit is there: a pattern may be of heads alone."""
    if only:
        known = dict.fromkeys(path for each in models for path in paths.flatten(each))
        advice = "Patterns are of whole leaf paths."
        paths.check_patterns(f"{where}: only", only, known, "leaf", advice)


def _given(
    spec: PermutationSpec, count: int, programs: Sequence[Program]
) -> list[PermutationSpec]:
    """Repeat a spec for every network, with the leaves that each does not read."""
    if not programs:
        return [spec] * count
    idle = map(unread, programs)
    return [spec if n == spec.unread else replace(spec, unread=n) for n in idle]


def _programs(
    where: str, networks: Sequence[tuple[ApplyFn, PyTree]], batch: PyTree | None
) -> list[Program]:
    """Trace every network, and warn of those that are not in evaluation mode."""
    if batch is None:
        return []
    programs = [trace(apply_fn, model, batch) for apply_fn, model in networks]
    by_function = dict(
        zip([apply_fn for apply_fn, _ in networks], programs, strict=True)
    )
    for program in by_function.values():
        warn_of_mode(where, program)
    return programs


def _warn_of_unread(where: str, spec: PermutationSpec, program: Program) -> None:
    """Warn of leaves that may belong to what moves and stay behind."""
    told = set(unread_statistics(program))  # which a warning names already
    left = [path for path in left_behind(spec) if path not in told]
    if left:
        one = len(left) == 1
        _log.warning(
            "%s: %s not read by apply_fn and %s in place while units of others move:\n"
            '%s\nPass alike={"ema/*": "params/*"}, say, with patterns of these leaves '
            "and of those that they move like, or take them out of the variables.",
            where,
            "1 leaf is" if one else f"{len(left)} leaves are",
            "stays" if one else "stay",
            paths.listed(left),
        )
