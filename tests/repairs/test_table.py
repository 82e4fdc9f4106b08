"""Every row of the table of repairs keeps the laws of a repair."""

import dataclasses
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from assignments import stay

from jmudsc import combine, infer_spec, reset_batch_stats
from jmudsc.merging.options import MergeOptions
from jmudsc.progress import silent
from jmudsc.repairs import table
from jmudsc.repairs.least_squares import LeastSquares
from jmudsc.repairs.merger import Merger
from jmudsc.repairs.pipeline import check_needs, repaired
from jmudsc.repairs.table import asked, clashes, names_of, Repair, REPAIRS

BATCHES = [tiny.batch(tiny.CNN, seed, size) for seed, size in enumerate((16, 9))]
NAMES = [row.name for row in REPAIRS]
rows = pytest.mark.parametrize("row", REPAIRS, ids=NAMES)


def apply_fn(variables, x):
    """Apply a convolutional network whose leaves may be narrow."""
    return tiny.CNN.apply_fn(
        {path: leaf.astype(jnp.float32) for path, leaf in variables.items()}, x
    )


def update_fn(variables, x):
    """Move running statistics as training does."""
    y = tiny.conv(x, variables["a/kernel"].astype(jnp.float32))
    new = {"norm/mean": y.mean((0, 1, 2)), "norm/var": y.var((0, 1, 2))}
    moved = {
        path: 0.75 * variables[path] + (0.25 * value).astype(variables[path].dtype)
        for path, value in new.items()
    }
    return {**variables, **moved}


def parent(seed, dtype=jnp.float32):
    """Draw a network whose running statistics are those of the first batch."""
    drawn = tiny.variables(tiny.CNN, seed)
    leaves = {path: jnp.asarray(leaf, dtype) for path, leaf in drawn.items()}
    return reset_batch_stats(update_fn, leaves, BATCHES[:1])


def merger_of(parents):
    spec = infer_spec(apply_fn, parents[0], BATCHES[0])
    shares = (1 / len(parents),) * len(parents)
    assignment = stay(spec, len(parents))
    merger = Merger(spec, apply_fn, parents, assignment, shares, update_fn)
    return merger, combine(spec, parents, assignment)


def done(row, parents, within=None):
    """Return what a row makes of merged parents, and what it tells of it."""
    merger, merged = merger_of(parents)
    return merged, *repaired([row], merger, merged, BATCHES, silent, within)


def options(**given):
    """Return options that ask for nothing but what is given."""
    nothing = {"refit": None, "repair": None, "update_fn": None}
    settings = {"ridge": 0.1, "owners": None, "target": None}
    settings |= {"sample_weight": None, "only": ()}
    return SimpleNamespace(**nothing | settings | given)


def asking(row):
    return {row.option: update_fn if row.option == "update_fn" else row.name}


@rows
def test_a_network_merged_with_itself_stays_as_it_is(row):
    merger, merged = merger_of([parent(0)] * 2)
    found, _ = repaired([row], merger, merged, BATCHES[:1], silent)
    for path, leaf in merged.items():
        np.testing.assert_allclose(found[path], leaf, rtol=2e-5, atol=2e-6)


@rows
def test_networks_that_differ_are_changed(row):
    merged, found, _ = done(row, [parent(0), parent(1)])
    assert any(np.abs(found[path] - leaf).max() > 1e-3 for path, leaf in merged.items())


@rows
def test_structure_shapes_and_dtypes_stay(row):
    merged, found, _ = done(row, [parent(seed, jnp.bfloat16) for seed in range(2)])
    kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert kinds(found) == kinds(merged)
    assert {leaf.dtype for leaf in found.values()} == {jnp.dtype(jnp.bfloat16)}


@rows
def test_the_same_bits_come_out_again(row):
    parents = [parent(0), parent(1)]
    (_, first, said), (_, again, told) = (done(row, parents) for _ in range(2))
    assert said == told
    for path, leaf in first.items():
        np.testing.assert_array_equal(leaf, again[path])


@rows
def test_parents_stay_as_they_are(row):
    parents = [parent(0), parent(1)]
    before = jax.tree.map(np.array, parents)
    done(row, parents)
    jax.tree.map(np.testing.assert_array_equal, parents, before)


@pytest.mark.parametrize("row", [row for row in REPAIRS if row.is_local])
def test_leaves_that_are_not_within_stay(row):
    within = {"b/kernel", "b/bias"}
    merged, found, told = done(row, [parent(0), parent(1)], within)
    assert set(told) <= within
    moved = {p for p, leaf in merged.items() if not np.array_equal(leaf, found[p])}
    assert moved == within


