"""What holds for every row of the table of methods, whatever is added to it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jmudsc import collect, freeze, match, matcher, merge, METHODS
from jmudsc.matching.methods import aligning, Method, method_of, names_of, TABLE
from jmudsc.recipes.dump import dump_recipe
from jmudsc.recipes.reader import parse_recipe

ROWS = [pytest.param(row, id=name) for name, row in TABLE.items()]


@functools.cache
def problem(net="attention", seeds=(3, 4)):
    """Return a spec, models, batches and moments."""
    record, spec = tiny.NETS[net], tiny.spec_of(net)
    models = [tiny.variables(record, seed) for seed in seeds]
    batches = [tiny.batch(record, seed, 64) for seed in range(2)]
    return spec, models, batches, collect(spec, record.apply_fn, models, batches)


def found(row, models=None, moments=None, **options):
    spec, own, _, known = problem()
    given = (moments or known) if row.activations else None
    options = {"key": jax.random.key(0), **options}
    return match(spec, models or own, given, method=row.name, **options)


def assert_equal(one, other):
    assert one.history == other.history
    assert one.assignment.keys() == other.assignment.keys()
    for name, rows in one.assignment.items():
        np.testing.assert_array_equal(rows, other.assignment[name], err_msg=name)


def test_the_public_names_are_those_of_the_table():
    assert tuple(TABLE) == METHODS
    assert tuple(row.name for row in TABLE.values()) == METHODS
    assert "mudsc-zip" in METHODS


@pytest.mark.parametrize("row", ROWS)
def test_a_method_is_found_by_its_name(row):
    assert method_of("here", row.name) is row


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("net", ["mlp", "cnn", "attention", "experts"])
def test_a_network_merged_with_itself_is_itself(row, net, key):
    model = tiny.variables(tiny.NETS[net], 3)
    batches = [tiny.batch(tiny.NETS[net], 0, 64)]
    apply_fn = tiny.NETS[net].apply_fn
    merged = merge(apply_fn, [model, model], batches, method=row.name, key=key)
    assert merged.recipe["method"] == row.name
    assert jax.tree.structure(merged.variables) == jax.tree.structure(model)
    for path, leaf in merged.variables.items():
        assert leaf.dtype == model[path].dtype
        np.testing.assert_allclose(leaf, model[path], rtol=1e-6, err_msg=path)


@pytest.mark.parametrize("row", ROWS)
def test_every_unit_goes_to_a_merged_unit_and_every_merged_unit_is_reached(row):
    spec = problem()[0]
    assignment = found(row).assignment
    assert assignment.keys() == spec.labels.keys()
    for name, rows in assignment.items():
        units = np.arange(spec.labels[name].size)
        assert rows.dtype == np.int32
        assert rows.shape == (2, *spec.row_shape(name))
        for place in np.ndindex(rows.shape[1:-1]):
            assert set(rows[(slice(None), *place)].ravel()) == set(units)
        if not row.zips:
            np.testing.assert_array_equal(
                np.sort(rows), np.broadcast_to(units, rows.shape)
            )
            np.testing.assert_array_equal(
                rows[0], np.broadcast_to(units, rows[0].shape)
            )
        if not row.matches:
            np.testing.assert_array_equal(rows, np.broadcast_to(units, rows.shape))


@pytest.mark.parametrize("row", ROWS)
def test_frozen_labels_stay_in_place(row, key):
    spec, models, batches, _ = problem()
    frozen = freeze(spec, list(spec.labels))
    moments = collect(frozen, tiny.NETS["attention"].apply_fn, models, batches)
    rows = match(frozen, models, moments, method=row.name, key=key).assignment
    for name, label in spec.labels.items():
        expected = np.broadcast_to(np.arange(label.size), rows[name].shape)
        np.testing.assert_array_equal(rows[name], expected)


@pytest.mark.parametrize("row", ROWS)
def test_the_same_key_gives_the_same_bits(row):
    for seed in (0, 1):
        key = jax.random.key(seed)
        assert_equal(found(row, key=key), found(row, key=key))


@pytest.mark.parametrize("row", ROWS)
def test_alpha_counts_where_both_spaces_are_read_and_nowhere_else(row, key):
    spec, models, _, moments = problem()
    at = matcher(spec, models, moments, method=row.name, key=key)
    if row.blends:
        assert at(0.1).history != at(0.9).history
    else:
        assert_equal(at(0.1), at(0.9))


@pytest.mark.parametrize("row", ROWS)
def test_activations_are_needed_where_the_row_says_so(row, key):
    spec, models, _, moments = problem()
    if row.activations:
        with pytest.raises(ValueError, match=f"{row.name} needs activation moments"):
            match(spec, models, method=row.name, key=key)
    else:
        options = {"method": row.name, "key": key}
        without, with_them = (
            match(spec, models, **options),
            match(spec, models, moments, **options),
        )
        assert_equal(without, with_them)


@pytest.mark.parametrize("row", ROWS)
def test_weights_are_read_where_the_row_says_so(row):
    others = problem(seeds=(5, 6))[1]
    if row.matches and row.weights:
        assert found(row).history
        assert found(row).history != found(row, others).history
    else:
        assert_equal(found(row), found(row, others))


@pytest.mark.parametrize("row", ROWS)
def test_there_is_a_one_to_one_method_that_reads_the_same(row):
    like = aligning(row)
    assert like.aligns
    if row.matches:
        assert (like.activations, like.weights) == (row.activations, row.weights)
    if row.aligns:
        assert like is row


@pytest.mark.parametrize("row", ROWS)
def test_a_recipe_names_it(row):
    keys = {"models": ["a", "b"], "apply_fn": "m:f", "batches": "m:g", "output": "out"}
    recipe = parse_recipe({**keys, "method": row.name})
    assert recipe.options.method == row.name
    assert f"method: {row.name}" in dump_recipe(recipe)


def test_a_method_combines_as_its_row_says(key, monkeypatch):
    def first(spec, models, assignment, weights):
        del spec, assignment, weights
        return {path: jnp.asarray(leaf) for path, leaf in models[0].items()}

    monkeypatch.setitem(TABLE, "average", Method("average", combine=first))
    _, models, batches, _ = problem()
    apply_fn = tiny.NETS["attention"].apply_fn
    merged = merge(apply_fn, models, batches, method="average", key=key)
    for path, leaf in models[0].items():
        np.testing.assert_array_equal(merged.variables[path], leaf)


def test_methods_are_named_in_a_sentence():
    assert names_of(lambda row: row.blends) == "mudsc-align or mudsc-zip"
    assert names_of(lambda row: not row.matches) == "average"
