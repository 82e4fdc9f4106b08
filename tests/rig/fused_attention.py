"""The fused attention of GPUs, computed on CPUs from its definition."""

import functools

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as fused
from jax.interpreters import mlir

Mask = fused.MaskType
PRIMITIVE = fused._dot_product_attention_fwd_p_wrapper


def _defined(q, k, v, bias, *_, scale, mask_type, layout, is_training, **options):
    if layout == fused.AttentionLayout.BNTH.value:
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) * scale
    if bias.size:
        scores += jnp.broadcast_to(bias, scores.shape)
    if mask_type == Mask.CAUSAL:
        scores = jnp.where(jnp.tri(*scores.shape[2:])[None, None] > 0, scores, -1e9)
    out = jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores), v)
    if layout == fused.AttentionLayout.BNTH.value:
        out = out.swapaxes(1, 2)
    statistics = jax.nn.logsumexp(scores, axis=-1)
    return [out, statistics] if is_training else [out]


mlir.register_lowering(
    PRIMITIVE, mlir.lower_fun(_defined, multiple_results=True), platform="cpu"
)


def attend(q, k, v, bias=None, *, mask=Mask.NO_MASK, layout="BTNH", training=False):
    """Call the primitive as `jax.nn.dot_product_attention` does."""
    none = jnp.zeros(0, q.dtype)
    outs = PRIMITIVE.bind(
        *(q, k, v, none if bias is None else bias),
        *[none] * 6,
        scale=0.5,
        seed=0,
        dropout_rate=0.0,
        variadic_args=(bias is not None, False),
        mask_type=mask,
        layout=fused.AttentionLayout[layout].value,
        sliding_window_length=None,
        is_training=training,
    )
    return outs if training else outs[0]


def attending(**options):
    """A function of queries, keys, values, and maybe a bias."""
    return functools.partial(attend, **options)
