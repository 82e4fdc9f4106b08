import numpy as np
import pytest
from finetuned import matrix, merged

from jmudsc.finetunes.spectral import calibrated

SPECTRAL = ["tsv", "iso_c", "iso_cts"]


def deltas(models=2, shape=(9, 7), seed=0):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=shape).astype(np.float32) for _ in range(models)]


def orthogonal(size, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def apart(models=2, rank=2, shape=(9, 7)):
    """Deltas of low rank whose inputs, and whose outputs, are orthogonal."""
    u, v = orthogonal(shape[0], 1), orthogonal(shape[1], 2)
    values = np.random.default_rng(3).uniform(1, 2, size=(models, rank))
    parts = [slice(n * rank, (n + 1) * rank) for n in range(models)]
    return [(u[:, p] * s) @ v[:, p].T for p, s in zip(parts, values, strict=True)]


def close(found, expected, tolerance=1e-5):
    expected = np.asarray(expected, float)
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def test_tsv_of_one_model_is_that_model():
    close(matrix("tsv", deltas(1)), deltas(1)[0])


def test_tsv_adds_deltas_that_share_no_direction():
    ds = apart()
    close(matrix("tsv", ds), sum(ds))


def tsv_oracle(ds):
    """TSV-M in torch's order (out, in), as its paper has it, transposed back."""
    kept = min(ds[0].shape) // len(ds)
    us, ss, vs = zip(*[np.linalg.svd(d.T.astype(float)) for d in ds], strict=True)
    u = np.hstack([x[:, :kept] for x in us])
    s = np.concatenate([x[:kept] for x in ss])
    v = np.vstack([x[:kept] for x in vs])
    polar = lambda x: (lambda p, _, q: p @ q)(*np.linalg.svd(x, full_matrices=False))
    return (polar(u) @ np.diag(s) @ polar(v)).T, s


@pytest.mark.parametrize("models", [2, 3])
def test_tsv_is_what_its_paper_says(models):
    ds = deltas(models)
    expected, values = tsv_oracle(ds)
    found = matrix("tsv", ds)
    close(found, expected)
    singular = np.linalg.svd(found, compute_uv=False)[: len(values)]
    close(singular, np.sort(values)[::-1])


def test_tsv_of_copies_is_what_they_keep():
    (d,) = deltas(1)
    u, s, vt = np.linalg.svd(d.astype(float), full_matrices=False)
    kept = (u[:, :3] * s[:3]) @ vt[:3]
    close(matrix("tsv", [d, d.copy(), np.zeros_like(d)], rank=3), kept)


def test_tsv_keeps_as_many_directions_as_it_is_told():
    found = matrix("tsv", deltas(2), rank=1)
    assert np.linalg.matrix_rank(found, tol=1e-4) == 2


@pytest.mark.parametrize("method", SPECTRAL)
def test_changes_of_basis_go_through(method):
    ds, r, s = deltas(), orthogonal(9, 5), orthogonal(7, 6)
    found = matrix(method, [r @ d @ s for d in ds], lambda_=1.0)
    close(found, r @ matrix(method, ds, lambda_=1.0) @ s, 1e-4)


def test_tsv_does_not_ask_which_side_is_which():
    ds = deltas()
    close(matrix("tsv", [d.T for d in ds]), matrix("tsv", ds).T)


def test_iso_c_evens_out_the_singular_values_and_keeps_their_sum():
    ds = deltas(3)
    found = matrix("iso_c", ds, lambda_=1.0)
    values = np.linalg.svd(found, compute_uv=False)
    close(values, np.full(7, values.mean()))
    total = np.linalg.svd(np.sum(ds, axis=0, dtype=float), compute_uv=False).sum()
    assert values.sum() == pytest.approx(total, rel=1e-5)
    close(matrix("iso_c", [found], lambda_=1.0), found)


def test_iso_c_is_the_polar_factor_of_the_sum_times_the_mean_singular_value():
    ds = deltas(3)
    u, s, vt = np.linalg.svd(np.sum(ds, axis=0, dtype=float), full_matrices=False)
    close(matrix("iso_c", ds), 1.4 * s.mean() * u @ vt)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_iso_c_scales_with_the_deltas(scale):
    ds = deltas()
    close(matrix("iso_c", [scale * d for d in ds]), scale * matrix("iso_c", ds))


def iso_cts_oracle(ds, fraction):
    """Iso-CTS in torch's order (out, in), as its paper has it, transposed back."""
    ds = [d.T.astype(float) for d in ds]
    size = min(ds[0].shape)
    per_task = round((size - int(fraction * size)) / len(ds))
    common = size - per_task * len(ds)
    u, s, vt = np.linalg.svd(sum(ds), full_matrices=False)
    u, s, vt = u[:, :common], s[:common], vt[:common]
    parts = [np.linalg.svd(d - u @ u.T @ d, full_matrices=False) for d in ds]
    left = np.hstack([*[p[0][:, :per_task] for p in parts], u])
    values = np.concatenate([*[p[1][:per_task] for p in parts], s])
    right = np.vstack([*[p[2][:per_task] for p in parts], vt])
    polar = lambda x: (lambda p, _, q: p @ q)(*np.linalg.svd(x, full_matrices=False))
    return (values.mean() * polar(left) @ polar(right)).T


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.8])
def test_iso_cts_is_what_its_paper_says(fraction):
    ds = deltas(2, (16, 12))
    found = matrix("iso_cts", ds, lambda_=1.0, common_space_fraction=fraction)
    close(found, iso_cts_oracle(ds, fraction))


