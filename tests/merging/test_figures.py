"""The figures of a network, against numpy on the whole outputs."""

import numpy as np
import pytest

from jmudsc.merging.figures import (
    error_of_difference,
    figures_of,
    mean_of,
    quality,
    sums_of,
    wanted_of,
)
from jmudsc.repairs.outputs import Outputs, outputs_of

DRAW = np.random.default_rng(0)
COUNT = 60


def outputs(entries=4, seed=0, scale=1.0):
    rows = scale * np.random.default_rng(seed).normal(size=(COUNT, entries))
    rows = rows.astype(np.float32)
    return Outputs((rows,), (np.arange(COUNT),), np.repeat(np.arange(3), 20))


def compared(ours, parents, owners=None):
    wanted, tasks = wanted_of(parents, (0.5, 0.5), owners)
    return sums_of(ours, wanted, tasks, 2), wanted[0], tasks


def test_figures_are_those_of_the_whole_outputs():
    ours, parents = outputs(seed=1), [outputs(seed=2), outputs(seed=3, scale=2.0)]
    sums, wanted, tasks = compared(ours, parents)
    found, rows = figures_of(sums), ours.leaves[0].astype(float)
    cosine = np.corrcoef(
        (rows - rows.mean(0)).ravel(), (wanted - wanted.mean(0)).ravel()
    )
    np.testing.assert_allclose(found.cosine, cosine[0, 1], rtol=1e-6)
    error = ((rows - wanted) ** 2).sum() / ((wanted - wanted.mean(0)) ** 2).sum()
    np.testing.assert_allclose(found.error, error, rtol=1e-6)
    assert found.agreement == (rows.argmax(1) == wanted.argmax(1)).mean()
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (wanted, rows))
    kl = (p * np.log(p / q)).sum(1).mean()
    np.testing.assert_allclose(found.divergence, kl, rtol=1e-5)
    assert quality(sums) == found.cosine
    assert len(found.own) == 2
    assert set(tasks) == {0, 1}


def test_without_owners_the_surer_parent_counts_more():
    parents = [outputs(seed=2), outputs(seed=3)]
    _, wanted, tasks = compared(outputs(), parents)
    first, second = (p.leaves[0].astype(float) for p in parents)
    sure = [((x - x.mean(0)) ** 2).sum(1) for x in (first, second)]
    sure = [s / s.mean() for s in sure]
    expected = sure[0][:, None] * first + sure[1][:, None] * second
    np.testing.assert_allclose(wanted, expected / sum(sure)[:, None], rtol=1e-5)
    np.testing.assert_array_equal(tasks, np.argmax(sure, axis=0))


def test_a_sample_should_get_what_its_owner_says():
    parents = [outputs(seed=2), outputs(seed=3)]
    sums, wanted, tasks = compared(parents[1], parents, owners=[1, 0, 1])
    np.testing.assert_array_equal(wanted[:20], parents[1].leaves[0][:20])
    np.testing.assert_array_equal(wanted[20:40], parents[0].leaves[0][20:40])
    np.testing.assert_array_equal(tasks, np.repeat([1, 0, 1], 20))
    assert figures_of(sums).own[1] > 0.9


def test_a_network_that_does_what_it_should_is_perfect():
    parent = outputs(seed=2)
    found = figures_of(compared(parent, [parent, parent])[0])
    np.testing.assert_allclose([found.cosine, found.agreement], 1)
    np.testing.assert_allclose([found.error, found.divergence], 0, atol=1e-9)


def test_one_output_has_no_largest():
    parents = [outputs(1, seed=2), outputs(1, seed=3)]
    found = figures_of(compared(outputs(1), parents)[0])
    assert found.agreement is None
    assert found.divergence is None


def test_outputs_that_are_not_finite_have_no_figures():
    broken = outputs(seed=1)
    broken.leaves[0][3, 1] = np.nan
    assert compared(broken, [outputs(seed=2), outputs(seed=3)])[0] is None


def test_the_error_of_a_difference_is_that_of_other_draws():
    """Where samples are drawn anew, the difference varies as the jackknife says."""
    margins, errors = [], []
    for seed in range(200):
        draw = np.random.default_rng(seed)
        wanted = draw.normal(size=(COUNT, 4))
        noisy = [wanted + size * draw.normal(size=wanted.shape) for size in (0.5, 0.7)]
        of = np.arange(COUNT), np.zeros(COUNT, int)
        ours, theirs = (
            sums_of(
                Outputs((x.astype(np.float32),), of[:1], of[1]), (wanted,), of[1], 1
            )
            for x in noisy
        )
        margins.append(quality(ours) - quality(theirs))
        errors.append(error_of_difference(ours, theirs))
    np.testing.assert_allclose(np.mean(errors), np.std(margins), rtol=0.2)


def test_the_ensemble_is_the_mean_by_shares():
    parents = [outputs(seed=2), outputs(seed=3)]
    found = mean_of(parents, (0.25, 0.75)).leaves[0]
    expected = 0.25 * parents[0].leaves[0] + 0.75 * parents[1].leaves[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 5, 3)])
def test_rows_are_the_places_of_samples(shape):
    batch = DRAW.normal(size=shape).astype(np.float32)
    found = outputs_of(lambda v, x: {"y": v * x}, np.float32(2.0), [batch, batch])
    rows = (2 * batch).reshape(-1, shape[-1] if len(shape) > 1 else 1)
    np.testing.assert_allclose(found.leaves[0], np.concatenate([rows, rows]))
    places = len(rows) // 6
    np.testing.assert_array_equal(found.samples[0], np.repeat(np.arange(12), places))
    np.testing.assert_array_equal(found.batches, np.repeat([0, 1], 6))


def test_a_loss_or_a_class_is_no_output_to_compare():
    batch = DRAW.normal(size=(6, 3)).astype(np.float32)
    assert outputs_of(lambda v, x: (v * x).sum(), np.float32(2.0), [batch]) is None
    assert outputs_of(lambda v, x: (v * x).argmax(-1), np.float32(2.0), [batch]) is None
