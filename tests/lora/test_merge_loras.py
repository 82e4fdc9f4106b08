"""Merging adapters is merging what they add, in any space; factors are left alone."""

import jax.numpy as jnp
import numpy as np
import pytest
from loras import delta, draw, pair, peft, tree

import jmudsc
from jmudsc.finetunes.merge_finetunes import merge_finetunes
from jmudsc.lazy import is_lazy
from jmudsc.lora.fold_lora import fold_lora
from jmudsc.lora.merge_loras import merge_loras

SIZES = {"a": (6, 5), "b": (5, 4)}
BASE = {
    "a": {"kernel": draw(0, 6, 5), "bias": draw(1, 5)},
    "b": {"kernel": draw(2, 5, 4)},
}
ADAPTERS = [tree(seed, SIZES, alpha=3.0) for seed in range(3)]
SPACES = ["full", "knots", "core"]


def merged(adapters, base=BASE, method="task_arithmetic", **options):
    return merge_loras(adapters, base, method, **options).variables


def refused(*args, **options):
    with pytest.raises(ValueError, match="merge_loras: ") as error:
        merge_loras(*args, **options)
    return str(error.value)


def close(got, expected):
    np.testing.assert_allclose(
        np.float64(got), np.float64(expected), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("method", ["linear", "ties", "tsv", "slerp", "wudi"])
def test_two_adapters_of_one_content_become_it(space, method):
    twins = [tree(0, SIZES, alpha=3.0) for _ in range(2)]
    options = {"ties": {"density": 1.0}}.get(method, {})
    got = merged(twins, method=method, space=space, **options)
    expected = fold_lora(twins[0], BASE).variables
    for name in SIZES:
        close(got[name]["kernel"], expected[name]["kernel"])
    assert got["a"]["bias"] is BASE["a"]["bias"]


@pytest.mark.parametrize("space", SPACES)
def test_one_adapter_is_folded(space):
    got = merged(ADAPTERS[:1], space=space)
    expected = fold_lora(ADAPTERS[0], BASE).variables
    close(got["a"]["kernel"], expected["a"]["kernel"])


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("task_arithmetic", {"lambda_": 0.4}),
        ("ties", {"density": 0.5, "weight": [1.0, 2.0, -0.5]}),
        ("iso_c", {}),
        ("tsv", {"rank": 1}),
        ("linear", {"weight": [1.0, 2.0, 3.0]}),
        ({"a/*": "ties", "*": "iso_c"}, {}),
        ("task_arithmetic", {"exclude": "a/*"}),
        ("task_arithmetic", {"calibrate": "svc"}),
    ],
)
def test_merging_in_full_is_merging_the_folded_models(method, options):
    models = [fold_lora(each, BASE).variables for each in ADAPTERS]
    expected = merge_finetunes(models, BASE, method, check=False, **options).variables
    got = merged(ADAPTERS, method=method, **options)
    for name in SIZES:
        close(got[name]["kernel"], expected[name]["kernel"])


@pytest.mark.parametrize("space", SPACES)
def test_a_leaf_that_one_adapter_changes_counts_as_unchanged_in_the_others(space):
    one, other = tree(0, {"a": (6, 5)}), tree(1, {"b": (5, 4)})
    got = merged([one, other], method="linear", space=space)
    close(got["a"]["kernel"], BASE["a"]["kernel"] + delta(one, "a") / 2)
    close(got["b"]["kernel"], BASE["b"]["kernel"] + delta(other, "b") / 2)


@pytest.mark.parametrize("space", SPACES)
def test_other_changes_are_merged_in_full(tmp_path, space):
    magnitude = {"y.lora_magnitude_vector": 1 + np.abs(draw(9, 7))}
    first = pair(1, "x", 5, 7) | {"x.lora_B.bias": draw(3, 7), "z.weight": draw(4, 3)}
    second = pair(2, "y", 5, 7) | magnitude
    adapters = [
        peft(tmp_path / "a", first, lora_bias=True),
        peft(tmp_path / "b", second, use_dora=True),
    ]
    base = {f"{name}.weight": draw(n, 7, 5) for n, name in enumerate("xy")}
    base |= {"x.bias": draw(6, 7), "z.weight": draw(7, 3)}
    result = merge_loras(adapters, base, "linear", space=space)
    folded = [fold_lora(each, base).variables for each in adapters]
    for path, leaf in base.items():
        close(result.variables[path], np.mean([f[path] for f in folded], axis=0))
        assert (result.variables[path] != leaf).any()
    assert result.changes["x.weight"] == f"2 adapters merged, space {space}"
    assert result.changes["y.weight"] == "2 adapters merged, space full"


@pytest.mark.parametrize("space", SPACES)
def test_layers_of_a_stack_are_merged_as_if_they_were_apart(tmp_path, space):
    adapters = [
        peft(tmp_path / f"{n}", pair(n, "h.0.q", 6, 5) | pair(9 + n, "h.1.q", 6, 5))
        for n in range(2)
    ]
    apart = {f"h/{n}/q/kernel": draw(n, 6, 5) for n in range(2)}
    stacked = {"h/q/kernel": np.stack(list(apart.values()))}
    rename = {"h.*.q": "h/q/kernel[*]"}
    options = {"method": "ties", "density": 0.5, "space": space}
    got = merged(adapters, stacked, rename=rename, **options)["h/q/kernel"]
    expected = merged(adapters, apart, **options)
    for n in range(2):
        np.testing.assert_array_equal(got[n], expected[f"h/{n}/q/kernel"])


