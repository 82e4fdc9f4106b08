import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jmudsc import infer_spec

SHAPES = {"w": (6, 8), "mean": (8,), "var": (8,), "scale": (8,), "bias": (8,)}
FOUND = {"mean", "var"}


def spec_with(fn):
    """The spec of a network with `fn` after its first layer."""
    leaves = {name: jax.ShapeDtypeStruct(s, np.float32) for name, s in SHAPES.items()}
    leaves["out"] = jax.ShapeDtypeStruct((8, 3), np.float32)

    def apply_fn(v, x):
        row = {name: v[name][None] for name in SHAPES if name != "w"}
        return jnp.tanh(fn(x @ v["w"], **row)) @ v["out"]

    batch = jax.ShapeDtypeStruct((4, 6), np.float32)
    return infer_spec(apply_fn, leaves, batch)


def half(x):
    return x.astype(jnp.bfloat16)


NORMS = {
    "multiply by rsqrt": lambda x, mean, var, scale, bias: (
        (x - mean) * lax.rsqrt(var + 1e-5) * scale + bias
    ),
    "multiply by scaled rsqrt": lambda x, mean, var, scale, bias: (
        (x - mean) * (lax.rsqrt(var + 1e-5) * scale) + bias
    ),
    "divide by sqrt": lambda x, mean, var, scale, bias: (
        (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias
    ),
    "scale first": lambda x, mean, var, scale, bias: (
        scale * (x - mean) / jnp.sqrt(var + 1e-5) + bias
    ),
    "no scale": lambda x, mean, var, scale, bias: (x - mean) / jnp.sqrt(1e-5 + var),
    "clipped variance": lambda x, mean, var, scale, bias: (
        (x - mean) * lax.rsqrt(jnp.maximum(var, 1e-5)) * scale + bias
    ),
    "half precision": lambda x, mean, var, scale, bias: (
        half(half(x) - half(mean)) * half(lax.rsqrt(var + 1e-5)) * half(scale)
    ).astype(np.float32),
    "stopped gradients": lambda x, mean, var, scale, bias: (
        (x - lax.stop_gradient(mean)) * lax.rsqrt(lax.stop_gradient(var) + 1e-5)
    ),
    "scaled one by one, as in Keras": lambda x, mean, var, scale, bias: (
        lambda s: x * s + (-mean * s + bias)
    )(lax.rsqrt(var + 1e-3) * scale),
    "a difference of products": lambda x, mean, var, scale, bias: (
        lambda s: x * s - mean * s + bias
    )(lax.rsqrt(var + 1e-3)),
    "a shift first": lambda x, mean, var, scale, bias: (
        lambda s: (bias - s * mean) + s * x
    )(scale * lax.rsqrt(var + 1e-3)),
    "minus a product": lambda x, mean, var, scale, bias: (
        lambda s: -(mean * s) + x * s
    )(lax.rsqrt(var + 1e-3)),
    "inside a call": lambda x, mean, var, scale, bias: jax.jit(
        lambda x, mean, var: (x - mean) * lax.rsqrt(var + 1e-5)
    )(x, mean, var),
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_a_running_mean_and_variance_are_told_by_their_use(norm):
    spec = spec_with(norm)
    assert spec.statistics == FOUND
    assert spec.variances == {"mean": "var"}


OTHERS = {
    "scale and bias": lambda x, mean, var, scale, bias: x * scale + bias,
    "subtracted bias": lambda x, mean, var, scale, bias: (x - bias) * scale,
    "layer norm": lambda x, mean, var, scale, bias: (
        (x - x.mean(1, keepdims=True)) * lax.rsqrt(x.var(1, keepdims=True)) * scale
        + bias
    ),
    "rms norm": lambda x, mean, var, scale, bias: (
        x * lax.rsqrt(jnp.square(x).mean(1, keepdims=True)) * scale
    ),
    "weight norm": lambda x, mean, var, scale, bias: (
        x * (scale * lax.rsqrt(jnp.square(scale).sum()))
    ),
    "square root of activations": lambda x, mean, var, scale, bias: jnp.sqrt(
        jnp.abs(x * scale + bias)
    ),
}


@pytest.mark.parametrize("norm", OTHERS.values(), ids=OTHERS)
def test_nothing_else_is_a_running_statistic(norm):
    spec = spec_with(norm)
    assert spec.statistics == frozenset()
    assert spec.variances == {}


UNPAIRED = {
    "added": lambda x, mean, s, scale: x * s + mean * s,
    "scaled otherwise": lambda x, mean, s, scale: x * s - mean * (s * scale),
    "taken off the other way": lambda x, mean, s, scale: mean * s - x * s,
}


@pytest.mark.parametrize("norm", UNPAIRED.values(), ids=UNPAIRED)
def test_a_leaf_that_is_not_subtracted_from_activations_is_no_mean(norm):
    spec = spec_with(
        lambda x, mean, var, scale, bias: norm(x, mean, lax.rsqrt(var + 1e-3), scale)
    )
    assert spec.statistics == {"var"}
    assert spec.variances == {}


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("use_scale", [True, False])
def test_batch_norm_of_linen_is_found_in_any_precision(dtype, use_scale):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = nn.BatchNorm(
                use_running_average=True, dtype=dtype, use_scale=use_scale
            )
            return nn.Dense(3)(nn.relu(norm(nn.Dense(8)(x))))

    batch = jax.ShapeDtypeStruct((4, 6), np.float32)
    variables = jax.eval_shape(Net().init, jax.random.key(0), batch)
    spec = infer_spec(Net().apply, variables, batch)
    names = {"batch_stats/BatchNorm_0/mean", "batch_stats/BatchNorm_0/var"}
    assert spec.statistics == names
    assert {site.path for site in spec.labels["P_0"].sites} >= names


def test_means_are_paired_with_the_variances_of_their_own_norm():
    def norm(x, mean, var, scale, bias):
        first = (x - mean) * lax.rsqrt(var + 1e-5)
        return (jnp.tanh(first) - bias) / jnp.sqrt(scale + 1e-5)

    assert spec_with(norm).variances == {"mean": "var", "bias": "scale"}


def test_the_statistics_of_scanned_layers_are_told_by_their_use():
    def apply_fn(v, x):
        def layer(x, leaves):
            mean, var, scale, kernel = leaves
            x = (x - mean[None]) * lax.rsqrt(var[None] + 1e-5) * scale[None]
            return jnp.tanh(x @ kernel), None

        leaves = v["mean"], v["var"], v["scale"], v["kernel"]
        return lax.scan(layer, jnp.tanh(x @ v["in"]), leaves)[0] @ v["out"]

    shapes = {"mean": (3, 5), "var": (3, 5), "scale": (3, 5), "kernel": (3, 5, 5)}
    shapes |= {"in": (4, 5), "out": (5, 2)}
    leaves = {n: jax.ShapeDtypeStruct(s, np.float32) for n, s in shapes.items()}
    spec = infer_spec(apply_fn, leaves, jax.ShapeDtypeStruct((2, 4), np.float32))
    assert spec.statistics == FOUND
    assert spec.variances == {"mean": "var"}
