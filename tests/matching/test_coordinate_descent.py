import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jmudsc import (
    align,
    collect,
    infer_spec,
    match,
    METHODS,
    Moments,
    PermutationSpec,
    permute,
    random_permutations,
    Units,
    zip_units,
)
from jmudsc.matching.methods import TABLE
from jmudsc.matching.objective import mean_similarity, merged_units
from jmudsc.matching.similarity import activation_similarity, weight_similarity
from jmudsc.spec.permutation_spec import labels_of

SEARCHES = ("weight-align", "weight-zip", "mudsc-align", "mudsc-zip")
ACTIVE = tuple(name for name, row in TABLE.items() if row.activations)


def deep(v, x):
    for number in range(3):
        x = jnp.tanh(x @ v[f"{number}/kernel"] + v[f"{number}/bias"][None])
    return x @ v["out/kernel"]


DEEP = tiny.Tiny(
    deep,
    {
        "0/kernel": (5, 8),
        **{f"{number}/kernel": (8, 8) for number in (1, 2)},
        **{f"{number}/bias": (8,) for number in range(3)},
        "out/kernel": (8, 2),
    },
    (5,),
)


@functools.cache
def strangers(models=2):
    """Return networks that have nothing in common: spec, models, moments."""
    drawn = [tiny.variables(DEEP, seed) for seed in range(models)]
    batches = [tiny.batch(DEEP, seed, 32) for seed in range(2)]
    spec = infer_spec(deep, drawn[0], batches[0])
    return spec, drawn, collect(spec, deep, drawn, batches)


@functools.cache
def one_label():
    """Return networks with one label, whose weights no assignment moves."""

    def apply_fn(v, x):
        return jnp.tanh(x @ v["0/kernel"] + v["0/bias"][None]) @ v["out/kernel"]

    leaves = ("0/kernel", "0/bias", "out/kernel")
    models = [{path: v[path] for path in leaves} for v in strangers()[1]]
    batches = [tiny.batch(DEEP, 0, 32)]
    spec = infer_spec(apply_fn, models[0], batches[0])
    return spec, models, collect(spec, apply_fn, models, batches)


@functools.cache
def search(method, seed=0, **options):
    spec, models, moments = strangers()
    return match(
        spec, models, moments, method=method, key=jax.random.key(seed), **options
    )


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def leaves_of(models):
    return [{path: jnp.asarray(leaf) for path, leaf in v.items()} for v in models]


def blend_of(spec, models, moments, assignment, label, alpha, within=True):
    leaves = leaves_of(models)
    weight = weight_similarity(spec, leaves, assignment, label, within=within)
    return alpha * weight + (1 - alpha) * activation_similarity(moments[label])


@pytest.mark.parametrize(
    ("method", "options"),
    [(name, {}) for name, row in TABLE.items() if row.aligns]
    # By weights alone zip starts from wrong pairs, and may stay with them.
    + [(m, {"a": 1.0}) for m in ("activation-zip", "mudsc-zip")],
)
def test_permutations_planted_in_three_models_are_found(method, options, key):
    net, spec = tiny.MLP, tiny.spec_of("mlp")
    parent = tiny.variables(net, 3)
    perms = [random_permutations(spec, k) for k in jax.random.split(key)]
    models = [parent, *(permute(spec, parent, planted) for planted in perms)]
    moments = collect(spec, net.apply_fn, models, [tiny.batch(net, 0, 64)])
    found = match(spec, models, moments, method=method, key=key, **options)
    for label, record in spec.labels.items():
        expected = [np.arange(record.size), *(planted[label] for planted in perms)]
        np.testing.assert_array_equal(found.assignment[label], expected)
        assert found.assignment[label].dtype == np.int32
    assert found.converged


