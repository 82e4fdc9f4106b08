import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from assignments import draw, shuffled, stay, zipped

from jmudsc import combine, permute, pool_batch_stats, random_permutations

MEAN, VARIANCE = "norm/mean", "norm/var"


def mixture(models, rows, shares):
    """Pool unit by unit: the mean and variance of draws from all that share one."""
    size = rows.shape[1]
    mean, variance = np.zeros(size), np.zeros(size)
    for merged in range(size):
        members = [
            (shares[i], float(model[MEAN][j]), float(model[VARIANCE][j]))
            for i, model in enumerate(models)
            for j in np.flatnonzero(rows[i] == merged)
        ]
        w, m, v = np.array(members).T
        w = w / w.sum()
        mean[merged] = (w * m).sum()
        variance[merged] = (w * (v + m**2)).sum() - mean[merged] ** 2
    return {MEAN: mean, VARIANCE: variance}


@pytest.mark.parametrize("assign", [stay, shuffled, zipped])
@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 5.0)])
def test_statistics_become_those_of_the_mixture(assign, weights):
    spec, models = tiny.spec_of("cnn"), draw("cnn", 3)
    rows = assign(spec, 3)
    merged = combine(spec, models, rows, weights)
    found = pool_batch_stats(spec, models, rows, merged, weights)
    shares = np.array(weights or (1, 1, 1)) / np.sum(weights or (1, 1, 1))
    name = tiny.label_at(spec, MEAN, 0)
    expected = mixture(models, rows[name], shares)
    for path, leaf in merged.items():
        if path in expected:
            np.testing.assert_allclose(found[path], expected[path], rtol=1e-5)
        else:
            np.testing.assert_array_equal(found[path], leaf)


def test_a_network_and_itself_permuted_keep_their_statistics(key):
    spec, parent = tiny.spec_of("cnn"), draw("cnn", 1)[0]
    perms = random_permutations(spec, key)
    rows = {n: np.stack([stay(spec, 1)[n][0], perms[n]]) for n in spec.labels}
    models = [parent, permute(spec, parent, perms)]
    merged = combine(spec, models, rows)
    found = pool_batch_stats(spec, models, rows, merged)
    for path in (MEAN, VARIANCE):
        np.testing.assert_array_equal(found[path], parent[path])


def test_a_mean_far_above_the_deviation_does_not_cancel():
    spec, models = tiny.spec_of("cnn"), draw("cnn", 2)
    for number, model in enumerate(models):
        model[MEAN] = np.full(6, 1e4 + number, np.float32)
        model[VARIANCE] = np.full(6, 1e-2, np.float32)
    rows = stay(spec, 2)
    found = pool_batch_stats(spec, models, rows, combine(spec, models, rows))
    np.testing.assert_allclose(found[VARIANCE], 0.26, rtol=1e-5)


def test_bfloat16_stays_and_is_rounded_at_the_end():
    spec, models = tiny.spec_of("cnn"), draw("cnn", 2)
    half = [{p: jnp.asarray(x, jnp.bfloat16) for p, x in m.items()} for m in models]
    rows = stay(spec, 2)
    found = pool_batch_stats(spec, half, rows, combine(spec, half, rows))
    expected = mixture(half, rows[tiny.label_at(spec, MEAN, 0)], (0.5, 0.5))
    for path, value in expected.items():
        assert found[path].dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(found[path], float), value, rtol=2**-8)


def test_a_spec_that_pairs_nothing_is_refused():
    text = (
        "pool_batch_stats: the spec pairs no running mean with a variance, needed at "
        "least one; derive it with infer_spec, or leave networks without BatchNorm as "
        "they are."
    )
    spec, models = (
        dataclasses.replace(tiny.spec_of("cnn"), variances={}),
        draw("cnn", 2),
    )
    rows = stay(spec, 2)
    with pytest.raises(ValueError, match=re.escape(text)):
        pool_batch_stats(spec, models, rows, combine(spec, models, rows))
