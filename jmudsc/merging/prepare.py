"""Prepare: the spec, the trunk and the heads, which take no more than shapes to find.

`merge` prepares with models, a plan with the shapes of models.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.derivation.infer_spec import infer_spec
from jmudsc.merging.options import MergeOptions
from jmudsc.merging.separate import take_apart, trunk_fn, TrunkAndHeads, trunks_of
from jmudsc.merging.watch import Watch
from jmudsc.spec.freeze import freeze
from jmudsc.spec.permutation_spec import PermutationSpec
from jmudsc.types import ApplyFn


@dataclass(frozen=True)
class Inputs:
    """What is merged.

    Attributes:
        apply_fn: `(variables, batch) -> outputs`, in evaluation mode; with `separate`
            also one for each model.
        models: the variables of each model.
        batches: the calibration batches, a re-iterable; None for none.
        spec: a permutation spec to use instead of deriving one.
    """

    apply_fn: ApplyFn | Sequence[ApplyFn]
    models: Sequence[PyTree]
    batches: Iterable[PyTree] | None = None
    spec: PermutationSpec | None = None


@dataclass(frozen=True)
class Prepared:
    """Models of which it is known what is merged.

    Attributes:
        options: of the merge.
        apply_fns: `(variables, batch) -> outputs` of each model.
        models: their variables.
        trunks: what is merged of each: its variables, or where leaves are separate, all
            others by path.
        apart: the spec of what is merged, and the heads.
    """

    options: MergeOptions
    apply_fns: Sequence[ApplyFn]
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
        read = self.apply_fns[0]
        if not self.options.separate:
            return read
        return trunk_fn(read, self.models[0], paths.flatten(self.trunks[0]))

    @property
    def whole(self) -> list[tuple[PermutationSpec, ApplyFn, PyTree]]:
        """Spec, function and variables of the first model; of each that has a head."""
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
        TypeError: if the spec is no spec.
        ValueError: if a pattern matches nothing, functions are not one or one for each
            model, or the specs do not fit the models or each other.
    """
    models, patterns = inputs.models, options.separate
    apply_fns = per_model(where, "apply_fn", inputs.apply_fn, len(models), patterns)
    trunks = trunks_of(where, models, patterns) if patterns else models
    heads = list(zip(apply_fns, models, strict=True))[: None if patterns else 1]
    if inputs.spec is None:
        with (watch or Watch()).stage("deriving the spec", "deriving"):
            specs = [infer_spec(apply_fn, model, batch) for apply_fn, model in heads]
    else:
        specs = [_checked_spec(where, inputs.spec)] * len(heads)
    if options.frozen:
        specs[0] = freeze(specs[0], options.frozen)
    apart = take_apart(where, specs, models, trunks)
    return Prepared(options, apply_fns, models, trunks, apart)


def per_model(
    where: str, name: str, functions: Any, models: int, separate: Sequence[str]
) -> list[Any]:
    """Repeat a function for every model, unless there is one for each already.

    Args:
        where: the caller, named in the error.
        name: of the argument.
        functions: one, or a sequence of one for each model.
        models: number of models.
        separate: patterns of the leaves that are separate.

    Raises:
        ValueError: if there are several where one network is made, or not as many as
            models.
    """
    if not isinstance(functions, Sequence):
        return [functions] * models
    if not separate:
        raise ValueError(
            f"{where}: {name}: expected one function, as all leaves are merged, got "
            "several. Pass separate= with the leaves of the heads."
        )
    if len(functions) != models:
        raise ValueError(
            f"{where}: {name}: expected one function for all {models} models or one "
            f"for each, got {len(functions)}. Pass as many as models."
        )
    return list(functions)


def _checked_spec(where: str, spec: Any) -> PermutationSpec:
    if not isinstance(spec, PermutationSpec):
        raise TypeError(
            f"{where}: spec: expected a PermutationSpec, got {type(spec).__name__}. "
            "Pass it through read_spec(spec, apply_fn, variables, batch)."
        )
    return spec
