import re

import jax
import numpy as np
import pytest
import tiny

from jmudsc import (
    combine,
    infer_spec,
    match,
    permute,
    random_permutations,
    read_spec,
    Site,
)
from jmudsc.spec.alike import left_behind, move_alike

NETS = ["mlp", "cnn", "attention", "experts"]


def with_copies(variables):
    """Variables, a moving average of them, and moments of an optimizer."""
    return {
        "ema": {path: 2 * leaf for path, leaf in variables.items()},
        "opt": {"mu": {path: leaf**2 for path, leaf in variables.items()}},
        "params": variables,
        "step": np.zeros(()),
    }


ALIKE = {"ema/*": "params/*", "opt/mu/*": "params/*"}


def problem(name):
    net = tiny.NETS[name]
    models = [with_copies(tiny.variables(net, seed)) for seed in range(2)]
    batch = tiny.batch(net, 0)
    return lambda v, x: net.apply_fn(v["params"], x), models, batch


def derived(name, **options):
    apply_fn, (model, _), batch = problem(name)
    return infer_spec(apply_fn, model, batch, **options)


@pytest.mark.parametrize("name", NETS)
def test_copies_are_permuted_as_the_leaves_that_they_are_like(name, key):
    _, (model, _), _ = problem(name)
    spec = derived(name, alike=ALIKE)
    moved = permute(spec, model, random_permutations(spec, key))
    assert any((moved["params"][p] != x).any() for p, x in model["params"].items())
    for path, leaf in moved["params"].items():
        np.testing.assert_array_equal(moved["ema"][path], 2 * leaf)
        np.testing.assert_array_equal(moved["opt"]["mu"][path], leaf**2)


@pytest.mark.parametrize("method", ["weight-align", "weight-zip"])
@pytest.mark.parametrize("name", NETS)
def test_copies_are_merged_so_and_are_no_evidence(name, method, key):
    _, models, _ = problem(name)
    spec, alone = derived(name, alike=ALIKE), derived(name)
    found = match(spec, models, method=method, key=key)
    expected = match(alone, models, method=method, key=key)
    jax.tree.map(np.testing.assert_array_equal, found.assignment, expected.assignment)
    merged = combine(spec, models, found.assignment)
    for path, leaf in merged["params"].items():
        np.testing.assert_allclose(merged["ema"][path], 2 * leaf, rtol=1e-6)


@pytest.mark.parametrize("name", NETS)
def test_the_text_of_such_a_spec_reads_back(name):
    apply_fn, (model, _), batch = problem(name)
    spec = derived(name, alike=ALIKE)
    path = next(iter(spec.axes))
    assert f"(moves like {spec.alike[path]})" in str(spec)
    assert read_spec(str(spec), apply_fn, model, batch) == spec


def test_a_spec_knows_which_leaves_are_not_read():
    spec = derived("mlp")
    assert spec.unread == {path for path in spec.axes if not path.startswith("params")}
    assert left_behind(spec) == [p for p in spec.axes if p in spec.unread - {"step"}]
    assert left_behind(derived("mlp", alike=ALIKE)) == []
    assert left_behind(derived("mlp", frozen="*")) == []


def test_the_first_pattern_that_a_leaf_matches_counts():
    pairs = [("ema/a/kernel", "params/a/kernel"), ("ema/a/*", "params/b/*")]
    with pytest.raises(ValueError, match="alike") as error:
        move_alike("merge", derived("mlp"), pairs)
    assert str(error.value).splitlines()[1:-1] == [
        "  ema/a/bias: its shape is (8,), that of params/b/bias is (6,)"
    ]


def test_all_that_cannot_move_alike_is_in_one_error():
    alike = {
        "emma/*": "params/*",
        "ema/a/kernel": "params/b/kernel",
        "ema/a/bias": "params/a/bia",
        "ema/b/bias": "opt/mu/b/bias",
        "params/c/*": "params/c/*",
        "opt/*": "params",
    }
    message = (
        "merge: alike: expected leaves that apply_fn does not read, each to move like "
        "a leaf of its shape that it reads, got others:\n"
        '  "emma/*" matches no leaf\n'
        '  "opt/*" has 1 "*" and "params" 0\n'
        "  ema/a/kernel: its shape is (5, 8), that of params/b/kernel is (8, 6)\n"
        '  ema/a/bias: there is no leaf "params/a/bia" to move like; did you mean '
        '"params/a/bias"?\n'
        "  ema/b/bias: apply_fn does not read opt/mu/b/bias either\n"
        "  params/c/bias: apply_fn reads it, so it moves by itself\n"
        "  params/c/kernel: apply_fn reads it, so it moves by itself\n"
        "Correct the patterns."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        move_alike("merge", derived("mlp"), alike)


def test_axes_that_are_fixed_say_why_as_those_of_the_other_leaf():
    spec = derived("mlp", alike=ALIKE)
    assert spec.fixed[Site("ema/a/kernel", 0)] == spec.fixed[Site("params/a/kernel", 0)]
    assert Site("ema/a/kernel", 1) not in spec.fixed
    assert Site("ema/b/kernel", 0) in spec.consumed
