import functools
import itertools
import re

import jax
import numpy as np
import pytest
import tiny

from jmudsc import (
    check_spec,
    collect,
    freeze,
    infer_spec,
    match,
    merge,
    permute,
    random_permutations,
)
from jmudsc.matching.match_options import MatchOptions
from jmudsc.matching.methods import TABLE
from jmudsc.matching.nested_labels import match_family
from jmudsc.merging.report import report
from jmudsc.reordering.permute import identity

SEARCHES = ("weight-zip", "activation-align", "mudsc-align", "mudsc-zip")


@functools.cache
def problem(name):
    """Return a network, two models of it that have nothing in common, and batches."""
    net = tiny.NETS[name]
    models = [tiny.variables(net, seed) for seed in range(2)]
    return net, models, [tiny.batch(net, seed, 32) for seed in range(2)]


@functools.cache
def moments_of(name, patterns):
    net, models, batches = problem(name)
    spec = freeze(tiny.spec_of(name), patterns)
    return spec, collect(spec, net.apply_fn, models, batches)


def matched(name, patterns, method):
    _, models, _ = problem(name)
    spec, moments = moments_of(name, tuple(patterns))
    return match(spec, models, moments, method=method, key=jax.random.key(0))


def stays(spec, assignment):
    """The labels whose units are all where they were."""
    return {
        name for name, row in identity(spec).items() if (assignment[name] == row).all()
    }


# Which labels are frozen.


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        ([], {}),
        (["P_1"], {"P_1": "P_1"}),
        ("P_1", {"P_1": "P_1"}),
        (["P_?"], dict.fromkeys(("P_0", "P_1", "P_2"), "P_?")),
        (["q/bias"], {"P_0": "q/bias", "P_1": "q/bias"}),
        (["*/kernel"], dict.fromkeys(("P_0", "P_1", "P_2"), "*/kernel")),
        (["P_[12]", "v*"], {"P_0": "v*", "P_1": "P_[12]", "P_2": "P_[12]"}),
    ],
    ids=str,
)
def test_patterns_are_of_labels_and_of_leaves(patterns, frozen):
    spec = tiny.spec_of("attention")
    found = freeze(spec, patterns)
    assert {n: x.fixed for n, x in found.labels.items() if x.fixed} == {
        name: f'is frozen by "{pattern}"' for name, pattern in frozen.items()
    }
    assert found.axes == spec.axes
    assert list(found.labels) == list(spec.labels)


def test_a_label_fixed_already_keeps_its_reason():
    spec = tiny.spec_of("mlp")
    once = freeze(spec, ["P_0"])
    assert freeze(once, ["P_*"]).labels["P_0"] == once.labels["P_0"]


def test_a_leaf_without_labels_may_be_named():
    spec = tiny.spec_of("mlp")
    assert freeze(spec, ["c/bias"]) == spec


def test_patterns_that_match_nothing_are_listed():
    message = (
        "freeze: expected every pattern to match a label or a leaf, got some that "
        "match none:\n"
        '  "P_7"; did you mean "P_1"?\n'
        '  "a/kernal"; did you mean "a/kernel"?\n'
        "print(spec) shows the names there are."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        freeze(tiny.spec_of("mlp"), ["P_7", "a/*", "a/kernal"])


def test_labels_can_be_frozen_as_they_are_derived():
    net, models, batches = problem("mlp")
    spec = infer_spec(net.apply_fn, models[0], batches[0], frozen=["b/bias"])
    assert spec == freeze(tiny.spec_of("mlp"), ["b/bias"])


# What a frozen label means.


def test_frozen_labels_stay_in_a_random_permutation(key):
    net, models, batches = problem("attention")
    spec = freeze(tiny.spec_of("attention"), ["P_0", "P_2"])
    perms = random_permutations(spec, key)
    assert stays(spec, perms) == {"P_0", "P_2"}
    check_spec(spec, net.apply_fn, models[0], batches[0], key=key)


@pytest.mark.parametrize("method", SEARCHES)
@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("mlp", ("P_0",)),
        ("attention", ("P_0",)),
        ("attention", ("P_1",)),
        ("attention", ("P_1", "P_2")),
    ],
    ids=str,
)
def test_every_method_keeps_frozen_labels_in_place_and_matches_the_others(
    name, frozen, method
):
    found = matched(name, sorted(frozen), method)
    assert stays(tiny.spec_of(name), found.assignment) == set(frozen)
    assert np.isfinite(found.history).all()


