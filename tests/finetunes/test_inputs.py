"""Methods that fit inputs: RegMean and LOT, against numpy on networks of one layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from compiled import programs
from finetuned import fine_tunes

from jmudsc.finetunes.inputs import input_layouts, input_moments
from jmudsc.finetunes.merge_finetunes import merge_finetunes

DENSE = tiny.Tiny(
    lambda v, x: x @ v["kernel"] + v["bias"][None],
    {"kernel": (6, 4), "bias": (4,)},
    (6,),
)
BASE = tiny.variables(DENSE, 0)


def data(seed, samples=50, size=6):
    generator = np.random.default_rng(seed)
    mix = generator.normal(size=(size, size))
    return (generator.normal(size=(samples, size)) @ mix).astype(np.float32)


def run(method, models, xs, apply_fn=DENSE.apply_fn, base=BASE, **options):
    return merge_finetunes(
        models,
        base,
        method,
        apply_fn=apply_fn,
        batches=xs,
        owners=range(len(models)),
        **options,
    ).variables


def gram(x):
    return x.T.astype(float) @ x / len(x)


def close(found, expected, tolerance=1e-5):
    expected = np.asarray(expected, float)
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("offdiag", [0.95, 0.3, 0.0])
def test_regmean_solves_its_normal_equations(offdiag):
    models, xs = fine_tunes(BASE, 3, size=1.0), [data(n) for n in range(3)]
    grams = [gram(x) for x in xs]
    grams = [offdiag * g + (1 - offdiag) * np.diag(np.diag(g)) for g in grams]
    right = sum(g @ m["kernel"] for g, m in zip(grams, models, strict=True))
    found = run("regmean", models, xs, offdiag=offdiag)
    close(found["kernel"], np.linalg.solve(sum(grams), right), 1e-4)
    close(found["bias"], np.mean([m["bias"] for m in models], axis=0))


def test_lot_solves_for_the_deltas():
    models, xs = fine_tunes(BASE, 3, size=1.0), [data(n) for n in range(3)]
    grams = [gram(x) for x in xs]
    deltas = [m["kernel"].astype(float) - BASE["kernel"] for m in models]
    right = sum(g @ d for g, d in zip(grams, deltas, strict=True))
    expected = BASE["kernel"] + np.linalg.pinv(sum(grams)) @ right
    close(run("lot", models, xs)["kernel"], expected, 1e-4)


def test_where_all_inputs_are_seen_weights_and_deltas_are_fitted_alike():
    models, xs = fine_tunes(BASE, 2, size=1.0), [data(n) for n in range(2)]
    weights = run("regmean", models, xs, offdiag=1.0)["kernel"]
    close(run("lot", models, xs)["kernel"], weights, 1e-4)


def test_unseen_directions_keep_the_base_and_the_mean():
    models = fine_tunes(BASE, 2, size=1.0)
    xs = [data(n)[:2] for n in range(2)]  # 4 samples, 6 directions
    unseen = np.linalg.svd(np.vstack(xs).astype(float))[2][4:].T
    lot = run("lot", models, xs)["kernel"]
    close(unseen.T @ lot, unseen.T @ BASE["kernel"], 1e-3)
    mean = np.mean([m["kernel"] for m in models], axis=0)
    regmean = run("regmean", models, xs, offdiag=1.0)["kernel"]
    close(unseen.T @ regmean, unseen.T @ mean, 1e-3)


@pytest.mark.parametrize("method", ["regmean", "lot"])
def test_tasks_of_independent_inputs_are_all_answered_exactly(method):
    models = fine_tunes(BASE, 2, size=1.0)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    xs = [
        (np.random.default_rng(n).normal(size=(40, 3)) @ part).astype(np.float32)
        for n, part in enumerate((turn[:3], turn[3:]))
    ]
    options = {"offdiag": 1.0} if method == "regmean" else {}
    found = run(method, models, xs, **options)["kernel"]
    for x, model in zip(xs, models, strict=True):
        close(x @ found, x @ model["kernel"], 1e-3)


@pytest.mark.parametrize("method", ["regmean", "lot"])
def test_one_model_is_itself_and_equal_inputs_give_the_mean(method):
    models, x = fine_tunes(BASE, 2, size=1.0), data(0)
    close(run(method, models[:1], [x])["kernel"], models[0]["kernel"], 1e-4)
    mean = np.mean([m["kernel"] for m in models], axis=0)
    close(run(method, models, [x, x])["kernel"], mean, 1e-4)


def test_without_the_rest_of_the_moments_each_input_has_its_weighted_mean():
    models, xs = fine_tunes(BASE, 2, size=1.0), [data(n) for n in range(2)]
    sizes = [np.diag(gram(x)) for x in xs]
    total = sum(s[:, None] * m["kernel"] for s, m in zip(sizes, models, strict=True))
    found = run("regmean", models, xs, offdiag=0.0)["kernel"]
    close(found, total / sum(sizes)[:, None])


@pytest.mark.parametrize("method", ["regmean", "lot"])
def test_a_rotation_of_the_inputs_goes_through(method):
    models, xs = fine_tunes(BASE, 2, size=1.0), [data(n) for n in range(2)]
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    turned = lambda tree: tree | {"kernel": np.float32(turn @ tree["kernel"])}
    options = {"offdiag": 1.0} if method == "regmean" else {}
    found = run(
        method,
        list(map(turned, models)),
        [np.float32(x @ turn.T) for x in xs],
        base=turned(BASE),
        **options,
    )
    expected = turn @ run(method, models, xs, **options)["kernel"]
    close(found["kernel"], expected, 1e-3)


def test_so_many_examples_are_used_and_no_more():
    models, xs = fine_tunes(BASE, 2, size=1.0), [data(n) for n in range(2)]
    found = run("lot", models, xs, samples=20)["kernel"]
    assert np.array_equal(found, run("lot", models, [x[:20] for x in xs])["kernel"])
    assert not np.array_equal(found, run("lot", models, xs)["kernel"])


def test_without_owners_every_batch_is_of_all_models():
    models, xs = fine_tunes(BASE, 2, size=1.0), [data(n) for n in range(2)]
    both = merge_finetunes(
        models, BASE, "regmean", apply_fn=DENSE.apply_fn, batches=xs
    ).variables
    mean = np.mean([m["kernel"] for m in models], axis=0)
    close(both["kernel"], mean, 1e-4)


@pytest.mark.parametrize("name", ["cnn", "attention", "experts", "recurrent"])
def test_the_moments_are_those_of_what_meets_the_kernel(name):
    """Where the network's own output is linear in one kernel, moments give its norm."""
    net = tiny.NETS[name]
    variables, x = tiny.variables(net, 0), tiny.batch(net, 0, 8)
    layouts = input_layouts(net.apply_fn, variables, x)
    (found,) = [
        input_moments(net.apply_fn, variables, [x], [path])[path]
        for path in [list(net.shapes)[-1] if name != "cnn" else "c/kernel"]
    ]
    path = list(net.shapes)[-1] if name != "cnn" else "c/kernel"
    kernels = layouts[path].matrices(np.asarray(variables[path], float))
    out = net.apply_fn(variables, x)
    if name == "cnn":
        out = out - variables["c/bias"][None]
    energy = sum(np.trace(k.T @ g @ k) for k, g in zip(kernels, found, strict=True))
    out = np.asarray(out, float)
    samples = out.size / out.shape[-1]
    assert energy == pytest.approx(np.square(out).sum() / samples, rel=1e-4)


