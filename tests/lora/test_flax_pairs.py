"""Adapters in JAX trees: a folded network computes what the network with them does."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from loras import draw

from jmudsc.lora.flax_pairs import lora_from_tree
from jmudsc.lora.fold_lora import fold_lora


def refused(*args, **options):
    with pytest.raises(ValueError, match="lora_from_tree: ") as error:
        lora_from_tree(*args, **options)
    return str(error.value)


class Network(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.LoRALinear(5, 6, lora_rank=2, rngs=rngs)
        own = nnx.Linear(6, 4, rngs=rngs)
        self.second = nnx.LoRA(6, 3, 4, base_module=own, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


class Plain(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(5, 6, rngs=rngs)
        self.second = nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


@pytest.mark.parametrize("as_state", [True, False])
def test_a_folded_network_of_nnx_computes_what_it_did(as_state):
    network, plain = Network(nnx.Rngs(0)), Plain(nnx.Rngs(1))
    network.first.lora.lora_b.set_value(jnp.asarray(draw(1, 2, 6)))
    network.second.lora_b.set_value(jnp.asarray(draw(2, 3, 4)))
    plain.first.kernel.set_value(network.first.kernel.get_value())
    plain.second.kernel.set_value(network.second.base_module.kernel.get_value())
    state, base = nnx.state(network), nnx.state(plain)
    if not as_state:
        state, base = nnx.to_pure_dict(state), nnx.to_pure_dict(base)
    ignore = ["*kernel", "*bias"]
    folded = fold_lora(lora_from_tree(state, ignore=ignore), base).variables
    if not as_state:
        folded = nnx.state(plain)
        nnx.replace_by_pure_dict(
            folded,
            fold_lora(lora_from_tree(state, ignore=ignore), base).variables,
        )
    nnx.update(plain, folded)
    x = draw(3, 8, 5)
    np.testing.assert_allclose(plain(x), network(x), rtol=1e-4, atol=1e-5)


def test_the_network_with_its_own_base_is_folded_in_place():
    network = Network(nnx.Rngs(0))
    network.second.lora_b.set_value(jnp.asarray(draw(2, 3, 4)))
    state = nnx.state(network)
    adapter = lora_from_tree(state, ignore=["*kernel", "*bias"])
    base = nnx.to_pure_dict(state)
    merged = fold_lora(adapter, base).variables
    second = base["second"]
    expected = second["base_module"]["kernel"] + second["lora_a"] @ second["lora_b"]
    np.testing.assert_allclose(
        merged["second"]["base_module"]["kernel"], expected, rtol=1e-5
    )


def test_einsum_weights_of_qwix_are_changed_by_their_scaled_product():
    """Shapes as qwix makes them for BTD,NDH->BTNH and BTNH,NHD->BTD."""
    base = {"q": {"w": draw(0, 2, 6, 4)}, "o": {"w": draw(1, 2, 4, 6)}}
    tree = {
        "q": {"w_lora_a": draw(2, 6, 3), "w_lora_b": draw(3, 3, 2, 4)},
        "o": {"w_lora_a": draw(4, 2, 4, 3), "w_lora_b": draw(5, 3, 6)},
    }
    adapter = lora_from_tree(tree, alpha=6)
    merged = fold_lora(adapter, base).variables
    added = np.einsum("dr,rnh->ndh", tree["q"]["w_lora_a"], tree["q"]["w_lora_b"])
    close = lambda got, x: np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-5)
    close(merged["q"]["w"], base["q"]["w"] + 2 * added)
    added = np.einsum("nhr,rd->nhd", tree["o"]["w_lora_a"], tree["o"]["w_lora_b"])
    close(merged["o"]["w"], base["o"]["w"] + 2 * added)


def test_axes_that_sizes_do_not_tell_are_asked_for():
    base = {"q": {"w": draw(0, 6, 6, 4)}}
    tree = {"q": {"w_lora_a": draw(2, 6, 3), "w_lora_b": draw(3, 3, 6, 4)}}
    adapter = lora_from_tree(tree)
    with pytest.raises(ValueError, match="q/w of shape"):
        fold_lora(adapter, base)
    merged = fold_lora(adapter, base, axes={"q/w": "oio"}).variables
    added = np.einsum("dr,rnh->ndh", tree["q"]["w_lora_a"], tree["q"]["w_lora_b"])
    np.testing.assert_allclose(
        merged["q"]["w"], base["q"]["w"] + added, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("leaf", ["kernel", "w"])
def test_stacked_factors_change_each_layer_of_a_stack(leaf):
    base = {"mlp": {leaf: draw(0, 3, 5, 7)}}
    tree = {"mlp": {"lora_a": draw(1, 3, 5, 2), "lora_b": draw(2, 3, 2, 7)}}
    merged = fold_lora(lora_from_tree(tree, alpha=4, rslora=True), base).variables
    for layer in range(3):
        added = tree["mlp"]["lora_a"][layer] @ tree["mlp"]["lora_b"][layer]
        expected = base["mlp"][leaf][layer] + 4 / 2**0.5 * added
        np.testing.assert_allclose(
            merged["mlp"][leaf][layer], expected, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("b_shape", [(2, 7), (1, 1, 2, 7)])
def test_the_factors_of_a_convolution_are_its_window_and_its_outputs(b_shape):
    base = {"conv": {"kernel": draw(0, 3, 3, 5, 7)}}
    tree = {"conv": {"lora_a": draw(1, 3, 3, 5, 2), "lora_b": draw(2, *b_shape)}}
    merged = fold_lora(lora_from_tree(tree), base).variables["conv"]["kernel"]
    added = tree["conv"]["lora_a"] @ tree["conv"]["lora_b"].reshape(2, 7)
    expected = base["conv"]["kernel"] + added
    np.testing.assert_allclose(merged, expected, rtol=1e-4, atol=1e-5)


def test_pairs_of_other_names_are_told_by_patterns():
    tree = {"q": {"down": draw(1, 5, 2), "up": draw(2, 2, 7)}, "norm": draw(3, 5)}
    base = {"layer": {"q_proj": {"kernel": draw(0, 5, 7)}}, "norm": draw(4, 5)}
    pairs = {"layer/*_proj/kernel": ("*/down", "*/up")}
    adapter = lora_from_tree(tree, pairs, replace=["norm"])
    merged = fold_lora(adapter, base).variables
    expected = base["layer"]["q_proj"]["kernel"] + tree["q"]["down"] @ tree["q"]["up"]
    got = merged["layer"]["q_proj"]["kernel"]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(merged["norm"], tree["norm"])


def test_what_is_wrong_with_pairs_is_said():
    a, b = draw(0, 5, 2), draw(1, 2, 7)
    assert refused({"x": {"kernel": a}}) == (
        "lora_from_tree: expected factors of low-rank updates, got none in 1 leaf. "
        'Pass pairs=, what is changed -> its two factors: {"*/kernel": ("*/lora_a", '
        '"*/lora_b")}.'
    )
    assert refused({"x": {"lora_a": a}, "y": {"lora_a": a, "lora_b": b}}) == (
        "lora_from_tree: expected both factors of every update, got one alone for "
        "1 of 2. Correct pairs:\n  x/lora_a"
    )
    assert refused({"x": {"lora_a": a, "lora_b": draw(1, 3, 7)}}) == (
        "lora_from_tree: expected factors (..., in, rank) and (..., rank, out), got "
        "other ranks for 1 of 1. Pair each with its own:\n"
        "  x: A of shape [5, 2], B of shape [3, 7]"
    )
    assert refused({"x": {"lora_a": a, "lora_b": b, "kernel": a}}) == (
        "lora_from_tree: expected factors of updates alone, got 1 leaf besides. Say "
        'what they are by replace= or ignore=["*"]:\n  x/kernel'
    )
    assert refused({"x": {"lora_a": a, "lora_b": b}}, {"*/w": ("*/lora_a", "y")}) == (
        "lora_from_tree: expected two patterns with as many * as what they change, "
        "got others in 1 of 1. Correct pairs:\n  '*/w': ('*/lora_a', 'y')"
    )
    assert refused({"x": {"lora_a": a, "lora_b": b}}, ignore=["*/bais"]) == (
        "lora_from_tree: expected every pattern to match a leaf, got some that "
        'match none:\n  "*/bais"\nGive whole leaf paths; * stands for any text.'
    )
