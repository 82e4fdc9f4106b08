"""Spaces against their definitions by matrices written out, in float64."""

import numpy as np
import pytest
from finetuned import matrix
from loras import delta, draw, tree

from jmudsc.lora.merge_loras import merge_loras
from jmudsc.lora.spaces import core, knots, svd_of_product

SIZES = {"x": (12, 9)}
ADAPTERS = [
    tree(seed, SIZES, rank, alpha=3.0) for seed, rank in ((0, 2), (1, 3), (2, 1))
]
DELTAS = [delta(adapter, "x") for adapter in ADAPTERS]
BASE = {"x/kernel": np.zeros((12, 9), "float32")}


def merged(method, space, adapters=ADAPTERS, **options):
    found = merge_loras(adapters, BASE, method, space=space, **options)
    return np.float64(found.variables["x/kernel"])


def close(got, expected, tolerance=1e-5):
    np.testing.assert_allclose(got, expected, atol=tolerance * np.abs(expected).max())


def knots_by_hand(method, **options):
    """Decompose all deltas one below the other, and merge the blocks of P S."""
    p, s, qt = np.linalg.svd(np.vstack(DELTAS), full_matrices=False)
    kept = s > 1e-5
    blocks = np.split(p[:, kept] * s[kept], len(DELTAS))
    return matrix(method, blocks, **options) @ qt[kept]


def core_by_hand(method, **options):
    """Project all deltas on the singular vectors of all A, and of all B."""
    updates = [adapter.updates["x"] for adapter in ADAPTERS]
    reads = np.linalg.svd(np.hstack([u.a for u in updates]), full_matrices=False)[0]
    writes = np.linalg.svd(np.vstack([u.b for u in updates]), full_matrices=False)[2]
    cores = [reads.T @ each @ writes.T for each in DELTAS]
    return reads @ matrix(method, cores, **options) @ writes


METHODS = [
    ("task_arithmetic", {}),
    ("linear", {}),
    ("ties", {"density": 0.4}),
    ("breadcrumbs", {"density": 0.5, "gamma": 0.1}),
    ("tsv", {}),
    ("iso_c", {}),
    ("iso_cts", {}),
    ("wudi", {"solver": "exact", "ridge": 1e-6}),
    ("model_stock", {}),
]


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_knots_is_its_definition(method, options):
    close(merged(method, "knots", **options), knots_by_hand(method, **options))


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_core_space_is_its_definition(method, options):
    close(merged(method, "core", **options), core_by_hand(method, **options))


@pytest.mark.parametrize("space", ["full", "knots", "core"])
def test_random_choices_are_those_of_the_key(space):
    import jax

    keys = [jax.random.key(seed) for seed in (0, 0, 1)]
    one, two, other = (merged("dare_ties", space, key=key) for key in keys)
    np.testing.assert_array_equal(one, two)
    assert not np.allclose(one, other)


@pytest.mark.parametrize("space", ["knots", "core"])
@pytest.mark.parametrize("weight", [1.0, [0.5, -1.0, 2.0]])
def test_linear_methods_are_the_same_in_every_space(space, weight):
    expected = merged("task_arithmetic", "full", weight=weight)
    close(merged("task_arithmetic", space, weight=weight), expected)
    weights = [weight] * 3 if isinstance(weight, float) else weight
    summed = sum(w * d for w, d in zip(weights, DELTAS, strict=True))
    close(expected, summed)


@pytest.mark.parametrize(
    ("method", "options"),
    [("iso_c", {}), ("tsv", {"rank": 2}), ("model_stock", {}), ("karcher", {})],
)
@pytest.mark.parametrize("space", ["knots", "core"])
def test_methods_that_know_no_basis_are_the_same_in_every_space(space, method, options):
    close(merged(method, space, **options), merged(method, "full", **options))


def test_methods_by_entry_are_not_the_same_in_every_space():
    found = [merged("ties", space, density=0.4) for space in ("full", "knots", "core")]
    for number, one in enumerate(found):
        for other in found[:number]:
            assert np.abs(one - other).max() > 0.1 * np.abs(one).max()


@pytest.mark.parametrize("space", [knots, core])
def test_coordinates_lose_nothing(space):
    updates = [(draw(n, 8, r), draw(9 + n, r, 6), 0.5) for n, r in enumerate((1, 2, 2))]
    updates = [(np.float64(a), np.float64(b), s) for a, b, s in updates]
    found = space([updates[0], None, *updates[1:]])
    for own, update in zip(found.models, [updates[0], None, *updates[1:]], strict=True):
        a, b = found.lifted(own)
        expected = np.zeros((8, 6)) if update is None else 0.5 * update[0] @ update[1]
        np.testing.assert_allclose(a @ b, expected, atol=1e-12)


@pytest.mark.parametrize("space", [knots, core])
def test_directions_that_no_update_has_are_zero(space):
    a, b = np.float64(draw(0, 8, 2)), np.float64(draw(1, 2, 6))
    found = space([(a, b, 1.0), (a, b, 2.0)])
    assert found.models[0].shape[1] == 4
    assert np.linalg.matrix_rank(found.right, tol=1e-6) == 2
    assert not found.models[0][:, 2:].any()
    once, twice = ((x @ y) for x, y in map(found.lifted, found.models))
    np.testing.assert_allclose(once, a @ b, atol=1e-12)
    np.testing.assert_allclose(twice, 2 * a @ b, atol=1e-12)


@pytest.mark.parametrize("sizes", [(9, 2, 7), (3, 5, 8), (6, 6, 6)])
def test_a_product_is_decomposed_as_if_written_out(sizes):
    into, inner, out = sizes
    a, b = np.float64(draw(0, into, inner)), np.float64(draw(1, inner, out))
    u, s, vt = svd_of_product(a, b)
    expected = np.linalg.svd(a @ b, compute_uv=False)[: len(s)]
    np.testing.assert_allclose(s, expected, atol=1e-12)
    np.testing.assert_allclose((u * s) @ vt, a @ b, atol=1e-12)
    np.testing.assert_allclose(u.T @ u, np.eye(len(s)), atol=1e-12)