@pytest.mark.parametrize("method", SEARCHES)
def test_with_all_labels_frozen_nothing_is_searched(method):
    found = matched("attention", ["*"], method)
    assert stays(tiny.spec_of("attention"), found.assignment) == {"P_0", "P_1", "P_2"}
    assert found.history == ()
    assert found.converged


def test_a_frozen_label_is_left_out_of_the_objective():
    """With one label left that the others do not touch, its own similarity remains."""
    net, models, _ = problem("mlp")
    alone = {path: leaf for path, leaf in models[0].items() if path[0] != "c"}

    def apply_fn(v, x):
        return net.apply_fn({**models[0], **v}, x)

    spec = infer_spec(
        lambda v, x: net.apply_fn({**models[0], **v}, x), alone, np.ones((2, 5))
    )
    assert list(spec.labels) == ["P_0"]
    others = [{path: model[path] for path in alone} for model in models]
    expected = match(spec, others, method="weight-align", key=jax.random.key(0))
    frozen = freeze(tiny.spec_of("mlp"), ["P_1"])
    found = match(frozen, models, method="weight-align", key=jax.random.key(0))
    np.testing.assert_array_equal(found.assignment["P_0"], expected.assignment["P_0"])
    assert found.history == pytest.approx(expected.history)


def test_units_whose_nested_units_are_frozen_are_paired_as_these_lie(key):
    spec = freeze(tiny.spec_of("attention"), ["P_1", "P_2"])
    draw = np.random.default_rng(0).normal
    similarity = {"P_1": draw(size=(24, 24)), "P_2": draw(size=(30, 30))}
    start = {n: np.stack([row] * 2) for n, row in identity(spec).items()}
    zipping = MatchOptions(TABLE["weight-zip"])
    found = match_family(spec, ["P_0", "P_1", "P_2"], similarity, start, zipping)
    scores = sum(
        similarity[name]
        .reshape(2, 3, units, 2, 3, units)[0, :, :, 1]
        .transpose(0, 2, 1, 3)
        .trace(axis1=2, axis2=3)
        for name, units in (("P_1", 4), ("P_2", 5))
    )
    best = max(
        itertools.permutations(range(3)), key=lambda p: scores[range(3), p].sum()
    )
    np.testing.assert_array_equal(found["P_0"], [range(3), np.argsort(best)])


def test_permuted_models_are_found_again_but_for_what_is_frozen(key):
    net, models, batches = problem("attention")
    free = freeze(tiny.spec_of("attention"), ["P_1"])
    perms = random_permutations(free, key)
    pair = [models[0], permute(free, models[0], perms)]
    result = merge(
        net.apply_fn, pair, batches, key=key, frozen=["P_1"], method="mudsc-align"
    )
    for name, perm in perms.items():
        np.testing.assert_array_equal(result.assignment[name][1], perm)
    assert result.spec == free


# Merging.


def test_a_merge_with_everything_frozen_is_the_average(key):
    net, models, batches = problem("mlp")
    plain = merge(net.apply_fn, models, batches, method="average", key=key)
    frozen = merge(net.apply_fn, models, batches, key=key, frozen="*")
    for path in models[0]:
        np.testing.assert_array_equal(frozen.variables[path], plain.variables[path])


def test_a_given_spec_is_frozen_too_and_the_report_says_so(key):
    net, models, batches = problem("mlp")
    result = merge(
        net.apply_fn, models, batches, key=key, spec=tiny.spec_of("mlp"), frozen=["a/*"]
    )
    assert result.spec == freeze(tiny.spec_of("mlp"), ["a/*"])
    assert result.recipe["frozen"] == ["a/*"]
    text = report(result)
    assert "- frozen: a/*\n" in text
    assert '- label P_0 stays in place: is frozen by "a/*"\n' in text
    assert "P_1 stays" not in text