def test_a_kernel_shared_by_the_steps_of_a_loop_sees_them_all():
    def looped(v, x):
        step = lambda h, _: (jnp.tanh(h @ v["w"]), None)
        return jax.lax.scan(step, x, None, length=3)[0]

    def written_out(v, x):
        for _ in range(3):
            x = jnp.tanh(x @ v["w"])
        return x

    variables, x = {"w": BASE["kernel"][:4] * 0.5}, data(0, size=4)
    ours, theirs = (
        input_moments(fn, variables, [x], ["w"])["w"] for fn in (looped, written_out)
    )
    assert ours.shape == (1, 4, 4)
    close(ours, theirs)


def normed(v, x):
    centred = x - x.mean(axis=-1, keepdims=True)
    z = centred / jnp.sqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + 1e-6)
    return (z * v["scale"][None] + v["bias"][None]) @ v["kernel"]


NORMED = tiny.Tiny(normed, {"scale": (6,), "bias": (6,), "kernel": (6, 4)}, (6,))


def normed_by_scaled_reciprocal(v, x):
    """The same, multiplied in the order of Flax."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    factor = jax.lax.rsqrt(variance + 1e-6) * v["scale"][None]
    return (centred * factor + v["bias"][None]) @ v["kernel"]


@pytest.mark.parametrize("normed", [normed, normed_by_scaled_reciprocal])
def test_lot_weights_the_scales_of_norms_by_what_they_multiply(normed):
    base = tiny.variables(NORMED, 0)
    models, xs = fine_tunes(base, 2, size=1.0), [data(n) for n in range(2)]
    found = run("lot", models, xs, normed, base)
    squares = []
    for x in xs:
        x = x.astype(float)
        x -= x.mean(axis=1, keepdims=True)
        z = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + 1e-6)
        squares.append(np.square(z).mean(axis=0))
    deltas = [m["scale"].astype(float) - base["scale"] for m in models]
    total = sum(s * d for s, d in zip(squares, deltas, strict=True))
    close(found["scale"], base["scale"] + total / sum(squares))
    mean = np.mean([m["bias"] for m in models], axis=0)
    close(found["bias"], mean)
    summed = run("lot", models, xs, normed, base, vectors="sum")
    close(summed["scale"], base["scale"] + sum(deltas))


@pytest.mark.parametrize("method", ["regmean", "lot", "fisher"])
def test_as_many_programs_are_compiled_for_many_models_as_for_two(method):
    base = tiny.variables(NORMED, 0)
    models, xs = fine_tunes(base, 5), [data(n, 20) for n in range(5)]

    def compiled(count):
        # A function of its own: what is compiled for a function is kept.
        own = lambda v, x: NORMED.apply_fn(v, x)
        with programs() as found:
            run(method, models[:count], xs[:count], own, base)
        return len(found.names)

    assert compiled(5) == compiled(2)
