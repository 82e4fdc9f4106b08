"""Parts of trees by their names."""

import checkpoint_writers as writers
import jax
import jax.numpy as jnp
import pytest
from checkpoint_checks import assert_same, sentence

from jmudsc.checkpoints.load import load


@pytest.mark.parametrize(
    ("subtree", "pick"),
    [
        ("params/Dense_0", lambda t: t["params"]["Dense_0"]),
        ("params/Dense_0/bias", lambda t: t["params"]["Dense_0"]["bias"]),
        ("params/layers/1", lambda t: t["params"]["layers"][1]),
        ("params/mlp/~/linear.0/w", lambda t: t["params"]["mlp/~/linear.0"]["w"]),
        ("empty", lambda t: {}),
        (["counts/step", "masks"], lambda t: {"step": 4, "masks": t["masks"]}),
    ],
)
def test_a_nested_subtree_loads(subtree, pick, tmp_path):
    tree = writers.mixed_tree()
    path = writers.standard(tmp_path / "run", tree)
    expected = jax.tree.map(lambda x: jnp.asarray(x), pick(tree))
    assert_same(load(path, subtree), expected)


PARAMS = "\n  params/layers\n  params/w"


@pytest.mark.parametrize(
    ("subtree", "rest"),
    [
        ("parms", '; did you mean "params"? Give one of:\n  masks\n  params'),
        ("params/kernel", ". Give one of:" + PARAMS),
        ("params/layer", '; did you mean "params/layers"? Give one of:' + PARAMS),
        ("params/layers/2", ". Give one of:\n  params/layers/0\n  params/layers/1"),
        ("params/w/x", '; did you mean "params/w"? Give one of:' + PARAMS),
    ],
)
def test_a_subtree_that_is_not_there(subtree, rest, tmp_path):
    pair = [jnp.ones(1), jnp.ones(1)]
    tree = {"params": {"w": jnp.ones(2), "layers": pair}, "masks": jnp.ones(1)}
    path = writers.standard(tmp_path / "run", tree)
    expected = f'{path}: expected a subtree that is there, got "{subtree}"{rest}'
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path, subtree)


def test_two_parts_of_one_name(tmp_path):
    tree = {"a": {"params": jnp.ones(1)}, "b": {"params": jnp.ones(1)}}
    path = writers.standard(tmp_path / "run", tree)
    expected = (
        "subtree: expected parts that end in different words, got ['a/params', "
        "'b/params']. Load them one at a time."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path, ("a/params", "b/params"))
