import itertools
import math

import numpy as np
import oracles
import pytest

from jmudsc.derivation.terms.axis_terms import (
    CONCAT,
    FAMILY,
    FREE,
    PRODUCT,
    Terms,
    TOLD_APART,
)
from jmudsc.derivation.terms.origins import sources


@pytest.fixture
def terms():
    return Terms()


def draw(terms, generator, roots):
    """A permutation for every free leaf below some terms."""
    leaves = {leaf for root in roots for leaf in terms.leaves(root)}
    return {
        oracles.label(terms, leaf): generator.permutation(terms.size(leaf))
        for leaf in sorted(leaves)
        if terms.reason(leaf) is None
    }


def positions(terms, term, perms):
    """The old position of every new position of a term, from what it is made of."""
    (axis,) = oracles.expressed(terms, [term])
    return oracles.positions(axis, perms)


def shape(terms, term):
    """The structure of a term as nested tuples of sizes; fixed leaves are negative."""
    match terms.form(term):
        case "free":
            size = terms.size(term)
            return size if terms.reason(term) is None or size == 1 else -size
        case "product":
            return ("*", *(shape(terms, f) for f in terms.factors(term)))
        case "concat":
            return ("+", *(shape(terms, p) for p in terms.parts(term)))
        case "family":
            return ("|", *(shape(terms, m) for m in terms.members(term)))


def leaves(terms, *sizes):
    return [terms.leaf(size) for size in sizes]


def test_tied_leaves_are_one_and_ties_are_transitive(terms):
    a, b, c, d = leaves(terms, 5, 5, 5, 5)
    terms.unify(a, b)
    terms.unify(c, d)
    assert terms.root(a) == terms.root(b) != terms.root(c)
    terms.unify(b, c)
    assert len({terms.root(t) for t in (a, b, c, d)}) == 1


@pytest.mark.parametrize("before", [True, False])
def test_a_leaf_tied_to_a_fixed_one_is_fixed_for_its_reason(terms, before):
    a, b = leaves(terms, 5, 5)
    if before:
        terms.pin(a, "first")
    terms.unify(a, b)
    terms.pin(b, "second")
    assert terms.reason(a) == terms.reason(b) == ("first" if before else "second")


def test_fixing_a_compound_fixes_every_leaf_below_it(terms):
    a, b, c = leaves(terms, 2, 3, 4)
    terms.pin(terms.concat([terms.product([a, b]), c]), "why")
    assert [terms.reason(t) for t in (a, b, c)] == ["why"] * 3


def test_a_fixed_leaf_fixes_the_compound_it_is_tied_to(terms):
    whole, a, b = leaves(terms, 6, 2, 3)
    terms.pin(whole, "why")
    terms.unify(terms.product([a, b]), whole)
    assert [terms.reason(t) for t in (a, b)] == ["why"] * 2


def test_a_leaf_takes_the_structure_of_what_it_is_tied_to(terms):
    whole, a, b = leaves(terms, 6, 2, 3)
    terms.unify(whole, terms.product([a, b]))
    assert terms.factors(whole) == [a, b]


@pytest.mark.parametrize(
    ("first", "second", "result"),
    [
        ((2, 6), (4, 3), ("*", 2, 2, 3)),
        ((2, 3, 4), (6, 4), ("*", 2, 3, 4)),
        ((8, 3), (2, 2, 6), ("*", 2, 2, 2, 3)),
        ((2, 3), (3, 2), ("+", 2, 1, 1, 2)),
        ((5, 2, 3), (5, 3, 2), ("*", 5, ("+", 2, 1, 1, 2))),
        ((6, 4), (4, 6), ("+", 4, 2, 2, 4, 4, 2, 2, 4)),
    ],
)
def test_products_are_cut_at_common_factors_or_in_common_blocks(
    terms, first, second, result
):
    a = terms.product(leaves(terms, *first))
    b = terms.product(leaves(terms, *second))
    terms.unify(a, b)
    assert shape(terms, a) == result


