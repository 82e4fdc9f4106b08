"""Ties: an axis along which entries are ranked that may be equal stays in place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from program_families import GENERIC, SQUASHED

from jmudsc import infer_spec, permute, random_permutations
from jmudsc.derivation.program import run, trace
from jmudsc.derivation.terms.genericity import Sign
from jmudsc.derivation.terms.values import Place
from jmudsc.derivation.ties import follow, tied

EXPERTS = {"router": (6, 4), "up": (4, 6, 5), "down": (4, 5, 3)}
BIAS, HIDDEN = {"bias": (4,)}, {"hidden": (6, 6)}


@pytest.fixture(autouse=True)
def _as_users_write():
    with jax.numpy_rank_promotion("allow"):
        yield


def drawn(shapes, seed=0):
    generator = np.random.default_rng(seed)
    return {
        name: generator.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def logits(v, x):
    return x @ v["router"]


def routed(scores):
    """Two experts an input, those with the highest scores."""

    def apply_fn(v, x):
        gates, chosen = lax.top_k(scores(v, x), 2)
        hidden = jax.nn.relu(jnp.einsum("bd,bkdf->bkf", x, v["up"][chosen]))
        return jnp.einsum("bk,bkf,bkfo->bo", gates + 1, hidden, v["down"][chosen])

    return apply_fn


def half(x):
    return x.astype(jnp.bfloat16).astype(jnp.float32)


FREE = {
    "logits": (logits, {}),
    "softmax": (lambda v, x: jax.nn.softmax(logits(v, x)), {}),
    "log softmax": (lambda v, x: jax.nn.log_softmax(logits(v, x)), {}),
    "bias after a sigmoid": (
        lambda v, x: jax.nn.sigmoid(logits(v, x)) + v["bias"],
        BIAS,
    ),
    "after a relu, with a bias": (
        lambda v, x: jax.nn.relu(x @ v["hidden"]) @ v["router"] + v["bias"],
        HIDDEN | BIAS,
    ),
    "after a normed relu": (
        lambda v, x: logits(
            v, x + jax.nn.relu(x @ v["hidden"]) * v["scale"] + v["shift"]
        ),
        {**HIDDEN, "scale": (6,), "shift": (6,)},
    ),
    "softmax of some temperature": (
        lambda v, x: jax.nn.softmax(logits(v, x) / 0.5),
        {},
    ),
    "half precision before the router": (lambda v, x: logits(v, half(x)), {}),
    "cosines": (
        lambda v, x: x @ (v["router"] / jnp.linalg.norm(v["router"], axis=0)),
        {},
    ),
}
FIXED = {
    "relu": (lambda v, x: jax.nn.relu(logits(v, x)), {}),
    "relu6": (lambda v, x: jax.nn.relu6(logits(v, x)), {}),
    "clip": (lambda v, x: jnp.clip(logits(v, x), -0.1, 0.1), {}),
    "round": (lambda v, x: jnp.round(logits(v, x)), {}),
    "sign": (lambda v, x: jnp.sign(logits(v, x)), {}),
    "from booleans": (lambda v, x: (logits(v, x) > 0).astype(jnp.float32), {}),
    "half precision": (lambda v, x: half(logits(v, x)), {}),
    "sigmoid": (lambda v, x: jax.nn.sigmoid(30 * logits(v, x)), {}),
    "tanh": (lambda v, x: jnp.tanh(30 * logits(v, x)), {}),
    "sharp softmax": (lambda v, x: jax.nn.softmax(1e4 * logits(v, x)), {}),
    "sharp in two steps": (
        lambda v, x: jax.nn.softmax(50 * (logits(v, x) / 0.01)),
        {},
    ),
    "underflow": (lambda v, x: jnp.exp(-900 * jnp.abs(logits(v, x))), {}),
    "high power": (lambda v, x: (logits(v, x) / 4) ** 80, {}),
    "rounded away": (lambda v, x: (logits(v, x) + 1e8) - 1e8, {}),
    "rounded away by a mask": (
        lambda v, x: logits(v, x) + (x.sum(-1, keepdims=True) < 0) * -1e9,
        {},
    ),
    "masked": (lambda v, x: jnp.where(logits(v, x) > 0, logits(v, x), -1e9), {}),
    "all equal": (
        lambda v, x: jnp.broadcast_to(logits(v, x).sum(-1, keepdims=True), (9, 4)),
        {},
    ),
    "after a relu": (
        lambda v, x: jax.nn.relu(x @ v["hidden"][:, :2]) @ v["router"][:2],
        HIDDEN,
    ),
}


@pytest.mark.parametrize("name", [*FREE, *FIXED])
def test_experts_are_permuted_exactly_if_no_two_scores_are_equal(name):
    scores, more = (FREE | FIXED)[name]
    leaves, x = drawn({**EXPERTS, **more}), drawn({"x": (9, 6)})["x"]
    apply_fn = routed(scores)
    spec = infer_spec(apply_fn, leaves, x)
    experts, _, hidden = spec.axes["up"]
    free = {name for name, label in spec.labels.items() if not label.fixed}
    assert bool(free.intersection(experts.labels())) == (name in FREE)
    assert free.intersection(hidden.labels())
    expected = apply_fn(leaves, x)
    for seed in range(3):
        moved = permute(spec, leaves, random_permutations(spec, jax.random.key(seed)))
        np.testing.assert_allclose(apply_fn(moved, x), expected, rtol=2e-5, atol=2e-5)


def test_the_reason_names_what_ranks():
    leaves, x = drawn(EXPERTS), drawn({"x": (9, 6)})["x"]
    spec = infer_spec(routed(FIXED["relu"][0]), leaves, x)
    reasons = [label.fixed for label in spec.labels.values() if label.fixed]
    assert reasons == ["is treated by position in top_k among equal ones"]


def test_what_only_the_sizes_are_taken_of_may_tie():
    def apply_fn(v, x):
        scores = jax.nn.relu(x @ v["router"])
        least = lax.top_k(scores, 2)[0][:, 1:]
        gates = jnp.where(scores >= least, scores, 0)
        return jnp.einsum("be,bd,edf->bf", gates, x, v["up"])

    leaves, x = drawn(EXPERTS), drawn({"x": (9, 6)})["x"]
    program = trace(apply_fn, leaves, x)
    assert tied(program) == frozenset()
    assert {
        label.size for label in infer_spec(apply_fn, leaves, x).labels.values()
    } == {4}


def codes(distances):
    def apply_fn(v, x):
        z = jnp.tanh(x @ v["in"]) + v["bias"]
        return v["codes"][jnp.argmin(distances(z, v["codes"]), -1)] @ v["out"]

    return apply_fn


CODEBOOK = {"in": (6, 5), "bias": (5,), "codes": (8, 5), "out": (5, 3)}
DISTANCES = {
    "written out": lambda z, c: ((z[:, None] - c[None]) ** 2).sum(-1),
    "by a product": lambda z, c: (
        (z**2).sum(-1, keepdims=True) + (c**2).sum(-1)[None] - 2 * z @ c.T
    ),
    "of directions": lambda z, c: (
        -(
            (z / jnp.linalg.norm(z, axis=-1, keepdims=True))
            @ (c / jnp.linalg.norm(c, axis=-1, keepdims=True)).T
        )
    ),
}


@pytest.mark.parametrize("name", DISTANCES)
def test_codes_are_permuted_however_the_nearest_is_found(name):
    x = drawn({"x": (9, 6)})["x"]
    spec = infer_spec(codes(DISTANCES[name]), drawn(CODEBOOK), x)
    assert sorted(label.size for label in spec.labels.values()) == [5, 8]


WIDTHS = {
    "scale0": (12,), "scale1": (12,), "query": (12, 6), "key": (12, 6),
    "value": (12, 6), "out": (6, 12), "router": (12, 4), "gate": (4, 12, 5),
    "up": (4, 12, 5), "down": (4, 5, 12),
}  # fmt: skip


def normed(x, scale):
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale


def block(x, v):
    """Attention and experts without a bias anywhere."""
    y = normed(x, v["scale0"])
    scores = jnp.einsum("btd,bsd->bts", y @ v["query"], y @ v["key"])
    x = x + jax.nn.softmax(scores) @ (y @ v["value"]) @ v["out"]
    y = normed(x, v["scale1"])
    gates, chosen = lax.top_k(jax.nn.softmax(y @ v["router"]), 2)
    gates = gates / gates.sum(-1, keepdims=True)
    weights = jnp.einsum("btk,btke->bte", gates, jax.nn.one_hot(chosen, 4))
    hidden = jnp.einsum("btd,edf->btef", y, v["up"])
    hidden = jax.nn.silu(jnp.einsum("btd,edf->btef", y, v["gate"])) * hidden
    return x + jnp.einsum("bte,btef,efd->btd", weights, hidden, v["down"]), None


def scanned(v, tokens):
    x, _ = lax.scan(block, v["tokens"][tokens], v["layers"])
    return x @ v["head"]


def unrolled(v, tokens):
    x = v["tokens"][tokens]
    for layer in v["layers"]:
        x, _ = block(x, layer)
    return x @ v["head"]


@pytest.mark.parametrize(("model", "times"), [(scanned, 1), (unrolled, 3)])
def test_experts_of_a_decoder_without_biases_are_permuted_in_every_layer(model, times):
    layers = [drawn(WIDTHS) for _ in range(3)]
    if model is scanned:
        layers = jax.tree.map(lambda *rows: np.stack(rows), *layers)
    leaves = {**drawn({"tokens": (50, 12), "head": (12, 7)}), "layers": layers}
    spec = infer_spec(model, leaves, np.arange(6, dtype=np.int32).reshape(2, 3))
    sizes = [label.size for label in spec.labels.values() if not label.fixed]
    assert sorted(sizes) == sorted([12, *[4, 5, 6, 6] * times])


def test_a_stack_that_is_scanned_with_itself_reversed_has_no_slices_of_its_own():
    def apply_fn(v, x):
        def layer(x, kernels):
            first, second = kernels
            scores = x @ first - x @ second
            return x + v["codes"][jnp.argmax(scores, -1)], None

        return lax.scan(layer, x, (v["stack"], v["stack"][::-1]))[0]

    leaves = drawn({"stack": (3, 5, 4), "codes": (4, 5)})
    spec = infer_spec(apply_fn, leaves, drawn({"x": (9, 5)})["x"])
    assert not spec.labels


SHAPES = {"w": (1, 4), "k": (4, 4), "b": (4,), "stack": (2, 4, 4)}


@pytest.mark.parametrize("code", [*SQUASHED, *GENERIC])
@pytest.mark.parametrize("axis", [0, 1])
def test_what_is_said_of_entries_is_so(code, axis):
    """The law: entries said to differ do, those said not to vary do not, and so on."""
    x, names = drawn({"x": (6, 4)}, 1)["x"], ("w", "k", "b", "stack")
    parts = {"a": axis, "n": x.shape[axis], "shape": x.shape}
    parts |= {name: f"leaves['{name}']" for name in names}

    def apply_fn(leaves, batch):
        rows = batch @ leaves["in"] + leaves["rows"]
        known = {"v": rows, "leaves": leaves, "jnp": jnp, "jax": jax, "lax": lax}
        return eval(code.format(v="v", **parts), {**known, "j": jnp.int32(1)})

    shapes = {**SHAPES, "in": (4, 4), "rows": (6, 4)}
    program = trace(apply_fn, drawn(shapes), x)
    known, _ = follow(program)
    seen = [var for eqn in program.eqns for var in eqn.outvars if var in known]
    for seed in range(4):
        args = [drawn(shapes, seed)[path] for path in program.paths]
        for var, value in zip(
            seen, run(program, [*args, x], [Place(v) for v in seen]), strict=True
        ):
            check(known[var], np.asarray(value, np.float32))


def check(known, value):
    for axis, along in enumerate(known.axes):
        ordered = np.sort(value, axis=axis)
        if along.is_apart:
            assert (np.diff(ordered, axis=axis) != 0).all()
        if along.is_flat:
            assert (ordered == ordered.take([0], axis=axis)).all()
    if known.sign >= Sign.NONZERO:
        assert (value != 0).all()
    if known.sign == Sign.POSITIVE:
        assert (value > 0).all()
