import functools
import logging
import re
import time

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import tiny

from jmudsc import (
    collect,
    combine,
    infer_spec,
    match,
    merge,
    METHODS,
    PermutationSpec,
    permute,
    pool_batch_stats,
    random_permutations,
    refit,
    repair,
    reset_batch_stats,
)
from jmudsc.matching.methods import TABLE

NET = tiny.MLP
ACTIVE = [name for name, row in TABLE.items() if row.activations]
PASSIVE = [m for m in METHODS if m not in ACTIVE]


@functools.cache
def problem():
    """Return two networks that have nothing in common, and batches."""
    models = [tiny.variables(NET, seed) for seed in range(2)]
    return models, [tiny.batch(NET, seed, 32) for seed in range(2)]


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_merges(method, key):
    models, batches = problem()
    result = merge(
        NET.apply_fn,
        models,
        batches,
        method=method,
        alpha=0.3,
        key=key,
        weights=(3.0, 1.0),
    )
    assert_same(
        jax.tree.map(jnp.zeros_like, result.variables),
        jax.tree.map(jnp.zeros_like, models[0]),
    )
    assert result.spec == tiny.spec_of("mlp")
    assert list(result.assignment) == list(result.spec.labels)
    for name, rows in result.assignment.items():
        assert rows.dtype == np.int32
        assert rows.shape == (2, result.spec.labels[name].size)
    assert bool(result.history) == TABLE[method].weights
    assert result.recipe["method"] == method
    assert result.recipe["alpha"] == 0.3
    assert result.recipe["weights"] == [0.75, 0.25]
    expected = combine(result.spec, models, result.assignment, (0.75, 0.25))
    assert_same(result.variables, expected)


@pytest.mark.parametrize("method", ["activation-align", "activation-zip", "average"])
def test_merging_is_its_parts_one_after_another(method, key):
    models, batches = problem()
    spec = infer_spec(NET.apply_fn, models[0], batches[0])
    moments = collect(spec, NET.apply_fn, models, batches)
    found = match(spec, models, moments, method=method, key=key)
    result = merge(NET.apply_fn, models, batches, method=method, key=key)
    assert_same(result.variables, combine(spec, models, found.assignment))


@pytest.mark.parametrize("method", METHODS[1:])
def test_a_network_and_itself_permuted_merge_back_to_it(method, key):
    parent, (x, *_) = tiny.variables(NET, 3), problem()[1]
    spec = tiny.spec_of("mlp")
    child = permute(spec, parent, random_permutations(spec, jax.random.key(1)))
    result = merge(NET.apply_fn, [parent, child], [x], method=method, key=key)
    for path, leaf in parent.items():
        np.testing.assert_allclose(result.variables[path], leaf, rtol=1e-6)
    average = merge(NET.apply_fn, [parent, child], [x], method="average", key=key)
    changes = [
        np.abs(NET.apply_fn(v, x) - NET.apply_fn(parent, x)).max()
        for v in (result.variables, average.variables)
    ]
    assert changes[0] < 1e-5 < 0.1 < changes[1]


@pytest.mark.parametrize("method", ["weight-zip", "mudsc-align"])
def test_the_same_key_gives_the_same_bits(method, key):
    models, batches = problem()
    results = [
        merge(NET.apply_fn, models, batches, method=method, key=key) for _ in range(2)
    ]
    assert results[0].history == results[1].history
    assert_same(results[0].variables, results[1].variables)
    assert_same(dict(results[0].assignment), dict(results[1].assignment))


def test_three_models_are_merged(key):
    models = [tiny.variables(NET, seed) for seed in range(3)]
    batches = problem()[1]
    result = merge(NET.apply_fn, models, batches, method="activation-zip", key=key)
    assert {rows.shape[0] for rows in result.assignment.values()} == {3}
    assert_same(result.variables, combine(result.spec, models, result.assignment))