@rows
def test_what_is_told_is_told_of_leaves(row):
    merged, _, told = done(row, [parent(0), parent(1)])
    assert told.keys() <= merged.keys()
    assert all(isinstance(what, str) and what for what in told.values())


@rows
def test_the_stage_is_told_while_it_is_done(row):
    merger, merged = merger_of([parent(0)] * 2)
    stages = []
    tell = lambda *said: stages.append(said)
    repaired([row], merger, merged, BATCHES, tell)
    total = len(BATCHES) if row.needs_batches else 1
    assert stages == [(row.stage, number, total) for number in range(total)]


@rows
def test_without_batches_what_needs_some_is_refused_or_left_out(row):
    merger, merged = merger_of([parent(0), parent(1)])
    if row.needs_batches and not row.is_optional:
        text = (
            f'merge: batches: expected some for {row.option}="{row.name}", got None. '
            "Pass calibration batches."
        )
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            check_needs("merge", [row], None)
    else:
        check_needs("merge", [row], None)
    check_needs("merge", [row], BATCHES)
    found, told = repaired([row], merger, merged, None, silent)
    assert (found is merged) == row.needs_batches
    assert not told


@rows
def test_a_row_is_asked_for_by_its_option_and_gets_its_settings(row):
    (found,) = asked(options(**asking(row)))
    assert found.name == row.name
    if row.settings is None:
        assert found == row
    else:
        bound = found.apply.keywords["settings"]
        assert (bound.ridge, bound.owners) == (0.1, None)


@rows
def test_options_and_names_are_known(row):
    known = {each.name for each in dataclasses.fields(MergeOptions)}
    own = dataclasses.fields(row.settings) if row.settings else ()
    assert {row.option, *(each.name for each in own)} <= known
    assert {*row.excludes, *row.yields_to} <= set(NAMES) - {row.name}
    assert bool(row.excludes) == bool(row.because)


@rows
def test_what_a_row_excludes_is_refused_and_what_it_yields_to_is_done(row):
    for other in REPAIRS:
        if other.option == row.option:
            continue
        both = options(**asking(row), **asking(other))
        names = [found.name for found in asked(both)]
        assert (row.name in names) == (other.name not in row.yields_to)
        excluded = other.name in row.excludes or row.name in other.excludes
        assert bool(clashes(both)) == excluded


def test_all_that_excludes_each_other_is_in_one_sentence():
    wanted = options(refit="least-squares", repair="pooled", update_fn=update_fn)
    assert clashes(wanted) == [
        'repair: expected "pooled" alone, since it sets running statistics itself, got '
        "refit and update_fn too. Leave out all but one."
    ]


def test_nothing_is_asked_for_by_nothing():
    assert asked(options()) == []
    assert len(set(NAMES)) == len(NAMES)


def test_repairs_are_done_in_the_order_of_the_table_and_told_one_after_another():
    merger, merged = merger_of([parent(0), parent(1)])
    both = asked(options(repair="rescale", refit="least-squares"))
    assert [row.name for row in both] == ["least-squares", "rescale"]
    _, told = repaired(both, merger, merged, BATCHES, silent)
    assert told["b/kernel"] == (
        "refit by least squares; rescaled to the parents' mean and standard deviation"
    )
    assert told["norm/mean"] == "reset to what goes into it in the merged network"


def test_a_new_repair_is_a_row(monkeypatch):
    def doubled(merger, merged, batches, within=None):
        return jax.tree.map(lambda leaf: 2 * leaf, merged), {"b/bias": "doubled"}

    row = Repair("double", "repair", "doubling", doubled, reads=None)
    monkeypatch.setattr(table, "REPAIRS", (*REPAIRS, row))
    assert names_of("repair") == ("rescale", "pooled", "double")
    merger, merged = merger_of([parent(0)] * 2)
    wanted = asked(options(repair="double", update_fn=update_fn))
    assert [row.name for row in wanted] == ["reset", "double"]
    found, told = repaired(wanted[1:], merger, merged, None, silent)
    np.testing.assert_array_equal(found["b/bias"], 2 * merged["b/bias"])
    assert told == {"b/bias": "doubled"}


def test_settings_that_a_record_has_not_are_as_they_are_by_default():
    plain = SimpleNamespace(
        refit="least-squares", repair=None, update_fn=None, ridge=0.5, owners=(0, 1)
    )
    (row,) = asked(plain)
    (settings,) = row.apply.keywords.values()
    assert settings == LeastSquares(ridge=0.5, owners=(0, 1))
