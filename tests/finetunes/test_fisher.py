import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from finetuned import fine_tunes

from jmudsc.finetunes.fisher import gradient_squares
from jmudsc.finetunes.merge_finetunes import merge_finetunes

NET = tiny.MLP
BASE = tiny.variables(NET, 0)
MODELS = fine_tunes(BASE, 2)
XS = [tiny.batch(NET, seed, 6) for seed in range(2)]


def squares_by_hand(variables, xs):
    """Go through examples and classes one by one."""
    total, count = dict.fromkeys(variables, 0.0), 0
    for x in np.concatenate(xs)[:, None]:
        logits = NET.apply_fn(variables, x)[0]
        for number, chance in enumerate(jax.nn.softmax(logits)):
            log = lambda v, x=x, n=number: jax.nn.log_softmax(NET.apply_fn(v, x)[0])[n]
            for path, g in jax.grad(log)(variables).items():
                total[path] = total[path] + float(chance) * np.square(np.float64(g))
        count += 1
    return {path: value / count for path, value in total.items()}


def run(models=MODELS, xs=XS, **options):
    owners = [n % len(models) for n in range(len(xs))]
    return merge_finetunes(
        models,
        method="fisher",
        apply_fn=NET.apply_fn,
        batches=xs,
        owners=owners,
        **options,
    ).variables


def test_the_squares_are_means_over_examples_and_the_model_s_own_classes():
    found = gradient_squares("fisher", NET.apply_fn, [BASE], [XS])[0]
    for path, expected in squares_by_hand(BASE, XS).items():
        scale = max(expected.max(), 1e-12)
        np.testing.assert_allclose(found[path], expected, atol=1e-5 * scale)


def test_each_entry_is_the_mean_weighted_by_its_squares_over_their_norm():
    shares = []
    for model, x in zip(MODELS, XS, strict=True):
        squares = squares_by_hand(model, [x])
        norm = np.sqrt(sum(np.square(s).sum() for s in squares.values()))
        shares.append({path: s / norm + 1e-6 for path, s in squares.items()})
    found = run()
    for path in BASE:
        a, b = (share[path] for share in shares)
        expected = (a * MODELS[0][path] + b * MODELS[1][path]) / (a + b)
        np.testing.assert_allclose(found[path], expected, rtol=1e-4, atol=1e-5)


def test_one_model_and_copies_are_themselves():
    copies = [MODELS[0], {path: leaf.copy() for path, leaf in MODELS[0].items()}]
    for models in (MODELS[:1], copies):
        found = run(models, XS[: len(models)])
        for path, leaf in MODELS[0].items():
            np.testing.assert_array_equal(found[path], leaf)


def test_a_large_floor_gives_the_mean():
    found = run(floor=1e6)
    for path in BASE:
        mean = (MODELS[0][path] + MODELS[1][path]) / 2
        np.testing.assert_allclose(found[path], mean, rtol=1e-5, atol=1e-6)


def test_what_the_output_of_a_model_does_not_depend_on_is_left_to_the_other():
    dead = MODELS[0] | {"c/kernel": np.zeros_like(BASE["c/kernel"])}
    dead = dead | {
        "b/kernel": MODELS[0]["b/kernel"],
        "b/bias": -100 + 0 * BASE["b/bias"],
    }
    found = run([dead, MODELS[1]])
    alive = squares_by_hand(MODELS[1], [XS[1]])["a/kernel"] > 1e-2
    assert alive.any()
    np.testing.assert_allclose(
        found["a/kernel"][alive], MODELS[1]["a/kernel"][alive], atol=1e-4
    )


def test_outputs_must_be_logits():
    with pytest.raises(ValueError, match="expected outputs of shape") as error:
        merge_finetunes(
            MODELS,
            method="fisher",
            apply_fn=lambda v, x: jnp.sum(NET.apply_fn(v, x)),
            batches=XS,
        )
    assert str(error.value) == (
        "merge_finetunes: expected outputs of shape (examples, classes) for fisher, "
        "got (). Pass an apply_fn that returns logits."
    )