@pytest.mark.parametrize(
    ("first", "second", "result"),
    [
        ((2, 6), (5, 3), ("+", 2, 3, 3)),
        ((2, 3, 4), (5, 4), ("+", 2, 3, 4)),
        ((4, 4), (4, 4), ("+", 4, 4)),
        ((3, 5, 2), (6, 4), ("+", 3, 3, 2, 2)),
    ],
)
def test_concatenations_are_cut_at_common_boundaries(terms, first, second, result):
    a = terms.concat(leaves(terms, *first))
    b = terms.concat(leaves(terms, *second))
    terms.unify(a, b)
    assert shape(terms, a) == shape(terms, b) == result


def test_a_concatenation_equals_a_product_if_every_part_has_the_last_factor(terms):
    a = terms.concat(leaves(terms, 8, 12))
    b = terms.product(leaves(terms, 5, 4))
    terms.unify(a, b)
    assert shape(terms, a) == ("+", ("*", 2, 4), ("*", 3, 4))
    assert shape(terms, b) == ("*", ("+", 2, 3), 4)


def test_a_concatenation_that_cuts_through_the_last_factor_is_cut_where_rows_end(terms):
    a = terms.concat(leaves(terms, 6, 14))
    rows, columns = made = leaves(terms, 5, 4)
    b = terms.product(made)
    terms.unify(a, b)
    assert shape(terms, a) == shape(terms, b) == ("+", 4, 2, 2, 4, 4, 4)
    assert terms.reason(rows) == "has positions that are told apart"
    members = [terms.parts(member) for member in terms.members(columns)]
    assert [part for parts in members for part in parts] == terms.parts(a)
    assert [terms.sizes(parts) for parts in members] == [[4], [2, 2], [4], [4], [4]]


def test_too_many_rows_to_tell_apart_are_fixed_because_they_do_not_nest(terms):
    a, b, c, d = leaves(terms, 257, 2, 2, 257)
    terms.unify(terms.product([a, b]), terms.product([c, d]))
    assert {terms.reason(leaf) for leaf in (a, b)} == {
        "is split in ways that do not nest"
    }
    assert all(terms.reason(leaf) for leaf in terms.leaves(d))


def test_an_axis_that_is_one_of_its_own_rows_has_equal_rows(terms):
    axis, row = leaves(terms, 2, 2)
    terms.pin(axis, "why")
    terms.unify(terms.member(row, axis, 0), leaves(terms, 2)[0])
    terms.unify(axis, row)
    assert terms.root(axis) == terms.root(row)
    assert terms.form(row) == FREE
    assert terms.reason(row) == "why"


def test_axes_of_size_one_are_never_tied_or_fixed(terms):
    a, b, c = leaves(terms, 1, 1, 6)
    terms.pin(a, "why")
    terms.unify(a, b)
    assert terms.reason(b) is None
    assert terms.product([a, c, b]) == c
    assert terms.factors(a) == terms.leaves(a) == []


def test_empty_parts_are_dropped(terms):
    empty, a, b = leaves(terms, 0, 2, 3)
    assert terms.concat([empty, a, empty]) == a
    assert terms.parts(terms.concat([a, empty, b])) == [a, b]


def test_single_positions_one_by_one_are_fixed(terms):
    whole = terms.concat(leaves(terms, 1, 1, 1))
    assert shape(terms, whole) == -3
    assert terms.reason(whole) == TOLD_APART


def test_a_single_position_beside_others_leaves_them_free(terms):
    assert shape(terms, terms.concat(leaves(terms, 1, 4))) == ("+", 1, 4)


def test_sources_are_followed_to_what_is_known(terms):
    a, b, c = leaves(terms, 2, 3, 4)
    first = terms.leaf(6, origin=[a, b])
    second = terms.leaf(24, origin=[first, c])
    assert sources(terms, second, {a, b, c}) == {a, b, c}
    assert sources(terms, second, {first, c, a}) == {first, c}
    assert sources(terms, terms.concat([second, b]), {b, c}) == {b, c}
    assert sources(terms, a, {a}) == {a}
    assert sources(terms, a, {b}) == set()


def test_a_product_has_one_source(terms):
    a, b, c = leaves(terms, 2, 2, 2)
    either = terms.leaf(2, origin=[a, b, c], of_one=True)
    assert sources(terms, either, {a, b, c}) == {a}
    assert sources(terms, either, {c, b}) == {b}
    assert sources(terms, either, set()) == set()


