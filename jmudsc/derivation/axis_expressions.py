"""Axis expressions: from the terms of a walk to the axes of a spec, and back."""

from collections.abc import Iterable, Mapping

from jmudsc.derivation.terms.axis_terms import (
    CONCAT,
    FAMILY,
    PRODUCT,
    Term,
    Terms,
    TOLD_APART,
)
from jmudsc.spec.axes import Axis, Concat, Family, Fixed, Product, Units


def terms_of(
    terms: Terms, atoms: Mapping[str, Term], axes: Iterable[Axis]
) -> list[Term]:
    """Build the terms that say what the axes of one array are.

    Args:
        terms: the arena, added to.
        atoms: label -> its atom.
        axes: one axis expression per axis.

    Returns:
        One term per axis.
    """
    splits: dict[int, Term] = {}

    def build(axis: Axis) -> Term:
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


def express_all(
    terms: Terms, names: Mapping[Term, str], axes: Iterable[Term]
) -> tuple[Axis, ...]:
    """Say what some axes of one array are.

    Args:
        terms: the arena.
        names: atom -> label.
        axes: one term per axis.

    Returns:
        One axis expression per axis.
    """
    axes = list(axes)
    families = [family for axis in axes for family in terms.families(axis)]
    splits = dict.fromkeys(terms.split(family) for family in families)
    numbers = {split: number for number, split in enumerate(splits)}
    return tuple(_express(terms, names, numbers, axis) for axis in axes)


def _express(
    terms: Terms, names: Mapping[Term, str], splits: Mapping[Term, int], term: Term
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
