"""Products of units are the same on the host and on the device."""

import jax
import numpy as np
import pytest
import tiny

from jmudsc import collect, infer_spec, match
from jmudsc.matching import similarity
from jmudsc.matching.products import add_pairs, add_stacked, are_large, mirror, plus


def draw(*shape, models=2):
    generator = np.random.default_rng(0)
    return [generator.standard_normal(shape, np.float32) for _ in range(models)]


def stacked_in_float64(samples):
    x = np.concatenate(samples, axis=-1).astype(np.float64)
    return np.einsum("s...i,s...j->...ij", x, x)


# More entries than go to the device at once, and fewer; with a stack of layers.
SHAPES = [(1, 4), (70, 5), (600, 7), (256, 3), (40, 3, 5), (300, 2, 4)]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("models", [2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_sums_over_entries(shape, models, large):
    samples = draw(*shape, models=models)
    expected = stacked_in_float64(samples)
    found = np.asarray(mirror(add_stacked(None, samples, large)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6 * shape[0], rtol=1e-5)
    np.testing.assert_array_equal(found, found.swapaxes(-1, -2))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("models", [2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_of_pairs_are_blocks_of_all_products(shape, models, large):
    samples = draw(*shape, models=models)
    blocks = stacked_in_float64(samples)
    units, pairs = shape[-1], [(i, j) for j in range(models) for i in range(j)]
    found = add_pairs(None, samples, large)
    assert len(found) == len(pairs)
    for block, (i, j) in zip(found, sorted(pairs), strict=True):
        rows, columns = slice(i * units, None), slice(j * units, None)
        expected = blocks[..., rows, columns][..., :units, :units]
        np.testing.assert_allclose(block, expected, atol=1e-6 * shape[0], rtol=1e-5)


def test_what_is_large_depends_on_sizes_where_there_is_an_accelerator(monkeypatch):
    assert not are_large(2, 3072, 2 * 2_360_000)  # a CPU takes all on the host
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not are_large(2, 256, 2 * 590_000)  # a block of a ResNet-20x4
    assert are_large(2, 3072, 2 * 2_360_000)  # the hidden units of a ViT-B


@pytest.mark.parametrize("method", ["mudsc-align", "mudsc-zip", "weight-align"])
def test_large_products_lead_to_the_same_matching(method, monkeypatch, key):
    net = tiny.NETS["attention"]
    models = [tiny.variables(net, seed) for seed in range(2)]
    batches = [tiny.batch(net, seed, 40) for seed in range(2)]
    spec = infer_spec(net.apply_fn, models[0], batches[0])
    moments = collect(spec, net.apply_fn, models, batches)
    here = match(spec, models, moments, method=method, key=key)
    monkeypatch.setattr(similarity, "are_large", lambda *_: True)
    there = match(spec, models, moments, method=method, key=key)
    np.testing.assert_allclose(there.history, here.history, atol=1e-5)
    for name, rows in here.assignment.items():
        np.testing.assert_array_equal(there.assignment[name], rows)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES, (90, 130)], ids=str)
def test_products_are_added_to_others(shape, large):
    one, other = draw(*shape), [x[:20] for x in draw(*shape)]
    expected = stacked_in_float64(one) + stacked_in_float64(other)
    total = add_stacked(add_stacked(None, one, large), other, large)
    scale = 1e-6 * shape[0]
    np.testing.assert_allclose(mirror(total), expected, atol=scale, rtol=1e-5)
    pairs = add_pairs(add_pairs(None, one, large), other, large)
    block = expected[..., : shape[-1], shape[-1] :]
    np.testing.assert_allclose(pairs[0], block, atol=scale, rtol=1e-5)
    again = plus(plus(None, pairs), np.asarray(pairs) if not large else pairs + 0)
    np.testing.assert_allclose(again[0], 2 * block, atol=2 * scale, rtol=1e-5)


def test_products_are_taken_off_again():
    one, other = draw(40, 3, 70), [x[:7] for x in draw(40, 3, 70)]
    both = add_stacked(add_stacked(None, one), other)
    found = mirror(add_stacked(both, other, times=-1.0))
    np.testing.assert_allclose(found, stacked_in_float64(one), atol=1e-4)
    pairs = add_pairs(add_pairs(add_pairs(None, one), other), other, times=-1.0)
    np.testing.assert_allclose(pairs, add_pairs(None, one), atol=1e-4)


def test_what_is_added_to_none_is_a_copy():
    sums = np.ones((2, 2), np.float32)
    total = plus(plus(None, sums), sums)
    np.testing.assert_array_equal(total, 2 * np.ones((2, 2)))
    np.testing.assert_array_equal(sums, np.ones((2, 2)))
