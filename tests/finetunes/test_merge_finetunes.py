"""The call itself: what it refuses, what it tells, and where its arrays are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from finetuned import fine_tunes

import jmudsc
from jmudsc.checkpoints.save import save_variables
from jmudsc.finetunes import leafwise, piece
from jmudsc.finetunes.merge_finetunes import merge_finetunes
from jmudsc.lazy import is_lazy, LazyArray
from jmudsc.paths import flatten

BASE = tiny.variables(tiny.MLP, 0)
MODELS = fine_tunes(BASE)


def refused(*args, **options):
    with pytest.raises(ValueError, match="merge_finetunes: ") as error:
        merge_finetunes(*args, **options)
    return str(error.value)


def test_everything_that_is_wrong_is_said_at_once_before_any_work():
    said = refused(
        MODELS,
        BASE,
        "dare_ties",
        density=3.0,
        weight=[1.0, 2.0, 3.0],
        densty=0.5,
        exclude=["a/kernal"],
        vectors="mean",
        axes={"a/kernel": "ix", "b/kernel": "i"},
    )
    assert said == (
        "merge_finetunes: 8 arguments do not fit:\n"
        '  key: expected a PRNG key for "dare_ties", got None\n'
        "  density: expected a number in (0, 1], got 3.0\n"
        "  densty: expected one of weight, density, normalize, rescale, lambda_, got "
        'densty=0.5; did you mean "density"?\n'
        "  weight: expected one value, or a list of one for each of 2 models, got a "
        "list of 3\n"
        '  axes["a/kernel"]: expected the letters "l" (stacked layers), "b" (apart), '
        '"i" (in) and "o" (out), got \'ix\'\n'
        '  axes["b/kernel"]: expected 2 letters for b/kernel of shape [8, 6], got "i"\n'
        '  exclude: pattern "a/kernal" matches no leaf; did you mean "a/kernel"?\n'
        '  vectors: expected one of "average", "sum", "zero", got \'mean\'\n'
        "Correct them and call again."
    )


@pytest.mark.parametrize(
    ("args", "options", "said"),
    [
        (
            (MODELS, None),
            {},
            "base: expected the variables that the models were trained from, for "
            '"task_arithmetic", got None',
        ),
        ((MODELS[:1], BASE, "slerp"), {}, 'models: expected 2 for "slerp", got 1'),
        (
            (MODELS[:1], BASE, "model_stock"),
            {},
            'models: expected at least 2 for "model_stock", got 1',
        ),
        (
            (MODELS, BASE),
            {"apply_fn": tiny.MLP.apply_fn},
            "batches: expected a batch to go with apply_fn, got None",
        ),
        (
            (MODELS, BASE, "greedy_soup"),
            {},
            'score: expected a function of variables for "greedy_soup", got None',
        ),
        (
            (MODELS, BASE, {"a/*": "ties"}),
            {},
            "method: expected a pattern for every leaf, got none for 4 of 6, such as "
            'b/bias; end with "*"',
        ),
        (
            (MODELS, BASE),
            {"calibrate": "svd"},
            "calibrate: expected None or \"svc\", got 'svd'",
        ),
        (
            (MODELS, None, "linear"),
            {"lambda_": 0.5},
            "lambda_: expected one of weight, normalize, got lambda_=0.5",
        ),
        (
            (MODELS, BASE, "ties"),
            {"density": {"*/kernal": 0.5}},
            'density: pattern "*/kernal" matches no leaf; did you mean "c/kernel"?',
        ),
        (
            (MODELS, BASE, "ties"),
            {"density": [0.5, [0.2, 1.5]]},
            "density[1]: expected a number in (0, 1], got 1.5 at position 1",
        ),
        (
            (MODELS, BASE, "ties"),
            {"scope": {"*": "tree"}},
            "scope: expected one value for all leaves, got patterns",
        ),
    ],
)
def test_what_is_wrong_is_said(args, options, said):
    said += "" if said.endswith("?") else "."
    expected = f"merge_finetunes: {said} Correct it and call again."
    assert refused(*args, **options) == expected


def test_a_method_that_is_not_known_is_refused_with_the_nearest():
    said = refused(MODELS, BASE, "tie")
    assert said.startswith(
        "merge_finetunes: method: expected one of linear, greedy_soup"
    )
    assert said.endswith("got 'tie'; did you mean \"ties\"? Correct it and call again.")


def test_data_are_asked_for_with_all_that_is_missing():
    assert refused(MODELS, BASE, "lot") == (
        "merge_finetunes: 2 arguments do not fit:\n"
        '  apply_fn: expected a function for "lot", got None\n'
        '  batches: expected inputs for "lot", got None\n'
        "Correct them and call again."
    )


def test_trees_that_differ_are_told_leaf_by_leaf():
    other = {p: leaf for p, leaf in MODELS[1].items() if p != "a/bias"}
    other |= {"b/kernel": np.ones((8, 5), np.float32), "d": np.ones(1)}
    other |= {"c/bias": np.ones(3, np.int32)}
    assert refused([MODELS[0], other], BASE) == (
        "merge_finetunes: expected trees with the same leaves and shapes, got 4 "
        "differences:\n"
        "  models[1] lacks a/bias\n"
        "  models[1] has d, base has not\n"
        "  b/kernel is float32[8, 6] in base, float32[8, 5] in models[1]\n"
        "  c/bias is float32[3] in base, int32[3] in models[1]\n"
        "Pass models that were trained from this base; rename leaves first, or cut "
        "tables to the same rows."
    )


@pytest.mark.parametrize(
    ("models", "base", "names"),
    [
        ([MODELS[0], MODELS[0]], BASE, "models[0] and models[1]"),
        ([MODELS[0], dict(BASE)], BASE, "base and models[1]"),
    ],
)
def test_a_tree_that_is_passed_twice_is_refused(models, base, names):
    assert refused(models, base) == (
        f"merge_finetunes: expected different models, got the same arrays as {names}. "
        "Pass each model once, and the base as base= only."
    )


def test_no_models_are_refused():
    assert refused([]) == (
        "merge_finetunes: expected at least one model, got none. Pass a list of models."
    )


def test_numbers_must_be_finite():
    bad = MODELS[1] | {"a/bias": np.full(8, np.nan, np.float32)}
    assert refused([MODELS[0], bad], BASE) == (
        "merge_finetunes: expected finite numbers, got NaN or infinity in 1 leaf:\n"
        "  models[1]: a/bias\n"
        "Take an earlier checkpoint of that run."
    )


def test_numbers_on_disk_must_be_finite_too_when_they_are_read(tmp_path):
    bad = MODELS[1] | {"a/bias": np.full(8, np.nan, np.float32)}
    for name, tree in (("bad", bad), ("good", MODELS[0]), ("base", BASE)):
        save_variables(tmp_path / f"{name}.npz", tree)
    load = lambda name: jmudsc.load(tmp_path / f"{name}.npz", separator="", lazy=True)
    result = merge_finetunes([load("good"), load("bad")], load("base"))
    with pytest.raises(
        ValueError, match=r"got NaN or infinity in a/bias of models\[1\]"
    ):
        jmudsc.save(tmp_path / "merged.npz", result)
    assert not (tmp_path / "merged.npz").exists()


def test_owners_must_fit_the_batches():
    xs = [tiny.batch(tiny.MLP, n) for n in range(3)]
    said = refused(
        MODELS, BASE, "lot", apply_fn=tiny.MLP.apply_fn, batches=xs, owners=[0, 0]
    )
    assert said == (
        "merge_finetunes: expected owners to give for each of 3 batches the number of "
        "a model, each of 0 to 1 at least once, got [0, 0]. Pass the number of the "
        "model of whose task the batch is."
    )
    assert refused(MODELS, BASE, owners=[0, 1]) == (
        "merge_finetunes: expected batches to go with owners, got None. Pass batches."
    )


def test_mergekit_s_words_are_understood():
    options = {"lambda": 0.5, "int8_mask": True}
    found = merge_finetunes(MODELS, BASE, "ties", **options).variables
    expected = merge_finetunes(MODELS, BASE, "ties", lambda_=0.5).variables
    assert all(np.array_equal(found[p], expected[p]) for p in BASE)


def test_the_result_says_how_it_was_made_and_can_be_saved(tmp_path):
    result = merge_finetunes(
        MODELS,
        BASE,
        {"a/*": "linear", "*": "ties"},
        weight=(1, np.float32(2)),
        density={"b/*": [0.5, 1.0], "*": 0.2},
        exclude="c/bias",
    )
    assert result.assignment == {}
    assert set(result.spec.axes) == set(BASE)
    jmudsc.save(tmp_path / "merged", result)
    assert jmudsc.load_provenance(tmp_path / "merged")["recipe"] == {
        "method": {"a/*": "linear", "*": "ties"},
        "base": True,
        "models": 2,
        "density": {"b/*": [0.5, 1.0], "*": 0.2},
        "weight": [1, 2.0],
        "exclude": ["c/bias"],
    }


def test_trees_of_any_format_merge_leaf_by_leaf_and_stay_lazy(tmp_path):
    names = ["base.safetensors", "a.npz", "b.msgpack"]
    for name, tree in zip(names, [BASE, *MODELS], strict=True):
        save_variables(tmp_path / name, tree)
    save_variables(tmp_path / "orbax", {"params": BASE})
    base, a, b = (jmudsc.load(tmp_path / n, separator="", lazy=True) for n in names)
    result = merge_finetunes([a, b], base, "ties")
    assert all(isinstance(leaf, LazyArray) for leaf in result.variables.values())
    expected = merge_finetunes(MODELS, BASE, "ties").variables
    for path, leaf in result.variables.items():
        assert np.array_equal(leaf.read(), expected[path])
    mixed = merge_finetunes([a, MODELS[1]], BASE, "ties").variables
    assert is_lazy(mixed)
    assert all(np.array_equal(mixed[p].read(), expected[p]) for p in BASE)
    base = jmudsc.load(tmp_path / "orbax", "params", lazy=True)
    again = merge_finetunes([a, b], base, "ties").variables
    assert all(np.array_equal(again[p].read(), expected[p]) for p in BASE)


def test_one_leaf_of_each_model_is_read_at_a_time():
    read = []

    def lazy(tree, name):
        def fetch(names):
            read.append((name, *names))
            return {n: tree[n] for n in names}

        return {
            p: LazyArray(p, leaf.shape, leaf.dtype, fetch) for p, leaf in tree.items()
        }

    trees = [lazy(tree, name) for name, tree in enumerate([BASE, *MODELS])]
    result = merge_finetunes(trees[1:], trees[0], "breadcrumbs", check=False)
    assert read == []
    result.variables["b/kernel"].read()
    assert sorted(read) == [(n, "b/kernel") for n in range(3)]


def test_arrays_are_where_those_of_the_base_are():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("d",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "d"))
    base = {p: jnp.asarray(leaf) for p, leaf in BASE.items()}
    base["b/kernel"] = jax.device_put(base["b/kernel"], spread)
    found = merge_finetunes(MODELS, base, "tsv", rank=2).variables
    assert found["b/kernel"].sharding == spread
    expected = merge_finetunes(MODELS, BASE, "tsv", rank=2).variables
    assert all(np.array_equal(found[p], expected[p]) for p in BASE)


def test_complex_leaves_are_merged_part_by_part():
    base = {"w": np.zeros((2, 3), np.complex64)}
    models = [
        {"w": (np.random.default_rng(n).normal(size=(2, 3, 2)) @ [1, 1j]).astype("c8")}
        for n in range(2)
    ]
    found = merge_finetunes(models, base).variables["w"]
    assert found.dtype == np.complex64
    np.testing.assert_allclose(found, models[0]["w"] + models[1]["w"], rtol=1e-6)


def test_running_statistics_are_averaged_and_never_extrapolated():
    base = {"bn": {"mean": np.zeros(2, np.float32), "var": np.ones(2, np.float32)}}
    models = [
        {"bn": {"mean": np.full(2, m, np.float32), "var": np.full(2, v, np.float32)}}
        for m, v in ((1, 0.1), (3, 0.3))
    ]
    for method in ("task_arithmetic", "ties", "iso_c"):
        found = merge_finetunes(models, base, method, lambda_=2.0).variables["bn"]
        np.testing.assert_allclose(found["mean"], 2.0, rtol=1e-6)
        np.testing.assert_allclose(found["var"], 0.2, rtol=1e-6)


@pytest.mark.parametrize(
    ("vectors", "factor"), [("average", 0.5), ("sum", 1), ("zero", 0)]
)
def test_vectors_are_averaged_summed_or_left_where_matrices_are_merged(vectors, factor):
    found = merge_finetunes(
        MODELS, BASE, "iso_c", vectors=vectors, lambda_=1.0
    ).variables
    added = sum(m["a/bias"].astype(float) - BASE["a/bias"] for m in MODELS)
    np.testing.assert_allclose(
        found["a/bias"], BASE["a/bias"] + factor * added, rtol=1e-5, atol=1e-6
    )


def test_with_a_function_matrices_are_what_it_makes_of_leaves():
    shapes = {"w": (4, 3, 5), "b": (5,)}
    apply_fn = lambda v, x: jnp.einsum("bjk,kjo->bo", x, v["w"]) + v["b"][None]
    generator = np.random.default_rng(0)
    draw = lambda: {p: generator.normal(size=s).astype("f") for p, s in shapes.items()}
    base, models = draw(), [draw(), draw()]
    xs = [np.ones((2, 3, 4), np.float32)]
    found = merge_finetunes(models, base, "iso_c", apply_fn=apply_fn, batches=xs)
    flat = lambda t: {"w": t["w"].reshape(12, 5), "b": t["b"]}
    expected = merge_finetunes(list(map(flat, models)), flat(base), "iso_c").variables
    assert np.array_equal(found.variables["w"].reshape(12, 5), expected["w"])
    by_letters = merge_finetunes(models, base, "iso_c", axes={"w": "iio"}).variables
    assert np.array_equal(found.variables["w"], by_letters["w"])
    by_rank = merge_finetunes(models, base, "iso_c").variables  # four matrices
    assert not np.allclose(found.variables["w"], by_rank["w"])


def test_progress_is_told():
    told = []
    merge_finetunes(MODELS, BASE, progress=lambda *what: told.append(what))
    assert told == [("merging", n, 6) for n in range(6)]


def test_any_pytree_keeps_its_structure():
    wrap = lambda tree: [tree["a/kernel"], (tree["a/bias"], {"x": tree["b/kernel"]})]
    found = merge_finetunes(list(map(wrap, MODELS)), wrap(BASE)).variables
    assert jax.tree.structure(found) == jax.tree.structure(wrap(BASE))
    expected = merge_finetunes(MODELS, BASE).variables
    for ours, theirs in zip(
        flatten(found).values(), flatten(wrap(expected)).values(), strict=True
    ):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "ram"])
@pytest.mark.parametrize("options", [{}, {"scope": "tree"}])
def test_however_many_entries_are_merged_at_once_the_bits_are_the_same(
    method, options, monkeypatch
):
    if options and method != "ties":
        pytest.skip("has no scope")
    models = [m | {"c/bias": -m["c/bias"]} for m in MODELS]
    whole = merge_finetunes(models, BASE, method, **options).variables
    for module in (leafwise, piece):
        monkeypatch.setattr(module, "CHUNK", 7)
    parts = merge_finetunes(models, BASE, method, **options).variables
    monkeypatch.setattr(leafwise, "_is_elementwise", lambda job, leaves: False)
    by_piece = merge_finetunes(models, BASE, method, **options).variables
    for path, leaf in whole.items():
        assert parts[path].tobytes() == leaf.tobytes() == by_piece[path].tobytes()


def test_a_key_must_be_one():
    with pytest.raises(TypeError, match="merge_finetunes: key: expected one PRNG key"):
        merge_finetunes(MODELS, BASE, "dare_ties", key=3)
    raw, typed = (
        merge_finetunes(MODELS, BASE, "dare_ties", key=key).variables["a/kernel"]
        for key in (jax.random.PRNGKey(3), jax.random.key(3))
    )
    assert np.array_equal(raw, typed)
