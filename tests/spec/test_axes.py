import jax.numpy as jnp
import numpy as np
import pytest
from axis_table import A, AXES, B

from jmudsc.reordering.blocks import (
    Block,
    blocks,
    map_blocks,
    placed,
    places_of,
    units_last,
)
from jmudsc.spec.axes import Concat, Family, Fixed, labels_by_block, Product, Units


@pytest.mark.parametrize(("axis", "size", "text", "labels"), AXES.values(), ids=AXES)
def test_an_axis_knows_its_size_its_text_and_its_labels(axis, size, text, labels):
    assert axis.size == size
    assert str(axis) == text
    assert axis.labels() == labels


@pytest.mark.parametrize("axis", [row[0] for row in AXES.values()], ids=AXES)
def test_renaming_changes_labels_and_nothing_else(axis):
    new = {"a": "x", "b": "y", "c": "z"}
    renamed = axis.renamed(new)
    assert renamed.labels() == tuple(new[name] for name in axis.labels())
    assert renamed.renamed({name: old for old, name in new.items()}) == axis


WHOLE = {name: row[0] for name, row in AXES.items() if name != "split"}


@pytest.mark.parametrize("axis", WHOLE.values(), ids=WHOLE)
def test_blocks_put_together_are_the_array(axis):
    axes = (B, axis, Fixed(2, 0), Fixed(2, 1))
    array = jnp.arange(4 * axis.size * 4).reshape(4, axis.size, 2, 2)
    doubled = map_blocks(array, axes, lambda values, _: 2 * values)
    np.testing.assert_array_equal(doubled, 2 * array)


def test_blocks_are_made_of_fixed_axes_and_units_only():
    axis = Product((Concat((A, Product((Fixed(2), B)))), Fixed(5)))
    array = jnp.arange(2 * 55).reshape(2, 55)
    found = blocks(array, (Fixed(2), axis))
    grid = np.arange(2 * 55).reshape(2, 11, 5)
    assert [block for _, block in found] == [
        Block((Fixed(2), A, Fixed(5)), (0, 1, 1)),
        Block((Fixed(2), Fixed(2), B, Fixed(5)), (0, 1, 1, 1)),
    ]
    np.testing.assert_array_equal(found[0][0], grid[:, :3])
    np.testing.assert_array_equal(found[1][0], grid[:, 3:].reshape(2, 2, 4, 5))


def test_blocks_of_two_concatenations_are_row_major():
    array = jnp.arange(5 * 4).reshape(5, 4)
    axes = (Concat((A, Fixed(2))), Concat((Fixed(1), Units("c", 3))))
    found = [np.asarray(values) for values, _ in blocks(array, axes)]
    grid = np.arange(20).reshape(5, 4)
    expected = [grid[:3, :1], grid[:3, 1:], grid[3:, :1], grid[3:, 1:]]
    for values, block in zip(found, expected, strict=True):
        np.testing.assert_array_equal(values, block)


def test_a_family_is_cut_at_every_position_of_its_axis():
    c = Units("c", 3)
    axes = (Family(0, (A, c)), Product((Fixed(2, 0), B)))
    array = jnp.arange(3 * 8).reshape(3, 8)
    found = blocks(array, axes)
    grid = np.arange(24).reshape(3, 2, 4)
    assert [block for _, block in found] == [
        Block((A, Fixed(1), B), (0, 1, 1)),
        Block((c, Fixed(1), B), (0, 1, 1)),
    ]
    for position, (values, _) in enumerate(found):
        np.testing.assert_array_equal(values, grid[:, position : position + 1])


def test_the_labels_of_every_block_are_known_without_an_array():
    c = Units("c", 3)
    axes = (Concat((A, Fixed(2))), Product((B, B)), Family(0, (A, c)), Fixed(2, 0))
    assert list(labels_by_block(axes)) == [
        ("a", "b", "b", "a"),
        ("b", "b", "a"),
        ("a", "b", "b", "c"),
        ("b", "b", "c"),
    ]


def test_families_over_one_axis_are_at_one_position_together():
    c, d = Units("c", 3), Units("d", 4)
    axes = (Fixed(2, 0), Product((Family(0, (A, c)), Family(0, (B, d)))))
    assert list(labels_by_block(axes)) == [("a", "b"), ("c", "d")]


def test_an_array_without_axes_is_one_block():
    assert blocks(jnp.float32(3), ()) == [(jnp.float32(3), Block((), ()))]


def test_parents_are_placed_before_what_is_nested_in_them():
    block = Block((Units("inner", 2), Fixed(9), Units("outer", 3)), (0, 1, 2))
    parents = {"inner": ("outer",)}
    assert placed(block, parents) == [(2, (), "outer"), (0, (2,), "inner")]


def test_units_are_compared_only_where_nothing_nested_in_them_lies_along():
    parents = {"inner": ("outer",)}
    both = Block((Units("outer", 3), Units("inner", 2)), (0, 1))
    alone = Block((Fixed(4), Units("outer", 3)), (0, 1))
    assert places_of(both, "outer", parents) == []
    assert places_of(both, "inner", parents) == [(1, (0,))]
    assert places_of(alone, "outer", parents) == [(1, ())]
    assert places_of(alone, "inner", parents) == []


def test_a_label_twice_on_a_block_has_two_places():
    block = Block((A, Fixed(2), A), (0, 1, 2))
    assert places_of(block, "a", {}) == [(0, ()), (2, ())]


@pytest.mark.parametrize(("axis", "lead"), [(1, ()), (0, (2,)), (3, (2, 0))])
def test_units_come_last_and_parents_before_them(axis, lead):
    array = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    samples = units_last(jnp.asarray(array), axis, lead)
    order = [i for i in range(4) if i not in (axis, *lead)] + [*lead, axis]
    shape = [array.shape[i] for i in (*lead, axis)]
    expected = array.transpose(order).reshape(-1, *shape)
    np.testing.assert_array_equal(samples, expected)
