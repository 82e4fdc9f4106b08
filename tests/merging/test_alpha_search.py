import functools
import re

import jax
import numpy as np
import pytest
import tiny

from jmudsc import infer_spec, merge, permute, random_permutations
from jmudsc.merging.alpha_search import (
    agreement_with,
    ALPHAS,
    joint_agreement,
    own_agreement,
    search_alpha,
)
from jmudsc.merging.report import report

NET = tiny.MLP


@functools.cache
def problem():
    models = [tiny.variables(NET, seed) for seed in range(2)]
    return models, [tiny.batch(NET, seed, 32) for seed in range(2)]


def merged(**options):
    models, batches = problem()
    options = {"method": "mudsc-align", "key": jax.random.key(0), **options}
    return merge(NET.apply_fn, models, batches, **options)


def test_the_best_balance_is_kept():
    best = search_alpha(lambda alpha: 10 * alpha, lambda tens: -abs(tens - 7))
    assert (best.candidate, best.alpha) == (7.0, 0.7)
    assert best.scores == tuple((alpha, -abs(10 * alpha - 7)) for alpha in ALPHAS)


@pytest.mark.parametrize(
    ("alphas", "best"),
    [((0.0, 1.0), 0.0), ((0.2, 0.4, 0.6), 0.4), ((0.9, 0.1, 0.8), 0.8)],
)
def test_of_equal_scores_that_nearest_to_half_wins(alphas, best):
    assert search_alpha(lambda alpha: alpha, lambda _: 1.0, alphas).alpha == best


def test_a_search_is_the_merge_with_the_best_balance():
    _, batches = problem()

    def score(variables):
        return -float(np.abs(NET.apply_fn(variables, batches[0])).mean())

    alphas = (0.0, 0.5, 1.0)
    found = merged(alpha="search", score=score, alphas=alphas)
    single = {alpha: merged(alpha=alpha) for alpha in alphas}
    scores = {alpha: score(result.variables) for alpha, result in single.items()}
    best = max(scores, key=lambda alpha: scores[alpha])
    assert found.recipe["alpha"] == best
    assert found.recipe["balance"] == "search"
    assert found.recipe["scores"] == {f"{a:g}": s for a, s in scores.items()}
    for path, leaf in single[best].variables.items():
        np.testing.assert_array_equal(found.variables[path], leaf)
    assert "- balance: search\n- scores: 0=" in report(found)


def test_the_automatic_balance_agrees_best_with_the_parents():
    models, batches = problem()
    alphas = (0.0, 0.3, 1.0)
    found = merged(alpha="auto", alphas=alphas)
    agreement = agreement_with([NET.apply_fn] * 2, models, batches)
    for alpha in alphas:
        reached = agreement([merged(alpha=alpha).variables])
        assert found.recipe["scores"][f"{alpha:g}"] == reached
    assert found.recipe["alpha"] in alphas


def test_batches_are_read_for_statistics_once_however_many_values_are_tried():
    _, batches = problem()
    calls = []
    merged(
        alpha="search",
        score=lambda _: 0.0,
        progress=lambda stage, *_: calls.append(stage),
    )
    assert calls.count("collecting activations") == len(batches)
    assert calls.count("combining") == len(ALPHAS)


def test_with_heads_apart_all_networks_are_scored():
    seen = []
    result = merged(
        alpha="search",
        score=lambda networks: seen.append(len(networks)) or 0.0,
        alphas=[0.5],
        held_out=None,
        separate="c/*",
    )
    assert seen == [2]
    assert len(result.networks) == 2
    auto = merged(alpha="auto", alphas=[0.5], separate="c/*").recipe["scores"]["0.5"]
    models, batches = problem()
    x = np.concatenate(batches)
    outputs = [
        [np.asarray(NET.apply_fn(v, x), float) for v in side]
        for side in (result.networks, models)
    ]
    expected = np.mean([own_agreement(a, b) for a, b in zip(*outputs, strict=True)])
    np.testing.assert_allclose(auto, expected, rtol=1e-5)


def test_a_network_that_does_what_the_surest_parent_does_agrees_wholly():
    generator = np.random.default_rng(0)
    one, two = generator.normal(size=(2, 40, 5))
    one[:20] *= 30
    two[20:] *= 30
    one, two = one - one.mean(axis=0), two - two.mean(axis=0)
    both = np.concatenate([one[:20], two[20:]])
    best = joint_agreement(both, [one, two])
    assert best > 0.9
    assert own_agreement(one, one) == pytest.approx(1)
    for worse in (one, two, -both, np.zeros_like(both), generator.normal(size=(40, 5))):
        assert joint_agreement(worse, [one, two]) < best


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_agreement_needs_no_common_mean_or_scale(shift):
    one, two, merged_ = np.random.default_rng(0).normal(size=(3, 30, 4))
    expected = joint_agreement(merged_, [one, two])
    found = joint_agreement(7 * merged_ + shift, [2 * one - shift, two])
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_permuted_copies_agree_wholly_with_each_other(key):
    (model, _), batches = problem()
    spec = infer_spec(NET.apply_fn, model, batches[0])
    other = permute(spec, model, random_permutations(spec, key))
    agreement = agreement_with([NET.apply_fn] * 2, [model, other], batches)
    assert agreement([model, other]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"alpha": "best"},
            'alpha: expected a number in [0, 1], "search" or "auto", got "best". '
            "It is the share of the weight similarity.",
        ),
        (
            {"alpha": "auto", "method": "weight-zip"},
            "alpha: expected a method with a balance to choose, got weight-zip. "
            "Use mudsc-align or mudsc-zip, or leave alpha out.",
        ),
        (
            {"alpha": "search"},
            'alpha: expected a score with "search", got none. Pass score, a '
            "function of variables that is larger for better ones, or "
            'alpha="auto", which needs none.',
        ),
        (
            {"alpha": "auto", "alphas": []},
            "alphas: expected one or more numbers in [0, 1], got []. Leave them "
            "out for 0, 0.1, ..., 1.",
        ),
        (
            {"alpha": "auto", "alphas": [0.5, 2.0]},
            "alphas: expected one or more numbers in [0, 1], got [0.5, 2.0]. Leave "
            "them out for 0, 0.1, ..., 1.",
        ),
    ],
)
def test_a_search_that_cannot_be_is_refused(options, text):
    with pytest.raises(ValueError, match=f"^{re.escape('merge: ' + text)}$"):
        merged(**options)


def test_a_score_that_is_not_finite_is_refused():
    text = (
        "score: expected a finite number, got nan at alpha 0.5. Return a number "
        "that is larger for better variables."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        search_alpha(lambda alpha: alpha, lambda _: float("nan"), [0.5])
