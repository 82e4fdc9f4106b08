"""The other way to pair heads: those of queries and keys, and those of values, apart.

The derived spec has one label for the heads of an attention, in which the channels of
queries and keys and those of values are nested. Here the values get a label of heads of
their own. By two matchings that need not agree the scores of one head meet the values
of another: such a spec is no symmetry. For comparisons only, see `compare_heads`.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import PyTree

from jmudsc.derivation.check_spec import check_spec
from jmudsc.reordering.combine import combine
from jmudsc.repairs.merger import Merger
from jmudsc.repairs.rescale import repair as rescale, rescale_layers
from jmudsc.spec.axes import Axis
from jmudsc.spec.permutation_spec import Label, PermutationSpec, Site
from jmudsc.types import ApplyFn

REPAIRS = ("none", "repair")

Assignment = Mapping[str, np.ndarray]


def both_specs(
    whole: PermutationSpec, apply: ApplyFn, variables: PyTree, batch, key: jax.Array
) -> dict[str, PermutationSpec]:
    """Return the derived spec and that with heads apart; check that one is right."""
    check_spec(whole, apply, variables, batch, key=key)
    apart = heads_apart(whole)
    assert not is_symmetry(apart, apply, variables, batch, key)
    return {"whole": whole, "apart": apart}


def is_symmetry(
    spec: PermutationSpec, apply: ApplyFn, variables: PyTree, batch, key: jax.Array
) -> bool:
    """Whether permutations by a spec leave the outputs as they are."""
    try:
        check_spec(spec, apply, variables, batch, key=key)
    except ValueError:
        return False
    return True


def heads_apart(whole: PermutationSpec) -> PermutationSpec:
    """Give the values of every attention a label of heads of their own."""
    axes, labels = dict(whole.axes), dict(whole.labels)
    for name, apart in value_heads(whole).items():
        channels = whole.children(name)[1]
        labels[apart] = dataclasses.replace(labels[name], sites=())
        labels[channels] = dataclasses.replace(labels[channels], parents=(apart,))
        renamed = {label: label for label in labels} | {name: apart}
        for path in _leaves_of(whole, channels):
            axes[path] = tuple(axis.renamed(renamed) for axis in axes[path])
    return dataclasses.replace(whole, axes=axes, labels=_with_sites(axes, labels))


def value_heads(whole: PermutationSpec) -> dict[str, str]:
    """Name, for the heads of every attention, the label that its values would get."""
    nested = {name: whole.children(name) for name in whole.labels}
    return {n: f"{n}_{inner[1]}" for n, inner in nested.items() if len(inner) > 1}


def differing(whole: PermutationSpec, assignment: Assignment) -> float:
    """Return the share of the second parent's heads that two pairings send apart."""
    names = value_heads(whole).items()
    pairs = [(assignment[n], assignment.get(a, assignment[n])) for n, a in names]
    return float(np.mean([one[1] != other[1] for one, other in pairs]))


def repaired(
    whole: PermutationSpec,
    spec: PermutationSpec,
    apply: ApplyFn,
    parents: Sequence[PyTree],
    assignment: Assignment,
    repair: str,
    batches: Sequence,
) -> PyTree:
    """Average matched parents, and repair what came out or not.

    With heads apart every unit still gets the mean and standard deviation that it has
    in the parents themselves: queries and keys by the one pairing of heads, all else by
    the other. After those of an attention all else is repaired again, which changes
    only what comes after them.

    Args:
        whole: the derived spec.
        spec: that by which the parents were matched.
        apply: the function of all.
        parents: their variables.
        assignment: by `spec`.
        repair: one of `REPAIRS`.
        batches: to repair on.

    Returns:
        The merged variables.
    """
    merged = combine(spec, parents, assignment)
    if repair == "none":
        return merged
    if spec is whole:
        return rescale(whole, apply, parents, assignment, merged, batches)
    names = value_heads(whole)
    by_scores = {name: assignment[name] for name in whole.labels}
    by_values = by_scores | {name: assignment[own] for name, own in names.items()}
    scores = [_leaves_of(whole, whole.children(name)[0]) for name in names]
    others = set(whole.axes).difference(*scores)
    steps = [(by_values, others)]
    for own in scores:
        steps += [(by_scores, own), (by_values, others)]
    for pairing, within in steps:
        shares = (1 / len(parents),) * len(parents)
        merger = Merger(whole, apply, parents, pairing, shares)
        merged, _ = rescale_layers(merger, merged, batches, within)
    return merged


def _leaves_of(spec: PermutationSpec, name: str) -> set[str]:
    return {site.path for site in spec.labels[name].sites}


def _with_sites(
    axes: Mapping[str, tuple[Axis, ...]], labels: Mapping[str, Label]
) -> dict[str, Label]:
    sites: dict[str, list[Site]] = {name: [] for name in labels}
    for path, leaf in axes.items():
        for number, axis in enumerate(leaf):
            for name in dict.fromkeys(axis.labels()):
                sites[name].append(Site(path, number))
    return {
        name: dataclasses.replace(label, sites=tuple(sites[name]))
        for name, label in labels.items()
    }
