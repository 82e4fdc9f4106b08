"""A merge is judged beside what went into it, and the best is never below a parent."""

import dataclasses
import functools
import json
import logging
import re

import jax
import numpy as np
import pytest
import tiny

from jmudsc import load_provenance, merge, permute, random_permutations, save
from jmudsc.merging.options import MergeOptions
from jmudsc.merging.report import report
from jmudsc.merging.verdict import Verdict

NET = tiny.MLP
SPEC = tiny.spec_of("mlp")
BATCHES = [tiny.batch(NET, seed, 32) for seed in range(6)]
OUT = next(path for path in reversed(NET.shapes) if path.endswith("kernel"))


@functools.cache
def parents(count=2):
    return [tiny.variables(NET, seed) for seed in range(count)]


def merged(models, batches=BATCHES, **options):
    options = {"key": jax.random.key(0), "method": "average", **options}
    return merge(NET.apply_fn, models, batches, **options)


def outputs(variables, batches):
    return np.concatenate([NET.apply_fn(variables, x) for x in batches])


def cosine(ours, theirs):
    ours, theirs = ours - ours.mean(axis=0), theirs - theirs.mean(axis=0)
    return (ours * theirs).sum() / np.sqrt((ours**2).sum() * (theirs**2).sum())


def test_a_network_and_itself_in_another_order_are_as_good_as_either():
    model = parents()[0]
    other = permute(SPEC, model, random_permutations(SPEC, jax.random.key(1)))
    verdict = merged([model, other], method="mudsc-align").verdict
    assert verdict.answer == "equal"
    assert verdict.networks["merged"].cosine > 1 - 1e-5
    assert verdict.networks["average"].cosine < 0.9


def test_what_is_compared_is_what_the_networks_make_of_the_batch_held_out():
    result = merged(parents(), owners=[0, 1] * 3, held_out=0.3)
    held = [BATCHES[n] for n in (2, 3)]  # the second of every owner
    verdict = result.verdict
    assert (verdict.samples, verdict.batches, verdict.is_held_out) == (64, 2, True)
    wanted = np.concatenate(
        [outputs(parent, [x]) for parent, x in zip(parents(), held, strict=True)]
    )
    for name, network in {
        "merged": result.variables,
        "parent 0": parents()[0],
        "parent 1": parents()[1],
        "average": result.variables,
    }.items():
        found = verdict.networks[name].cosine
        np.testing.assert_allclose(found, cosine(outputs(network, held), wanted), 1e-4)
    both = sum(outputs(parent, held) for parent in parents()) / 2
    found = verdict.networks["ensemble"].cosine
    np.testing.assert_allclose(found, cosine(both, wanted), rtol=1e-4)
    best = max(verdict.networks[f"parent {n}"].cosine for n in range(2))
    margin = verdict.networks["merged"].cosine - best
    np.testing.assert_allclose(verdict.margin, margin, atol=1e-6)


def test_strangers_are_warned_of_first_of_all(caplog):
    with caplog.at_level(logging.WARNING, logger="jmudsc"):
        result = merged(parents(), held_out=0.5)
    verdict = result.verdict
    assert verdict.answer == "worse"
    expected = (
        "merge: expected a network that is better than any parent alone, got one that "
        f"is worse. {verdict.sentence} Use that parent alone, or try a refit, more "
        'batches, or method="best", which is never below it there.'
    )
    assert expected in caplog.messages
    first = report(result).splitlines()[0]
    assert first.startswith(f"**Worse than a parent alone.** {verdict.sentence}")
    recipe = {**result.recipe, "refit": "least-squares"}
    first = report(dataclasses.replace(result, recipe=recipe)).splitlines()[0]
    assert first.endswith(
        'Use that parent alone, or try more batches, or method="best", which is never '
        "below it there."
    )


def test_the_verdict_is_one_sentence():
    result = merged(parents(), held_out=0.5)
    verdict = result.verdict
    figures, best = verdict.networks, f"parent {verdict.best_parent}"
    own = ", ".join(f"{x:.3f}" for x in figures["merged"].own)
    gap = figures["ensemble"].cosine - figures["merged"].cosine
    assert verdict.sentence == (
        "On 96 held-out samples the merged network is worse than the best single "
        f"parent, {best}, for all tasks together (cosine {figures['merged'].cosine:.3f}"
        f" against {figures[best].cosine:.3f}), follows each parent on its own task "
        f"(cosine {own}), and is {gap:.3f} below the ensemble in cosine."
    )
    assert verdict.sentence in report(result)


def test_few_batches_judge_what_they_made():
    result = merged(parents(), BATCHES[:3])
    assert not result.verdict.is_held_out
    assert result.verdict.sentence.startswith("On 96 samples that it was made from the")
    bits = merged(parents(), BATCHES[:3], held_out=None)
    for path, leaf in result.variables.items():
        np.testing.assert_array_equal(leaf, bits.variables[path])
    assert bits.verdict is None
    assert bits.recipe["verdict"] == "none, since no batches are held out"


def test_batches_that_are_held_out_make_no_difference_to_the_merge():
    options = {"method": "mudsc-zip", "refit": "least-squares"}
    other = [x if n != 4 else 3 * x for n, x in enumerate(BATCHES)]
    first, second = (merged(parents(), b, **options) for b in (BATCHES, other))
    for path, leaf in first.variables.items():
        np.testing.assert_array_equal(leaf, second.variables[path])
    assert first.verdict.margin != second.verdict.margin


