"""Families of random programs that look for one kind of false label each.

A family is makers of lines, as those of `programs`, with how often each is drawn beside
them. What is drawn by hand here ties, starts windows, rounds positions or hides what it
does more often than chance would.
"""

import jax
import numpy as np

# What makes entries equal, and what does not. {v} is a value, {w} a leaf like its last
# axis, {k} a square kernel of it, {b} a leaf as wide as that.
SQUASHED = """
jax.nn.relu({v})
jax.nn.relu6(3 * {v})
jnp.clip({v}, -0.5, 0.5)
jnp.round({v})
jnp.sign({v})
jnp.floor({v})
({v} > 0) * 1.0
jnp.tanh(30 * {v})
jax.nn.sigmoid(60 * {v})
jax.nn.softmax(1e4 * {v}, {a})
jnp.exp(-900 * jnp.abs({v}))
({v} + 1e16) - 1e16
(0.01 * {v}) ** 200
{v}.astype(jnp.bfloat16).astype(jnp.float32)
{v}.astype(jnp.float8_e4m3fn).astype(jnp.float32)
lax.reduce_precision({v}, 8, 2)
jnp.where({v} > 0, {v}, 0.0)
jnp.maximum({v}, {v}.mean({a}, keepdims=True))
{v} - {v}
jnp.broadcast_to({v}.mean({a}, keepdims=True), {v}.shape)
jax.nn.relu({v}) @ {k}
jax.nn.softmax(jax.nn.relu({v}), {a})
jax.nn.relu({v}) * {w}
jnp.abs({v} - {v}.mean({a}, keepdims=True))
{v} * jnp.round({w})
jax.nn.relu({v}) + jax.nn.relu({w})
jax.nn.silu(-60 * {v})
{v} + lax.stop_gradient(jnp.round({v}) - {v})
jnp.sort({v}, {a}) * 0.0
{v} * (jax.nn.relu({v}).sum({a}, keepdims=True) > 0)
{v} / {v}
jax.nn.softmax({v} * 0.0, {a})
jnp.repeat({v}.mean({a}, keepdims=True), {n}, {a})
jax.nn.one_hot(jnp.argmax({v}, {a}), {n}, axis={a})
({v} @ {k}).astype(jnp.int32)
lax.cond(j > 0, lambda y: jax.nn.relu(y), lambda y: y, {v})
lax.scan(lambda c, _: (jax.nn.relu(c), None), {v}, None, 2)[0]
lax.fori_loop(0, j, lambda n, c: jax.nn.relu(c), {v})
""".strip().splitlines()
GENERIC = """
{v} @ {k}
jax.nn.relu({v}) @ {k} + {b}
jax.nn.softmax({v} @ {k} + {b}, {a})
jnp.tanh({v}) * {w}
{v} + {w}
{v} * {w}
jnp.exp({v})
({v} + {w}) / jnp.sqrt(1 + ({v} ** 2).mean({a}, keepdims=True))
({v} - {v}.mean({a}, keepdims=True)) @ {k}
({v}[..., None, :] - {k}).sum(-1)
(({v}[..., None, :] - {k}) ** 2).sum(-1)
({k} ** 2).sum(-1) - 2 * {v} @ {k}.T
{v} @ ({k} / jnp.sqrt(({k} ** 2).sum(0, keepdims=True)))
lax.scan(lambda c, w: (c + jax.nn.relu(c) @ w, None), {v}, {stack})[0]
lax.scan(lambda c, w: (c, c @ w), {v}, {stack})[1][0]
jax.nn.sigmoid({v} @ {k}) + {b}
jnp.concatenate([{v} @ {k}, {v} @ {k}], -1)
jnp.log1p(jnp.exp({v}))
""".strip().splitlines()
RANKED = """
jnp.argmax({y}, {a})
jnp.argmin({y}, {a})
jnp.argsort({y}, {a})
jnp.argsort(-{y}, {a})[..., :2]
lax.top_k(jnp.moveaxis({y}, {a}, -1), 2)[1]
lax.sort(({y}, {v}), dimension={a}, num_keys=1)[1]
lax.sort((jnp.round({v}), {y}, {v}), dimension={a}, num_keys=2)[2]
lax.top_k(jnp.moveaxis({y}, {a}, -1), 2)[0]
jnp.argmax(jax.nn.softmax({y}, {a}), {a})
(jnp.argmax({y}, {a}, keepdims=True) == lax.broadcasted_iota(int, {shape}, {a})) * 1.0
jnp.take_along_axis({v}, jnp.argsort({y}, {a}), {a})
jax.vmap(lambda y, v: v[jnp.argmax(y)])({y}, {v})
""".strip().splitlines()


