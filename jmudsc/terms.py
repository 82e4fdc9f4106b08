"""Terms: axis expressions under construction, tied together by unification.

A term stands for an axis whose make-up is not fully known yet. It is a leaf (free, or
fixed for a reason), a row-major product of terms, or a concatenation of terms.
`unify` makes two terms equal and refines both to what they have in common: a leaf
takes the structure of the other, products are cut at common factors, concatenations
at common boundaries. Where two structures do not nest, both are fixed: sound, never a
guess.
"""

import math
from collections.abc import Iterable, Sequence, Set

FREE, PRODUCT, CONCAT = "free", "product", "concat"


class Terms:
    """An arena of terms, named by integers; union-find with structural refinement."""

    def __init__(self) -> None:
        self._size: list[int] = []
        self._form: list[str] = []
        self._children: list[tuple[int, ...]] = []
        self._alias: list[int] = []
        self._reason: list[str | None] = []
        self._origin: dict[int, tuple[int, ...]] = {}
        self._of_one: set[int] = set()

    def leaf(self, size: int, origin: Iterable[int] = (), of_one: bool = False) -> int:
        """Make a free leaf.

        Args:
            size: number of positions.
            origin: the terms whose positions it takes over or re-arranges.
            of_one: whether only the first of them that leads to a source counts.

        Returns:
            The leaf.
        """
        term = self._new(size, FREE, ())
        self._origin[term] = tuple(origin)
        if of_one:
            self._of_one.add(term)
        return term

    def product(self, factors: Sequence[int]) -> int:
        """Make the row-major product of terms."""
        return self._compound(PRODUCT, factors, math.prod(map(self.size, factors)))

    def concat(self, parts: Sequence[int]) -> int:
        """Make the concatenation of terms; single positions one by one are fixed."""
        term = self._compound(CONCAT, parts, sum(map(self.size, parts)))
        if self.form(term) == CONCAT and all(self.size(part) == 1 for part in parts):
            self._form[term], self._children[term] = FREE, ()
            self.pin(term, "its positions are told apart")
        return term

    def size(self, term: int) -> int:
        """Number of positions of a term."""
        return self._size[term]

    def find(self, term: int) -> int:
        """Return the representative of a term."""
        while self._alias[term] != term:
            self._alias[term] = self._alias[self._alias[term]]
            term = self._alias[term]
        return term

    def form(self, term: int) -> str:
        """Return FREE, PRODUCT or CONCAT; a fixed leaf is FREE with a reason."""
        return self._form[self.find(term)]

    def reason(self, term: int) -> str | None:
        """Why a leaf is fixed; None where it is free or no leaf."""
        return self._reason[self.find(term)]

    def factors(self, term: int) -> list[int]:
        """Return the factors of a term, none of them a product or of size 1."""
        term = self.find(term)
        if self._form[term] != PRODUCT:
            return [term] if self._size[term] > 1 else []
        return [f for child in self._children[term] for f in self.factors(child)]

    def parts(self, term: int) -> list[int]:
        """Return the parts of a term, none of them a concatenation."""
        term = self.find(term)
        if self._form[term] != CONCAT:
            return [term]
        return [p for child in self._children[term] for p in self.parts(child)]

    def leaves(self, term: int) -> list[int]:
        """Return every leaf below a term, repeats included, none of size 1."""
        term = self.find(term)
        if self._form[term] == FREE:
            return [term] if self._size[term] > 1 else []
        return [leaf for child in self._children[term] for leaf in self.leaves(child)]

    def sources(self, term: int, known: Set[int]) -> set[int]:
        """Return those of the known terms that a term was made from."""
        reached, ahead = set(), [term]
        while ahead:
            made = ahead.pop()
            if made not in reached:
                reached.add(made)
                ahead += () if made in known else self._origin_of(made)
        found: dict[int, set[int]] = {}
        for made in sorted(reached):  # a term is younger than what it was made from
            if made in known:
                found[made] = {made}
            else:
                before = [found[origin] for origin in self._origin_of(made)]
                if made in self._of_one:
                    before = [next(filter(None, before), set())]
                found[made] = set().union(*before)
        return found[term]

    def pin(self, term: int, reason: str) -> None:
        """Fix every leaf below a term; a leaf already fixed keeps its reason."""
        for leaf in self.leaves(term):
            if self._reason[leaf] is None:
                self._reason[leaf] = reason

    def unify(self, a: int, b: int) -> None:
        """Make two terms of one size equal."""
        a, b = self.find(a), self.find(b)
        if a == b or self._size[a] == 1:
            return
        if self._form[a] == FREE:
            self._bind(a, b)
        elif self._form[b] == FREE:
            self._bind(b, a)
        elif self._form[a] == self._form[b] == PRODUCT:
            self._unify_products(self.factors(a), self.factors(b))
        elif self._form[a] == self._form[b] == CONCAT:
            self._unify_concats(self.parts(a), self.parts(b))
        elif self._form[a] == CONCAT:
            self._unify_mixed(self.parts(a), self.factors(b))
        else:
            self._unify_mixed(self.parts(b), self.factors(a))

    def _origin_of(self, term: int) -> tuple[int, ...]:
        return self._origin.get(term, self._children[term])

    def _new(self, size: int, form: str, children: tuple[int, ...]) -> int:
        term = len(self._size)
        self._size.append(size)
        self._form.append(form)
        self._children.append(children)
        self._alias.append(term)
        self._reason.append(None)
        return term

    def _compound(self, form: str, children: Sequence[int], size: int) -> int:
        trivial = 1 if form == PRODUCT else 0
        kept = tuple(child for child in children if self._size[child] != trivial)
        if len(kept) == 1:
            return kept[0]
        return self._new(size, form if kept else FREE, kept)

    def _bind(self, leaf: int, term: int) -> None:
        reason = self._reason[leaf]
        if reason is not None:
            self.pin(term, reason)
        self._alias[leaf] = term

    def _unify_products(self, a: list[int], b: list[int]) -> None:
        a, b = a[::-1], b[::-1]  # the next factor is the last of the list
        while a and b:
            x, y = a.pop(), b.pop()
            small, large = sorted((self.size(x), self.size(y)))
            if small == large:
                self.unify(x, y)
            elif large % small:
                self._clash(x, y, *a, *b)
                return
            elif self.size(x) == large:
                a.append(self._peel(x, y))
            else:
                b.append(self._peel(y, x))

    def _peel(self, term: int, head: int) -> int:
        """Split `term` into `head` and a rest, and return the rest."""
        rest = self.leaf(self.size(term) // self.size(head))
        self.unify(term, self.product((head, rest)))
        return rest

    def _unify_concats(self, a: list[int], b: list[int]) -> None:
        a, b = a[::-1], b[::-1]
        while a and b:
            x, y = a.pop(), b.pop()
            if self.size(x) == self.size(y):
                self.unify(x, y)
            elif self.size(x) > self.size(y):
                a.append(self._cut(x, y))
            else:
                b.append(self._cut(y, x))

    def _cut(self, term: int, head: int) -> int:
        """Cut `head` off the front of `term`, and return the rest."""
        rest = self.leaf(self.size(term) - self.size(head))
        self.unify(term, self.concat((head, rest)))
        return rest

    def _unify_mixed(self, parts: list[int], factors: list[int]) -> None:
        """A concatenation equals a product if every part has the last factor."""
        *outer, inner = factors
        width = self.size(inner)
        if any(self.size(part) % width for part in parts):
            self._clash(*parts, *factors)
            return
        heads = [self.leaf(self.size(part) // width) for part in parts]
        for part, head in zip(parts, heads, strict=True):
            self.unify(part, self.product((head, inner)))
        self.unify(self.concat(heads), self.product(outer))

    def _clash(self, *terms: int) -> None:
        for term in terms:
            self.pin(term, "is split in ways that do not nest")
