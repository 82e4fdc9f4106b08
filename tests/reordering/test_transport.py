import dataclasses

import dense
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jmudsc.reordering.transport import (
    form_of,
    move_units,
    moves_of,
    names_in_leaf,
    sum_units,
    take_units,
)

PERMUTATIONS = np.array([[0, 1, 2, 3], [2, 0, 3, 1]], np.int32)
ZIP = np.array([[0, 1, 1, 2], [3, 0, 3, 3]], np.int32)  # 2 has no unit of model 1
THREE = np.array([[0, 0, 1, 2], [3, 2, 1, 0], [3, 3, 3, 0]], np.int32)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("assignment", [PERMUTATIONS, ZIP, THREE])
@pytest.mark.parametrize("consumed", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("equal", [True, False])
def test_a_move_is_a_product_with_a_one_hot_matrix(assignment, consumed, axis, equal):
    models = len(assignment)
    shares = [1 / models] * models if equal else [0.2, 0.3, 0.5][:models]
    consuming, producing = dense.matrices(assignment, shares)
    for model, move in enumerate(moves_of(assignment, shares)):
        block = draw(4, 4, 4, seed=model)
        result = move_units(jnp.asarray(block), axis, (), move, consumed)
        matrix = (consuming if consumed or move.scale is None else producing)[model]
        expected = np.moveaxis(np.tensordot(block, matrix, (axis, 0)), -1, axis)
        np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("lead", [0, 1])
@pytest.mark.parametrize("assignment", [PERMUTATIONS, ZIP])
def test_a_nested_label_moves_anew_in_every_unit_of_its_parent(assignment, lead):
    rows = np.stack([assignment, assignment[::-1], assignment], axis=1)  # 3 parents
    axis, block = 2, draw(3, 3, 4)
    for model, move in enumerate(moves_of(rows, (0.5, 0.5))):
        result = move_units(jnp.asarray(block), axis, (lead,), move, consumed=True)
        for parent in range(3):
            matrix = dense.one_hot(rows[model, parent])
            old, new = (np.take(x, parent, lead) for x in (block, np.asarray(result)))
            np.testing.assert_allclose(new, old @ matrix, rtol=1e-6, atol=1e-6)


def test_a_permutation_is_moved_without_arithmetic():
    for move in moves_of(PERMUTATIONS, (0.5, 0.5)):
        assert move.scale is None
    block = draw(4, 3)
    for row, move in zip(PERMUTATIONS, moves_of(PERMUTATIONS, (0.1, 0.9)), strict=True):
        result = move_units(jnp.asarray(block), 0, (), move, consumed=False)
        np.testing.assert_array_equal(np.asarray(result)[row], block)


def test_the_mean_over_models_of_produced_ones_is_one():
    """Every merged unit is a mean of its members, whatever the shares."""
    for assignment, shares in ((ZIP, (0.5, 0.5)), (THREE, (0.5, 0.2, 0.3))):
        total = np.zeros(4)
        for move, share in zip(moves_of(assignment, shares), shares, strict=True):
            total += share * np.asarray(
                move_units(jnp.ones(4), 0, (), move, consumed=False)
            )
        np.testing.assert_allclose(total, np.ones(4), rtol=1e-6)


def test_a_model_without_a_share_adds_nothing():
    moves = moves_of(ZIP, (1.0, 0.0))
    assert np.isfinite(moves[0].scale).all()
    result = move_units(jnp.ones(4), 0, (), moves[0], consumed=False)
    np.testing.assert_array_equal(result, [1, 1, 1, 0])


def test_take_gathers_and_sum_scatters():
    block = draw(5, 2, 4)
    index = np.array([[1, 1, 3, 0], [2, 0, 0, 0]])
    taken = take_units(jnp.asarray(block), 2, (1,), index)
    summed = sum_units(jnp.asarray(block), 2, (1,), index)
    expected = np.zeros_like(block)
    for parent, unit in np.ndindex(2, 4):
        np.testing.assert_array_equal(
            taken[:, parent, unit], block[:, parent, index[parent, unit]]
        )
        expected[:, parent, index[parent, unit]] += block[:, parent, unit]
    np.testing.assert_allclose(summed, expected, rtol=1e-6)


def test_sum_undoes_take_for_permutations():
    block = jnp.asarray(draw(4, 3))
    row = PERMUTATIONS[1]
    np.testing.assert_array_equal(
        sum_units(take_units(block, 0, (), row), 0, (), row), block
    )


def test_leaves_with_the_same_axes_are_the_same_but_for_names():
    spec = tiny.spec_of("attention")
    head, channel = (axis.label for axis in spec.axes["q/kernel"][1:])
    assert names_in_leaf(spec, "q/kernel") == [head, channel]
    forms = [form_of(spec, path) for path in spec.axes]
    by_path = dict(zip(spec.axes, forms, strict=True))
    assert by_path["q/kernel"] == by_path["k/kernel"]
    assert by_path["q/kernel"] != by_path["v/kernel"]  # other sizes
    form = by_path["q/kernel"]
    assert [str(axis) for axis in form.axes] == ["6", "0", "1"]
    assert form.outer == (("0", ()), ("1", ("0",)))


def test_the_names_of_a_leaf_are_in_the_order_in_which_they_are_met():
    spec = tiny.spec_of("mlp")
    assert names_in_leaf(spec, "c/bias") == []
    for spec_labels in (spec.labels, dict(reversed(spec.labels.items()))):
        same = dataclasses.replace(spec, labels=spec_labels)
        inner, outer = (axis.label for axis in spec.axes["b/kernel"])
        assert names_in_leaf(same, "b/kernel") == [inner, outer]
    nested = tiny.spec_of("attention")
    head, channel = (axis.label for axis in nested.axes["q/kernel"][1:])
    assert nested.labels[channel].parents == (head,)
    turned = {"leaf": tuple(reversed(nested.axes["q/kernel"]))}
    spec = dataclasses.replace(nested, axes=turned)
    assert names_in_leaf(spec, "leaf") == [head, channel]  # outer first
