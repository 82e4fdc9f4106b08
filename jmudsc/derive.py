"""The permutation spec and the taps of a model, derived from its program.

One loop over the equations gives every axis of every value a term (`rules`); whatever
is left free on an axis of a leaf is a label. Where a label is read, where it is summed
over and which labels nest in which then falls out of the same walk.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax.extend.core as jex
import numpy as np
from jaxtyping import PyTree

from jmudsc import rules
from jmudsc.axes import Axis, Concat, Fixed, Product, Units
from jmudsc.spec import labels_of, PermutationSpec, Site
from jmudsc.statistics import running_statistics
from jmudsc.terms import CONCAT, FREE, PRODUCT, Terms
from jmudsc.trace import ApplyFn, Program, trace


@dataclass(frozen=True)
class Tap:
    """A value of a program at which a label's activations are read.

    Attributes:
        var: the value.
        axes: one axis expression per axis of it.
    """

    var: jex.Var
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class _Walk:
    """A program with a term for every axis of every value."""

    program: Program
    terms: Terms
    axes: dict[Any, list[int]]
    data: frozenset[Any]  # the values that depend on the batch

    def of(self, var: Any) -> list[int]:
        return [] if isinstance(var, jex.Literal) else self.axes[var]


def infer_spec(apply_fn: ApplyFn, variables: PyTree, batch: PyTree) -> PermutationSpec:
    """Derive the permutation symmetries of a model from one trace of it.

    Two axes get one label where the program needs them in the same order (a
    contraction pairs them, an elementwise operation aligns them); axes that the program
    treats by position are fixed, with the reason. A primitive without a rule fixes all
    it touches.

    Args:
        apply_fn: a pure JAX function `(variables, batch) -> outputs`, in evaluation
            mode.
        variables: a pytree of arrays or `jax.ShapeDtypeStruct`s; nothing is allocated.
        batch: one batch, likewise.

    Returns:
        The spec; `print(spec)` shows it as a table.

    Raises:
        TypeError: if a leaf is not an array.
    """
    program = trace(apply_fn, variables, batch)
    terms = Terms()
    leaf_axes = {path: _free(terms, var) for path, var in program.leaves.items()}
    walk = _walk(program, terms, leaf_axes)
    _pin_unused(walk)
    names = _names(walk)
    axes = {
        path: tuple(_express(terms, names, term) for term in leaf_axes[path])
        for path in program.paths
    }
    sizes = {name: terms.size(atom) for atom, name in names.items()}
    return PermutationSpec(
        axes=axes,
        labels=labels_of(axes, sizes, _parents(walk, names)),
        fixed=_fixed(terms, leaf_axes, axes),
        consumed=_consumed(walk),
        statistics=running_statistics(program, walk.data),
    )


def find_taps(program: Program, spec: PermutationSpec) -> dict[str, tuple[Tap, ...]]:
    """Find where the activations of each label are read.

    A label is read at the operands of the last contraction that sums over it: the
    post-activation input of the next layer, the pooled features of a residual stream,
    both queries and keys. A label that is never summed over is read at the last value
    that has it.

    Args:
        program: the traced model.
        spec: its spec, derived or written by hand.

    Returns:
        The taps of each label; an empty tuple for a label without activations.
    """
    terms = Terms()
    atoms = {name: terms.leaf(label.size) for name, label in spec.labels.items()}
    leaf_axes = {
        path: [_term(terms, atoms, axis) for axis in spec.axes[path]]
        for path in program.paths
    }
    walk = _walk(program, terms, leaf_axes)
    names = {terms.find(atom): name for name, atom in atoms.items()}
    last = {**_last_seen(walk, names), **_last_contracted(walk, names)}
    return {
        name: tuple(
            Tap(var, tuple(_express(terms, names, term) for term in walk.of(var)))
            for var in last.get(name, ())
        )
        for name in spec.labels
    }


def _walk(program: Program, terms: Terms, leaf_axes: Mapping[str, list[int]]) -> _Walk:
    axes: dict[Any, list[int]] = {
        var: leaf_axes[path] for path, var in program.leaves.items()
    }
    data = set(program.inputs)
    for var in program.inputs:
        axes[var] = _free(terms, var)
        _pin(terms, axes[var], "meets an input of the network")
    for var, value in program.consts.items():
        axes[var] = _constant(terms, value)
    for eqn in program.eqns:
        ins = [
            _constant(terms, var.val) if isinstance(var, jex.Literal) else axes[var]
            for var in eqn.invars
        ]
        outs = rules.apply_rule(terms, eqn, ins)
        axes.update(zip(eqn.outvars, outs, strict=True))
        if any(not isinstance(var, jex.Literal) and var in data for var in eqn.invars):
            data.update(eqn.outvars)
    walk = _Walk(program, terms, axes, frozenset(data))
    for var in program.outvars:
        _pin(terms, walk.of(var), "meets an output of the network")
    return walk


def _free(terms: Terms, var: Any) -> list[int]:
    return [terms.leaf(size) for size in var.aval.shape]


def _constant(terms: Terms, value: Any) -> list[int]:
    """A constant fixes the axes along which it varies."""
    shape = np.shape(value)
    axes = [terms.leaf(size) for size in shape]
    if any(size > 1 for size in shape):
        array = np.asarray(value)
        for number, term in enumerate(axes):
            if not (array == array.take([0], axis=number)).all():
                terms.pin(term, "meets a constant that varies along it")
    return axes


def _pin(terms: Terms, axes: Iterable[int], reason: str) -> None:
    for axis in axes:
        terms.pin(axis, reason)


def _pin_unused(walk: _Walk) -> None:
    used = {id(var) for eqn in walk.program.eqns for var in eqn.invars}
    used |= {id(var) for var in walk.program.outvars}
    for var in walk.program.leaves.values():
        if id(var) not in used:
            _pin(walk.terms, walk.axes[var], "is not used by apply_fn")


def _names(walk: _Walk) -> dict[int, str]:
    """Name the free atoms of the leaves in the order the program meets them."""
    terms = walk.terms
    ours = {
        atom
        for var in walk.program.leaves.values()
        for term in walk.axes[var]
        for atom in terms.leaves(term)
        if terms.reason(atom) is None
    }
    met = (
        atom
        for eqn in walk.program.eqns
        for var in (*eqn.invars, *eqn.outvars)
        for term in walk.of(var)
        for atom in terms.leaves(term)
        if atom in ours
    )
    return {atom: f"P_{number}" for number, atom in enumerate(dict.fromkeys(met))}


def _express(terms: Terms, names: Mapping[int, str], term: int) -> Axis:
    root, size = terms.find(term), terms.size(term)
    if root in names:
        return Units(names[root], size)
    if terms.form(root) == PRODUCT:
        return _joined(
            Product, [_express(terms, names, f) for f in terms.factors(root)]
        )
    if terms.form(root) == CONCAT:
        return _joined(Concat, [_express(terms, names, p) for p in terms.parts(root)])
    return Fixed(size)


def _joined(kind: type[Product] | type[Concat], children: list[Axis]) -> Axis:
    """Build a compound axis with neighbouring fixed children taken together."""
    joined: list[Axis] = []
    for child in children:
        if joined and isinstance(child, Fixed) and isinstance(joined[-1], Fixed):
            joined[-1] = Fixed(kind((joined[-1], child)).size)
        else:
            joined.append(child)
    return joined[0] if len(joined) == 1 else kind(tuple(joined))


def _term(terms: Terms, atoms: Mapping[str, int], axis: Axis) -> int:
    match axis:
        case Fixed(size):
            return terms.leaf(size)
        case Units(label):
            return atoms[label]
        case Product(factors):
            return terms.product([_term(terms, atoms, factor) for factor in factors])
        case Concat(parts):
            return terms.concat([_term(terms, atoms, part) for part in parts])


def _fixed(
    terms: Terms,
    leaf_axes: Mapping[str, list[int]],
    axes: Mapping[str, tuple[Axis, ...]],
) -> dict[Site, str]:
    """Say why, for every axis without a label."""
    found = {}
    for path, expressions in axes.items():
        for number, axis in enumerate(expressions):
            if not axis.labels():
                leaves = terms.leaves(leaf_axes[path][number])
                reasons = [r for leaf in leaves if (r := terms.reason(leaf))]
                found[Site(path, number)] = (
                    reasons[0] if reasons else "has one position"
                )
    return found


def _contractions(walk: _Walk) -> Iterator[tuple[Any, list[list[int]]]]:
    """Yield each contraction and the terms that each of its operands sums over."""
    for eqn in walk.program.eqns:
        summed = rules.contraction(eqn)
        if summed is not None:
            pairs = zip(eqn.invars, summed, strict=True)
            yield eqn, [[walk.of(var)[i] for i in axes] for var, axes in pairs]


def _consumed(walk: _Walk) -> frozenset[Site]:
    """The leaf axes that are summed over against activations or another leaf's output.

    In a product of two values made of leaves alone, the left one is the input.
    """
    site_of = {
        term: Site(path, number)
        for path, var in walk.program.leaves.items()
        for number, term in enumerate(walk.axes[var])
    }
    sites = set()
    for eqn, summed in _contractions(walk):
        weights = [var not in walk.data for var in eqn.invars]
        operand = 1 if weights[1] else 0
        if weights[operand]:
            for term in summed[operand]:
                sources = walk.terms.sources(term, site_of.keys())
                sites |= {site_of[source] for source in sources}
    return frozenset(sites)


def _last_contracted(walk: _Walk, names: Mapping[int, str]) -> dict[str, tuple]:
    found: dict[str, tuple] = {}
    for eqn, summed in _contractions(walk):
        read: dict[str, list] = {}
        for var, terms in zip(eqn.invars, summed, strict=True):
            if var in walk.data:
                for name in _names_in(walk, names, terms):
                    read.setdefault(name, []).append(var)
        found |= {name: tuple(vars_) for name, vars_ in read.items()}
    return found


def _last_seen(walk: _Walk, names: Mapping[int, str]) -> dict[str, tuple]:
    found: dict[str, tuple] = {}
    for eqn in walk.program.eqns:
        for var in eqn.outvars:
            if var in walk.data:
                found |= dict.fromkeys(_names_in(walk, names, walk.of(var)), (var,))
    return found


def _names_in(walk: _Walk, names: Mapping[int, str], terms: Iterable[int]) -> set[str]:
    return {names[a] for a in _atoms_in(walk.terms, names, terms)}


def _atoms_in(
    terms: Terms, names: Mapping[int, str], axes: Iterable[int]
) -> Iterator[int]:
    """Yield the named terms below some axes, without descending below a name."""
    for axis in axes:
        root = terms.find(axis)
        if root in names:
            yield root
        elif terms.form(root) == PRODUCT:
            yield from _atoms_in(terms, names, terms.factors(root))
        elif terms.form(root) == CONCAT:
            yield from _atoms_in(terms, names, terms.parts(root))


def _parents(walk: _Walk, names: Mapping[int, str]) -> dict[str, tuple[str, ...]]:
    """Find per unit of which labels each label may be permuted anew.

    Label b is nested in label a exactly if a occurs, once, in every value in which b
    occurs, and no contraction of b leaves a free.
    """
    inside: dict[int, set[int]] = {}
    for axes in walk.axes.values():
        for block in _blocks(walk.terms, axes):
            counts = Counter(atom for atom in block if atom in names)
            once = {atom for atom, count in counts.items() if count == 1}
            for atom in counts:
                inside[atom] = inside.get(atom, once) & once - {atom}
    for summed, free in _freed(walk):
        for atom in summed & inside.keys():
            inside[atom] -= free
    order = list(names)
    for atom in order:  # two labels that always occur together: the outer one leads
        for other in inside[atom] & set(order[: order.index(atom)]):
            inside[other].discard(atom)
    depth = {atom: len(inside[atom]) for atom in names}
    return {
        names[atom]: tuple(
            names[a] for a in sorted(inside[atom], key=depth.__getitem__)
        )
        for atom in names
    }


def _freed(walk: _Walk) -> Iterator[tuple[set[int], set[int]]]:
    """Yield, per contraction, the atoms summed over and the atoms left free."""
    leaves = walk.terms.leaves
    for eqn, summed in _contractions(walk):
        over = [{leaf for term in terms for leaf in leaves(term)} for terms in summed]
        if eqn.primitive.name == "conv_general_dilated":
            groups = over[0] - over[1]
            numbers = eqn.params["dimension_numbers"]
            out = set(leaves(walk.of(eqn.invars[1])[numbers.rhs_spec[0]]))
            yield over[1], out - groups
        else:
            contracted, batch = eqn.params["dimension_numbers"]
            free = {
                leaf
                for var, c, b in zip(eqn.invars, contracted, batch, strict=True)
                for i, term in enumerate(walk.of(var))
                if i not in (*c, *b)
                for leaf in leaves(term)
            }
            yield over[0] | over[1], free


def _blocks(terms: Terms, axes: Iterable[int]) -> Iterator[list[int]]:
    """Yield the leaves of every block, one part of each concatenation at a time."""
    choices = itertools.product(*(_alternatives(terms, axis) for axis in axes))
    return ([leaf for choice in block for leaf in choice] for block in choices)


def _alternatives(terms: Terms, term: int) -> list[list[int]]:
    root = terms.find(term)
    if terms.form(root) == FREE:
        return [terms.leaves(root)]
    if terms.form(root) == CONCAT:
        return [alt for part in terms.parts(root) for alt in _alternatives(terms, part)]
    parts = itertools.product(*(_alternatives(terms, f) for f in terms.factors(root)))
    return [[leaf for alt in block for leaf in alt] for block in parts]
