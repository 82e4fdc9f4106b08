import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jmudsc.repairs.contractions import (
    columns,
    contract,
    form_of,
    matrix,
    rows,
    unit_axes,
)

NHWC = ("NHWC", "HWIO", "NHWC")


def dot(x_axes, k_axes, x_batch=(), k_batch=()):
    numbers = (x_axes, k_axes), (x_batch, k_batch)
    return lambda x, k: lax.dot_general(x, k, numbers)


def conv(strides=(1, 1), padding="SAME", numbers=NHWC, **more):
    return lambda x, k: lax.conv_general_dilated(
        x, k, strides, padding, dimension_numbers=numbers, **more
    )


CASES = {
    "dense": (dot((1,), (0,)), (5, 4), (4, 3)),
    "transposed kernel": (dot((1,), (1,)), (5, 4), (3, 4)),
    "tokens": (dot((2,), (0,)), (2, 5, 4), (4, 3)),
    "heads out": (dot((2,), (0,)), (2, 5, 4), (4, 3, 6)),
    "heads in": (dot((2, 3), (0, 1)), (2, 5, 3, 6), (3, 6, 4)),
    "heads in, swapped": (dot((3, 2), (0, 1)), (2, 5, 3, 6), (6, 3, 4)),
    "experts": (dot((2,), (1,), (1,), (0,)), (5, 3, 4), (3, 4, 2)),
    "two batch axes": (dot((1,), (0,), (3, 0), (3, 1)), (2, 4, 5, 3), (4, 2, 6, 3)),
    "same convolution": (conv(), (2, 5, 6, 3), (3, 3, 3, 4)),
    "strided": (conv((2, 3), "VALID"), (2, 7, 8, 3), (3, 2, 3, 4)),
    "dilated": (conv(padding=((2, 1), (0, 3)), rhs_dilation=(2, 3)), (2, 7, 8, 3),
                (3, 2, 3, 4)),
    "transposed": (conv(padding=((1, 1), (2, 0)), lhs_dilation=(2, 3)), (2, 4, 3, 3),
                   (3, 3, 3, 4)),
    "cropped": (conv(padding=((-1, 0), (0, -2))), (2, 6, 7, 3), (2, 3, 3, 4)),
    "grouped": (conv(feature_group_count=3), (2, 4, 4, 6), (3, 3, 2, 12)),
    "depthwise": (conv(feature_group_count=6), (2, 4, 4, 6), (3, 3, 1, 6)),
    "channels first": (conv(numbers=("NCHW", "OIHW", "NCHW")), (2, 3, 5, 6),
                       (4, 3, 3, 3)),
    "one dimension": (lambda x, k: lax.conv_general_dilated(
        x, k, (2,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")), (2, 7, 3),
        (3, 3, 4)),
}  # fmt: skip


def draw(shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def form(fn, x, k, swapped=False):
    def traced(x, k):
        return fn(k, x) if swapped else fn(x, k)

    (eqn,) = jax.make_jaxpr(traced)(x, k).eqns
    return form_of(eqn, 0 if swapped else 1)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_contraction_is_a_product_of_matrices(case):
    fn, x_shape, k_shape = case
    x, k = draw(x_shape, 0), draw(k_shape, 1)
    found = form(fn, x, k)
    y = fn(x, k)
    bias = np.zeros((1,) * y.ndim, np.float32)
    np.testing.assert_allclose(contract(found, x, k, bias), y, rtol=1e-5, atol=1e-5)
    product = rows(found, jnp.asarray(x), k.shape) @ matrix(found, k)
    np.testing.assert_allclose(columns(found, y), product, rtol=1e-4, atol=1e-5)


def test_a_kernel_may_be_the_left_operand():
    kernel, x = draw((4, 3, 2), 0), draw((5, 4), 1)
    fn = dot((0,), (1,))
    found = form(fn, x, kernel, swapped=True)
    y = fn(kernel, x)
    bias = np.zeros((1, 1, 1), np.float32)
    np.testing.assert_allclose(contract(found, x, kernel, bias), y, rtol=1e-5)
    product = rows(found, jnp.asarray(x), kernel.shape) @ matrix(found, kernel)
    np.testing.assert_allclose(columns(found, y), product, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_one_value_per_unit_has_the_layout_of_the_columns(case):
    fn, x_shape, k_shape = case
    x, k = draw(x_shape, 0), draw(k_shape, 1)
    found, y = form(fn, x, k), fn(x, k)
    samples = [a for a in range(y.ndim) if a not in unit_axes(found, y.ndim)]
    means = y.mean(axis=samples, keepdims=True)
    expected = columns(found, y).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(columns(found, means), expected, rtol=1e-4, atol=1e-5)


def test_sums_are_in_float32_whatever_the_operands_are():
    fn, x_shape, k_shape = CASES["heads out"]
    x, k = (jnp.asarray(draw(s, 0), jnp.bfloat16) for s in (x_shape, k_shape))
    y = contract(form(fn, x, k), x, k, np.zeros((1,) * 4, np.float32))
    assert y.dtype == jnp.float32
    expected = fn(*(np.asarray(a, np.float32) for a in (x, k)))
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


def test_windows_that_are_activations_and_groups_of_the_batch_have_no_form():
    x, k = draw((4, 5, 5, 3), 0), draw((3, 3, 3, 4), 1)
    (eqn,) = jax.make_jaxpr(conv())(x, k).eqns
    assert form_of(eqn, 0) is None
    (eqn,) = jax.make_jaxpr(conv(batch_group_count=2))(x, k).eqns
    assert form_of(eqn, 1) is None
