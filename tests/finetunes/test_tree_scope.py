"""TIES over a whole tree against the same on one flat vector."""

import numpy as np
import pytest
import tiny
from finetuned import fine_tunes, merged

BASE = tiny.variables(tiny.MLP, 0)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for _, leaf in sorted(tree.items())])


def oracle(models, base, density):
    """The paper's TIES on flattened models, in float64 but for the deltas."""
    ds = [flat(m) - flat(base) for m in models]
    kept = []
    for share, d in zip(density, ds, strict=True):
        least = np.sort(np.abs(d))[-int(share * d.size)]
        kept.append(np.where(np.abs(d) >= least, d, 0).astype(float))
    signs = np.sign(np.sum(kept, axis=0))
    signs[signs == 0] = np.sign(signs.sum())
    agree = [k * (np.sign(k) == signs) for k in kept]
    count = np.sum([a != 0 for a in agree], axis=0)
    return flat(base) + np.sum(agree, axis=0) / np.maximum(count, 1)


@pytest.mark.parametrize("density", [(0.2, 0.2, 0.2), (0.05, 0.5, 1.0)])
def test_the_largest_are_those_of_the_whole_model(density):
    models = fine_tunes(BASE, 3)
    found = merged(models, BASE, "ties", scope="tree", density=list(density))
    np.testing.assert_allclose(
        flat(found), oracle(models, BASE, density), rtol=1e-5, atol=1e-6
    )


def test_a_leaf_of_small_changes_keeps_none_of_them():
    models = fine_tunes(BASE, 2)
    for model in models:
        small = 1e-4 * (model["a/kernel"] - BASE["a/kernel"])
        model["a/kernel"] = (BASE["a/kernel"] + small).astype(np.float32)
    whole = merged(models, BASE, "ties", scope="tree")
    assert np.array_equal(whole["a/kernel"], BASE["a/kernel"])
    by_leaf = merged(models, BASE, "ties")
    assert not np.array_equal(by_leaf["a/kernel"], BASE["a/kernel"])


@pytest.mark.parametrize("sign", [1, -1])
def test_a_tie_goes_to_the_sign_of_most_entries_of_the_tree(sign):
    base = {"a": np.zeros(2, np.float32), "b": np.zeros(5, np.float32)}
    models = [
        {"a": np.array([one, 0.0], np.float32), "b": np.full(5, sign, np.float32)}
        for one in (1.0, -1.0)
    ]
    models[1]["b"] = models[1]["b"] * np.float32(0.5)
    found = merged(models, base, "ties", scope="tree", density=1.0)
    assert found["a"][0] == sign


def test_excluded_leaves_do_not_count():
    models = fine_tunes(BASE, 2)
    for model in models:
        model["a/kernel"] = model["a/kernel"] * np.float32(100)
    found = merged(models, BASE, "ties", scope="tree", exclude="a/kernel")
    rest = lambda tree: {p: leaf for p, leaf in tree.items() if p != "a/kernel"}
    expected = merged(list(map(rest, models)), rest(BASE), "ties", scope="tree")
    assert np.array_equal(flat(rest(found)), flat(expected))
    assert np.array_equal(found["a/kernel"], BASE["a/kernel"])


def test_one_density_goes_with_one_tree():
    with pytest.raises(ValueError, match="density: expected one number for each") as e:
        merged(fine_tunes(BASE), BASE, "ties", scope="tree", density={"*": 0.2})
    assert "scope=\"tree\", got {'*': 0.2}" in str(e.value)