@pytest.mark.parametrize("method", [name for name, row in TABLE.items() if row.zips])
def test_heads_and_their_channels_are_paired_before_they_are_zipped(method, key):
    net, spec = tiny.ATTENTION, tiny.spec_of("attention")
    parent = tiny.variables(net, 3)
    perms = random_permutations(spec, key)
    models = [parent, permute(spec, parent, perms)]
    moments = collect(spec, net.apply_fn, models, [tiny.batch(net, 0, 64)])
    found = match(spec, models, moments, method=method, key=key)
    for label, planted in perms.items():
        stay = np.broadcast_to(np.arange(planted.shape[-1]), planted.shape)
        np.testing.assert_array_equal(found.assignment[label], [stay, planted])


@pytest.mark.parametrize("models", [2, 3])
def test_average_keeps_every_unit_in_place(models, key):
    for name in ("mlp", "attention"):
        spec = tiny.spec_of(name)
        drawn = [tiny.variables(tiny.NETS[name], seed) for seed in range(models)]
        found = match(spec, drawn, method="average", key=key)
        for label, rows in found.assignment.items():
            shape = (models, *spec.row_shape(label))
            expected = np.broadcast_to(np.arange(spec.labels[label].size), shape)
            np.testing.assert_array_equal(rows, expected)
        assert found.history == ()
        assert found.converged


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["align", "zip"])
def test_one_label_is_matched_by_the_blend(kind, alpha, key):
    spec, models, moments = one_label()
    (label,) = spec.labels
    found = match(spec, models, moments, method=f"mudsc-{kind}", alpha=alpha, key=key)
    blend = blend_of(spec, models, moments, found.assignment, label, np.float32(alpha))
    expected = {"align": align, "zip": zip_units}[kind](blend, 2)
    np.testing.assert_array_equal(found.assignment[label], expected)
    rows = expected.ravel()
    pairs = [
        blend[i, j]
        for i, j in itertools.combinations(range(16), 2)
        if rows[i] == rows[j]
    ]
    np.testing.assert_allclose(found.history[-1], np.mean(pairs), rtol=1e-6)
    assert len(set(found.history)) == 1


def test_a_and_b_are_those_of_zip(key):
    spec, models, moments = strangers()
    options = {"a": 0.9, "b": 0.0}
    found = match(spec, models, moments, method="activation-zip", key=key, **options)
    for label, rows in found.assignment.items():
        similarity = activation_similarity(moments[label])
        np.testing.assert_array_equal(rows, zip_units(similarity, 2, **options))


@pytest.mark.parametrize("method", SEARCHES)
def test_a_shorter_search_is_the_beginning_of_a_longer_one(method):
    whole = search(method)
    assert len(whole.history) > 1
    for sweeps in range(1, len(whole.history)):
        part = search(method, max_sweeps=sweeps)
        assert part.history == whole.history[:sweeps]
        assert not part.converged
        best = int(np.argmax(part.history)) + 1
        assert_equal(part.assignment, search(method, max_sweeps=best).assignment)


@pytest.mark.parametrize("method", SEARCHES)
def test_the_best_sweep_is_kept(method):
    whole = search(method)
    best = int(np.argmax(whole.history)) + 1
    until = search(method, max_sweeps=best)
    assert until.history[-1] == max(whole.history)
    assert_equal(whole.assignment, until.assignment)


@pytest.mark.parametrize("method", SEARCHES)
@pytest.mark.parametrize("patience", [1, 3])
def test_a_search_stops_when_it_gets_no_better(method, patience):
    for seed in range(3):
        found = search(method, seed, patience=patience)
        since_best = len(found.history) - 1 - int(np.argmax(found.history))
        assert found.converged
        assert since_best <= patience
        if since_best < patience:  # the last sweep changed nothing
            longer = search(method, seed, patience=9)
            assert longer.history == found.history