def test_sources_of_a_long_history_are_found(terms):
    first, other = made = leaves(terms, 2, 2)
    for _ in range(2000):
        made = [terms.leaf(2, origin=made), terms.leaf(2, origin=reversed(made))]
    assert sources(terms, made[0], {first, other}) == {first, other}


def test_nested_compounds_are_flat(terms):
    a, b, c, d = leaves(terms, 2, 3, 4, 5)
    product = terms.product([terms.product([a, b]), terms.product([c, d])])
    concat = terms.concat([a, terms.concat([b, terms.concat([c, d])])])
    assert terms.factors(product) == terms.parts(concat) == [a, b, c, d]
    assert terms.leaves(product) == terms.leaves(concat) == [a, b, c, d]
    assert (terms.form(a), terms.form(product), terms.form(concat)) == (
        FREE,
        PRODUCT,
        CONCAT,
    )


def random_term(terms, generator, size, pool, depth=2):
    """A term of a size made of leaves of `pool` where they fit, else of new ones."""
    known = [leaf for leaf in pool if terms.size(leaf) == size]
    kind = generator.choice(["leaf", "product", "concat"] if depth else ["leaf"])
    divisors = [n for n in range(2, size) if size % n == 0]
    if kind == "product" and divisors:
        n = int(generator.choice(divisors))
        sizes, make = (n, size // n), terms.product
    elif kind == "concat" and size > 2:
        n = int(generator.integers(1, size))
        sizes, make = (n, size - n), terms.concat
    elif known and generator.random() < 0.5:
        return int(generator.choice(known))
    else:
        pool.append(terms.leaf(size))
        return pool[-1]
    return make([random_term(terms, generator, n, pool, depth - 1) for n in sizes])


@pytest.mark.parametrize("seed", range(100))
def test_tied_terms_have_the_same_positions_under_every_permutation(terms, seed):
    generator = np.random.default_rng(seed)
    pool: list[int] = []
    ties = []
    for _ in range(4):
        size = int(generator.choice([4, 6, 8, 12, 24]))
        a, b = (random_term(terms, generator, size, pool) for _ in range(2))
        ties.append((a, b))
        terms.unify(a, b)
    oracles.settle(terms, [[term] for tie in ties for term in tie])
    for _ in range(2):
        perms = draw(terms, generator, [*itertools.chain(*ties), *pool])
        for a, b in ties:
            moved = positions(terms, a, perms)
            np.testing.assert_array_equal(moved, positions(terms, b, perms))
            assert sorted(moved) == list(range(terms.size(a)))


@pytest.mark.parametrize("seed", range(30))
def test_what_a_term_is_made_of_always_has_its_size(terms, seed):
    generator = np.random.default_rng(seed)
    pool: list[int] = []
    made = [random_term(terms, generator, 24, pool) for _ in range(4)]
    for a, b in itertools.pairwise(made):
        terms.unify(a, b)
    for term in made:
        assert math.prod(terms.size(f) for f in terms.factors(term)) == 24
        assert sum(terms.size(p) for p in terms.parts(term)) == 24
        assert {terms.size(m) for m in terms.members(term)} <= {24} or (
            terms.form(term) != FAMILY
        )


@pytest.mark.parametrize("order", [*itertools.permutations(range(4))])
def test_the_order_of_ties_decides_nothing_for_nesting_products(terms, order):
    sizes = [(2, 12), (4, 6), (8, 3), (2, 2, 6)]
    made = [terms.product(leaves(terms, *row)) for row in sizes]
    for i, j in itertools.pairwise(order):
        terms.unify(made[i], made[j])
    assert {shape(terms, term) for term in made} == {("*", 2, 2, 2, 3)}


# Families: terms that are something else at every position of another axis.


@pytest.fixture
def stack(terms):
    """A fixed axis of three positions and a family over it."""
    split = terms.fixed(3, TOLD_APART)
    members = [terms.leaf(4) for _ in range(3)]
    return split, members, terms.family(split, members)


def test_a_family_has_a_member_for_every_position(terms, stack):
    split, members, family = stack
    assert terms.form(family) == FAMILY
    assert terms.size(family) == 4
    assert terms.members(family) == tuple(members)
    assert terms.split(family) == split
    assert terms.families(terms.product([split, family])) == [family]
    assert terms.leaves(family) == members


def test_equal_members_are_no_family(terms, stack):
    split, members, family = stack
    assert terms.family(split, [members[0]] * 3) == members[0]
    terms.unify(members[0], members[1])
    assert terms.form(family) == FAMILY
    terms.unify(members[1], members[2])
    assert terms.root(family) == terms.root(members[0])


def test_merging_the_members_of_a_family_makes_them_equal(terms, stack):
    _, members, family = stack
    terms.merge_members(family)
    assert {terms.root(member) for member in members} == {terms.root(family)}
    assert terms.families(family) == []


def test_families_over_one_axis_are_tied_member_by_member(terms, stack):
    split, members, family = stack
    others = leaves(terms, 4, 4, 4)
    terms.unify(family, terms.family(split, others))
    pairs = zip(members, others, strict=True)
    assert all(terms.root(a) == terms.root(b) for a, b in pairs)
    assert len({terms.root(member) for member in members}) == 3


def test_families_over_axes_tied_later_are_tied_member_by_member(terms, stack):
    split, members, family = stack
    other_split, others = terms.fixed(3, TOLD_APART), leaves(terms, 4, 4, 4)
    terms.unify(family, terms.family(other_split, others))
    terms.unify(split, other_split)
    terms.settle()
    pairs = zip(members, others, strict=True)
    assert all(terms.root(a) == terms.root(b) for a, b in pairs)
    assert len({terms.root(member) for member in members}) == 3


def test_families_over_axes_that_differ_have_equal_members(terms, stack):
    _, members, family = stack
    other = terms.family(terms.fixed(2, TOLD_APART), others := leaves(terms, 4, 4))
    terms.unify(family, other)
    terms.settle()
    assert len({terms.root(term) for term in (*members, *others)}) == 1


def test_a_leaf_seen_at_one_position_becomes_a_family(terms):
    split, leaf = terms.fixed(3, TOLD_APART), terms.leaf(4)
    seen = terms.member(leaf, split, 1)
    assert terms.form(leaf) == FAMILY
    assert terms.root(seen) == terms.root(terms.members(leaf)[1])
    assert sources(terms, seen, {leaf}) == {leaf}
    assert terms.member(leaf, split, 1) != seen  # a view of its own
    assert terms.root(terms.member(leaf, split, 1)) == terms.root(seen)


def test_fixed_terms_and_single_positions_look_the_same_everywhere(terms):
    split = terms.fixed(3, TOLD_APART)
    for term in (terms.fixed(4, "why"), terms.leaf(1)):
        assert terms.member(term, split, 2) == term
        assert terms.view(term, split, 2) == terms.root(term)


def test_a_view_of_a_compound_shows_one_member(terms, stack):
    split, members, family = stack
    a = terms.leaf(5)
    product, concat = terms.product([a, family]), terms.concat([family, a])
    for position, member in enumerate(members):
        assert terms.factors(terms.view(product, split, position)) == [a, member]
        assert terms.parts(terms.view(concat, split, position)) == [member, a]


def test_equal_parts_are_a_family_over_the_first_factor(terms):
    parts = leaves(terms, 4, 4, 4)
    split, rest = leaves(terms, 3, 4)
    terms.unify(terms.concat(parts), terms.product([split, rest]))
    assert terms.reason(split) == TOLD_APART
    assert terms.form(rest) == FAMILY
    pairs = zip(terms.members(rest), parts, strict=True)
    assert all(terms.root(a) == terms.root(b) for a, b in pairs)


def test_a_leaf_tied_to_a_family_it_is_a_member_of_is_all_of_it(terms, stack):
    _, members, family = stack
    terms.unify(members[1], family)
    assert len({terms.root(member) for member in members}) == 1


def test_members_are_equal_where_the_axis_they_run_over_is_gone(terms, stack):
    split, members, family = stack
    oracles.settle(terms, [[split, family]])
    assert terms.form(family) == FAMILY
    oracles.settle(terms, [[split, family], [family]])
    assert len({terms.root(member) for member in members}) == 1
