"""Whom a refit follows, and how much each sample counts, against numpy."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from jmudsc import refit
from jmudsc.derivation.infer_spec import infer_spec
from jmudsc.repairs.mixing import along
from jmudsc.repairs.sureness import sureness

DRAW = np.random.default_rng(0)
BATCHES = [DRAW.normal(size=(9, 4)).astype(np.float32) for _ in range(2)]
PARENTS = [
    {"kernel": DRAW.normal(size=(4, 3)).astype(np.float32), "bias": np.ones(3, "f")}
    for _ in range(2)
]
MERGED = {"kernel": np.zeros((4, 3), "f"), "bias": np.zeros(3, "f")}


def apply_fn(variables, x):
    return x @ variables["kernel"] + variables["bias"][None]


def fitted(**options):
    spec = infer_spec(apply_fn, PARENTS[0], BATCHES[0])
    options = {"ridge": 1e-6, "target": "ensemble", **options}
    return refit(spec, apply_fn, PARENTS, {}, MERGED, BATCHES, **options)


def solved(target, weights):
    """Solve the weighted least squares of one layer in float64."""
    x = np.concatenate(BATCHES).astype(float)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    root = np.sqrt(weights)[:, None]
    solution = np.linalg.lstsq(root * x, root * target, rcond=None)[0]
    return {"kernel": solution[:-1], "bias": solution[-1]}


def assert_close(found, expected):
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-3, atol=1e-4)


def wanted(shares):
    x = np.concatenate(BATCHES)
    both = [apply_fn(parent, x) for parent in PARENTS]
    return sum(share[:, None] * y for share, y in zip(shares, both, strict=True))


HALF = np.full((2, 18), 0.5)


def test_the_ensemble_is_followed():
    assert_close(fitted(), solved(wanted(HALF), np.ones(18)))


def test_the_surer_parent_is_followed_more():
    x = np.concatenate(BATCHES)
    outputs = [apply_fn(parent, x) for parent in PARENTS]
    sure = np.stack([sureness([y], [np.arange(18)], 18) for y in outputs])
    expected = solved(wanted(sure / sure.sum(axis=0)), np.ones(18))
    assert_close(fitted(target="sureness"), expected)
    assert_close(fitted(target=None), expected)


def test_owners_are_followed_or_not():
    own = np.repeat([[1.0, 0.0], [0.0, 1.0]], 9, axis=1)
    expected = solved(wanted(own), np.ones(18))
    assert_close(fitted(owners=[0, 1], target="owner"), expected)
    assert_close(fitted(owners=[0, 1], target=None), expected)
    expected = solved(wanted(HALF), np.ones(18))
    assert_close(fitted(owners=[0, 1]), expected)


def test_samples_count_by_their_weights():
    """Owners want different things, so that no linear layer does all of it."""
    weights, own = DRAW.uniform(0, 4, size=18), np.repeat(np.eye(2), 9, axis=1)
    given = iter(np.split(weights, 2))

    def weigh(batch, outputs):
        for parent, output in zip(PARENTS, outputs, strict=True):
            np.testing.assert_allclose(output, apply_fn(parent, batch), rtol=1e-5)
        return next(given)

    found = fitted(owners=[0, 1], target="owner", sample_weight=weigh)
    assert_close(found, solved(wanted(own), weights))


def test_samples_of_no_weight_are_as_if_they_were_not_there():
    """Parents that only agree on some samples are followed on these alone."""
    owners = [0, 1]
    only = iter([np.ones(9), np.zeros(9) + 1e-9])
    found = fitted(owners=owners, target="owner", sample_weight=lambda *_: next(only))
    assert_close(found, PARENTS[0])


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        (np.ones(5), "[5] with values from 1 to 1"),
        (-np.ones(9), "[9] with values from -1 to -1"),
        (np.zeros(9), "[9] with values from 0 to 0"),
        (np.full(9, np.nan), "[9] with values from nan to nan"),
        (np.float32(1), "[] with values from 1 to 1"),
    ],
)
def test_weights_that_are_none_are_refused(weights, text):
    sentence = (
        "refit: sample_weight: expected for batch 0 finite weights of at least 0, not "
        "all of them 0, one for each sample or for each of its places, got an array of "
        f"shape {text}. Return an array whose first axis runs over the samples."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        fitted(sample_weight=lambda *_: weights)


def test_weights_are_brought_to_the_axes_of_what_they_multiply():
    weights = jnp.asarray([1.0, 3.0])
    assert along(weights, (2, 5, 7)).shape == (2, 1, 1)
    np.testing.assert_array_equal(along(weights, (4, 7))[:, 0], [1, 1, 3, 3])
    np.testing.assert_array_equal(along(weights, (5, 7)), [[2.0]])
    places = jnp.asarray([[1.0, 3.0, 2.0], [0.0, 0.0, 6.0]])
    np.testing.assert_array_equal(along(places, (2, 3, 7))[..., 0], places)
    np.testing.assert_array_equal(along(places, (6, 7))[:, 0], places.ravel())
    np.testing.assert_array_equal(along(places, (2, 7))[:, 0], [2, 2])


def test_leaves_that_are_not_named_stay():
    assert_close(fitted(only=["kernel"]), fitted())
    text = "refit: "
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        fitted(only=["kernels"])


def test_a_target_that_is_none_is_refused():
    text = (
        'refit: target: expected owners with "owner", got none. Pass owners, for each '
        "batch the number of the model whose task it is from."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        fitted(target="owner")
    text = (
        'refit: target: expected one of owner, sureness, ensemble, got "own". Leave it '
        "out to follow owners where they are known."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        fitted(target="own")