def descend_by_hand(kind, alpha, start, key, patience=5):
    """Coordinate descent, over labels that are not nested."""
    spec, models, moments = strangers()
    solve = {"align": align, "zip": zip_units}[kind]
    labels, best, current, history = list(spec.labels), None, start, []
    while True:
        order = jax.random.fold_in(key, len(history))
        sweep, reached = dict(current), []
        for number in jax.random.permutation(order, len(labels)):
            name = labels[number]
            shared = spec, models, moments, sweep, name, np.float32(alpha)
            blend = blend_of(*shared, within=kind == "zip")
            sweep[name] = solve(blend, 2)
            reached.append(mean_similarity(spec, name, blend, sweep))
        history.append(float(np.mean(reached)))
        if history[-1] > max(history[:-1], default=-1):
            best, since = sweep, 0
        else:
            since += 1
        same = all(np.array_equal(sweep[name], current[name]) for name in labels)
        if same or since == patience:
            return best, tuple(history)
        current = best


@pytest.mark.parametrize("method", SEARCHES)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_search_is_coordinate_descent_from_the_best_sweep_so_far(method, seed):
    """A sweep that makes it worse is undone; some of these have one."""
    space, kind = method.split("-")
    start, alpha = search("average").assignment, 1.0
    if space == "mudsc":
        start, alpha = search(f"activation-{kind}").assignment, 0.5
    best, history = descend_by_hand(kind, alpha, start, jax.random.key(seed))
    found = search(method, seed)
    assert found.history == pytest.approx(history, rel=1e-6)
    assert_equal(found.assignment, best)


def test_no_sweeps_leave_what_activations_say(key):
    spec, models, moments = strangers()
    found = match(spec, models, moments, method="mudsc-align", key=key, max_sweeps=0)
    expected = match(spec, models, moments, method="activation-align", key=key)
    assert_equal(found.assignment, expected.assignment)
    assert found.history == ()
    assert not found.converged


@pytest.mark.parametrize(
    ("method", "alpha"),
    [("weight-align", 0.5), ("mudsc-align", 1.0), ("mudsc-align", 0.5)],
)
def test_at_the_end_every_label_is_the_best_there_is_given_the_others(method, alpha):
    spec, models, moments = strangers()
    share = np.float32(1 if method == "weight-align" else alpha)
    for seed in range(4):
        found = search(method, seed, alpha=alpha)
        if len(found.history) - 1 > int(np.argmax(found.history)) + 1:
            continue  # it ended by patience
        for label, rows in found.assignment.items():
            blend = blend_of(spec, models, moments, found.assignment, label, share)
            np.testing.assert_array_equal(rows, align(blend, 2))
        break
    else:
        pytest.fail("no search ended at a fixed point")


@pytest.mark.parametrize("kind", ["align", "zip"])
def test_with_alpha_0_weights_do_not_count(kind):
    expected = search(f"activation-{kind}").assignment
    for seed in range(3):
        found = search(f"mudsc-{kind}", seed, alpha=0.0)
        assert_equal(found.assignment, expected)


def test_with_alpha_1_activations_are_only_where_it_starts():
    """Other activations that are matched alike lead to the same result."""
    spec, models, _ = strangers()
    others = {}
    for label, rows in search("activation-align").assignment.items():
        alike = (rows.reshape(-1, 1) == rows.reshape(1, -1)).astype(np.float32)
        comoment = jnp.asarray(0.1 * np.eye(rows.size, dtype=np.float32) + 0.9 * alike)
        others[label] = Moments(10, jnp.zeros(rows.size), comoment)
    found, half = (
        match(
            spec, models, others, method="mudsc-align", alpha=x, key=jax.random.key(0)
        )
        for x in (1.0, 0.5)
    )
    expected = search("mudsc-align", alpha=1.0)
    assert found.history == expected.history
    assert_equal(found.assignment, expected.assignment)
    assert half.history != search("mudsc-align", alpha=0.5).history


@pytest.mark.parametrize("kind", ["align", "zip"])
def test_activations_need_no_order(kind):
    expected = search(f"activation-{kind}")
    for seed in (1, 2):
        assert_equal(search(f"activation-{kind}", seed).assignment, expected.assignment)
    moments = strangers()[2]
    for label, rows in expected.assignment.items():
        similarity = activation_similarity(moments[label])
        by_hand = {"align": align, "zip": zip_units}[kind](similarity, 2)
        np.testing.assert_array_equal(rows, by_hand)
    assert expected.history == ()


