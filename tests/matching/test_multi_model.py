import functools
import itertools
import re

import jax
import numpy as np
import pytest
import tiny
from assignments import stay
from groups import draw as draw_groups, spec_of

from jmudsc import align, collect, match, permute, random_permutations
from jmudsc.matching.match_options import MatchOptions
from jmudsc.matching.methods import TABLE
from jmudsc.matching.multi_model import REFERENCES
from jmudsc.matching.nested_labels import match_family


def draw(seed, models, units, noise):
    """Return similarities of noisy copies, each in its own order, and the orders."""
    generator = np.random.default_rng([seed, models, units])
    features = generator.normal(size=(units, 30))
    perms = [generator.permutation(units) for _ in range(models)]
    stacked = np.concatenate([features[perm] for perm in perms])
    stacked += noise * generator.normal(size=stacked.shape)
    return np.corrcoef(stacked).astype(np.float32), perms


def total(similarity, rows):
    """Sum over all pairs of models what units that share a merged unit have."""
    models, units = rows.shape
    stacked = rows.ravel()
    model = np.arange(models).repeat(units)
    together = (stacked[:, None] == stacked) & (model[:, None] < model)
    return similarity[together].sum(dtype=float)


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("models", [2, 3, 5])
def test_planted_permutations_are_found(models, reference):
    similarity, perms = draw(0, models, 12, noise=0.05)
    home = np.argsort(perms[0])
    expected = [home[perm] for perm in perms]
    np.testing.assert_array_equal(align(similarity, models, reference), expected)


@pytest.mark.parametrize("kind", ["noisy", "ties"])
@pytest.mark.parametrize("seed", range(4))
def test_for_two_models_all_references_are_one(seed, kind):
    similarity = draw(seed, 2, 15, noise=2)[0]
    if kind == "ties":
        similarity = similarity.round(1)
    first, *others = (align(similarity, 2, reference) for reference in REFERENCES)
    for other in others:
        np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("models", [3, 5])
def test_the_universe_reaches_no_less_than_the_others(models, seed):
    similarity = draw(seed, models, 12, noise=2)[0]
    found = {
        reference: align(similarity, models, reference) for reference in REFERENCES
    }
    reached = {reference: total(similarity, rows) for reference, rows in found.items()}
    assert reached["universe"] >= max(reached.values()) - 1e-6
    assert reached["universe"] > reached["first"]
    for rows in found.values():
        assert rows.dtype == np.int32
        np.testing.assert_array_equal(np.sort(rows), [np.arange(12)] * models)
        np.testing.assert_array_equal(rows[0], np.arange(12))


@pytest.mark.parametrize("seed", range(3))
def test_in_the_universe_no_model_can_move_to_a_gain(seed):
    similarity = draw(seed, 3, 5, noise=2)[0]
    rows = align(similarity, 3, "universe")
    reached = total(similarity, rows)
    for model, perm in itertools.product(range(3), itertools.permutations(range(5))):
        moved = rows.copy()
        moved[model] = perm
        assert total(similarity, moved) <= reached + 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_the_universe_is_mostly_the_best_of_all_assignments(seed):
    """An ascent may end below the best; with these three it does not."""
    similarity = draw(seed, 3, 4, noise=2)[0]
    perms = [np.array(perm) for perm in itertools.permutations(range(4))]
    best = max(
        total(similarity, np.stack([np.arange(4), p, q]))
        for p, q in itertools.product(perms, perms)
    )
    found = total(similarity, align(similarity, 3, "universe"))
    np.testing.assert_allclose(found, best, rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_is_of_the_models_before(seed):
    similarity = draw(seed, 4, 10, noise=2)[0]
    found = align(similarity, 4, "mean")
    blocks = similarity.reshape(4, 10, 4, 10).astype(float)
    for model in range(1, 4):
        scores = sum(blocks[i][np.argsort(found[i]), model] for i in range(model))
        stacked = np.block([[np.eye(10), scores], [scores.T, np.eye(10)]])
        np.testing.assert_array_equal(found[model], align(stacked, 2)[1])


@pytest.mark.parametrize("reference", REFERENCES)
def test_one_model_stays_and_no_units_are_no_work(reference):
    np.testing.assert_array_equal(align(np.eye(3), 1, reference), [[0, 1, 2]])
    assert align(np.zeros((0, 0)), 3, reference).shape == (3, 0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", ["weight-align", "weight-zip"])
def test_groups_are_paired_by_the_best_that_is_nested_in_them(seed, method):
    spec = spec_of(head=(3,), unit=(4, "head"))
    similarity = draw_groups(seed, spec, 3)
    grid = similarity["unit"].reshape(3, 3, 4, 3, 3, 4)
    outer = similarity["head"].astype(float).reshape(3, 3, 3, 3)
    for i, j in itertools.combinations(range(3), 2):
        for g, h in np.ndindex(3, 3):
            inner = grid[i, g, :, j, h]
            outer[i, g, j, h] += max(
                inner[list(perm), range(4)].sum(dtype=float)
                for perm in itertools.permutations(range(4))
            )
    for reference in REFERENCES:
        options = MatchOptions(TABLE[method], reference=reference)
        family, start = ["head", "unit"], stay(spec, 3)
        found = match_family(spec, family, similarity, start, options)
        expected = align(outer.reshape(9, 9), 3, reference)
        np.testing.assert_array_equal(found["head"], expected)
        if not options.method.zips:
            for merged in range(3):
                own = [int(np.argsort(row)[merged]) for row in expected]
                rows = [(m, g) for m, g in enumerate(own)]
                block = np.block([[grid[i][:, j[0], j[1]] for j in rows] for i in rows])
                np.testing.assert_array_equal(
                    found["unit"][:, merged], align(block, 3, reference)
                )


@functools.cache
def copies(name):
    """Return three copies of a network in which units are permuted, and what moved."""
    net, spec = tiny.NETS[name], tiny.spec_of(name)
    parent = tiny.variables(net, 3)
    perms = [random_permutations(spec, jax.random.key(seed)) for seed in (1, 2)]
    models = [parent, *(permute(spec, parent, planted) for planted in perms)]
    return (
        spec,
        perms,
        models,
        collect(spec, net.apply_fn, models, [tiny.batch(net, 0)]),
    )


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("method", ["weight-align", "activation-align", "mudsc-align"])
@pytest.mark.parametrize("name", ["mlp", "attention"])
def test_permuted_copies_are_matched_to_any_reference(name, method, reference, key):
    spec, perms, models, moments = copies(name)
    found = match(
        spec, models, moments, method=method, reference=reference, key=key
    ).assignment
    for label in spec.labels:
        for row, planted in zip(found[label][1:], perms, strict=True):
            np.testing.assert_array_equal(row, planted[label])


def test_an_unknown_reference_is_refused(key):
    text = (
        '{}: expected the name of a reference, got "last". Choose one of first, mean, '
        "universe."
    )
    with pytest.raises(ValueError, match=re.escape(text.format("align"))):
        align(np.eye(4), 2, "last")
    spec, _, models, moments = copies("mlp")
    with pytest.raises(ValueError, match=re.escape(text.format("match"))):
        match(spec, models, moments, reference="last", key=key)
