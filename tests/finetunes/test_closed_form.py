import numpy as np
import pytest
from finetuned import matrix

FORMS = [
    ("wudi", {"solver": "exact"}),
    ("wudi", {"rank": 1.0, "exp_time": 1e12}),
    ("actmat", {}),
]
every = pytest.mark.parametrize(("method", "options"), FORMS)


def deltas(models=3, shape=(6, 8), seed=0):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=shape).astype(np.float32) for _ in range(models)]


def orthogonal(size, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def close(found, expected, tolerance=1e-5):
    expected = np.asarray(expected, float)
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def wide(ds):
    return [d.astype(float) for d in ds]


def test_exact_wudi_solves_the_normal_equations():
    ds = wide(deltas())
    scales = [1 / np.sum(d**2) for d in ds]
    left = sum(c * d @ d.T for c, d in zip(scales, ds, strict=True)) + 1e-8 * np.eye(6)
    right = sum(c * d @ d.T @ d for c, d in zip(scales, ds, strict=True))
    found = matrix("wudi", ds, solver="exact")
    close(found, np.linalg.solve(left, right))


def test_exact_wudi_is_the_least_of_what_it_minimises():
    ds = wide(deltas())

    def loss(m):
        return sum(np.sum(((m - d).T @ d) ** 2) / np.sum(d**2) for d in ds)

    found = matrix("wudi", ds, solver="exact")
    generator = np.random.default_rng(1)
    for _ in range(10):
        step = 1e-3 * generator.normal(size=found.shape)
        assert loss(found) < loss(found + step)


def test_actmat_solves_the_weighted_normal_equations():
    ds, weights = wide(deltas()), [1.0, 0.5, 2.0]
    left = sum(w * d @ d.T for w, d in zip(weights, ds, strict=True))
    right = sum(w * d @ d.T @ d for w, d in zip(weights, ds, strict=True))
    found = matrix("actmat", ds, weight=weights)
    close(found, np.linalg.pinv(left) @ right)


def spectral_oracle(ds, time, ratio, init):
    ds = wide(ds)
    scales = [1 / np.sum(d**2) for d in ds]
    left = sum(c * d @ d.T for c, d in zip(scales, ds, strict=True))
    right = sum(c * d @ d.T @ d for c, d in zip(scales, ds, strict=True))
    values, vectors = np.linalg.eigh(left)
    values, vectors = np.maximum(values[::-1], 1e-8), vectors[:, ::-1]
    start = {"sum": sum(ds), "mean": sum(ds) / len(ds), "zero": 0 * ds[0]}[init]
    if ratio == "participation":
        kept = int(np.ceil(np.sqrt(values).sum() ** 2 / values.sum()))
        passed = np.ones(len(values))
    else:
        kept, passed = int(np.ceil(ratio * len(values))), 1 - np.exp(-values * time)
    passed = np.where(np.arange(len(values)) < kept, passed, 0)
    goal = vectors.T @ right / values[:, None] - vectors.T @ start
    return start + vectors @ (passed[:, None] * goal)


@pytest.mark.parametrize("init", ["sum", "mean", "zero"])
@pytest.mark.parametrize("rank", ["participation", 0.65, 1.0])
def test_spectral_wudi_filters_the_solution(rank, init):
    ds = deltas(2, (9, 7))
    found = matrix("wudi", ds, rank=rank, init=init, exp_time=3.0)
    close(found, spectral_oracle(ds, 3.0, rank, init))


def test_few_outputs_are_solved_for_in_their_own_space_alike():
    ds = deltas(2, (20, 3))  # 2 * 3 columns, fewer than the rows
    found = matrix("wudi", ds, rank=0.2, exp_time=50.0)
    close(found, spectral_oracle(ds, 50.0, 0.2, "sum"))


def test_all_directions_and_much_time_give_the_exact_solution():
    ds = deltas(3, (6, 8))
    exact = matrix("wudi", ds, solver="exact")
    close(matrix("wudi", ds, rank=1.0, exp_time=1e6), exact, 1e-4)


def test_from_zero_and_with_few_directions_one_model_is_not_itself():
    (d,) = deltas(1)
    found = matrix("wudi", [d], init="zero", rank=0.5, exp_time=1e6)
    assert np.linalg.norm(found) < 0.99 * np.linalg.norm(d)


def test_no_time_leaves_the_sum():
    ds = deltas()
    close(matrix("wudi", ds, rank=0.5, exp_time=0.0), sum(wide(ds)))


@every
def test_one_model_is_itself(method, options):
    ds = deltas(1)
    close(matrix(method, ds, **options), ds[0], 1e-4)


@every
def test_copies_are_one_and_not_their_sum(method, options):
    (d,) = deltas(1)
    copies = [d, d * np.float32(1 + 1e-6)]
    close(matrix(method, copies, **options), d, 1e-4)


@every
def test_deltas_whose_inputs_are_orthogonal_are_added(method, options):
    turn = orthogonal(6)
    blocks = [turn[:, :3], turn[:, 3:]]
    ds = [b @ d[:3] for b, d in zip(blocks, deltas(2), strict=True)]
    close(matrix(method, ds, **options), sum(ds), 1e-4)


@every
def test_changes_of_basis_go_through(method, options):
    ds, r, s = deltas(), orthogonal(6, 1), orthogonal(8, 2)
    found = matrix(method, [r @ d @ s for d in ds], **options)
    close(found, r @ matrix(method, ds, **options) @ s, 1e-4)


@every
@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_scaled_deltas_give_the_result_scaled(method, options, scale):
    ds = deltas()
    found = matrix(method, [scale * d for d in ds], **options)
    close(found, scale * matrix(method, ds, **options), 1e-4)


@pytest.mark.parametrize(
    ("method", "of_both"),
    [
        ("wudi", lambda a, b: (a + b) / 2),
        ("actmat", lambda a, b: (a**3 + b**3) / (a**2 + b**2)),
    ],
)
def test_what_a_shared_input_direction_becomes(method, of_both):
    u, v = np.eye(6)[:, :1], np.eye(8)[:1]
    a, b = 1.0, 3.0
    options = {"solver": "exact"} if method == "wudi" else {}
    close(matrix(method, [a * u @ v, b * u @ v], **options), of_both(a, b) * u @ v)


@every
def test_a_delta_of_zeros_counts_for_nothing(method, options):
    ds = deltas(1)
    found = matrix(method, [ds[0], np.zeros((6, 8))], **options)
    close(found, ds[0], 1e-4)


def ace_oracle(ds, epsilon=1e-2, fraction=0.3):
    """ACE in torch's order (out, in), transposed back."""
    ds = [d.T.astype(float) for d in ds]
    sizes = np.array([np.sum(d**2) for d in ds])
    gamma = np.log(sizes).var() / np.log(sizes).mean() ** 2
    uneven = gamma > 0.3
    centred = [d - d.mean(axis=0, keepdims=True) for d in ds]
    moments = [d.T @ d for d in centred]
    scales = [np.trace(m) if uneven else 1.0 for m in moments]
    moments = [m / s for m, s in zip(moments, scales, strict=True)]
    eye = np.eye(len(moments[0]))
    shifted = [m + epsilon / s * eye for m, s in zip(moments, scales, strict=True)]
    c = sum(moments).mean(axis=0) / (sizes.mean() if uneven else 1.0)
    left = sum(shifted) + np.outer(c, np.ones(len(c)))
    merged = np.linalg.solve(
        left, sum(m @ d.T for m, d in zip(shifted, centred, strict=True))
    )
    if uneven:
        mean = sum(moments) / len(moments)
        rest = merged + sum(
            (m - mean) @ d.T for m, d in zip(moments, centred, strict=True)
        )
        u, s, vt = np.linalg.svd(rest, full_matrices=False)
        kept = int(fraction * len(s))
        merged = merged + s[:kept].mean() * u[:, :kept] @ vt[:kept]
    return merged


@pytest.mark.parametrize("sizes", [(1, 1, 1), (0.3, 1, 40)])
def test_ace_is_what_its_authors_compute(sizes):
    ds = [size * d for size, d in zip(sizes, deltas(), strict=True)]
    close(matrix("ace", ds), ace_oracle([np.float32(d) for d in ds]))


def test_ace_of_one_model_gives_numbers_though_not_the_model():
    assert np.isfinite(matrix("ace", deltas(1))).all()
