"""A factored merge loses what its rank cannot hold, and tells how much that is."""

import numpy as np
import pytest
from loras import delta, draw, pair, peft, tree

from jmudsc.lora.factor_loras import factor_loras
from jmudsc.lora.fold_lora import fold_lora
from jmudsc.lora.merge_loras import merge_loras

SIZES = {"a": (8, 6), "b": (6, 7)}
BASE = {
    "a/kernel": np.zeros((8, 6), "float32"),
    "b/kernel": np.zeros((6, 7), "float32"),
}
ADAPTERS = [tree(seed, SIZES, rank=2, alpha=3.0) for seed in range(2)]
SPACES = ["full", "knots", "core"]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    ("method", "rank"), [("task_arithmetic", 4), ("iso_c", 4), ("ties", 64)]
)
def test_a_rank_that_is_large_enough_loses_nothing(space, method, rank):
    found = factor_loras(ADAPTERS, BASE, method, rank=rank, space=space)
    expected = merge_loras(ADAPTERS, BASE, method, space=space).variables
    got = fold_lora(found.adapter, BASE).variables
    for path, leaf in expected.items():
        np.testing.assert_allclose(got[path], leaf, rtol=1e-4, atol=1e-5)
    assert found.total < 1e-12
    assert max(found.lost.values()) < 1e-12


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_smaller_rank_loses_exactly_the_tail(space, rank):
    found = factor_loras(ADAPTERS, BASE, "linear", rank=rank, space=space)
    squares = {}
    for name in SIZES:
        mean = np.mean([delta(each, name) for each in ADAPTERS], axis=0)
        squares[name] = np.linalg.svd(mean, compute_uv=False) ** 2
        tail = squares[name][rank:].sum() / squares[name].sum()
        assert found.lost[name] == pytest.approx(tail, rel=1e-5)
        assert found.adapter.updates[name].rank == rank
        kept = delta(found.adapter, name)
        assert np.square(mean - kept).sum() == pytest.approx(
            squares[name][rank:].sum(), rel=1e-4
        )
    tails = sum(each[rank:].sum() for each in squares.values())
    everything = sum(each.sum() for each in squares.values())
    assert found.total == pytest.approx(tails / everything, rel=1e-5)


def test_convolutions_tables_and_layers_of_stacks_are_factored(tmp_path):
    arrays = lambda n: {
        **pair(n, "h.0.q", 6, 5),
        **pair(9 + n, "h.1.q", 6, 5),
        "e.lora_embedding_A": draw(n, 2, 11),
        "e.lora_embedding_B": draw(n + 9, 5, 2),
        "conv.lora_A.weight": draw(n, 2, 3, 3, 3),
        "conv.lora_B.weight": draw(n, 4, 2, 1, 1),
    }
    adapters = [peft(tmp_path / f"{n}", arrays(n)) for n in range(2)]
    rename = {"h.*.q": "h/q/kernel[*]"}
    for base in (
        {"conv/kernel": draw(1, 3, 3, 3, 4), "e/embedding": draw(2, 11, 5)},
        {"conv.weight": draw(1, 4, 3, 3, 3), "e.weight": draw(2, 11, 5)},
    ):
        base = base | {"h/q/kernel": draw(0, 2, 6, 5)}
        found = factor_loras(adapters, base, rank=4, space="core", rename=rename)
        assert found.adapter.updates.keys() == {"h.0.q", "h.1.q", "e", "conv"}
        got = fold_lora(found.adapter, base, rename=rename).variables
        expected = merge_loras(adapters, base, rename=rename).variables
        for path, leaf in expected.items():
            np.testing.assert_allclose(got[path], leaf, rtol=1e-4, atol=1e-5)


def test_stacks_of_a_tree_are_factored_layer_by_layer():
    leaves = lambda n: {
        "m/lora_a": draw(n, 3, 6, 2),
        "m/lora_b": draw(n + 9, 3, 2, 5),
    }
    from jmudsc.lora.flax_pairs import lora_from_tree

    adapters = [lora_from_tree(leaves(n)) for n in range(2)]
    base = {"m/kernel": draw(0, 3, 6, 5)}
    found = factor_loras(adapters, base, rank=4)
    got = fold_lora(found.adapter, base).variables["m/kernel"]
    expected = merge_loras(adapters, base).variables["m/kernel"]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_biases_and_replaced_leaves_are_whole(tmp_path):
    arrays = lambda n: {
        **pair(n, "x", 5, 7),
        "x.lora_B.bias": draw(n + 3, 7),
        "head.weight": draw(n + 4, 3, 7),
    }
    adapters = [peft(tmp_path / f"{n}", arrays(n)) for n in range(2)]
    base = {
        "x/kernel": draw(0, 5, 7),
        "x/bias": draw(1, 7),
        "head/kernel": draw(2, 7, 3),
    }
    found = factor_loras(adapters, base, "linear", rank=4)
    heads = [arrays(n)["head.weight"] for n in range(2)]
    np.testing.assert_allclose(
        found.adapter.replaced["head.weight"], np.mean(heads, axis=0), atol=1e-5
    )
    assert found.adapter.replaced.keys() == {"x.bias", "head.weight"}
    got = fold_lora(found.adapter, base).variables
    expected = merge_loras(adapters, base, "linear").variables
    for path, leaf in expected.items():
        np.testing.assert_allclose(got[path], leaf, rtol=1e-4, atol=1e-5)


def test_what_decided_it_is_recorded():
    found = factor_loras(ADAPTERS, BASE, "ties", rank=2, space="core", density=0.5)
    assert found.recipe == {
        "method": "ties",
        "base": True,
        "models": 2,
        "density": 0.5,
        "adapters": ["adapter"] * 2,
        "space": "core",
        "rank": 2,
    }


@pytest.mark.parametrize("rank", [0, -1, True])
def test_a_rank_that_cannot_be_is_refused(rank):
    with pytest.raises(ValueError, match="factor_loras: ") as error:
        factor_loras(ADAPTERS, BASE, rank=rank)
    assert str(error.value) == (
        f"factor_loras: rank: expected a whole number > 0, got {rank}. Pass that of "
        "the adapters, or the sum of theirs to lose nothing."
    )


def test_loras_of_two_kinds_have_no_common_names(tmp_path):
    both = [ADAPTERS[0], peft(tmp_path, pair(1, "a", 8, 6))]
    with pytest.raises(ValueError, match="factor_loras: ") as error:
        factor_loras(both, BASE, rank=2)
    assert str(error.value) == (
        "factor_loras: expected adapters that are all from PEFT or all from trees, "
        "got both, whose names differ. Merge them with merge_loras."
    )
    assert merge_loras(both, BASE).variables["a/kernel"].any()
