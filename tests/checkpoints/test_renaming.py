"""Names of leaves on their way into a tree."""

import re

import checkpoint_writers as writers
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_checks import assert_same, sentence

from jmudsc.checkpoints.load import load
from jmudsc.checkpoints.save import save_variables


def test_names_are_split_at_a_separator(tmp_path):
    path = tmp_path / "run.npz"
    np.savez(path, **{"a.b/c": np.float32(1), "a.d": np.float32(2)})
    assert load(path) == {"a.b": {"c": 1}, "a.d": 2}
    assert load(path, separator=".") == {"a": {"b/c": 1, "d": 2}}
    assert load(path, separator="") == {"a.b/c": 1, "a.d": 2}
    orbax = save_variables(tmp_path / "run", {"a.d": np.float32(2)})
    assert load(orbax, separator=".") == {"a": {"d": 2}}


def test_leaves_are_renamed_after_the_subtree_is_taken(tmp_path):
    path = tmp_path / "run.npz"
    names = ["net/enc/0/weight", "net/enc/1/weight", "net/head/weight", "net/steps"]
    np.savez(path, **{name: np.float32(i) for i, name in enumerate(names)})
    found = load(
        path,
        "net",
        rename={
            "steps": None,
            "enc/*/weight": "Dense_*/kernel",
            "*/weight": "*/kernel",
        },
    )
    kernels = {"Dense_0": 0, "Dense_1": 1, "head": 2}
    assert found == {name: {"kernel": number} for name, number in kernels.items()}


@pytest.mark.parametrize("write", [writers.standard, save_variables])
def test_what_is_not_renamed_keeps_its_place_in_lists(write, tmp_path):
    variables = {"layers": [{"w": jnp.zeros(1)}, {"w": jnp.ones(1)}], "a": jnp.ones(2)}
    path = write(tmp_path / "run", variables)
    found = load(path, rename={"layers/*/w": "layers/*/kernel", "a": "b/c"})
    layers = [{"kernel": jnp.zeros(1)}, {"kernel": jnp.ones(1)}]
    assert_same(found, {"layers": layers, "b": {"c": jnp.ones(2)}})


@pytest.mark.parametrize(
    ("rename", "rest"),
    [
        (
            {"a/wieght": "b", "*": "*"},
            "expected patterns that match a leaf, got 1 of 2 in rename that match "
            "none. Give whole leaf paths, as the rules before leave them:\n"
            '  "a/wieght"; did you mean "a/weight"?',
        ),
        (
            {"a/*": "c", "*/bias": "*"},
            'expected as many "*" in a new path as in its pattern, got another number '
            'in 1 of 2 rules. Correct rename:\n  "a/*" has 1 "*" and "c" 0',
        ),
        (
            {"a/*": "*", "b/*": "*"},
            "expected one leaf for each name, got several for 1 of 2. Correct rename "
            "or separator:\n  weight: a/weight and b/weight",
        ),
        (
            {"a/weight": "b"},
            "expected names that nest, got 1 of 3 leaves inside another leaf. Rename "
            'some, or keep names whole with separator="":\n  b/weight in b',
        ),
    ],
    ids=["unmatched", "stars", "twice", "inside"],
)
def test_a_rename_that_cannot_be(rename, rest, tmp_path):
    leaves = {name: np.ones(1) for name in ("a/weight", "a/bias", "b/weight")}
    np.savez(tmp_path / "run.npz", **leaves)
    with pytest.raises(ValueError, match=sentence(f"{tmp_path}/run.npz: {rest}")):
        load(tmp_path / "run.npz", rename=rename)


def test_names_joined_by_dots_are_advised_on(tmp_path):
    path = tmp_path / "run.npz"
    np.savez(path, **{"net.w": np.ones(1)})
    advice = re.escape('\nNames have "." here and no "/"; pass separator=".".')
    with pytest.raises(ValueError, match=f"{advice}$"):
        load(path, rename={"net/*": "*"})
    with pytest.raises(ValueError, match=f"{advice}$"):
        load(path, "net")
    assert load(path, "net", separator=".") == {"w": 1}