@pytest.mark.parametrize("method", SEARCHES)
def test_the_same_key_gives_the_same_bits(method):
    spec, models, moments = strangers()
    again = match(spec, models, moments, method=method, key=jax.random.key(0))
    assert again.history == search(method).history
    assert_equal(again.assignment, search(method).assignment)


@pytest.mark.parametrize("method", SEARCHES)
def test_another_key_is_another_order(method):
    assert len({search(method, seed).history for seed in range(4)}) > 1


@pytest.mark.parametrize("method", SEARCHES)
def test_three_models_are_matched_in_one_go(method, key):
    spec, models, moments = strangers(3)
    found = match(spec, models, moments, method=method, key=key, max_sweeps=2)
    for label, rows in found.assignment.items():
        units = spec.labels[label].size
        assert rows.shape == (3, units)
        assert set(rows.ravel()) == set(range(units))
        if not TABLE[method].zips:
            np.testing.assert_array_equal(np.sort(rows), [np.arange(units)] * 3)
            np.testing.assert_array_equal(rows[0], np.arange(units))


@pytest.mark.parametrize("method", ACTIVE)
def test_a_label_without_activations_is_matched_by_weights(method, key):
    net, spec = tiny.LOW_RANK, tiny.low_rank_spec()
    parent, x = tiny.variables(net, 0), tiny.batch(net, 0, 64)
    perms = random_permutations(spec, key)
    models = [parent, permute(spec, parent, perms)]
    moments = collect(spec, net.apply_fn, models, [x])
    assert list(moments) == ["hidden"]
    found = match(spec, models, moments, method=method, key=key)
    for label, planted in perms.items():
        np.testing.assert_array_equal(found.assignment[label][1], planted)


@pytest.mark.parametrize("method", METHODS)
def test_a_label_that_nothing_is_known_of_stays_in_place(method, key):
    axes = {"mean": (Units("P", 5),)}
    spec = PermutationSpec(
        axes, labels_of(axes, {"P": 5}, {}), statistics=frozenset({"mean"})
    )
    models = [{"mean": np.arange(5.0)}, {"mean": np.arange(5.0)[::-1].copy()}]
    found = match(spec, models, {}, method=method, key=key)
    np.testing.assert_array_equal(found.assignment["P"], [np.arange(5)] * 2)


@pytest.mark.parametrize("method", METHODS)
def test_a_network_without_labels_is_matched_too(method, key):
    v = {"kernel": np.ones((3, 2), np.float32)}
    spec = infer_spec(lambda v, x: x @ v["kernel"], v, np.ones((1, 3), np.float32))
    found = match(spec, [v, v], {}, method=method, key=key)
    assert found.assignment == {}


@pytest.mark.parametrize("kind", ["align", "zip"])
def test_mean_similarity_is_over_all_pairs_that_share_a_merged_unit(kind):
    spec = tiny.spec_of("attention")
    models = [tiny.variables(tiny.ATTENTION, seed) for seed in range(3)]
    found = match(spec, models, method=f"weight-{kind}", key=jax.random.key(0))
    generator = np.random.default_rng(0)
    for name, record in spec.labels.items():
        shape = (3, *spec.row_shape(name))
        s = generator.normal(size=(np.prod(shape),) * 2).astype(np.float32)
        s = s + s.T
        place_of = []
        for model, *place in np.ndindex(shape):
            merged, parents = [], record.parents
            for label, unit in zip((*parents, name), place, strict=True):
                outer = [merged[parents.index(p)] for p in spec.labels[label].parents]
                row = found.assignment[label]
                merged.append(int(row[(model, *outer, unit)]))
            place_of.append(tuple(merged))
        sharing = [
            s[i, j]
            for i, j in itertools.combinations(range(len(s)), 2)
            if place_of[i] == place_of[j]
        ]
        mean = mean_similarity(spec, name, s, found.assignment)
        np.testing.assert_allclose(mean, np.mean(sharing), rtol=1e-5)
        numbers = [merged_units(spec, found.assignment, name, m) for m in range(3)]
        expected = [np.ravel_multi_index(p, spec.row_shape(name)) for p in place_of]
        np.testing.assert_array_equal(np.ravel(numbers), expected)


