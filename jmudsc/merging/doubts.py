"""Doubts: what is legal in a merge and probably not what was meant, in a sentence each.

All of it is told in warnings: only who merges knows whether it is meant.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.lazy import is_lazy, present
from jmudsc.matching.methods import TABLE
from jmudsc.merging.candidate import Candidate
from jmudsc.merging.constant_outputs import stuck_outputs
from jmudsc.merging.prepare import Prepared
from jmudsc.merging.refit_share import refit_parameters
from jmudsc.paths import plural
from jmudsc.sharding import to_host
from jmudsc.spec.permutation_spec import PermutationSpec

# Fewer units than these may all stay in place by chance.
_FEW_UNITS = 8
_MOST_UNITS = 0.9
_FEW_SHARED = 0.1


def doubts_of_models(models: Sequence[PyTree]) -> list[str]:
    """Say which models are on the list twice.

    Args:
        models: the variables of each model.
    """
    pairs = itertools.combinations(enumerate(models), 2)
    twice = [f"{i} and {j}" for (i, a), (j, b) in pairs if _is_same(a, b)]
    if not twice:
        return []
    return [
        "models: expected networks that differ, got some that are the same to the last "
        f"bit: {', '.join(twice)}. Leave one of them out, or give weights if it is to "
        "count twice."
    ]


def doubts_of_merge(
    prepared: Prepared, candidate: Candidate, batches: Iterable[PyTree] | None
) -> list[str]:
    """Say what is probably not meant in what a merge gave.

    Args:
        prepared: the models.
        candidate: what was made of them.
        batches: the calibration batches; None for none.
    """
    spec, assignment = prepared.spec, candidate.match.assignment
    method = TABLE[prepared.options.method]
    told = []
    if method.matches and not doubts_of_models(prepared.models):
        told.append(_shares_a_start(spec, assignment))
    if method.zips:
        told.append(_is_side_by_side(spec, assignment))
    if prepared.options.refit and not prepared.options.only:
        told.append(_is_hardly_refit(candidate))
    is_here = not is_lazy([prepared.models, candidate.networks])
    if batches is not None and is_here and jax.process_count() == 1:
        told.append(_is_constant(prepared, candidate, batches))
    return [sentence for sentence in told if sentence]


def units_in_place(
    spec: PermutationSpec, assignment: Mapping[str, np.ndarray]
) -> tuple[int, int]:
    """Count the units that all models keep at one position, of those that may move.

    Args:
        spec: the permutation spec.
        assignment: label -> `int32[models, *outer units, units]`.

    Returns:
        How many there are, and how many units in all, of one model.
    """
    rows = [
        np.asarray(assignment[name])
        for name, label in spec.labels.items()
        if not label.fixed and label.size > 1
    ]
    there = sum(int((row == row[:1]).all(axis=0).sum()) for row in rows)
    return there, sum(row[0].size for row in rows)


def shared_units(
    spec: PermutationSpec, assignment: Mapping[str, np.ndarray]
) -> tuple[int, int]:
    """Count the merged units of zipped labels that are made of several models.

    Args:
        spec: the permutation spec.
        assignment: label -> `int32[models, *outer units, units]`.

    Returns:
        How many there are, and how many merged units in all.
    """
    shared = total = 0
    for name, label in spec.labels.items():
        if label.fixed or spec.children(name):
            continue
        rows = np.asarray(assignment[name])
        rows = np.moveaxis(rows.reshape(len(rows), -1, label.size), 0, 1)
        for sets in rows:
            present = [np.isin(np.arange(label.size), row) for row in sets]
            shared += int((np.sum(present, axis=0) > 1).sum())
            total += label.size
    return shared, total


def _shares_a_start(
    spec: PermutationSpec, assignment: Mapping[str, np.ndarray]
) -> str | None:
    there, units = units_in_place(spec, assignment)
    if units < _FEW_UNITS or there < _MOST_UNITS * units:
        return None
    return (
        f"models: expected networks trained apart, got {there} of {units} units that "
        "stay in place, as in networks that were trained from one start. Use "
        "jmudsc.merge_finetunes with base=, the network that they started from."
    )


def _is_side_by_side(
    spec: PermutationSpec, assignment: Mapping[str, np.ndarray]
) -> str | None:
    shared, total = shared_units(spec, assignment)
    if shared >= _FEW_SHARED * total:
        return None
    return (
        f"models: expected units that they share, got {shared} of {total} merged units "
        "made of more than one model: the zip put narrower networks side by side. Use "
        "a method that aligns, a larger alpha, or networks that have more in common."
    )


def _is_hardly_refit(candidate: Candidate) -> str | None:
    network, changes = candidate.networks[0], candidate.changes
    done, total = refit_parameters(network, changes)
    if 2 * done >= total:
        return None
    why = sorted({said for said in changes.values() if said.startswith("is ")})
    reasons = f" (a kernel {'; '.join(why)})" if why else ""
    return (
        f"refit: expected most parameters to be fitted, got {done} of {total}: the "
        f"others are in no linear layer that can be{reasons}. See changes in the "
        "result for what was done with each leaf."
    )


def _is_constant(
    prepared: Prepared, candidate: Candidate, batches: Iterable[PyTree]
) -> str | None:
    networks, stuck, total = candidate.networks, 0, 0
    for number, network in enumerate(networks):
        own = slice(number, number + 1) if len(networks) > 1 else slice(None)
        parents = list(zip(prepared.apply_fns[own], prepared.models[own], strict=True))
        merged = prepared.apply_fns[number], network
        found, count = stuck_outputs(merged, parents, batches)
        stuck, total = stuck + found, total + count
    if not stuck:
        return None
    return (
        f"outputs: expected outputs that vary over the batches, got {stuck} of "
        f"{plural(total, 'output')} of the merged network with one value for all "
        "samples, while they vary in the models. Try another method or alpha, more "
        "batches, or a refit."
    )


def _is_same(a: PyTree, b: PyTree) -> bool:
    """Whether two trees have the same leaves, read one by one until one differs."""
    ours, theirs = paths.flatten(a), paths.flatten(b)
    return ours.keys() == theirs.keys() and all(
        _is_equal(leaf, theirs[path]) for path, leaf in ours.items()
    )


def _is_equal(ours: Any, theirs: Any) -> bool:
    if ours is theirs:
        return True
    if np.shape(ours) != np.shape(theirs):
        return False
    leaves = [present(ours), present(theirs)]
    if not any(jnp.issubdtype(x.dtype, jax.dtypes.extended) for x in leaves):
        leaves = [to_host(leaf) for leaf in leaves]  # where nothing is compiled
    return bool(to_host((leaves[0] == leaves[1]).all()))
