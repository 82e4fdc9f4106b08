import numpy as np
import pytest
from finetuned import merged


def tree(values):
    return {"kernel": np.asarray(values, np.float32)}


def drawn(models=2, seed=0, shape=(6, 5)):
    generator = np.random.default_rng(seed)
    return [tree(generator.normal(size=shape)) for _ in range(models)]


def run(models, method, base=None, **options):
    return np.asarray(merged(models, base, method, **options)["kernel"], float)


def great_circle(a, b, t):
    """The formula, written out."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    angle = np.arccos((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_slerp_goes_along_the_great_circle(t):
    a, b = drawn()
    expected = great_circle(a["kernel"], b["kernel"], t)
    np.testing.assert_allclose(
        run([a, b], "slerp", t=t), expected, rtol=1e-5, atol=1e-6
    )


def test_slerp_begins_and_ends_at_the_networks():
    a, b = drawn()
    for t, end in ((0.0, a), (1.0, b)):
        np.testing.assert_allclose(run([a, b], "slerp", t=t), end["kernel"], rtol=1e-6)


def test_slerp_keeps_the_length_that_both_have():
    a, b = drawn()
    b = tree(b["kernel"] * np.linalg.norm(a["kernel"]) / np.linalg.norm(b["kernel"]))
    found = run([a, b], "slerp", t=0.3)
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(a["kernel"]), rel=1e-5)


@pytest.mark.parametrize("method", ["slerp", "nuslerp", "karcher"])
def test_scaled_networks_give_the_result_scaled(method):
    models = drawn()
    scaled = [tree(3 * m["kernel"]) for m in models]
    np.testing.assert_allclose(run(scaled, method), 3 * run(models, method), rtol=1e-5)


@pytest.mark.parametrize("method", ["slerp", "nuslerp", "karcher", "model_stock"])
def test_a_rotation_of_the_whole_leaf_goes_through(method):
    models, base = drawn(2, 0), drawn(1, 5)[0] if method == "model_stock" else None
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(30, 30)))[0]
    turned = lambda t: tree((turn @ t["kernel"].ravel().astype(float)).reshape(6, 5))
    found = run(list(map(turned, models)), method, base and turned(base))
    expected = turn @ run(models, method, base).ravel()
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["slerp", "nuslerp", "karcher"])
def test_networks_on_one_line_and_networks_of_zeros_give_numbers(method):
    (a,) = drawn(1)
    half = tree(0.5 * a["kernel"])
    np.testing.assert_allclose(run([a, half], method), 0.75 * a["kernel"], rtol=1e-5)
    zero = tree(0 * a["kernel"])
    assert np.isfinite(run([a, zero], method)).all()
    assert np.isfinite(run([a, tree(-a["kernel"])], method)).all()


@pytest.mark.parametrize("method", ["nuslerp", "karcher"])
def test_copies_give_themselves(method):
    (a,) = drawn(1)
    copies = [a, tree(a["kernel"] * np.float32(1 + 1e-6))]
    np.testing.assert_allclose(run(copies, method), a["kernel"], rtol=1e-5)


@pytest.mark.parametrize(
    ("weight", "t"), [([1, 1], 0.5), ([1, 3], 0.75), ([1, -1], 0.5)]
)
def test_nuslerp_takes_the_share_from_the_weights_and_goes_between_deltas(weight, t):
    a, b, base = drawn(3)
    deltas = [m["kernel"].astype(float) - base["kernel"] for m in (a, b)]
    expected = base["kernel"] + great_circle(*deltas, t)
    found = run([a, b], "nuslerp", base, weight=weight)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    expected = great_circle(a["kernel"], b["kernel"], t)
    np.testing.assert_allclose(
        run([a, b], "nuslerp", weight=weight), expected, rtol=1e-5, atol=1e-5
    )


def test_nuslerp_goes_by_output_unit_if_leaves_are_not_flattened():
    a, b = drawn()
    found = run([a, b], "nuslerp", flatten=False)
    for unit in range(5):
        expected = great_circle(a["kernel"][:, unit], b["kernel"][:, unit], 0.5)
        np.testing.assert_allclose(found[:, unit], expected, rtol=1e-5, atol=1e-6)


def test_karcher_of_two_of_one_length_is_the_middle_of_the_great_circle():
    a, b = drawn()
    b = tree(b["kernel"] * np.linalg.norm(a["kernel"]) / np.linalg.norm(b["kernel"]))
    expected = great_circle(a["kernel"], b["kernel"], 0.5)
    np.testing.assert_allclose(run([a, b], "karcher"), expected, rtol=1e-5, atol=1e-6)


def test_from_the_karcher_mean_the_ways_to_all_models_sum_to_nothing():
    models = drawn(4)
    found = run(models, "karcher", max_iter=200, tol=1e-9).ravel()
    point = found / np.linalg.norm(found)
    total = np.zeros_like(point)
    lengths = []
    for model in models:
        flat = model["kernel"].ravel().astype(float)
        lengths.append(np.linalg.norm(flat))
        unit = flat / lengths[-1]
        cosine = point @ unit
        apart = unit - cosine * point
        total += np.arccos(cosine) * apart / np.linalg.norm(apart)
    assert np.linalg.norm(total) < 1e-5
    assert np.linalg.norm(found) == pytest.approx(np.mean(lengths), rel=1e-5)


def planar(degrees):
    """Two deltas of length 1 that are so many degrees apart."""
    angle = np.radians(degrees)
    return [tree([[1.0, 0.0]]), tree([[np.cos(angle), np.sin(angle)]])]


@pytest.mark.parametrize(
    ("degrees", "share"), [(60, 2 / 3), (90, 0.0), (0.001, 1.0), (120, 0.0)]
)
def test_model_stock_goes_as_far_as_the_deltas_agree(degrees, share):
    models, base = planar(degrees), tree([[0.0, 0.0]])
    mean = np.mean([m["kernel"] for m in models], axis=0, dtype=float)
    found = run(models, "model_stock", base)
    np.testing.assert_allclose(found, share * mean, rtol=1e-5, atol=1e-6)


def test_model_stock_may_leave_the_way_between_if_it_is_not_clamped():
    found = run(planar(120), "model_stock", tree([[0.0, 0.0]]), clamp=False)
    mean = np.mean([m["kernel"] for m in planar(120)], axis=0, dtype=float)
    np.testing.assert_allclose(found, -2 * mean, rtol=1e-4)
    found = run(planar(180), "model_stock", tree([[0.0, 0.0]]), clamp=False)
    assert np.isfinite(found).all()  # where the formula divides by nothing


def test_model_stock_may_go_by_output_unit():
    models, base = drawn(3), drawn(1, 9)[0]
    found = run(models, "model_stock", base, filter_wise=True)
    column = lambda t, unit: tree(t["kernel"][:, unit : unit + 1])
    for unit in range(5):
        expected = run(
            [column(m, unit) for m in models], "model_stock", column(base, unit)
        )
        np.testing.assert_allclose(
            found[:, unit : unit + 1], expected, rtol=1e-5, atol=1e-6
        )


def test_between_fine_tunes_slerp_is_the_mean_but_not_between_their_deltas():
    (base,) = drawn(1)
    models = [tree(base["kernel"] + 0.01 * m["kernel"]) for m in drawn(2, 3)]
    mean = np.mean([m["kernel"] for m in models], axis=0)
    assert np.abs(run(models, "slerp") - mean).max() < 1e-5
    assert np.abs(run(models, "nuslerp", base) - mean).max() > 1e-3