def test_iso_cts_of_common_directions_alone_is_iso_c():
    ds = deltas()
    found = matrix("iso_cts", ds, common_space_fraction=1.0)
    close(found, matrix("iso_c", ds))


@pytest.mark.parametrize("method", SPECTRAL)
def test_directions_that_no_delta_has_stay_out(method):
    generator = np.random.default_rng(0)
    u, v = generator.normal(size=(9, 2)), generator.normal(size=(2, 7))
    found = matrix(method, [u @ v, 0.5 * u @ v])
    assert np.linalg.matrix_rank(found, tol=1e-4) == 2
    assert np.isfinite(found).all()


@pytest.mark.parametrize("method", SPECTRAL)
def test_one_delta_of_zeros_gives_numbers(method):
    assert np.isfinite(matrix(method, [deltas(1)[0], np.zeros((9, 7))])).all()


def test_tsv_needs_a_direction_for_each_model_and_says_where_there_is_none():
    base = {"a": {"kernel": np.zeros((4, 2), np.float32)}, "b": np.zeros(3, np.float32)}
    models = [
        {"a": {"kernel": d}, "b": np.ones(3, np.float32)} for d in deltas(3, (4, 2))
    ]
    with pytest.raises(ValueError, match="tsv with 3 models") as error:
        merged(models, base, "tsv")
    assert str(error.value) == (
        "merge_finetunes: expected at least 3 rows and columns in each matrix for tsv "
        "with 3 models, got 1 leaf with fewer:\n"
        "  a/kernel has matrices 4 x 2\n"
        'Give them another method: method={"PATTERN": "task_arithmetic", "*": "tsv"}, '
        "or set rank."
    )


def test_what_the_model_multiplies_nothing_by_needs_no_directions():
    """A class token has the shape of a matrix; only its use says that it is none."""

    def apply_fn(v, x):
        return (x + v["token"]) @ v["kernel"]

    base = {
        "token": np.zeros((1, 9), np.float32),
        "kernel": np.zeros((9, 7), np.float32),
    }
    models = [
        {"token": base["token"] + n, "kernel": d} for n, d in enumerate(deltas(3))
    ]
    with pytest.raises(ValueError, match="token has matrices 1 x 9"):
        merged(models, base, "tsv")
    batch = np.ones((2, 9), np.float32)
    found = merged(models, base, "tsv", apply_fn=apply_fn, batches=[batch])
    np.testing.assert_allclose(found["token"], 1)  # the mean of 0, 1 and 2
    again = matrix("tsv", [model["kernel"] for model in models])
    np.testing.assert_allclose(found["kernel"], again, atol=1e-5)


def svc_oracle(delta, ds, alpha):
    """Singular value calibration in torch's order (out, in), transposed back."""
    u, s, vt = np.linalg.svd(delta.T.astype(float), full_matrices=False)
    out = np.zeros_like(delta.T, dtype=float)
    for r in range(len(s)):
        response = u[:, r] @ delta.T
        counted = 0.0
        for d in ds:
            own = u[:, r] @ d.T.astype(float)
            counted += max(alpha, (response @ own) / max(own @ own, 1e-12))
        out += len(ds) / counted * s[r] * np.outer(u[:, r], vt[r])
    return out.T


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "tsv", "wudi"])
@pytest.mark.parametrize("alpha", [0.1, 0.7])
def test_calibration_is_what_its_paper_says_after_any_method(method, alpha):
    ds = deltas(3)
    merged_delta = matrix(method, ds)
    found = matrix(method, ds, calibrate="svc", calibrate_alpha=alpha)
    close(found, svc_oracle(merged_delta, ds, alpha), 1e-4)


def test_calibration_goes_through_changes_of_basis():
    ds, r, s = deltas(3), orthogonal(9, 5), orthogonal(7, 6)
    found = matrix("task_arithmetic", [r @ d @ s for d in ds], calibrate="svc")
    close(found, r @ matrix("task_arithmetic", ds, calibrate="svc") @ s, 1e-4)


def test_calibration_makes_up_for_copies_that_were_summed():
    (d,) = deltas(1)
    copies = [d, d * np.float32(1 + 1e-6), d * np.float32(1 - 1e-6)]
    close(matrix("task_arithmetic", copies, calibrate="svc"), d)


def test_calibration_undoes_a_scale():
    (d,) = deltas(1)
    for scale in (0.2, 1.0, 3.0):
        found = matrix("task_arithmetic", [d], lambda_=scale, calibrate="svc")
        close(found, d)


@pytest.mark.parametrize(("alpha", "factor"), [(1.0, 1.0), (0.1, 2 / 1.1)])
def test_calibration_of_deltas_that_share_no_direction(alpha, factor):
    ds = apart()
    close(calibrated(sum(ds), ds, alpha), factor * sum(ds))


def test_calibration_counts_as_little_of_a_model_as_goes_with_the_method():
    ds = apart()
    close(matrix("tsv", ds, calibrate="svc"), sum(ds))  # alpha 1
    expected = 2 / 1.1 * sum(ds)  # alpha 0.1
    close(matrix("task_arithmetic", ds, calibrate="svc"), expected)


def test_calibration_needs_a_base():
    with pytest.raises(ValueError, match="base: expected one to calibrate against"):
        merged([{"kernel": d} for d in deltas()], calibrate="svc")