def test_units_that_share_nothing_have_mean_similarity_0():
    spec = tiny.spec_of("recurrent")
    (label,) = spec.labels
    rows = {label: np.arange(7)[None]}
    assert mean_similarity(spec, label, np.ones((7, 7)), rows) == 0


def test_progress_is_reported_after_every_sweep(key):
    spec, models, _ = strangers()
    calls = []
    found = match(
        spec,
        models,
        method="weight-align",
        key=key,
        progress=lambda *call: calls.append(call),
    )
    assert len(calls) == len(found.history)
    for number, (call, reached) in enumerate(zip(calls, found.history, strict=True), 1):
        assert call == (f"matching ({reached:.4f})", number, 100)


@pytest.mark.parametrize(
    ("method", "hint"),
    [
        ("mudsc-zp", '; did you mean "mudsc-zip"?'),
        ("weight-aligned", '; did you mean "weight-align"?'),
        ("soup", "."),
    ],
)
def test_an_unknown_method_is_refused(method, hint, key):
    spec, models, moments = strangers()
    text = (
        f'match: expected the name of a method, got "{method}"{hint} Choose one of '
        f"{', '.join(METHODS)}."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        match(spec, models, moments, method=method, key=key)


@pytest.mark.parametrize("alpha", [-0.1, 1.01, float("nan")])
def test_a_balance_outside_0_to_1_is_refused(alpha, key):
    spec, models, moments = strangers()
    text = (
        "match: expected alpha, the share of the weight similarity, in [0, 1], got "
        f"{alpha}. Pass 0.5 to count weights and activations alike."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        match(spec, models, moments, alpha=alpha, key=key)


def test_moments_of_other_models_are_refused(key):
    spec, models, moments = strangers()
    name, units = next((n, label.size) for n, label in spec.labels.items())
    text = (
        "match: the moments do not fit the spec and the 3 models:\n"
        f"  {name}: expected {3 * units} stacked units, got {2 * units}"
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        match(spec, [*models, models[0]], moments, key=key)


@pytest.mark.parametrize("method", ACTIVE)
def test_methods_that_read_activations_need_moments(method, key):
    spec, models, _ = strangers()
    text = (
        f"match: {method} needs activation moments, got None. Pass what collect "
        "returns."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        match(spec, models, method=method, key=key)


def test_one_model_is_refused(key):
    spec, models, _ = strangers()
    text = "match: expected at least 2 models, got 1. Pass all that are to be merged."
    with pytest.raises(ValueError, match=re.escape(text)):
        match(spec, models[:1], method="average", key=key)


def test_models_that_differ_are_refused(key):
    spec, (a, b), _ = strangers()
    other = {**b, "0/bias": np.ones(9, np.float32)}
    text = (
        "match: expected models with the same leaves, shapes and dtypes, got some that "
        "differ:\n"
        "  0/bias is float32[8] in model 0, float32[9] in model 1\n"
        "Merge checkpoints of one architecture; rename or cast leaves first."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        match(spec, [a, other], method="average", key=key)


def test_a_spec_of_another_network_is_refused(key):
    _, models, _ = strangers()
    spec = tiny.spec_of("mlp")
    small = [{"b/bias": v["0/bias"]} for v in models]
    text = (
        "match: expected variables that the spec fits, got others:\n"
        "  a/bias: is in the spec, but not in the variables; did you mean "
        '"b/bias"?\n'
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        match(spec, small, method="average", key=key)