@pytest.mark.parametrize("method", PASSIVE)
def test_methods_that_use_weights_only_need_no_batches(method, key):
    models, batches = problem()
    spec = tiny.spec_of("mlp")
    result = merge(NET.apply_fn, models, None, method=method, key=key, spec=spec)
    given = merge(NET.apply_fn, models, batches, method=method, key=key)
    assert_same(result.variables, given.variables)


class Fresh:
    """Batches that can be read any number of times, and count how often."""

    def __init__(self, batches):
        self.batches = batches
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        yield from self.batches


@pytest.mark.parametrize("kind", [tuple, Fresh])
def test_batches_are_anything_that_can_be_read_again(kind, key):
    models, batches = problem()
    expected = merge(NET.apply_fn, models, batches, method="activation-zip", key=key)
    result = merge(
        NET.apply_fn, models, kind(batches), method="activation-zip", key=key
    )
    assert_same(result.variables, expected.variables)


def test_a_spec_that_is_given_is_used(key):
    models, batches = problem()
    whole = tiny.spec_of("mlp")
    kept = next(iter(whole.labels))
    axes = {
        path: tuple(
            axis if kept in axis.labels() else tiny.Fixed(axis.size)
            for axis in expressions
        )
        for path, expressions in whole.axes.items()
    }
    spec = PermutationSpec(axes, {kept: whole.labels[kept]}, consumed=whole.consumed)
    result = merge(
        NET.apply_fn, models, batches, method="mudsc-align", key=key, spec=spec
    )
    assert result.spec is spec
    assert list(result.assignment) == [kept]


def broken_spec():
    """Leave the bias of the first layer out of its label."""
    whole = tiny.spec_of("mlp")
    axes = {**whole.axes, "a/bias": (tiny.Fixed(8),)}
    sizes = {name: label.size for name, label in whole.labels.items()}
    labels = tiny.labels_of(axes, sizes, {})
    return PermutationSpec(axes, labels, consumed=whole.consumed)


