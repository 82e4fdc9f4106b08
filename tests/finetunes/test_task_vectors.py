import functools

import jax
import numpy as np
import pytest
from finetuned import matrix, merged

from jmudsc.finetunes.merge_finetunes import merge_finetunes

METHODS = ["task_arithmetic", "ties", "breadcrumbs", "breadcrumbs_ties", "sce", "ram"]
RANDOM = ["dare_linear", "dare_ties", "della", "della_linear"]


def deltas(models=3, shape=(7, 6), seed=0):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=shape).astype(np.float32) for _ in range(models)]


def row(*values):
    return [np.array([value], np.float32).reshape(1, -1) for value in values]


def one(method, values, **options):
    """Merge models of one row of entries each."""
    return matrix(method, [np.array([v], float) for v in values], **options)[0]


def test_task_arithmetic_sums_what_was_added():
    ds = deltas()
    expected = 0.3 * (1 * ds[0].astype(float) + 2 * ds[1] - 0.5 * ds[2])
    found = matrix("task_arithmetic", ds, weight=[1, 2, -0.5], lambda_=0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_task_arithmetic_averages_where_it_normalizes():
    ds = deltas()
    expected = (ds[0].astype(float) + 3 * ds[1]) / 4
    found = matrix("task_arithmetic", ds[:2], weight=[1, 3], normalize=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_negative_weight_takes_away_what_was_added():
    base = {"kernel": deltas(1)[0]}
    model = {"kernel": base["kernel"] + 1}
    found = merged([model], base, "task_arithmetic", weight=-1)["kernel"]
    np.testing.assert_allclose(found, base["kernel"] - 1, rtol=1e-5)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties", "ram"])
def test_one_model_kept_whole_is_itself(method):
    base, model = ({"kernel": d} for d in deltas(2))
    dense = {} if method in ("task_arithmetic", "ram") else {"density": 1.0}
    found = merged([model], base, method, **dense)["kernel"]
    np.testing.assert_allclose(found, model["kernel"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["ties", "task_arithmetic", "ram", "sce"])
def test_deltas_that_do_not_meet_are_added(method):
    places = np.random.default_rng(0).integers(0, 3, (7, 6))
    ds = [np.where(places == n, d, 0) for n, d in enumerate(deltas())]
    dense = {"density": 1.0} if method == "ties" else {}
    np.testing.assert_allclose(
        matrix(method, ds, **dense), np.sum(ds, axis=0), rtol=1e-6, atol=1e-7
    )


def test_ties_averages_the_entries_of_the_elected_sign():
    assert one("ties", [[3.0], [1.0], [-2.0]], density=1.0) == pytest.approx([2.0])
    assert one("ties", [[3.0], [1.0], [-2.0]], density=1.0, agg="sum") == [4.0]
    assert one("ties", [[3.0], [1.0], [-2.0]], density=1.0, normalize=False) == [4.0]


@pytest.mark.parametrize(("most", "taken"), [(1.0, 1.0), (-1.0, -1.0)])
def test_a_tie_goes_to_the_sign_of_most_other_entries(most, taken):
    values = [[1.0, most, most], [-1.0, most, most]]
    assert one("ties", values, density=1.0)[0] == taken


def test_ties_elects_after_weighting_and_divides_by_the_weights_that_agree():
    found = one("ties", [[1.0], [-2.0], [3.0]], density=1.0, weight=[1, 4, 1])
    assert found == pytest.approx([-2.0])  # -8 / 4
    found = one("ties", [[1.0], [2.0]], density=1.0, weight=[1, 3])
    assert found == pytest.approx([7 / 4])


def test_ties_keeps_the_largest_of_each_model_and_what_is_as_large():
    values = [[5.0, -4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 0.0, 0.0, 0.0]]
    assert one("ties", values, density=[0.4, 0.2]).tolist() == [3.0, -4.0, 0, 0, 0]


def oracle(ds, density):
    """TIES of one matrix, written out."""
    kept = []
    for d in np.asarray(ds, float):
        least = np.sort(np.abs(d).ravel())[-int(density * d.size)]
        kept.append(np.where(np.abs(d) >= least, d, 0))
    signs = np.sign(np.sum(kept, axis=0))
    agree = [k * (np.sign(k) == signs) for k in kept]
    count = np.sum([a != 0 for a in agree], axis=0)
    return np.sum(agree, axis=0) / np.maximum(count, 1)


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties_is_what_its_paper_says(density):
    ds = deltas()
    found = matrix("ties", ds, density=density)
    np.testing.assert_allclose(found, oracle(ds, density), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_entries_in_another_order_come_out_in_that_order(method):
    ds = deltas()
    order = np.random.default_rng(1).permutation(ds[0].size)
    moved = [d.ravel()[order].reshape(d.shape) for d in ds]
    expected = matrix(method, ds).ravel()[order].reshape(ds[0].shape)
    np.testing.assert_allclose(matrix(method, moved), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["ties", "breadcrumbs"])
def test_a_rotation_does_not_go_through(method):
    ds = deltas(shape=(6, 6))
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    found, turned = matrix(method, [turn @ d for d in ds]), turn @ matrix(method, ds)
    assert np.abs(found - turned).max() > 0.1


@pytest.mark.parametrize("method", RANDOM)
def test_the_mean_over_keys_is_the_whole_delta(method):
    ds = deltas(1)
    options = {"density": 0.5, "rescale": "expectation"}
    draws = np.stack([drawn(method, ds, seed, **options) for seed in range(400)])
    error = draws.std(axis=0) / np.sqrt(len(draws)) + 1e-7
    assert np.abs((draws.mean(axis=0) - ds[0]) / error).max() < 4.5
    assert np.abs((draws.mean(axis=0) - ds[0]) / error).mean() < 1.2


def drawn(method, ds, seed, **options):
    base = {"kernel": np.zeros_like(ds[0])}
    models = [{"kernel": d} for d in ds]
    result = merge_finetunes(models, base, method, key=jax.random.key(seed), **options)
    return result.variables["kernel"]


def test_dare_divides_what_it_keeps_by_the_chance_to_be_kept():
    ds = deltas(1, (40, 30))
    found = drawn("dare_linear", ds, 0, density=0.25)
    kept = found != 0
    np.testing.assert_allclose(found[kept], ds[0][kept] / 0.25, rtol=1e-6)
    assert abs(kept.mean() - 0.25) < 3 * np.sqrt(0.25 * 0.75 / kept.size)


@pytest.mark.parametrize("method", RANDOM)
def test_rescaling_as_mergekit_does_keeps_the_sum_of_magnitudes(method):
    ds = deltas(1)
    found = drawn(method, ds, 0, rescale="l1")
    assert np.abs(found).sum() == pytest.approx(np.abs(ds[0]).sum(), rel=1e-5)


def test_without_rescaling_what_is_kept_is_as_it_was():
    ds = deltas(1)
    found = drawn("dare_linear", ds, 0, rescale=None)
    assert set(found[found != 0]) <= set(ds[0].ravel())


def test_each_model_and_leaf_has_draws_of_its_own_whatever_else_is_merged():
    ds = deltas(1) * 2
    zeros = np.zeros_like(ds[0])
    base = {"a": {"kernel": zeros}, "b": {"kernel": zeros}}
    tree = {"a": {"kernel": ds[0]}, "b": {"kernel": ds[0].copy()}}
    run = functools.partial(
        merge_finetunes, method="dare_linear", key=jax.random.key(0)
    )
    both = run([tree], base).variables
    alone = run([{"b": tree["b"]}], {"b": base["b"]}).variables
    assert not np.array_equal(both["a"]["kernel"], both["b"]["kernel"])
    assert np.array_equal(both["b"]["kernel"], alone["b"]["kernel"])
    empty = {"b": {"kernel": zeros.copy()}}
    second = run([empty, {"b": tree["b"]}], {"b": base["b"]}).variables
    assert not np.array_equal(second["b"]["kernel"], alone["b"]["kernel"])


def test_della_keeps_large_entries_more_often():
    d = np.linspace(-1, 1, 200, dtype=np.float32).reshape(20, 10)
    kept = np.mean(
        [drawn("della", [d], s, density=0.5) != 0 for s in range(200)], axis=0
    )
    order = np.argsort(np.abs(d).ravel())
    assert kept.ravel()[order[:20]].mean() == pytest.approx(0.35 + 0.015, abs=0.03)
    assert kept.ravel()[order[-20:]].mean() == pytest.approx(0.65 - 0.015, abs=0.03)


@pytest.mark.parametrize(("density", "gamma"), [(0.9, 0.01), (0.5, 0.3), (0.8, 0.4)])
@pytest.mark.parametrize("size", [200, 7])
def test_breadcrumbs_keeps_so_many_and_none_of_the_largest(density, gamma, size):
    d = np.random.default_rng(0).normal(size=(1, size)).astype(np.float32)
    found = matrix("breadcrumbs", [d], density=density, gamma=gamma)
    kept = np.flatnonzero(found[0])
    assert len(kept) == int(density * size)
    above = min(int(gamma * size), size - len(kept))
    largest = np.argsort(-np.abs(d[0]))[:above]
    assert not set(kept) & set(largest)
    np.testing.assert_array_equal(found[0][kept], d[0][kept])


def test_breadcrumbs_keeps_a_leaf_of_few_entries():
    found = matrix("breadcrumbs", row([1.0, -2.0, 3.0]))
    assert np.count_nonzero(found) == 2


def test_sce_weights_models_by_their_mean_squares():
    ds = deltas(2)
    ds = [np.abs(d) for d in ds]
    squares = [float(np.square(d.astype(float)).mean()) for d in ds]
    expected = sum(s * d for s, d in zip(squares, ds, strict=True)) / sum(squares)
    np.testing.assert_allclose(matrix("sce", ds), expected, rtol=1e-5)


def test_sce_keeps_the_entries_that_vary_most():
    values = [[1.0, 5.0, 2.0, 0.0], [1.0, 1.0, 2.5, 0.0]]
    found = one("sce", values, select_topk=0.25)
    assert np.flatnonzero(found).tolist() == [1]


def test_ram_takes_what_one_model_changed_and_averages_what_several_did():
    values = [[1.0, 2.0, 1e-7, 0.0], [0.0, 4.0, 3.0, 0.0]]
    assert one("ram", values) == pytest.approx([1.0, 3.0, 3.0, 0.0])


@pytest.mark.parametrize(
    ("density", "said"),
    [
        (0.1, "got density 0.1 and epsilon 0.15"),
        (0.95, "got density 0.95 and epsilon 0.15"),
    ],
)
def test_della_needs_room_around_its_density(density, said):
    with pytest.raises(
        ValueError, match="epsilon: expected density - epsilon > 0"
    ) as e:
        drawn("della", deltas(1), 0, density=density)
    assert said in str(e.value)
