"""Terms: axis expressions under construction, tied together by unification.

A term stands for an axis whose make-up is not fully known yet. It is a leaf (free, or
fixed for a reason), a row-major product of terms, a concatenation of terms, or a
family: one term for every position of another, fixed axis. `unify` makes two terms
equal and refines both to what they have in common: a leaf takes the structure of the
other, products are cut at common factors, concatenations at common boundaries, families
are compared member by member. Where two structures do not nest, both are fixed: sound,
never a guess.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NewType

from jmudsc.derivation.terms import refinement

Term = NewType("Term", int)  # the name of a term in its arena
Look = Callable[[Term, Term, int], Term]  # what a term is at a position of an axis

FREE, PRODUCT, CONCAT, FAMILY = "free", "product", "concat", "family"

TOLD_APART = "has positions that are told apart"
# Up to this many positions of an axis are told apart one by one.
MOST_MEMBERS = 256

_NO_NESTING = "is split in ways that do not nest"


class Terms:
    """An arena of terms, named by integers; union-find with structural refinement."""

    def __init__(self) -> None:
        self._size: list[int] = []
        self._form: list[str] = []
        self._children: list[tuple[Term, ...]] = []
        self._alias: list[Term] = []
        self._reason: list[str | None] = []
        self._split: dict[Term, Term] = {}  # family -> the axis it runs over
        self._origin: dict[Term, tuple[Term, ...]] = {}
        self._postponed: list[tuple[Term, Term]] = []
        self._clashed: set[Term] = set()
        self._of_one: set[Term] = set()

    def leaf(
        self, size: int, origin: Iterable[Term] = (), of_one: bool = False
    ) -> Term:
        """Make a free leaf.

        Args:
            size: number of positions.
            origin: the terms whose positions it takes over or re-arranges.
            of_one: whether only the first of them that leads to a source counts.

        Returns:
            The leaf.
        """
        term = self._new(size, FREE, ())
        if origin := tuple(origin):
            self._origin[term] = origin
        if of_one:
            self._of_one.add(term)
        return term

    def fixed(self, size: int, reason: str) -> Term:
        """Make a leaf that is fixed."""
        term = self.leaf(size)
        self.pin(term, reason)
        return term

    def product(self, factors: Sequence[Term]) -> Term:
        """Make the row-major product of terms: of an axis and its own rows, these."""
        factors = self._laid_out(factors)
        return self._compound(PRODUCT, factors, math.prod(self.sizes(factors)))

    def concat(self, parts: Sequence[Term]) -> Term:
        """Make the concatenation of terms; single positions one by one are fixed."""
        term = self._compound(CONCAT, parts, sum(map(self.size, parts)))
        if self.form(term) == CONCAT and all(self.size(part) == 1 for part in parts):
            self._form[term], self._children[term] = FREE, ()
            self.pin(term, TOLD_APART)
        return term

    def family(self, split: Term, members: Sequence[Term]) -> Term:
        """Make a term that is `members[j]` at position j of the axis `split`."""
        if len({self.root(member) for member in members}) == 1:
            return members[0]
        term = self._new(self.size(members[0]), FAMILY, tuple(members))
        self._split[term] = split
        return term

    def member(self, term: Term, split: Term, position: int) -> Term:
        """Return what a term is at one position of the axis `split`.

        A free leaf becomes a family over that axis.
        """
        root = self.root(term)
        if self._size[root] == 1 or self._reason[root]:
            return term
        if self._form[root] == FREE:
            members = [self.leaf(self._size[root]) for _ in range(self.size(split))]
            self._form[root], self._children[root] = FAMILY, tuple(members)
            self._split[root] = split
        seen = self.leaf(self._size[root], origin=[term])
        self._alias[seen] = self._at(root, split, position, self.member)
        return seen

    def size(self, term: Term) -> int:
        """Number of positions of a term."""
        return self._size[term]

    def sizes(self, terms: Iterable[Term]) -> list[int]:
        """Number of positions of each of some terms."""
        return [self._size[term] for term in terms]

    def _find(self, term: Term) -> Term:
        while self._alias[term] != term:
            self._alias[term] = self._alias[self._alias[term]]
            term = self._alias[term]
        return term

    def form(self, term: Term) -> str:
        """Return FREE, PRODUCT, CONCAT or FAMILY; a leaf is FREE, fixed or not."""
        return self._form[self.root(term)]

    def reason(self, term: Term) -> str | None:
        """Why a leaf is fixed; None where it is free or no leaf."""
        return self._reason[self.root(term)]

    def factors(self, term: Term) -> list[Term]:
        """Return the factors of a term, none of them a product or of size 1."""
        term = self.root(term)
        if self._form[term] != PRODUCT:
            return [term] if self._size[term] > 1 else []
        return [f for child in self._children[term] for f in self.factors(child)]

    def parts(self, term: Term) -> list[Term]:
        """Return the parts of a term, none of them a concatenation."""
        term = self.root(term)
        if self._form[term] != CONCAT:
            return [term]
        return [p for child in self._children[term] for p in self.parts(child)]

    def members(self, family: Term) -> tuple[Term, ...]:
        """Return the members of a family, one per position of its split."""
        return self._children[self.root(family)]

    def split(self, family: Term) -> Term:
        """Return the axis that a family runs over."""
        return self.root(self._split[self.root(family)])

    def children(self, term: Term) -> tuple[Term, ...]:
        """Return the factors, parts or members of a term."""
        return self._children[self.root(term)]

    def view(self, term: Term, split: Term, position: int) -> Term:
        """Return what a term is at one position of an axis, changing nothing."""
        root = self.root(term)
        is_leaf = self._form[root] == FREE
        return (
            root if is_leaf else self.root(self._at(root, split, position, self.view))
        )

    def families(self, term: Term) -> list[Term]:
        """Return every family at or below a term, outer ones first."""
        term = self.root(term)
        below = [f for child in self._children[term] for f in self.families(child)]
        return [term, *below] if self._form[term] == FAMILY else below

    def leaves(self, term: Term) -> list[Term]:
        """Return every leaf below a term, repeats included, none of size 1."""
        term = self.root(term)
        if self._form[term] == FREE:
            return [term] if self._size[term] > 1 else []
        return [leaf for child in self._children[term] for leaf in self.leaves(child)]

    def blocks(self, term: Term) -> list[tuple[Term, ...]]:
        """Return the leaves and families of a term, a part of concatenations at a time.

        Those of one position are left out.
        """
        root = self.root(term)
        if self._form[root] == CONCAT:
            return [block for part in self.parts(root) for block in self.blocks(part)]
        if self._form[root] == PRODUCT:
            blocks = itertools.product(*map(self.blocks, self.factors(root)))
            return [tuple(itertools.chain(*block)) for block in blocks]
        return [(root,) if self._size[root] > 1 else ()]

    def __len__(self) -> int:
        """Number of terms there are."""
        return len(self._size)

    def origin(self, term: Term) -> tuple[Term, ...]:
        """Return the terms that a term was made from; all of them are older."""
        before = self._origin.get(term, self._children[term])
        return tuple(origin for origin in before if origin < term)

    def is_of_one(self, term: Term) -> bool:
        """Whether only the first of its origins that leads to a source counts."""
        return term in self._of_one

    def pin(self, term: Term, reason: str) -> None:
        """Fix every leaf below a term; a leaf already fixed keeps its reason."""
        for leaf in self.leaves(term):
            if self._reason[leaf] is None:
                self._reason[leaf] = reason

    def is_in_place(self, term: Term) -> bool:
        """Whether a fixed leaf has the same positions wherever it is.

        Structures that do not nest are fixed, but not made equal: a position of one may
        be aligned with another position of the other.
        """
        return self.root(term) not in map(self.root, self._clashed)

    def unify(self, a: Term, b: Term) -> None:
        """Make two terms of one size equal."""
        a, b = self.root(a), self.root(b)
        if a == b or self._size[a] == 1:
            return
        forms = self._form[a], self._form[b]
        if FREE in forms:
            self._bind(*((a, b) if forms[0] == FREE else (b, a)))
        elif forms == (FAMILY, FAMILY) and self.split(a) != self.split(b):
            self._postponed.append((a, b))  # the axes they run over may be tied later
        elif forms[0] == FAMILY:
            self._unify_members(a, b)
        elif forms[1] == FAMILY:
            self._unify_members(b, a)
        elif forms == (CONCAT, CONCAT):
            self._unify_concats(self.parts(a), self.parts(b))
        elif forms == (PRODUCT, PRODUCT):
            made = self._unify_products(self.factors(a), self.factors(b))
            self._become(made, a, b)
        else:
            parts, factors = (a, b) if forms[0] == CONCAT else (b, a)
            made = self._unify_mixed(self.parts(parts), self.factors(factors))
            self._become(made, a, b)

    def settle(self) -> None:
        """Finish what `unify` had to postpone: families over axes not tied by then."""
        while self._postponed:
            a, b = self._postponed.pop()
            both = self.form(a) == self.form(b) == FAMILY
            if both and self.split(a) != self.split(b):
                self.merge_members(a)
                self.merge_members(b)
            self.unify(a, b)

    def merge_members(self, family: Term) -> None:
        """Make all members of a family equal, and the family one of them."""
        if self.form(family) != FAMILY:
            return
        first, *others = self.members(family)
        for other in others:
            self.unify(first, other)
        root = self.root(family)
        if self._form[root] == FAMILY and root != self.root(first):
            self.pin(root, _NO_NESTING)
            self._alias[root] = first

    def _new(self, size: int, form: str, children: tuple[Term, ...]) -> Term:
        term = Term(len(self._size))
        self._size.append(size)
        self._form.append(form)
        self._children.append(children)
        self._alias.append(term)
        self._reason.append(None)
        return term

    def _at(self, root: Term, split: Term, position: int, look: Look) -> Term:
        """Put together what the children of a compound are at one position."""
        form, children = self._form[root], self._children[root]
        if form == FAMILY and self.split(root) == self.root(split):
            return children[position]
        inner = [look(child, split, position) for child in children]
        if form == FAMILY:
            return self.family(self._split[root], inner)
        return self.product(inner) if form == PRODUCT else self.concat(inner)

    def root(self, term: Term) -> Term:
        """Return the representative; a family of equal members is the member."""
        root = self._find(term)
        while self._form[root] == FAMILY:
            first, *others = self._children[root]
            if any(self._find(other) != self._find(first) for other in others):
                break
            self._alias[root] = first
            root = self._find(first)
        return root

    def _compound(self, form: str, children: Sequence[Term], size: int) -> Term:
        trivial = 1 if form == PRODUCT else 0
        kept = tuple(child for child in children if self._size[child] != trivial)
        if len(kept) == 1:
            return kept[0]
        return self._new(size, form if kept else FREE, kept)

    def _bind(self, leaf: Term, term: Term) -> None:
        for family in self.families(term):
            known = self.form(family) == FAMILY and self.split(family)
            if leaf in (known, *self.leaves(family)):
                self.merge_members(family)  # what is one of its members is all of them
        leaf, term = self.root(leaf), self.root(term)
        if leaf != term and (reason := self._reason[leaf]) is not None:
            self.pin(term, reason)
        self._alias[leaf] = term

    def _unify_members(self, family: Term, other: Term) -> None:
        for position, member in enumerate(self._children[family]):
            self.unify(member, self.member(other, self._split[family], position))

    def _laid_out(self, factors: Sequence[Term]) -> Sequence[Term]:
        """Put the members of a family, if they are cut, in the place of its axis."""
        if len(factors) < 2 or self.form(factors[-1]) != FAMILY:
            return factors
        *outer, axis, family = factors
        is_beside, members = self.split(family) == self.root(axis), self.members(family)
        is_cut = CONCAT in map(self.form, members)
        return [*outer, self.concat(members)] if is_beside and is_cut else factors

    def _become(self, made: Term | None, *terms: Term) -> None:
        if made is not None:
            for term in map(self.root, terms):
                self._alias[term] = self.root(made)

    def _pieces(
        self, form: str, terms: Sequence[Term], cuts: refinement.Cuts
    ) -> list[Term]:
        """Make each term of new ones of some sizes, and return all of these."""
        pieces: list[Term] = []
        for term, sizes in zip(terms, cuts, strict=True):
            new = [term] if len(sizes) < 2 else [self.leaf(size) for size in sizes]
            self.unify(term, self.product(new) if form == PRODUCT else self.concat(new))
            pieces += new
        return pieces

    def _unify_products(self, a: list[Term], b: list[Term]) -> Term | None:
        """Cut factors at common ones; return what both are if they are no product."""
        *cuts, same = refinement.common_factors(self.sizes(a), self.sizes(b))
        a, b = (self._pieces(PRODUCT, *pair) for pair in zip((a, b), cuts, strict=True))
        for x, y in zip(a[:same], b[:same], strict=True):
            self.unify(x, y)
        blocks = self._unify_blocks(a[same:], b[same:]) if a[same:] else None
        return blocks and self.product([*a[:same], blocks])

    def _unify_concats(self, a: list[Term], b: list[Term]) -> None:
        cuts = refinement.common_parts(self.sizes(a), self.sizes(b))
        a, b = (self._pieces(CONCAT, *pair) for pair in zip((a, b), cuts, strict=True))
        for x, y in zip(a, b, strict=True):
            self.unify(x, y)

    def _unify_mixed(self, parts: list[Term], factors: list[Term]) -> Term | None:
        """A concatenation equals a product part by part if each has the last factor.

        Otherwise, or if each is one position of the first, it is a family over that.
        """
        *outer, last = factors
        width, sizes = self.size(last), self.sizes(parts)
        row = math.prod(self.sizes(factors[1:]))
        if set(sizes) == {row} or any(size % width for size in sizes):
            made = self._unify_rows(parts, factors)
            return None if set(sizes) == {row} else made
        heads = [self.leaf(size // width) for size in sizes]
        for part, head in zip(parts, heads, strict=True):
            self.unify(part, self.product((head, last)))
        self.unify(self.concat(heads), self.product(outer))
        return None

    def _unify_blocks(self, a: Sequence[Term], b: Sequence[Term]) -> Term | None:
        """Two products that do not nest are alike within blocks that neither cuts."""
        whole = math.prod(self.sizes(a))
        sizes = refinement.common_blocks(whole, self.sizes((a[0], b[0])))
        blocks = [self.leaf(size) for size in sizes]
        made = [self._unify_rows(blocks, factors) for factors in (a, b)]
        return None if None in made else made[0]

    def _unify_rows(
        self, parts: Sequence[Term], factors: Sequence[Term]
    ) -> Term | None:
        """Tell the positions of the first factor apart: each is made of some parts."""
        first, rest = factors[0], self.product(factors[1:])
        if self.size(first) > MOST_MEMBERS:
            self._clash(*parts, *factors)
            return None
        self.pin(first, TOLD_APART)
        rows = [self.size(rest)] * self.size(first)
        cuts = refinement.common_parts(self.sizes(parts), rows)
        pieces = iter(self._pieces(CONCAT, parts, cuts[0]))
        for position, sizes in enumerate(cuts[1]):
            row = self.concat([next(pieces) for _ in sizes])
            self.unify(row, self.member(rest, first, position))
        return self.concat(parts)

    def _clash(self, *terms: Term) -> None:
        for term in terms:
            self.pin(term, _NO_NESTING)
            self._clashed.update(self.leaves(term))
