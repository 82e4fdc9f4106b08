"""Infer spec: the permutation spec of a model, derived from its program.

One walk over the equations (`interpreter`) gives every axis of every value a term;
whatever is left free on an axis of a leaf is a label. Where a label is summed over and
which labels nest in which (`nesting`) then falls out of the same walk.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jaxtyping import PyTree

from jmudsc.derivation.axis_expressions import express_all
from jmudsc.derivation.evaluation_mode import warn_of_mode
from jmudsc.derivation.interpreter import Walk, walk
from jmudsc.derivation.nesting import outer_labels_of
from jmudsc.derivation.program import Program, shape_of, trace, unread
from jmudsc.derivation.rules.primitive import AxisTerms
from jmudsc.derivation.running_statistics import running_statistics
from jmudsc.derivation.terms.axis_terms import Term, Terms
from jmudsc.derivation.terms.origins import sources as sources_of
from jmudsc.spec.alike import Alike, move_alike
from jmudsc.spec.axes import Axis
from jmudsc.spec.freeze import freeze
from jmudsc.spec.permutation_spec import fixed_sites, labels_of, PermutationSpec, Site
from jmudsc.types import ApplyFn


@dataclass(frozen=True)
class Roles:
    """What a program does with its leaves.

    Attributes:
        consumed: the sites that a contraction sums over.
        statistics: the paths of running statistics.
        variances: path of a running mean -> that of the variance it goes with.
        unread: the paths of the leaves that no output depends on.
    """

    consumed: frozenset[Site]
    statistics: frozenset[str]
    variances: dict[str, str]
    unread: frozenset[str]


def infer_spec(
    apply_fn: ApplyFn,
    variables: PyTree,
    batch: PyTree,
    *,
    frozen: str | Iterable[str] = (),
    alike: Alike = (),
) -> PermutationSpec:
    """Derive the permutation symmetries of a model from one trace of it.

    Two axes get one label where the program needs them in the same order (a
    contraction pairs them, an elementwise operation aligns them); axes that the program
    treats by position are fixed, with the reason. A primitive without a rule fixes all
    it touches. A model that is not in evaluation mode, as far as its program shows, is
    told so in a warning.

    Args:
        apply_fn: a pure JAX function `(variables, batch) -> outputs`, in evaluation
            mode.
        variables: a pytree of arrays or `jax.ShapeDtypeStruct`s; nothing is allocated.
        batch: one batch, of arrays or shapes as well.
        frozen: patterns of labels and leaves to keep in place, as for `freeze`.
        alike: patterns of leaves that `apply_fn` does not read, with the leaves that
            they move like, as for `merge`.

    Returns:
        The spec; `print(spec)` shows it as a table.

    Raises:
        TypeError: if a leaf is not an array.
        ValueError: if a pattern matches nothing, or a leaf cannot move like another.
    """
    program = trace(apply_fn, variables, batch)
    warn_of_mode("infer_spec", program)
    spec = spec_of_program(program)
    return freeze(move_alike("infer_spec", spec, alike), frozen)


def spec_of_program(program: Program) -> PermutationSpec:
    """Derive the permutation symmetries of a traced model, as `infer_spec` does.

    Args:
        program: the traced model.

    Returns:
        The spec.
    """
    seen = _walked(program)
    terms, leaf_axes = seen.terms, seen.leaf_axes
    _pin_unused(program, seen)
    names, fixed = _names(seen), _fixed_outer_axes(seen)
    outer = outer_labels_of(seen, names, fixed)
    used = {label for labels in outer.values() for label in labels}
    held = {atom: name for atom, name in fixed.items() if name in used}
    names = held | names
    axes = {path: express_all(terms, names, leaf_axes[path]) for path in program.paths}
    sizes = {name: terms.size(atom) for atom, name in names.items()}
    reasons = {name: terms.reason(atom) for atom, name in held.items()}
    role = _roles(program, seen)
    return PermutationSpec(
        axes=axes,
        labels=labels_of(axes, sizes, outer, reasons),
        fixed=_fixed(terms, names, leaf_axes, axes),
        consumed=role.consumed,
        statistics=role.statistics,
        variances=role.variances,
        unread=role.unread,
    )


def roles(program: Program) -> Roles:
    """Find what a program does with its leaves, whatever their labels are.

    Args:
        program: the traced model.

    Returns:
        The roles.
    """
    return _roles(program, _walked(program))


def _walked(program: Program) -> Walk:
    terms = Terms()
    leaf_axes = {
        path: [terms.leaf(size) for size in shape_of(var)]
        for path, var in program.leaves.items()
    }
    return walk(program, terms, leaf_axes)


def _roles(program: Program, seen: Walk) -> Roles:
    found = running_statistics(program, seen.data)
    return Roles(
        consumed=_consumed(seen),
        statistics=frozenset(p for s in found for p in (s.mean, s.variance) if p),
        variances={s.mean: s.variance for s in found if s.mean},
        unread=unread(program),
    )


def _pin_unused(program: Program, seen: Walk) -> None:
    used = {id(var) for eqn in program.eqns for var in eqn.invars}
    used |= {id(var) for var in program.outvars}
    for path, var in program.leaves.items():
        if id(var) not in used:
            for term in seen.leaf_axes[path]:
                seen.terms.pin(term, "is not used by apply_fn")


def _names(seen: Walk) -> dict[Term, str]:
    """Name the free atoms of the leaves in the order the program meets them.

    An atom may be on leaves only: that between two kernels that are multiplied.
    """
    terms = seen.terms
    ours = {
        atom
        for axes in seen.leaf_axes.values()
        for term in axes
        for atom in terms.leaves(term)
        if terms.reason(atom) is None
    }
    leaves = len(seen.leaf_axes)
    met = (
        atom
        for found in seen.values[leaves:] + seen.values[:leaves]
        for term in found.value.axes
        for atom in terms.leaves(term)
        if atom in ours
    )
    return {atom: f"P_{number}" for number, atom in enumerate(dict.fromkeys(met))}


def _fixed_outer_axes(seen: Walk) -> dict[Term, str]:
    """Name the fixed axes in which labels may be nested: of loops and of leaves.

    Those that families run over are not among them: there each position has labels of
    its own.
    """
    terms = seen.terms
    loops = [axis for found in seen.values for axis in found.around]
    leaves = [axis for axes in seen.leaf_axes.values() for axis in axes]
    split = {terms.split(family) for axis in leaves for family in terms.families(axis)}
    met = (
        atom
        for axis in (*loops, *leaves)
        for atom in terms.leaves(axis)
        if terms.reason(atom) is not None
        and atom not in split
        and terms.is_in_place(atom)
    )
    return {atom: f"S_{number}" for number, atom in enumerate(dict.fromkeys(met))}


def _fixed(
    terms: Terms,
    names: Mapping[Term, str],
    leaf_axes: Mapping[str, AxisTerms],
    axes: Mapping[str, tuple[Axis, ...]],
) -> dict[Site, str]:
    """Say why, for every axis that is fixed, wholly or in part."""
    found = {}
    for site, part in fixed_sites(axes).items():
        leaves = terms.leaves(leaf_axes[site.path][site.axis])
        reasons = [terms.reason(leaf) for leaf in leaves if leaf not in names]
        why = next(filter(None, reasons), "has one position")
        found[site] = f"{part}{why}"
    return found


def _consumed(seen: Walk) -> frozenset[Site]:
    """The leaf axes that are summed over against activations or another leaf's output.

    The operand that is nearer to the batch is the input; in a product of two values
    made of leaves alone, the left one.
    """
    site_of = {
        term: Site(path, number)
        for path, axes in seen.leaf_axes.items()
        for number, term in enumerate(axes)
    }
    sites = set()
    for contraction in seen.contractions:
        left, right = (found.value.nearness for found in contraction.operands)
        operand = 0 if left < right else 1
        if left != right or not right:
            for axis in contraction.summed[operand]:
                sources = sources_of(seen.terms, axis, site_of.keys())
                sites |= {site_of[source] for source in sources}
    return frozenset(sites)