def _parts(d, v, a):
    width, size = d.shape(v)[-1], d.shape(v)[a]
    beside = [n if axis == a else 1 for axis, n in enumerate(d.shape(v))]
    return {
        "v": v, "a": a, "n": size, "shape": d.shape(v), "w": d.leaf(*beside),
        "k": d.leaf(width, width), "b": d.leaf(width), "stack": d.leaf(2, width, width),
    }  # fmt: skip


def ranked(d):
    """The order of entries of which some may be equal."""
    v = d.value(2, 3)
    parts = _parts(d, v, d.axis(v))
    y = d.one(SQUASHED if d.chance(0.6) else GENERIC).format(**parts)
    if d.chance(0.3):
        y = d.one(GENERIC).format(**{**parts, "v": f"({y})"})
    return d.one(RANKED).format(**{**parts, "y": f"({y})"})


def squashed(d):
    """A value with equal entries, for whatever comes next."""
    v = d.value(2, 3)
    return d.one([*SQUASHED, *GENERIC]).format(**_parts(d, v, d.axis(v)))


def window(d):
    """Several positions in a row from where an index says."""
    i, w = d.one(d.values(1, kind="i")), d.value(2, 3)
    if d.chance(0.6):  # start where the best of as many units is
        v = d.value(2)
        size = d.shape(v)[1]
        i, w = f"jnp.argmax({v} + {d.leaf(size)}, 1)", d.leaf(size, d.size())
    size = d.shape(w)[0]
    taken, mode = d.one((1, 2, size - 1, size)), d.one(["'fill'", "'clip'"])
    rest = d.shape(w)[1:]
    offsets = tuple(range(1, 1 + len(d.shape(w))))
    numbers = f"lax.GatherDimensionNumbers({offsets}, (), (0,))"
    return d.one(
        [
            f"lax.gather({w}, {i}[:, None], {numbers}, {(taken, *rest)}, mode={mode})",
            f"jax.vmap(lambda k: lax.dynamic_slice_in_dim({w}, k, {taken}))({i})",
            f"lax.dynamic_slice_in_dim({w}, {i}[0], {taken})",
            f"lax.dynamic_update_slice_in_dim({w}, {w}[:{taken}] * 2, {i}[0], 0)",
            f"{w}.at[{i}[0] + jnp.arange({taken})].add(1.0)",
            f"jnp.take({w}, {i}, axis=0, mode='fill', fill_value=0)",
            f"{w}.at[{i}].get(mode='fill', fill_value=1.0)",
            f"{w}[jnp.clip({i}, 0, {taken})]",
            f"jax.vmap(lambda k: jnp.roll({w}, k, 0))({i})",
        ]
    )


NARROW = "uint2 int2 int4 uint8 float4_e2m1fn float8_e5m2 float8_e4m3fn bfloat16 bool"


def narrow(d):
    """Positions in a type that may not hold them."""
    t = f"jnp.{d.one(NARROW.split())}"
    i, w = d.one(d.values(1, kind="i")), d.leaf(d.size(), d.size())
    v = d.value(2)
    rows, width = d.shape(v)
    mine = d.leaf(width, d.size())
    best = f"jnp.argmax({v} + {d.leaf(width)}, 1)"
    back = d.one(["", ".astype(jnp.int32)"])
    places = d.one([f"jnp.arange({width})", f"lax.iota(jnp.int32, {width})"])
    return d.one(
        [
            f"({best}.astype({t}){back}[:, None] == {places}.astype({t}){back}) * 1.0",
            f"(({best}.astype({t}){back}[:, None] == {places}.astype({t}){back}) * 1.0)"
            f" @ {mine}",
            f"{mine}[{best}.astype({t}).astype(jnp.int32)]",
            f"{mine}[lax.argmax({v} + {d.leaf(width)}, 1, jnp.int8).astype({t})"
            ".astype(jnp.int32)]",
            f"({best}[:, None] == lax.broadcasted_iota(jnp.int32, {(rows, width)}, 1)"
            f".astype({t}).astype(jnp.int32)) @ {mine}",
            f"{w}[{i}.astype({t}).astype(jnp.int32)]",
            f"{mine}[lax.iota(jnp.int32, {width}).astype({t}).astype(jnp.int32)]",
            f"lax.iota(jnp.int32, {width}).astype({t}).astype(jnp.float32) * {v}",
        ]
    )


@jax.custom_jvp
def doubled(x):
    return x * 2


doubled.defjvp(lambda ins, slopes: (doubled(*ins), slopes[0] * 3))