def test_a_spec_that_is_given_is_checked(key):
    models, batches = problem()
    spec = broken_spec()
    label = tiny.label_at(spec, "a/kernel", 1)
    text = (
        f"check_spec: expected outputs that stay as they are when {label} is permuted, "
        "got changes of more than"
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        merge(NET.apply_fn, models, batches, key=key, spec=spec)
    result = merge(NET.apply_fn, models, batches, key=key, spec=spec, check=False)
    assert result.spec is spec


def test_a_spec_of_another_network_is_refused(key):
    models, batches = problem()
    spec = tiny.spec_of("recurrent")
    text = (
        "merge: expected variables that the spec fits, got others:\n"
        "  in/bias: is in the spec, but not in the variables"
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        merge(NET.apply_fn, models, batches, key=key, spec=spec)


def update_cnn(v, x):
    y = tiny.conv(x, v["a/kernel"])
    seen = {"norm/mean": y.mean(axis=(0, 1, 2)), "norm/var": y.var(axis=(0, 1, 2))}
    return {**v, **{path: 0.9 * v[path] + 0.1 * leaf for path, leaf in seen.items()}}


def test_running_statistics_are_reset_where_the_update_is_given(key, caplog):
    models = [tiny.variables(tiny.CNN, seed) for seed in range(2)]
    batches = Fresh([tiny.batch(tiny.CNN, seed, 8) for seed in range(2)])
    merged = [
        merge(
            tiny.CNN.apply_fn,
            models,
            batches,
            method="activation-align",
            key=key,
            update_fn=update_fn,
        )
        for update_fn in (update_cnn, None)
    ]
    reset = reset_batch_stats(update_cnn, merged[1].variables, batches)
    assert_same(merged[0].variables, reset)
    (record,) = caplog.records  # of the second merge
    assert record.levelno == logging.WARNING
    assert record.name == "jmudsc.merging.merge"
    assert record.getMessage() == (
        "merge: 2 running statistics were averaged, not reset. Pass update_fn and "
        "batches, or call reset_batch_stats."
    )


def test_progress_is_told_stage_and_share(key):
    models, batches = problem()
    calls = []
    merge(
        NET.apply_fn,
        models,
        batches,
        key=key,
        progress=lambda stage, done, total: calls.append((stage, done, total)),
    )
    assert calls
    for stage, done, total in calls:
        assert stage
        assert total is None or 0 <= done <= total


def test_every_stage_tells_its_seconds(key):
    models, batches = problem()
    start = time.perf_counter()
    result = merge(NET.apply_fn, models, batches, key=key)
    whole = time.perf_counter() - start
    assert list(result.seconds) == [
        "deriving",
        "checking",
        "statistics",
        "judging",
        "matching",
        "combining",
        "repairing",
    ]
    assert all(taken >= 0 for taken in result.seconds.values())
    assert whole / 2 < sum(result.seconds.values()) <= whole
    spec = result.spec
    short = merge(NET.apply_fn, models, None, method="average", key=key, spec=spec)
    assert list(short.seconds) == ["matching", "combining", "repairing"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["generator", "iterator"])
def test_batches_that_can_be_read_once_are_refused(kind, method, key):
    models, batches = problem()
    once = (x for x in batches) if kind == "generator" else iter(batches)
    text = (
        "merge: batches: expected an iterable that can be read several times, got a "
        f"{type(once).__name__}, which can be read only once. Pass a list, or an "
        "object whose __iter__ starts anew."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        merge(NET.apply_fn, models, once, method=method, key=key)
    assert len(list(once)) == 2  # nothing was read


@pytest.mark.parametrize(
    ("batches", "kind"),
    [
        (3, "an object of type int"),
        (np.zeros((4, 3), np.float32), "a single array, float32[4, 3]"),
        ({"image": np.zeros((4, 3))}, "an object of type dict"),
    ],
)
def test_batches_that_are_not_several_are_refused(batches, kind, key, monkeypatch):
    models, _ = problem()
    spec = tiny.spec_of("mlp")
    stay = match(spec, models, method="average", key=key)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    calls = {
        "merge": lambda: merge(NET.apply_fn, models, batches, key=key),
        "collect": lambda: collect(spec, NET.apply_fn, models, batches),
        "repair": lambda: repair(
            spec, NET.apply_fn, models, stay.assignment, models[0], batches
        ),
        "reset_batch_stats": lambda: reset_batch_stats(
            lambda variables, batch: variables, models[0], batches
        ),
    }
    for where, call in calls.items():
        text = (
            f"{where}: expected an iterable of batches, got {kind}. Pass [x] for a "
            "single batch, list(x) for several that are stacked."
        )
        with pytest.raises(TypeError, match=re.escape(text)):
            call()


@pytest.mark.parametrize("method", METHODS)
def test_no_batches_at_all_are_refused(method, key):
    models, _ = problem()
    text = (
        "merge: expected at least one batch, got an empty iterable. Pass a list of "
        "batches."
    )
    for empty in ([], Fresh([])):
        with pytest.raises(ValueError, match=re.escape(text)):
            merge(NET.apply_fn, models, empty, method=method, key=key)


@pytest.mark.parametrize("method", ACTIVE)
def test_methods_that_read_activations_need_batches(method, key):
    models, _ = problem()
    text = (
        f"merge: batches: expected some for {method}, got None. Pass calibration "
        "batches, or use weight-align or weight-zip."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        merge(
            NET.apply_fn, models, None, method=method, key=key, spec=tiny.spec_of("mlp")
        )


@pytest.mark.parametrize("method", PASSIVE)
def test_without_batches_there_must_be_a_spec(method, key):
    models, _ = problem()
    text = (
        "merge: spec: expected one, since without batches it cannot be derived, "
        "got None. Pass spec=infer_spec(apply_fn, variables, batch), where batch "
        "may be jax.ShapeDtypeStructs."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        merge(NET.apply_fn, models, None, method=method, key=key)


def test_a_wrong_method_or_balance_is_refused_before_any_work(key):
    models, batches = problem()
    batches = Fresh(batches)
    text = (
        f'merge: method: expected one of {", ".join(METHODS)}, best, got "mudsc-zap"; '
        'did you mean "mudsc-zip"?'
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        merge(NET.apply_fn, models, batches, method="mudsc-zap", key=key)
    text = (
        'merge: alpha: expected a number in [0, 1], "search" or "auto", got 2.0. It is '
        "the share of the weight similarity."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        merge(NET.apply_fn, models, batches, alpha=2.0, key=key)
    assert batches.passes == 0


def test_one_model_is_refused(key):
    models, batches = problem()
    text = "merge: expected at least 2 models, got 1. Pass all that are to be merged."
    with pytest.raises(ValueError, match=re.escape(text)):
        merge(NET.apply_fn, models[:1], batches, key=key)


def test_models_that_differ_are_refused_with_all_their_differences(key):
    (a, b), batches = problem()
    other = {**b, "d/bias": np.ones(2), "a/bias": np.ones(9, np.float32)}
    del other["c/bias"]
    text = (
        "merge: expected models with the same leaves, shapes and dtypes, got some that "
        "differ:\n"
        "  model 1 lacks c/bias\n"
        "  model 1 has d/bias, model 0 has not\n"
        "  a/bias is float32[8] in model 0, float32[9] in model 1\n"
        "Merge checkpoints of one architecture; rename or cast leaves first."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        merge(NET.apply_fn, [a, other], batches, key=key)


def test_models_that_are_not_finite_are_refused(key):
    (a, b), batches = problem()
    b = {**b, "b/bias": b["b/bias"].copy()}
    b["b/bias"][[1, 3]] = np.nan, np.inf
    text = (
        "merge: expected finite parameters, got others:\n"
        "  model 1: 2 of 6 values of b/bias are NaN or infinite\n"
        "Take an earlier checkpoint of that run."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        merge(NET.apply_fn, [a, b], batches, key=key)


def test_weights_that_are_no_shares_are_refused(key):
    models, batches = problem()
    text = (
        "merge: weights: expected one number of at least 0 for each model, not all "
        "of them 0, got [1.0, -1.0]. Leave them out for equal shares."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        merge(NET.apply_fn, models, batches, key=key, weights=(1.0, -1.0))
    text = text.replace("[1.0, -1.0]", "[0.0, 0.0]")
    with pytest.raises(ValueError, match=re.escape(text)):
        merge(NET.apply_fn, models, batches, key=key, weights=(0.0, 0.0))


@pytest.mark.parametrize("method", ["mudsc-align", "activation-zip"])
def test_refit_and_repair_follow_the_average(method, key):
    models, batches = problem()
    spec = tiny.spec_of("mlp")
    result = merge(
        NET.apply_fn,
        models,
        batches,
        method=method,
        key=key,
        weights=(3.0, 1.0),
        refit="least-squares",
        ridge=0.1,
        repair="rescale",
    )
    parts = spec, NET.apply_fn, models, result.assignment
    average = combine(spec, models, result.assignment, (0.75, 0.25))
    fitted = refit(*parts, average, batches, ridge=0.1, weights=(0.75, 0.25))
    assert_same(result.variables, repair(*parts, fitted, batches, (0.75, 0.25)))
    assert result.recipe["refit"] == "least-squares"
    assert result.recipe["ridge"] == 0.1
    assert result.recipe["repair"] == "rescale"
    fit = "refit by least squares"
    assert result.changes["b/bias"] == (
        f"{fit}; rescaled to the parents' mean and standard deviation"
    )
    assert result.changes["c/kernel"] == (
        f"{fit}; left alone: its units may not be permuted"
    )


def test_without_refit_and_repair_nothing_is_told(key):
    models, batches = problem()
    result = merge(NET.apply_fn, models, batches, method="average", key=key)
    assert not result.changes
    assert sorted(result.recipe) == ["alpha", "machine", "method", "weights"]


def test_pooled_statistics_need_no_batches(key, caplog):
    models = [tiny.variables(tiny.CNN, seed) for seed in range(2)]
    spec = tiny.spec_of("cnn")
    result = merge(
        tiny.CNN.apply_fn,
        models,
        None,
        method="weight-align",
        key=key,
        spec=spec,
        repair="pooled",
    )
    average = combine(spec, models, result.assignment)
    assert_same(
        result.variables, pool_batch_stats(spec, models, result.assignment, average)
    )
    assert result.recipe["repair"] == "pooled"
    assert not caplog.records


@pytest.mark.parametrize("option", ["refit", "repair"])
def test_statistics_that_refit_or_repair_set_are_not_warned_of(option, key, caplog):
    models = [tiny.variables(tiny.CNN, seed) for seed in range(2)]
    batches = [tiny.batch(tiny.CNN, 0, 8)]
    options = {option: {"refit": "least-squares", "repair": "rescale"}[option]}
    result = merge(
        tiny.CNN.apply_fn,
        models,
        batches,
        method="average",
        held_out=None,
        key=key,
        **options,
    )
    seen = np.asarray(tiny.conv(batches[0], result.variables["a/kernel"]))
    np.testing.assert_allclose(
        result.variables["norm/mean"], seen.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-5
    )
    assert not caplog.records


REFUSED = {
    "merge: target: expected a refit, which alone uses it, got none. Pass "
    'refit="least-squares", or leave target out.': {"target": "ensemble"},
    "merge: only: expected a refit, which alone uses it, got none. Pass "
    'refit="least-squares", or leave only out.': {"only": "out/*"},
    "merge: start: expected the number of one of 2 models, got 2. Count models from "
    "0.": {"start": 2, "refit": "least-squares", "method": "average"},
    "merge: start: expected a method that leaves a parent what it is, got mudsc-zip. "
    "Use average, or one that aligns.": {"start": 1, "refit": "least-squares"},
    'merge: held_out: expected a share with method="best", which chooses by batches '
    "that are held out, got None. Leave it out, or use another method.": {
        "method": "best",
        "held_out": None,
    },
    'merge: refit: expected one of least-squares, got "least-square"; did you mean '
    '"least-squares"?': {"refit": "least-square"},
    'merge: repair: expected one of rescale, pooled, got "rescaled"; did you mean '
    '"rescale"?': {"repair": "rescaled"},
    "merge: ridge: expected a finite number above 0, got 0.0. Try 0.01.": {
        "ridge": 0.0
    },
    'merge: repair: expected "pooled" alone, since it sets running statistics '
    "itself, got refit too. Leave out all but one.": {
        "repair": "pooled",
        "refit": "least-squares",
    },
    'merge: repair: expected "pooled" alone, since it sets running statistics '
    "itself, got update_fn too. Leave out all but one.": {
        "repair": "pooled",
        "update_fn": update_cnn,
    },
}


@pytest.mark.parametrize("text", REFUSED)
def test_wrong_options_are_refused_before_any_work(text, key):
    models, batches = problem()
    batches = Fresh(batches)
    with pytest.raises(ValueError, match=re.escape(text)):
        merge(NET.apply_fn, models, batches, key=key, **REFUSED[text])
    assert batches.passes == 0


@pytest.mark.parametrize(
    ("option", "value"), [("refit", "least-squares"), ("repair", "rescale")]
)
def test_refit_and_repair_need_batches(option, value, key):
    models, _ = problem()
    spec = tiny.spec_of("mlp")
    text = (
        f'merge: batches: expected some for {option}="{value}", got None. Pass '
        "calibration batches."
    )
    options = {option: value, "method": "average", "spec": spec, "key": key}
    with pytest.raises(ValueError, match=re.escape(text)):
        merge(NET.apply_fn, models, None, **options)


@pytest.mark.parametrize("spec", [{"in": ("P_0",)}, "in  P_0"], ids=["dict", "str"])
def test_a_spec_that_was_not_read_is_refused(spec, key, monkeypatch):
    leaves = {"in": np.ones((3, 4), np.float32)}
    message = (
        f"merge: spec: expected a PermutationSpec, got a {type(spec).__name__}. Pass "
        "it through read_spec(spec, apply_fn, variables, batch)."
    )
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        merge(lambda v, x: x @ v["in"], [leaves, leaves], [], key=key, spec=spec)