def test_tables_that_are_saved_beside_their_update_are_no_change(tmp_path):
    table = draw(0, 11, 5)
    own = lambda seed: {
        "e.lora_embedding_A": draw(seed, 2, 11),
        "e.lora_embedding_B": draw(seed + 9, 5, 2),
        "e.base_layer.weight": table,
    }
    adapters = [peft(tmp_path / f"{n}", own(n)) for n in range(2)]
    result = merge_loras(adapters, {"e.weight": table}, "linear", space="core")
    assert result.changes == {"e.weight": "2 adapters merged, space core"}
    folded = [fold_lora(each, {"e.weight": table}).variables for each in adapters]
    close(result.variables["e.weight"], np.mean([f["e.weight"] for f in folded], 0))


def test_leaves_of_whole_numbers_are_those_of_the_base(tmp_path):
    arrays = pair(1, "x", 5, 7) | {"bn.num_batches_tracked": np.array(9)}
    base = {"x.weight": draw(0, 7, 5), "bn.num_batches_tracked": np.array(3)}
    result = merge_loras([peft(tmp_path, arrays)], base)
    assert result.variables["bn.num_batches_tracked"] == 3
    assert result.changes["bn.num_batches_tracked"] == (
        "taken from the base: it holds no floating-point numbers"
    )


def test_adapters_that_change_nothing_give_the_base(tmp_path):
    adapter = peft(tmp_path, {"norm.weight": BASE["a"]["bias"]})
    base = {"norm/scale": BASE["a"]["bias"]}
    result = merge_loras([adapter, adapter], base, "linear", space="core")
    assert result.variables["norm/scale"] is base["norm/scale"]
    assert result.changes == {}


def test_a_base_of_half_precision_loses_no_digits_of_the_deltas():
    base = {"a": {"kernel": jnp.full((6, 5), 300.0, jnp.bfloat16)}}
    adapters = [tree(seed, {"a": (6, 5)}) for seed in range(2)]
    got = merged(adapters, base)["a"]["kernel"]
    exact = 300 + sum(np.float32(delta(each, "a")) for each in adapters)
    np.testing.assert_array_equal(got, jnp.asarray(exact, jnp.bfloat16))


@pytest.mark.parametrize("space", SPACES)
def test_a_base_on_disk_is_merged_when_it_is_read_to_the_same_bits(tmp_path, space):
    flat = {"a/kernel": draw(0, 6, 5), "a/bias": draw(1, 5), "b/kernel": draw(2, 5, 4)}
    np.savez(tmp_path / "base.npz", **flat)
    lazy = jmudsc.load(tmp_path / "base.npz", lazy=True)
    options = {"space": space, "density": 0.5}
    result = merge_loras(ADAPTERS, lazy, "ties", **options)
    assert is_lazy(result.variables)
    jmudsc.save(tmp_path / "merged.npz", result)
    got = jmudsc.load(tmp_path / "merged.npz")
    expected = merged(ADAPTERS, method="ties", **options)
    for name in SIZES:
        np.testing.assert_array_equal(got[name]["kernel"], expected[name]["kernel"])
    recipe = jmudsc.load_provenance(tmp_path / "merged.npz")["recipe"]
    assert recipe == {
        "method": "ties",
        "base": True,
        "models": 3,
        "density": 0.5,
        "adapters": ["adapter"] * 3,
        "space": space,
    }


@pytest.mark.parametrize("space", ["factors", "cat", "svd", "Core"])
def test_factors_are_never_merged_one_by_one(space):
    assert refused(ADAPTERS, BASE, space=space) == (
        f"merge_loras: space: expected one of full, knots, core, got {space!r}. The "
        "factors of adapters are not merged one by one: (A_1 + A_2) (B_1 + B_2) has "
        "products A_1 B_2 that no adapter has."
    )


def test_trees_of_factors_are_no_fine_tunes():
    """And neither are they merged where they come as models."""
    trees = [
        {"x": {"lora_a": draw(n, 5, 2), "lora_b": draw(n + 9, 2, 7)}} for n in range(2)
    ]
    with pytest.raises(ValueError, match="merge_finetunes: ") as error:
        merge_finetunes(trees, method="linear")
    assert str(error.value) == (
        "merge_finetunes: expected weights, got factors of low-rank adapters: "
        "x/lora_a, x/lora_b. The product of mean factors is not the mean of products: "
        "merge them with merge_loras, or fold each into its base first."
    )
    named = [{f"q.lora_{x}.weight": draw(n, 5, 2) for x in "AB"} for n in range(2)]
    with pytest.raises(ValueError, match="got factors of low-rank adapters"):
        merge_finetunes(named, method="linear")


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"method": "regmean"}, 'the method "regmean"'),
        ({"method": {"*": "greedy_soup"}}, 'the method "greedy_soup"'),
        ({"lambda_": "search"}, 'lambda_="search"'),
        ({"refit": "least-squares", "batches": []}, "batches, refit"),
    ],
)
def test_what_needs_whole_models_is_refused(options, got):
    assert refused(ADAPTERS, BASE, **options) == (
        f"merge_loras: expected what needs deltas alone, got {got}. Fold every "
        "adapter with fold_lora, and call merge_finetunes with the models and the "
        "base."
    )


def test_no_adapters_and_options_that_are_unknown_are_refused():
    assert refused([], BASE) == (
        "merge_loras: expected at least one adapter, got none. Pass a list of what "
        "load_lora returned."
    )
    with pytest.raises(ValueError, match="densty: expected one of"):
        merge_loras(ADAPTERS, BASE, "ties", densty=0.5)
    with pytest.raises(ValueError, match="method: expected one of"):
        merge_loras(ADAPTERS, BASE, "cat")
