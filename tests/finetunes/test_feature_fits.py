"""RegMean++ and FeatCal, against numpy on a network of two layers."""

import numpy as np
import pytest
import tiny
from finetuned import fine_tunes

from jmudsc.finetunes.merge_finetunes import merge_finetunes

SHAPES = {"a/kernel": (5, 7), "a/bias": (7,), "b/kernel": (7, 3), "b/bias": (3,)}


def _net(v, x):
    hidden = np.tanh if isinstance(x, np.ndarray) and x.dtype == float else _tanh
    h = hidden(x @ v["a/kernel"] + v["a/bias"][None])
    return h @ v["b/kernel"] + v["b/bias"][None]


def _tanh(x):
    import jax.numpy as jnp

    return jnp.tanh(x)


NET = tiny.Tiny(_net, SHAPES, (5,))
BASE = tiny.variables(NET, 0)
MODELS = fine_tunes(BASE, 2, size=0.3)
XS = [tiny.batch(NET, seed, 40) for seed in range(2)]


def run(method, models=MODELS, xs=XS, base=BASE, apply_fn=_net, **options):
    return merge_finetunes(
        models,
        base,
        method,
        apply_fn=apply_fn,
        batches=xs,
        owners=range(len(models)),
        **options,
    ).variables


def wide(tree):
    return {path: np.asarray(leaf, float) for path, leaf in tree.items()}


def hidden(v, x):
    return np.tanh(x @ v["a/kernel"] + v["a/bias"])


def close(found, expected, tolerance=1e-4):
    for path, leaf in expected.items():
        scale = np.abs(leaf).max()
        np.testing.assert_allclose(
            found[path], leaf, atol=tolerance * scale, err_msg=path
        )


def featcal_layer(merged, own, kernels, biases, anchors, ridge, alpha):
    """One layer of FeatCal as its paper has it."""
    grams, scales, right = [], [], 0
    mixed = [alpha * o + (1 - alpha) * m for o, m in zip(own, merged, strict=True)]
    for x, t, kernel in zip(merged, mixed, kernels, strict=True):
        grams.append(x.T @ x / len(x))
        scales.append(1 / np.linalg.norm(grams[-1]))
        right = right + scales[-1] * (x.T @ t / len(x)) @ kernel
    left = sum(s * g for s, g in zip(scales, grams, strict=True))
    left = left + (ridge + 1e-8) * np.eye(len(left))
    kernel = np.linalg.solve(left, right + ridge * anchors[0])
    bias = ridge * anchors[1]
    for s, x, t, k, b in zip(scales, merged, mixed, kernels, biases, strict=True):
        bias = bias + s * (b + t.mean(axis=0) @ k - x.mean(axis=0) @ kernel)
    return kernel, bias / (sum(scales) + ridge)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("anchor", [1.0, 2.0])
def test_featcal_fits_one_layer_after_the_other(alpha, anchor):
    ridge, xs = 0.05, [x.astype(float) for x in XS]
    base, models = wide(BASE), list(map(wide, MODELS))
    start = {p: base[p] + 0.3 * sum(m[p] - base[p] for m in models) for p in base}
    anchors = {p: anchor * start[p] + (1 - anchor) * base[p] for p in base}
    expected = {}
    layer = lambda name: [f"{name}/kernel", f"{name}/bias"]
    of = lambda name, part: [m[f"{name}/{part}"] for m in models]
    for name in "ab":
        at = xs if name == "a" else [hidden(expected, x) for x in xs]
        own = (
            xs
            if name == "a"
            else [hidden(m, x) for m, x in zip(models, xs, strict=True)]
        )
        fitted = featcal_layer(
            at,
            own,
            of(name, "kernel"),
            of(name, "bias"),
            [anchors[p] for p in layer(name)],
            ridge,
            alpha,
        )
        expected |= dict(zip(layer(name), fitted, strict=True))
    close(run("featcal", alpha=alpha, anchor=anchor), expected)


def test_featcal_of_much_ridge_is_its_anchor():
    start = {p: BASE[p] + 0.3 * sum(m[p] - BASE[p] for m in MODELS) for p in BASE}
    found = run("featcal", ridge=1e7)
    close(found, {p: 2 * start[p] - BASE[p] for p in BASE}, 1e-4)


def test_featcal_of_copies_that_are_the_start_changes_nothing():
    copies = [MODELS[0], {p: leaf.copy() for p, leaf in MODELS[0].items()}]
    found = run("featcal", copies, lambda_=0.5, anchor=1.0)
    close(found, wide(MODELS[0]))


def test_featcal_moves_past_a_single_model_unless_its_anchor_is_the_start():
    start = {"lambda_": 1.0, "alpha": 0.0}
    close(run("featcal", MODELS[:1], XS[:1], anchor=1.0, **start), wide(MODELS[0]))
    found = run("featcal", MODELS[:1], XS[:1], anchor=2.0, **start)["b/kernel"]
    delta = MODELS[0]["b/kernel"] - BASE["b/kernel"]
    beyond = np.asarray(found, float) - MODELS[0]["b/kernel"]
    assert np.sum(beyond * delta) > 0
    assert np.linalg.norm(beyond) > 0.01 * np.linalg.norm(delta)


def test_regmean_pp_fits_what_the_merged_layers_make_of_the_inputs():
    models, xs = list(map(wide, MODELS)), [x.astype(float) for x in XS]
    expected = {
        path: np.mean([m[path] for m in models], axis=0)
        for path in ("a/bias", "b/bias")
    }
    for name in "ab":
        at = xs if name == "a" else [hidden(expected, x) for x in xs]
        grams = [x.T @ x / len(x) for x in at]
        grams = [0.9 * g + 0.1 * np.diag(np.diag(g)) for g in grams]
        kernels = [m[f"{name}/kernel"] for m in models]
        right = sum(g @ k for g, k in zip(grams, kernels, strict=True))
        expected[f"{name}/kernel"] = np.linalg.solve(sum(grams), right)
    close(run("regmean_pp", offdiag=0.9), expected)


def test_regmean_pp_of_one_layer_is_regmean():
    net = lambda v, x: x @ v["a/kernel"]
    models = [{"a/kernel": m["a/kernel"]} for m in MODELS]
    base = {"a/kernel": BASE["a/kernel"]}
    found = run("regmean_pp", models, base=base, apply_fn=net)
    close(found, wide(run("regmean", models, base=base, apply_fn=net)), 1e-5)


def test_excluded_layers_stay_as_in_the_base():
    found = run("featcal", exclude="a/*")
    assert np.array_equal(found["a/kernel"], BASE["a/kernel"])
    assert not np.array_equal(found["b/kernel"], BASE["b/kernel"])


@pytest.mark.parametrize("method", ["regmean_pp", "featcal"])
@pytest.mark.parametrize("name", ["cnn", "attention"])
def test_any_network_is_fitted_nearer_to_its_models(method, name):
    net = tiny.NETS[name]
    base = tiny.variables(net, 0)
    models = fine_tunes(base, 2, size=0.15)
    xs = [tiny.batch(net, seed, 64) for seed in range(2)]

    def error(v):
        return sum(
            float(np.square(net.apply_fn(v, x) - net.apply_fn(m, x)).mean())
            for m, x in zip(models, xs, strict=True)
        )

    found = run(method, models, xs, base, net.apply_fn)
    average = merge_finetunes(models, method="linear").variables
    assert error(found) < error(average)