@jax.custom_vjp
def first_of_rows(x):
    return x[..., :1] + x


first_of_rows.defvjp(lambda x: (first_of_rows(x), x), lambda x, g: (g[..., ::-1] + x,))


@jax.custom_vjp
def passed_through(x):
    return jax.numpy.round(x)


passed_through.defvjp(lambda x: (passed_through(x), None), lambda _, g: (g,))

DIFFERENTIATED = """
jnp.tanh(x @ {k})
jax.nn.softmax(x * {w}, {a}) * {w}
jnp.sort(x, {a}) * {w}
jnp.cumsum(x, {a}) * {w}
x.max({a}) ** 2
(x[..., ::2] ** 2) * 3
jnp.flip(x, {a}) * {w} * x
rig.doubled(x) * {w}
rig.first_of_rows(x) * x
rig.passed_through(x) * {w}
jax.nn.relu(x @ {k}) @ {k}
(x / jnp.sqrt(1 + (x ** 2).mean({a}, keepdims=True))) * {w}
jnp.concatenate([x, x * {w}], {a}) ** 2
jnp.pad(x, {pads}) ** 3
jnp.tile(x, {reps}) ** 2
jnp.take(x, jnp.argmax(x + {w}, {a}), {a})[:1] ** 2
jnp.einsum('...i,...j->...ij', x, x) ** 2
jax.checkpoint(lambda y: jnp.sin(jnp.sin(y)))(x) * {w}
lax.scan(lambda c, w: (c + jnp.tanh(c @ w), None), x, {stack})[0]
x.reshape(-1) ** 2 * {flat}
jnp.where(x > 0, x, jnp.exp(x)) * {w}
lax.top_k(x, 2)[0] ** 2
jnp.moveaxis(x, 0, -1) ** 2
lax.split(x, ({n} - 1, 1), {a})[0] ** 2
""".strip().splitlines()


def gradient(d):
    """What a derivative inside the program does."""
    v = d.value(2, 3)
    a, shape = d.axis(v), d.shape(v)
    parts = _parts(d, v, a)
    parts["pads"] = [(int(axis == a), 0) for axis in range(len(shape))]
    parts["reps"] = tuple(1 + (axis == a) for axis in range(len(shape)))
    parts["flat"] = d.leaf(int(np.prod(shape)))
    body = d.one(DIFFERENTIATED).format(**parts)
    if d.chance(0.3):
        other = d.one(DIFFERENTIATED).format(**parts)
        body = f"({other}).sum() * ({body})"
    slope = f"jax.grad(lambda x: ({body}).sum())({v})"
    if "rig." in body:  # some have no forward derivative
        return slope
    return d.one(
        [
            slope,
            f"{slope} + {v}",
            f"jax.jvp(lambda x: {body}, ({v},), ({v} * 0.5,))[1]",
            f"(lambda x: {body})({v})",
            f"jax.linearize(lambda x: {body}, {v})[1](jnp.ones_like({v}))",
        ]
    )


def flipped(x):
    return np.asarray(x)[..., ::-1]


def squared(x):
    return np.asarray(x) ** 2


def callback(d):
    """What the host does is not seen."""
    v = d.value(1, 2, 3)
    name = d.one(["rig.flipped", "rig.squared", "np.sort"])
    made = f"jax.ShapeDtypeStruct({v}.shape, {v}.dtype)"
    called = f"jax.pure_callback({name}, {made}, {v}, vmap_method='expand_dims')"
    return d.one(
        [
            called,
            f"{v} + {called}",
            f"jax.vmap(lambda y: jax.pure_callback({name}, jax.ShapeDtypeStruct("
            f"y.shape, y.dtype), y, vmap_method='expand_dims'))({v})",
        ]
    )


def constant(d):
    """Constants that differ though they are equal."""
    v = d.value(1, 2)
    size = d.shape(v)[-1]
    signs = d.one([[0.0, -0.0], [0.0, 0.0], [-0.0, -0.0], [-0.0, 0.0]])
    zeros = f"jnp.array({(signs * size)[:size]})"
    return d.one(
        [
            f"jnp.where(1.0 / {zeros} > 0, {v}, {v} * 2)",
            f"{v} + {zeros}",
            f"jnp.sign(1.0 / {zeros}) * {v}",
        ]
    )


FAMILIES = {
    "ties": {ranked: 12, squashed: 4},
    "windows": {window: 10},
    "narrow types": {narrow: 10, constant: 2},
    "custom gradients": {gradient: 10},
    "callbacks": {callback: 6},
}
