"""What comes after merging: repairs, and leaves that every model keeps its own of."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from finetuned import fine_tunes

import jmudsc
from jmudsc.finetunes.merge_finetunes import merge_finetunes
from jmudsc.reordering.permute import identity

NET = tiny.CNN
BASE = tiny.variables(NET, 0)
MODELS = fine_tunes(BASE)
XS = [tiny.batch(NET, seed, 24) for seed in range(4)]
OWNERS = [0, 1, 0, 1]
GIVEN = {"apply_fn": NET.apply_fn, "batches": XS}


def update_fn(v, x):
    """Move running statistics towards those of a batch."""
    made = tiny.conv(x, v["a/kernel"])
    mean, var = made.mean((0, 1, 2)), made.var((0, 1, 2))
    moved = {"norm/mean": 0.9 * v["norm/mean"] + 0.1 * mean}
    return v | moved | {"norm/var": 0.9 * v["norm/var"] + 0.1 * var}


def assignment(spec):
    return {name: np.stack([row] * 2) for name, row in identity(spec).items()}


def same(found, expected):
    for path, leaf in expected.items():
        np.testing.assert_allclose(
            found[path], leaf, rtol=1e-5, atol=1e-6, err_msg=path
        )


def test_statistics_are_reset_after_any_method():
    result = merge_finetunes(MODELS, BASE, "tsv", update_fn=update_fn, **GIVEN)
    plain = merge_finetunes(MODELS, BASE, "tsv", **GIVEN).variables
    same(result.variables, jmudsc.reset_batch_stats(update_fn, plain, XS))
    assert not np.allclose(result.variables["norm/mean"], plain["norm/mean"])


@pytest.mark.parametrize("owners", [None, OWNERS])
def test_linear_layers_are_refitted_to_the_models_in_place(owners):
    result = merge_finetunes(
        MODELS, BASE, "ties", refit="least-squares", owners=owners, **GIVEN
    )
    plain = merge_finetunes(MODELS, BASE, "ties", **GIVEN).variables
    spec = tiny.spec_of("cnn")
    whom = {"owners": owners} if owners else {"target": "ensemble"}
    expected = jmudsc.refit(
        spec, NET.apply_fn, MODELS, assignment(spec), plain, XS, **whom
    )
    same(result.variables, expected)
    assert result.changes["c/kernel"] == "refit by least squares"
    assert result.assignment.keys() == spec.labels.keys()


def test_units_are_rescaled_and_statistics_pooled():
    spec = tiny.spec_of("cnn")
    plain = merge_finetunes(MODELS, BASE, "linear").variables
    result = merge_finetunes(MODELS, BASE, "linear", repair="rescale", **GIVEN)
    rows = assignment(spec)
    same(
        result.variables,
        jmudsc.repair(spec, NET.apply_fn, MODELS, rows, plain, XS),
    )
    result = merge_finetunes(MODELS, BASE, "linear", repair="pooled", **GIVEN)
    same(result.variables, jmudsc.pool_batch_stats(spec, MODELS, rows, plain))


def test_a_search_scores_what_is_repaired():
    seen = []
    merge_finetunes(
        MODELS,
        BASE,
        lambda_="search",
        lambdas=[0.0, 1.0],
        score=lambda v: seen.append(np.asarray(v["norm/mean"])) or 0.0,
        update_fn=update_fn,
        **GIVEN,
    )
    expected = jmudsc.reset_batch_stats(update_fn, BASE, XS)["norm/mean"]
    np.testing.assert_allclose(seen[0], expected, rtol=1e-5, atol=1e-6)


def headed(classes, seed):
    """Return a function with a head of so many classes, and its variables."""
    variables = fine_tunes(BASE, 1, seed)[0]
    rest = {p: x for p, x in variables.items() if not p.startswith("c/")}
    draw = np.random.default_rng([seed, 5]).normal
    head = {"c/kernel": draw(size=(80, classes)), "c/bias": draw(size=(classes,))}
    return rest | {p: x.astype(np.float32) for p, x in head.items()}


HEADED = [headed(2, 1), headed(4, 2)]


def test_every_model_keeps_its_own_head_on_the_merged_trunk():
    base = {p: x for p, x in BASE.items() if not p.startswith("c/")}
    result = merge_finetunes(HEADED, base, "ties", separate="c/*")
    trunk = lambda tree: {p: x for p, x in tree.items() if not p.startswith("c/")}
    expected = merge_finetunes(list(map(trunk, HEADED)), base, "ties").variables
    assert len(result.networks) == 2
    for network, model in zip(result.networks, HEADED, strict=True):
        same(trunk(network), expected)
        assert np.array_equal(network["c/kernel"], model["c/kernel"])
        assert NET.apply_fn(network, XS[0]).shape == (24, len(model["c/bias"]))
    assert result.variables is result.networks[0]
    assert result.recipe["separate"] == ["c/*"]


def test_heads_are_refitted_to_their_own_models_and_statistics_reset():
    result = merge_finetunes(
        HEADED,
        BASE,
        "task_arithmetic",
        lambda_="auto",
        separate="c/*",
        apply_fn=[NET.apply_fn] * 2,
        batches=XS,
        refit="least-squares",
        owners=OWNERS,
        update_fn=update_fn,
    )
    plain = merge_finetunes(
        HEADED, BASE, "task_arithmetic", lambda_="auto", separate="c/*"
    )

    def error(networks):
        return sum(
            float(jnp.square(NET.apply_fn(n, x) - NET.apply_fn(m, x)).mean())
            for n, m, x in zip(networks, HEADED, XS, strict=False)
        )

    assert error(result.networks) < 0.5 * error(plain.networks)
    own = [network["c/kernel"] for network in result.networks]
    assert [kernel.shape for kernel in own] == [(80, 2), (80, 4)]


def test_a_score_is_given_all_networks_if_leaves_are_separate():
    sizes = []
    merge_finetunes(
        HEADED,
        BASE,
        lambda_="search",
        lambdas=[0.5],
        separate="c/*",
        score=lambda networks: sizes.append(len(networks)) or 0.0,
    )
    assert sizes == [2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"refit": "least-squares"},
            'refit="least-squares": expected apply_fn and batches, got None',
        ),
        (
            {"apply_fn": [NET.apply_fn] * 2, "batches": XS},
            "apply_fn: expected one function where no leaves are separate, got a list",
        ),
        (
            {"method": "lot", "separate": "c/*", **GIVEN},
            'separate: expected no patterns with "lot", got some',
        ),
        (
            {"repair": "pooled", "refit": "least-squares", **GIVEN},
            'repair: expected "pooled" alone, since it sets running statistics itself, '
            "got refit too. Leave out all but one",
        ),
    ],
)
def test_what_does_not_go_together_is_said(options, said):
    with pytest.raises(ValueError, match="merge_finetunes") as error:
        merge_finetunes(MODELS, BASE, **options)
    assert str(error.value) == f"merge_finetunes: {said}. Correct it and call again."


def test_a_repair_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="repair: expected") as error:
        merge_finetunes(MODELS, BASE, repair="recsale", **GIVEN)
    assert str(error.value) == (
        "merge_finetunes: repair: expected one of rescale, pooled, got 'recsale'; did "
        'you mean "rescale"? Correct it and call again.'
    )
