import dataclasses
import re

import jax
import numpy as np
import pytest

from jmudsc import paths


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: object
    bias: object


TREE = {"params": {"blocks": [Layer(1, 2), Layer(3, None)], "out": (4,)}, "step": 5}
PATHS = {
    "params/blocks/0/kernel": 1,
    "params/blocks/0/bias": 2,
    "params/blocks/1/kernel": 3,
    "params/out/0": 4,
    "step": 5,
}


def test_a_leaf_is_named_by_its_way_through_the_tree():
    assert paths.flatten(TREE) == PATHS


def test_leaves_come_in_the_order_of_the_tree():
    assert list(paths.flatten(TREE).values()) == jax.tree.leaves(TREE)


def test_a_tree_that_is_one_leaf_has_the_empty_path():
    assert paths.flatten(7) == {"": 7}


def test_unflatten_undoes_flatten_in_any_order_of_the_leaves():
    leaves = dict(reversed(paths.flatten(TREE).items()))
    assert paths.unflatten(TREE, leaves) == TREE


def test_unflatten_takes_values_by_path():
    tree = {"b": np.zeros(2), "a": {"c": np.ones(3)}}
    changed = paths.unflatten(tree, {"a/c": "new", "b": "other"})
    assert changed == {"b": "other", "a": {"c": "new"}}


def test_two_leaves_of_one_path_are_refused():
    message = (
        'tree: expected a path of its own for every leaf, got "a/b" twice. Rename one '
        'of the two; a key that itself contains "/" can cause this.'
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        paths.flatten({"a": {"b": 1}, "a/b": 2})


def test_the_nearest_name_is_suggested_and_only_if_it_is_near():
    names = ["params/Dense_0/kernel", "params/Dense_0/bias", "step"]
    assert paths.nearest("params/Dense_0/kernal", names) == "params/Dense_0/kernel"
    assert paths.nearest("zzz", names) is None
    hint = paths.did_you_mean("stepp", names)
    assert hint == '; did you mean "step"?'
    assert paths.did_you_mean("zzz", names) == ""


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, ""),
        (2, "  0\n  1"),
        (3, "  0\n  1\n  2"),
        (5, "  0\n  1\n  2\n  and 2 more"),
    ],
)
def test_long_lists_end_in_a_count(count, text):
    assert paths.listed(map(str, range(count)), most=3) == text
