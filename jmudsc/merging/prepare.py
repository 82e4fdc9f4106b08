"""Prepare: the spec, the trunk and the heads, which take no more than shapes to find.

`merge` prepares with models, a plan with the shapes of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.derivation.infer_spec import infer_spec
from jmudsc.merging.inputs import Inputs, per_model
from jmudsc.merging.options import MergeOptions
from jmudsc.merging.separate import take_apart, trunk_fn, TrunkAndHeads, trunks_of
from jmudsc.merging.watch import Watch
from jmudsc.reordering.combine import shares_of
from jmudsc.spec.alike import move_alike
from jmudsc.spec.check_variables import check_same
from jmudsc.spec.freeze import freeze
from jmudsc.spec.permutation_spec import PermutationSpec
from jmudsc.types import ApplyFn, UpdateFn


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
            like another, functions or weights are not one for each model, or the specs do not fit the models or
            each other.
    """
    models, patterns = inputs.models, options.separate
    count = len(models)
    apply_fns = per_model(where, "apply_fn", inputs.apply_fn, count, patterns)
    update_fns = per_model(where, "update_fn", options.update_fn, count, patterns)
    shares = shares_of(where, options.weights, count)
    trunks = trunks_of(where, models, patterns) if patterns else models
    check_same(where, trunks)
    networks = list(zip(apply_fns, models, strict=True))[: None if patterns else 1]
    specs = [inputs.spec] * len(networks) if inputs.spec else []
    if not specs:
        with (watch or Watch()).stage("deriving the spec", "deriving"):
            specs = [infer_spec(apply_fn, model, batch) for apply_fn, model in networks]
    specs = [move_alike(where, spec, options.alike) for spec in specs]
    if options.frozen:
        specs[0] = freeze(specs[0], options.frozen)
    apart = take_apart(where, specs, models, trunks)
    return Prepared(options, shares, apply_fns, update_fns, models, trunks, apart)
