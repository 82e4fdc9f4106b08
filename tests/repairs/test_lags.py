import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jmudsc.repairs.contractions import columns, form_of, rows, sliding_of
from jmudsc.repairs.lags import dealt, moments_by_lags

LAYOUTS = {1: ("NWC", "WIO", "NWC"), 2: ("NCHW", "HWIO", "NHWC"), 3: None}


def draw_case(seed, rank):
    """Draw the shapes of a convolution whose windows overlap in the middle."""
    draw = np.random.default_rng([seed, rank])
    pick = lambda low, high: [int(n) for n in draw.integers(low, high, rank)]
    strides, dilations = pick(1, 4), pick(1, 4)
    window = pick(1, 7 if rank == 1 else 4)
    if seed % 3 == 0:
        strides = [1] * rank
    between = pick(1, 3) if seed % 4 == 3 else [1] * rank
    padding = [tuple(map(int, draw.integers(-1, 4, 2))) for _ in range(rank)]
    padding = ["SAME", "VALID", padding][seed % 3]
    spans = [(n - 1) * d + 1 for n, d in zip(window, dilations, strict=True)]
    space = [3 * span + 2 + int(draw.integers(5)) for span in spans]
    groups, channels, made = (int(n) for n in draw.integers(1, 4, 3))
    numbers = LAYOUTS[rank]
    if numbers is None:
        numbers = lax.ConvDimensionNumbers(
            (0, 1, 2, 3, 4), (0, 1, 2, 3, 4), (1, 0, 2, 3, 4)
        )
    order = lax.conv_dimension_numbers((1,) * (rank + 2), (1,) * (rank + 2), numbers)
    put = lambda spec, sizes: tuple(sizes[spec.index(n)] for n in range(rank + 2))
    x_shape = put(order.lhs_spec, (2, groups * channels, *space))
    k_shape = put(order.rhs_spec, (groups * made, channels, *window))
    params = {
        "window_strides": strides,
        "padding": padding,
        "lhs_dilation": between if padding not in ("SAME", "VALID") else None,
        "rhs_dilation": dilations,
        "dimension_numbers": numbers,
        "feature_group_count": groups,
    }
    x = draw.normal(1, 1, x_shape)
    return params, x, draw.normal(size=k_shape), draw


CASES = [*((1, seed) for seed in range(12)), *((2, seed) for seed in range(8)), (3, 1)]


@pytest.mark.parametrize(("rank", "seed"), CASES)
def test_lags_give_the_moments_of_copies_of_all_windows(rank, seed):
    with jax.enable_x64():
        params, x, kernel, draw = draw_case(seed, rank)
        fn = lambda x, k: lax.conv_general_dilated(x, k, **params)
        (eqn,) = jax.make_jaxpr(fn)(x, kernel).eqns
        form = form_of(eqn, 1)
        ways = [dealt(axis) for axis in sliding_of(form, x.shape, kernel.shape)]
        assert all(way.count >= way.edge for way in ways)
        residual = columns(form, draw.normal(size=eqn.outvars[0].aval.shape))
        into = np.asarray(jax.jit(lambda x: rows(form, x, kernel.shape))(x))
        both = np.concatenate([into, residual], axis=-1)
        apart = both - both.mean(axis=1, keepdims=True)
        by_lags = jax.jit(lambda *arrays: moments_by_lags(form, *arrays, kernel.shape))
        found = by_lags(x, residual)
        np.testing.assert_allclose(
            found[0], both.mean(axis=1, keepdims=True), atol=1e-12
        )
        expected = np.swapaxes(apart[..., : into.shape[-1]], 1, 2) @ apart
        assert found[1].dtype == jnp.float64
        np.testing.assert_allclose(
            found[1], expected, rtol=0, atol=1e-11 * expected.max()
        )