def test_a_score_decides_where_there_is_one():
    wanted = float(parents()[1][OUT].sum())
    score = lambda variables: -abs(float(variables[OUT].sum()) - wanted)
    verdict = merged(parents(), score=score).verdict
    assert verdict.decided_by == "score"
    assert verdict.best_parent == 1
    assert verdict.networks["parent 1"].score == 0
    assert verdict.answer == "worse"
    assert verdict.networks["merged"].score == pytest.approx(verdict.margin)


def test_outputs_without_samples_get_no_verdict():
    loss = lambda variables, x: NET.apply_fn(variables, x).sum()
    result = merge(loss, parents(), BATCHES, method="average", key=jax.random.key(0))
    assert result.verdict is None
    assert result.recipe["verdict"] == (
        "none, since the outputs have no axis of samples that all batches agree on"
    )


def test_provenance_keeps_the_verdict(tmp_path):
    result = merged(parents())
    save(tmp_path / "merged", result)
    found = load_provenance(tmp_path / "merged")["verdict"]
    assert found == json.loads(json.dumps(result.verdict.plain()))
    assert found["sentence"] == result.verdict.sentence


def test_a_score_without_an_ensemble_is_told_without():
    verdict = Verdict(
        "equal", 0, 0.0, 0.0, {"merged": None, "parent 0": None}, "score", 1, 1, True
    )
    assert verdict.sentence == (
        "On 1 held-out sample the merged network is as good as the best single parent, "
        "parent 0, for all tasks together (score not finite against not finite)."
    )


@pytest.mark.parametrize("owners", [None, [0, 1] * 3])
@pytest.mark.parametrize("score", [None, lambda v: -float(np.abs(v[OUT]).sum())])
def test_the_best_is_never_below_a_parent_or_what_was_tried(owners, score):
    options = {"owners": owners, "score": score, "held_out": 0.4}
    result = merged(parents(), method="best", **options)
    tried, chosen = result.recipe["tried"], result.recipe["chosen"]
    assert list(tried) == [
        "parent 0",
        "parent 1",
        "average",
        "average + refit",
        "mudsc-align",
        "mudsc-align + refit",
        "mudsc-zip",
        "mudsc-zip + refit",
        f"parent {result.verdict.best_parent} + read-out",
    ]
    assert tried[chosen] == max(tried.values())
    assert result.verdict.margin >= 0
    assert result.verdict.answer != "worse"
    figures = result.verdict.networks["merged"]
    assert tried[chosen] == (figures.score if score else figures.cosine)


def test_what_is_best_is_what_its_method_gives_alone():
    result = merged(parents(), method="best", held_out=0.4)
    method, _, refit = result.recipe["chosen"].partition(" + ")
    assert refit == "refit"
    alone = merged(parents(), method=method, refit="least-squares", held_out=0.4)
    for path, leaf in alone.variables.items():
        np.testing.assert_array_equal(leaf, result.variables[path])


def test_a_parent_is_returned_as_it_is_where_nothing_is_better(caplog):
    score = lambda variables: float(np.array_equal(variables[OUT], parents()[1][OUT]))
    with caplog.at_level(logging.WARNING, logger="jmudsc"):
        result = merged(parents(), method="best", score=score)
    assert result.recipe["chosen"] == "parent 1"
    for path, leaf in parents()[1].items():
        np.testing.assert_array_equal(result.variables[path], leaf)
    assert result.verdict.answer == "equal"


def test_separate_heads_are_each_judged_by_their_own_parent():
    head = f"{OUT.rpartition('/')[0]}/*"
    result = merged(parents(), method="mudsc-align", separate=head, owners=[0, 1] * 3)
    verdict, held = result.verdict, BATCHES
    assert not verdict.is_held_out
    for number, network in enumerate(result.networks):
        own = held[number::2]
        expected = cosine(outputs(network, own), outputs(parents()[number], own))
        found = verdict.networks["merged"].own[number]
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert verdict.networks["parent 0"].own[0] == pytest.approx(1)
    assert verdict.networks["parent 1"].own[1] == pytest.approx(1)
    best = merged(parents(), method="best", separate=head, owners=[0, 1] * 3)
    assert best.verdict.margin >= 0
    assert len(best.networks) == 2


@pytest.mark.parametrize("method", ["average", "mudsc-align"])
def test_a_refit_may_start_from_a_parent_and_change_some_leaves_only(method):
    options = {"refit": "least-squares", "start": 1, "held_out": None}
    head = f"{OUT.rpartition('/')[0]}/*"
    result = merged(parents(), method=method, only=head, **options)
    row = {n: np.asarray(x[1]) for n, x in result.assignment.items()}
    kept = permute(SPEC, parents()[1], {n: np.argsort(x, -1) for n, x in row.items()})
    changed = {p for p, x in result.variables.items() if not np.array_equal(x, kept[p])}
    assert changed == set(result.changes)
    assert changed
    assert all(path.startswith(head[:-1]) for path in changed)


def test_batches_without_an_owner_are_refused():
    text = (
        "merge: owners: expected one for each of 6 batches or more, got 2. Count the "
        "batches of each task."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        merged(parents(), owners=[0, 1])


def test_options_of_a_contender_are_right():
    MergeOptions(method="best").checked("merge")
