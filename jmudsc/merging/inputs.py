"""Inputs: what is merged, and whether the options fit it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import PyTree

from jmudsc.batches import check_iterable, first_batch
from jmudsc.lazy import to_device
from jmudsc.matching.methods import names_of
from jmudsc.merging.option_values import functions
from jmudsc.merging.options import MergeOptions
from jmudsc.repairs.least_squares import check_owners
from jmudsc.repairs.pipeline import check_needs
from jmudsc.repairs.table import asked
from jmudsc.sharding import Automatic, automatic, is_explicit
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


def check_inputs(where: str, inputs: Inputs, options: MergeOptions) -> None:
    """Check that there is what the options need.

    Args:
        where: the caller, named in the error.
        inputs: what is merged.
        options: of the merge, `checked`.

    Raises:
        TypeError: if there is no function, the batches are no iterable, or a single
            batch, or the spec is no spec.
        ValueError: if there are no batches where some are needed, they can be read once
            only, or owners of batches are no models.
    """
    try:
        functions(inputs.apply_fn)
    except ValueError as error:
        raise TypeError(f"{where}: apply_fn: {error}") from None
    spec = inputs.spec
    if spec is not None and not isinstance(spec, PermutationSpec):
        kind = type(spec).__name__
        raise TypeError(
            f"{where}: spec: expected a PermutationSpec, got a {kind}. Pass it through "
            "read_spec(spec, apply_fn, variables, batch)."
        )
    check_batches(where, inputs.batches, options, has_spec=spec is not None)
    if options.owners is not None:
        check_owners(where, options.owners, len(inputs.models))
    if isinstance(options.start, int) and options.start >= len(inputs.models):
        raise ValueError(
            f"{where}: start: expected the number of one of {len(inputs.models)} "
            f"models, got {options.start}. Count models from 0."
        )


def check_batches(
    where: str,
    batches: Iterable[PyTree] | None,
    options: MergeOptions,
    *,
    has_spec: bool = False,
) -> None:
    """Check that there are batches where they are needed, to be read more than once.

    Args:
        where: the caller, named in the error.
        batches: the calibration batches.
        options: of the merge, `checked`.
        has_spec: whether there is a spec already.

    Raises:
        TypeError: if they are no iterable, or a single batch.
        ValueError: if there are none, or they can be read once only.
    """
    if batches is None:
        if any(row.activations for row in options.rows):
            others = names_of(lambda row: row.weights and not row.activations)
            raise ValueError(
                f"{where}: batches: expected some for {options.method}, got None. Pass "
                f"calibration batches, or use {others}."
            )
        if not has_spec:
            raise ValueError(
                f"{where}: spec: expected one, since without batches it cannot be "
                "derived, got None. Pass spec=infer_spec(apply_fn, variables, batch), "
                "where batch may be jax.ShapeDtypeStructs."
            )
        check_needs(where, asked(options), batches)
        return
    check_iterable(where, batches)
    if isinstance(batches, Iterator):
        raise ValueError(
            f"{where}: batches: expected an iterable that can be read several times, "
            f"got a {type(batches).__name__}, which can be read only once. Pass a "
            "list, or an object whose __iter__ starts anew."
        )


def loaded(
    where: str, inputs: Inputs, options: MergeOptions
) -> tuple[Inputs, PyTree | None]:
    """Bring models to where a merge needs them, and read the first batch.

    Args:
        where: the caller, named in the error.
        inputs: what is merged; where the options need all models at once, they are read
            into memory, whatever is lazy.
        options: of the merge.

    Returns:
        The inputs, with shardings that are no part of types; and the first batch, None
        if there are none.

    Raises:
        ValueError: if there are batches, but not one.
    """
    models, batches, first = inputs.models, inputs.batches, None
    if options.needs_all_models:
        models = [to_device(model) for model in models]
    if batches is not None:
        first = first_batch(where, batches)
        if is_explicit(first):
            batches, first = Automatic(batches), automatic(first)
    models = [automatic(model) for model in models]
    return replace(inputs, models=models, batches=batches), first


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
