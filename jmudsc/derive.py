"""The permutation spec and the taps of a model, derived from its program.

One walk over the equations gives every axis of every value a term (`walk`); whatever is
left free on an axis of a leaf is a label. Where a label is read, where it is summed
over and which labels nest in which then falls out of the same walk.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import PyTree

from jmudsc.axes import Axis, Concat, Family, Fixed, labels_by_block, Product, Units
from jmudsc.spec import labels_of, PermutationSpec, Site
from jmudsc.statistics import running_statistics
from jmudsc.terms import CONCAT, FAMILY, FREE, PRODUCT, Terms, TOLD_APART
from jmudsc.trace import ApplyFn, Place, Program, shape_of, trace
from jmudsc.walk import Found, Walk, walk


@dataclass(frozen=True)
class Tap:
    """A value of a program at which a label's activations are read.

    Attributes:
        place: where the value is.
        axes: one axis expression per axis of it, those of the loops around it first.
    """

    place: Place
    axes: tuple[Axis, ...]


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
    leaf_axes = {
        path: [terms.leaf(size) for size in shape_of(var)]
        for path, var in program.leaves.items()
    }
    seen = walk(program, terms, leaf_axes)
    _pin_unused(program, seen)
    names, stacks = _names(seen), _stacks(seen)
    parents = _parents(seen, names, stacks)
    used = {parent for row in parents.values() for parent in row}
    held = {atom: name for atom, name in stacks.items() if name in used}
    names = held | names
    axes = {path: _express_all(terms, names, leaf_axes[path]) for path in program.paths}
    sizes = {name: terms.size(atom) for atom, name in names.items()}
    reasons = {name: terms.reason(atom) for atom, name in held.items()}
    statistics = running_statistics(program, seen.data)
    return PermutationSpec(
        axes=axes,
        labels=labels_of(axes, sizes, parents, reasons),
        fixed=_fixed(terms, leaf_axes, axes),
        consumed=_consumed(seen),
        statistics=frozenset(p for s in statistics for p in (s.mean, s.variance) if p),
        variances={s.mean: s.variance for s in statistics if s.mean},
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
    seen, names = _walk_by(program, spec)
    terms = seen.terms

    def taps(operands: Iterable[Found], axes: Iterable[int]) -> dict[str, list[Tap]]:
        """Read each of the labels on some axes where it can be compared."""
        read: dict[str, list[Tap]] = {}
        for found in operands:
            if found.value.is_data and found.place is not None:
                around = _express_all(terms, names, (*found.around, *found.value.axes))
                for name in _names_in(seen, names, axes):
                    if _is_comparable(spec, name, around):
                        read.setdefault(name, []).append(Tap(found.place, around))
        return read

    last: dict[str, list[Tap]] = {}
    for found in seen.found:
        last |= taps([found], found.value.axes)
    for contraction in seen.contractions:
        summed = tuple(itertools.chain(*contraction.summed))
        last |= taps(contraction.operands, summed)
    return {name: tuple(dict.fromkeys(last.get(name, ()))) for name in spec.labels}


def value_axes(program: Program, spec: PermutationSpec) -> dict[Any, tuple[Axis, ...]]:
    """Say what every axis of every activation is, outside loops and branches.

    Args:
        program: the traced model.
        spec: its spec, derived or written by hand.

    Returns:
        Per variable that depends on the batch one axis expression per axis.
    """
    seen, names = _walk_by(program, spec)
    return {
        found.place.var: _express_all(seen.terms, names, found.value.axes)
        for found in seen.found
        if found.value.is_data and found.place is not None and not found.place.loops
    }


def _walk_by(program: Program, spec: PermutationSpec) -> tuple[Walk, dict[int, str]]:
    """Walk with what a spec says of the leaves; return the names of the labels too."""
    terms = Terms()
    atoms = {name: terms.leaf(label.size) for name, label in spec.labels.items()}
    leaf_axes = {
        path: _terms_of(terms, atoms, spec.axes[path]) for path in program.paths
    }
    seen = walk(program, terms, leaf_axes)
    return seen, {terms.root(atom): name for name, atom in atoms.items()}


def _is_comparable(spec: PermutationSpec, name: str, axes: Iterable[Axis]) -> bool:
    """Whether all samples of a label's units are in the same order in all models.

    They are not where another label, not one of its parents, lies along with it.
    """
    known = {name, *spec.labels[name].parents}
    known |= {label for label, record in spec.labels.items() if record.fixed}
    blocks = [block for block in labels_by_block(list(axes)) if name in block]
    return bool(blocks) and all(known.issuperset(block) for block in blocks)


def _pin_unused(program: Program, seen: Walk) -> None:
    used = {id(var) for eqn in program.eqns for var in eqn.invars}
    used |= {id(var) for var in program.outvars}
    for path, var in program.leaves.items():
        if id(var) not in used:
            for term in seen.leaf_axes[path]:
                seen.terms.pin(term, "is not used by apply_fn")


def _names(seen: Walk) -> dict[int, str]:
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
        for found in seen.found[leaves:] + seen.found[:leaves]
        for term in found.value.axes
        for atom in terms.leaves(term)
        if atom in ours
    )
    return {atom: f"P_{number}" for number, atom in enumerate(dict.fromkeys(met))}


def _stacks(seen: Walk) -> dict[int, str]:
    """Name the axes of the loops: fixed, but labels may be nested in them."""
    terms = seen.terms
    met = (
        atom
        for found in seen.found
        for term in found.around
        for atom in terms.leaves(term)
    )
    return {atom: f"S_{number}" for number, atom in enumerate(dict.fromkeys(met))}


def _express_all(
    terms: Terms, names: Mapping[int, str], axes: Iterable[int]
) -> tuple[Axis, ...]:
    axes = list(axes)
    families = [family for axis in axes for family in terms.families(axis)]
    splits = dict.fromkeys(terms.split(family) for family in families)
    numbers = {split: number for number, split in enumerate(splits)}
    return tuple(_express(terms, names, numbers, axis) for axis in axes)


def _express(
    terms: Terms, names: Mapping[int, str], splits: Mapping[int, int], term: int
) -> Axis:
    root, size = terms.root(term), terms.size(term)
    if root in names:
        return Units(names[root], size)
    form = terms.form(root)
    if form == PRODUCT:
        children = terms.factors(root)
        return _joined(Product, [_express(terms, names, splits, c) for c in children])
    if form == CONCAT:
        children = terms.parts(root)
        return _joined(Concat, [_express(terms, names, splits, c) for c in children])
    if form == FAMILY:
        members = [_express(terms, names, splits, c) for c in terms.members(root)]
        if all(member == members[0] for member in members):
            return members[0]
        return Family(splits[terms.split(root)], tuple(members))
    return Fixed(size, splits.get(root))


def _joined(kind: type[Product] | type[Concat], children: list[Axis]) -> Axis:
    """Build a compound axis with neighbouring fixed children taken together."""
    joined: list[Axis] = []
    for child in children:
        if joined and _is_plain(child) and _is_plain(joined[-1]):
            joined[-1] = Fixed(kind((joined[-1], child)).size)
        else:
            joined.append(child)
    return joined[0] if len(joined) == 1 else kind(tuple(joined))


def _is_plain(axis: Axis) -> bool:
    return isinstance(axis, Fixed) and axis.split is None


def _terms_of(
    terms: Terms, atoms: Mapping[str, int], axes: Iterable[Axis]
) -> list[int]:
    """Build the terms that say what the axes of a leaf are, by a spec."""
    splits: dict[int, int] = {}

    def build(axis: Axis) -> int:
        match axis:
            case Fixed(size, split):
                if split is None:
                    return terms.leaf(size)
                if split not in splits:
                    splits[split] = terms.fixed(size, TOLD_APART)
                return splits[split]
            case Units(label):
                return atoms[label]
            case Product(factors):
                return terms.product([build(factor) for factor in factors])
            case Concat(parts):
                return terms.concat([build(part) for part in parts])
            case Family(split, members):
                if split not in splits:
                    splits[split] = terms.fixed(len(members), TOLD_APART)
                return terms.family(splits[split], [build(m) for m in members])

    return [build(axis) for axis in axes]


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


def _consumed(seen: Walk) -> frozenset[Site]:
    """The leaf axes that are summed over against activations or another leaf's output.

    In a product of two values made of leaves alone, the left one is the input.
    """
    site_of = {
        term: Site(path, number)
        for path, axes in seen.leaf_axes.items()
        for number, term in enumerate(axes)
    }
    sites = set()
    for contraction in seen.contractions:
        weights = [not found.value.is_data for found in contraction.operands]
        operand = 1 if weights[1] else 0
        if weights[operand]:
            for axis in contraction.summed[operand]:
                sources = seen.terms.sources(axis, site_of.keys())
                sites |= {site_of[source] for source in sources}
    return frozenset(sites)


def _names_in(seen: Walk, names: Mapping[int, str], axes: Iterable[int]) -> list[str]:
    """Return the names of the terms below some axes, not descending below a name."""
    terms, found, todo = seen.terms, {}, list(axes)
    while todo:
        root = terms.root(todo.pop())
        if root in names:
            found[names[root]] = None
        else:
            todo += terms.children(root)
    return list(found)


def _parents(
    seen: Walk, names: Mapping[int, str], stacks: Mapping[int, str]
) -> dict[str, tuple[str, ...]]:
    """Find per unit of which labels each label may be permuted anew.

    Label b is nested in label a exactly if a occurs, once, in every value in which b
    occurs, and no contraction of b leaves a free.
    """
    known = {**names, **stacks}
    inside: dict[int, set[int]] = {}
    for block in _all_blocks(seen):
        counts = Counter(atom for atom in block if atom in known)
        once = {atom for atom, count in counts.items() if count == 1}
        for atom in counts:
            inside[atom] = inside.get(atom, once) & once - {atom}
    for summed, free in _freed(seen):
        for atom in summed & inside.keys():
            inside[atom] -= free
    order = [*stacks, *names]
    rank = {atom: number for number, atom in enumerate(order)}
    for atom in order:  # two labels that always occur together: the outer one leads
        for other in list(inside.get(atom, ())):
            if rank[other] < rank[atom]:
                inside[other].discard(atom)
    depth = {atom: len(inside[atom]) for atom in inside}
    return {
        name: tuple(known[a] for a in sorted(inside[atom], key=depth.__getitem__))
        for atom, name in names.items()
    }


def _freed(seen: Walk) -> Iterator[tuple[set[int], set[int]]]:
    """Yield, per contraction, the atoms summed over and the atoms left free."""
    leaves = seen.terms.leaves
    for contraction in seen.contractions:
        eqn, (lhs, rhs) = contraction.eqn, contraction.operands
        over = [
            {leaf for t in axes for leaf in leaves(t)} for axes in contraction.summed
        ]
        if eqn.primitive.name == "conv_general_dilated":
            numbers = eqn.params["dimension_numbers"]
            out = set(leaves(rhs.value.axes[numbers.rhs_spec[0]]))
            yield over[1], out - (over[0] - over[1])
        else:
            contracted, batch = eqn.params["dimension_numbers"]
            free = {
                leaf
                for found, c, b in zip((lhs, rhs), contracted, batch, strict=True)
                for i, term in enumerate(found.value.axes)
                if i not in (*c, *b)
                for leaf in leaves(term)
            }
            yield over[0] | over[1], free


def _all_blocks(seen: Walk) -> Iterator[tuple[int, ...]]:
    """Yield the leaves of every block of every value, each combination once."""
    terms, done = seen.terms, set()
    for found in seen.found:
        axes = tuple(terms.root(a) for a in (*found.around, *found.value.axes))
        if axes not in done:
            done.add(axes)
            for view in _views(terms, axes):
                yield from _blocks(terms, view)


def _views(terms: Terms, axes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield the axes as they are at every position that families tell apart."""
    families = [family for axis in axes for family in terms.families(axis)]
    if not families:
        yield axes
        return
    split = terms.split(families[0])
    for position in range(terms.size(split)):
        yield from _views(
            terms, tuple(terms.view(axis, split, position) for axis in axes)
        )


def _blocks(terms: Terms, axes: Iterable[int]) -> Iterator[tuple[int, ...]]:
    """Yield the leaves of every block, one part of each concatenation at a time."""
    choices = itertools.product(*(_alternatives(terms, axis) for axis in axes))
    return (tuple(itertools.chain(*block)) for block in choices)


def _alternatives(terms: Terms, term: int) -> list[list[int]]:
    root = terms.root(term)
    if terms.form(root) == FREE:
        return [terms.leaves(root)]
    if terms.form(root) == CONCAT:
        return [alt for part in terms.parts(root) for alt in _alternatives(terms, part)]
    parts = itertools.product(*(_alternatives(terms, f) for f in terms.factors(root)))
    return [list(itertools.chain(*block)) for block in parts]
