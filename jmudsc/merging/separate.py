"""Separate: merge the leaves of a trunk and let every model keep its own others.

A separate leaf is not averaged; it is carried into the merged coordinates, so that the
model's own head reads the merged trunk. Where the head sums over a label, all units of
the model that went to one merged unit read that one (the unmerge of ZipIt, Stoica et
al. 2024, arXiv:2305.03053, section 4.1): with U the one-hot matrix of the model's
assignment, the axis is multiplied by U. Labels that are on separate leaves only stay as
they are in every model.
"""

import functools
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.derivation.program import Program, run, trace, variables_of
from jmudsc.derivation.terms.values import Place
from jmudsc.spec.axes import Axis
from jmudsc.spec.check_variables import check_covers
from jmudsc.spec.permutation_spec import PermutationSpec, Site
from jmudsc.types import ApplyFn


@dataclass(frozen=True)
class TrunkAndHeads:
    """Models taken apart into what is merged and what is not.

    Attributes:
        spec: the permutation spec of the trunk.
        specs: the spec of all leaves, of the first model or of each; a label of the
            trunk has the same name in all.
        heads: per model the leaves that are separate, path -> array.
    """

    spec: PermutationSpec
    specs: list[PermutationSpec]
    heads: list[dict[str, Any]]


def trunks_of(
    where: str, models: Sequence[PyTree], patterns: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the leaves of every model that no pattern matches.

    Args:
        where: the caller, named in the error.
        models: the variables of each model.
        patterns: shell patterns of leaf paths, `*` also matches `/`.

    Returns:
        Per model, leaf path -> array.

    Raises:
        ValueError: listing the patterns that match no leaf of any model, or if no leaf
            is left.
    """
    leaves = [paths.flatten(model) for model in models]
    known = dict.fromkeys(path for model in leaves for path in model)
    paths.check_patterns(
        where, patterns, known, "leaf of any model", "Patterns are of whole leaf paths."
    )
    trunks = [
        {path: x for path, x in model.items() if not paths.matches(path, patterns)}
        for model in leaves
    ]
    if not any(trunks):
        raise ValueError(
            f"{where}: separate: expected it to leave at least one leaf to merge, got "
            f"patterns that match all {len(known)}. Name fewer leaves."
        )
    return trunks


def take_apart(
    where: str,
    specs: Sequence[PermutationSpec],
    models: Sequence[PyTree],
    trunks: Sequence[PyTree],
) -> TrunkAndHeads:
    """Find what the models have in common in the specs of each.

    Args:
        where: the caller, named in the error.
        specs: one per model; one in all if nothing is separate.
        models: the variables of each model.
        trunks: from `trunks_of`; the models if nothing is separate.

    Returns:
        The apart.

    Raises:
        ValueError: if a spec does not fit its model, or the axes of the trunk are not
            tied alike in all models.
    """
    leaves = [paths.flatten(model) for model in models]
    for spec, model in zip(specs, leaves, strict=False):
        check_covers(where, spec, model)
    first, *others = specs
    trunk = paths.flatten(trunks[0])
    renamed = [
        _renamed(where, first, other, trunk, number)
        for number, other in enumerate(others, start=1)
    ]
    heads = [
        {path: x for path, x in model.items() if path not in trunk} for model in leaves
    ]
    return TrunkAndHeads(restrict(first, trunk), [first, *renamed], heads)


def restrict(spec: PermutationSpec, leaves: Mapping[str, Any]) -> PermutationSpec:
    """Return the spec of some of the leaves, without labels that are on none of them.

    Args:
        spec: the permutation spec.
        leaves: leaf path -> anything.

    Returns:
        The spec of those leaves.
    """
    if all(path in leaves for path in spec.axes):
        return spec
    labels = {
        name: replace(label, sites=tuple(s for s in label.sites if s.path in leaves))
        for name, label in spec.labels.items()
    }
    return PermutationSpec(
        axes={path: axes for path, axes in spec.axes.items() if path in leaves},
        labels={name: label for name, label in labels.items() if label.sites},
        fixed={site: why for site, why in spec.fixed.items() if site.path in leaves},
        consumed=frozenset(site for site in spec.consumed if site.path in leaves),
        statistics=spec.statistics.intersection(leaves),
        variances={m: v for m, v in spec.variances.items() if {m, v} <= leaves.keys()},
        unread=spec.unread.intersection(leaves),
        alike={path: like for path, like in spec.alike.items() if path in leaves},
    )


def check_carried(where: str, apart: TrunkAndHeads, zipped: bool) -> None:
    """Check that separate leaves can follow where the units of the trunk go.

    What sums over a label always can. What makes its units (the outgoing axis of a
    linear layer, a bias, a norm's scale: a residual stream that goes on, say) can
    follow a one-to-one assignment only, since two units of the model that have become
    one are one from there on.

    Args:
        where: the caller, named in the error.
        apart: from `take_apart`.
        zipped: whether labels may be zipped.

    Raises:
        ValueError: listing the labels that cannot be zipped, and the separate leaves
            that make them.
    """
    problems = _not_carried(apart, zipped)
    if problems:
        raise ValueError(
            f"{where}: expected labels whose units merged leaves alone make, as "
            f"separate leaves cannot follow a zip, got {len(problems)} whose units "
            f"separate leaves make too:\n{paths.listed(problems)}\nUse a method that "
            "aligns, freeze these labels, or separate from where no residual stream "
            "goes on."
        )


def is_carried(apart: TrunkAndHeads, zipped: bool) -> bool:
    """Whether separate leaves can follow, of which `check_carried` says why not.

    Args:
        apart: from `take_apart`.
        zipped: whether labels may be zipped.
    """
    return not _not_carried(apart, zipped)


def check_read(where: str, apart: TrunkAndHeads, read: Container[str]) -> None:
    """Check that the labels of a trunk have activations before the separate leaves.

    Args:
        where: the caller, named in the error.
        apart: from `take_apart`.
        read: the labels that have activations.

    Raises:
        ValueError: listing the labels that have none.
    """
    missing = [
        name
        for name, label in apart.spec.labels.items()
        if any(apart.heads)
        and name not in read
        and not label.fixed
        and not apart.spec.children(name)
    ]
    if missing:
        raise ValueError(
            f"{where}: expected every label of merged leaves to have activations "
            f"before the separate leaves, got {len(missing)} without:\n"
            f"{paths.listed(missing)}\nUse a method that compares weights alone, or "
            "merge what comes before these labels too."
        )


def trunk_fn(apply_fn: ApplyFn, variables: PyTree, trunk: Iterable[str]) -> ApplyFn:
    """Cut a model off where it first needs a leaf that is not of its trunk.

    Args:
        apply_fn: `(variables, batch) -> outputs`.
        variables: of the model, arrays or `jax.ShapeDtypeStruct`s.
        trunk: the paths of the leaves of the trunk.

    Returns:
        A function `(leaves, batch)` of the leaves of the trunk by path. It computes all
        that the rest of the model reads of the trunk, and returns the sum of each such
        value: whatever order their units are in, the sum is the same.
    """
    leaves, structure = jax.tree.flatten(variables)
    kinds = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    return _trunk_fn(apply_fn, structure, kinds, frozenset(trunk))


def _not_carried(apart: TrunkAndHeads, zipped: bool) -> list[str]:
    """Name the labels that separate leaves cannot follow, with some of the leaves."""
    problems = []
    for name, label in apart.spec.labels.items():
        one_to_one = not zipped or label.fixed or apart.spec.children(name)
        made = {} if one_to_one else dict.fromkeys(_made_apart(apart, name))
        sites = [f"{site.path}:{site.axis}" for site in made]
        more = [f"and {len(sites) - 3} more"] if len(sites) > 3 else []
        if made:
            problems.append(f"{name}: {', '.join(sites[:3] + more)}")
    return problems


def _made_apart(apart: TrunkAndHeads, name: str) -> list[Site]:
    return [
        site
        for spec, head in zip(apart.specs, apart.heads, strict=False)
        for site in spec.labels[name].sites
        if site.path in head and site not in spec.consumed
    ]


def _renamed(
    where: str,
    first: PermutationSpec,
    other: PermutationSpec,
    trunk: Mapping[str, Any],
    number: int,
) -> PermutationSpec:
    """Give the labels of a trunk the names they have in the first model."""
    names: dict[str, str] = {}
    for path in trunk:
        for ours, theirs in zip(first.axes[path], other.axes[path], strict=True):
            names |= dict(zip(theirs.labels(), ours.labels(), strict=False))
    names = {name: names.get(name, f"{number}/{name}") for name in other.labels}
    renamed = _with_names(other, names)
    is_one = len(set(names.values())) == len(names)
    problems = [
        f"{path} is {_text(other.axes[path])}, in model 0 {_text(first.axes[path])}"
        for path in trunk
        if not is_one or renamed.axes[path] != first.axes[path]
    ]
    problems = problems or [
        f"{name} is per unit of {' '.join(renamed.labels[name].parents) or 'nothing'}, "
        f"in model 0 of {' '.join(label.parents) or 'nothing'}"
        for name, label in restrict(first, trunk).labels.items()
        if label.parents != renamed.labels[name].parents
    ]
    if problems:
        raise ValueError(
            f"{where}: expected model {number} to tie the units of the trunk as model "
            f"0 does, got a difference:\n{paths.listed(problems)}\nMake the leaves by "
            "whose use the models differ separate too."
        )
    return renamed


def _with_names(spec: PermutationSpec, names: Mapping[str, str]) -> PermutationSpec:
    labels = {
        names[name]: replace(label, parents=tuple(names[p] for p in label.parents))
        for name, label in spec.labels.items()
    }
    axes = {
        path: tuple(axis.renamed(names) for axis in axes)
        for path, axes in spec.axes.items()
    }
    return replace(spec, axes=axes, labels=labels)


def _text(axes: Sequence[Axis]) -> str:
    return f"({', '.join(map(str, axes))})"


@functools.lru_cache(maxsize=64)
def _trunk_fn(
    apply_fn: ApplyFn, structure: Any, kinds: tuple[Any, ...], paths: frozenset[str]
) -> ApplyFn:
    """Return one function for all models of a kind, so that it is compiled once."""
    variables = jax.tree.unflatten(
        structure, [jax.ShapeDtypeStruct(*kind) for kind in kinds]
    )

    def apply(leaves: Mapping[str, jax.Array], batch: PyTree) -> list[jax.Array]:
        program = _cut(trace(apply_fn, variables, batch), paths)
        args = [*(leaves[path] for path in program.paths), *jax.tree.leaves(batch)]
        wanted = [Place(var) for var in program.outvars]
        return [jnp.sum(value) for value in run(program, args, wanted)]

    return apply


def _cut(program: Program, trunk: frozenset[str]) -> Program:
    """Keep what depends on no leaf but those of the trunk."""
    beyond = {var for path, var in program.leaves.items() if path not in trunk}
    kept, read = [], list(program.outvars)
    for eqn in program.eqns:
        if beyond.intersection(variables_of(eqn.invars)):
            beyond.update(eqn.outvars)
            read += eqn.invars
        else:
            kept.append(eqn)
    made = {var for eqn in kept for var in eqn.outvars if _is_number(var)}
    return Program(
        invars=tuple(var for var in program.invars if var not in beyond),
        consts=program.consts,
        eqns=tuple(kept),
        outvars=tuple(dict.fromkeys(v for v in variables_of(read) if v in made)),
        paths=tuple(path for path in program.paths if path in trunk),
    )


def _is_number(var: Any) -> bool:
    return jnp.issubdtype(var.aval.dtype, jnp.number)
