"""Folding: a base with an adapter folded in is the base that the adapter is beside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loras import draw, pair, peft, tree

import jmudsc
from jmudsc.lazy import is_lazy
from jmudsc.lora.fold_lora import fold_lora

LAYER = "model.layers.0.q_proj"


def folded(adapter, base, **options):
    return fold_lora(adapter, base, **options).variables


def difference(adapter, base, path, **options):
    """Return what folding adds to a leaf, in float64."""
    merged = folded(adapter, base, **options)
    return np.float64(merged[path]) - np.float64(base[path])


def product(arrays, module=LAYER):
    a, b = (arrays[f"{module}.lora_{x}.weight"] for x in "AB")
    return np.float64(b) @ np.float64(a)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 6 / 2),
        ({"use_rslora": True}, 6 / 2**0.5),
        ({"alpha_pattern": {"q_proj": 1}}, 1 / 2),
        ({"r": 7, "rank_pattern": {"layers.0.q_proj": 2}}, 6 / 2),
        ({"r": 7, "rank_pattern": {".*q_proj": 2}, "use_rslora": True}, 6 / 2**0.5),
        ({"alpha_pattern": {"_proj": 1, "proj": 1}}, 6 / 2),  # whole words of a path
        ({"alpha_pattern": {"^q_proj": 1}}, 6 / 2),
    ],
)
def test_folding_adds_the_scaled_product(tmp_path, config, scale):
    arrays = pair(1, LAYER, 5, 7)
    base = {f"{LAYER}.weight": draw(0, 7, 5), "norm.weight": draw(3, 5)}
    merged = folded(peft(tmp_path, arrays, **config), base)
    expected = base[f"{LAYER}.weight"] + scale * product(arrays)
    np.testing.assert_allclose(merged[f"{LAYER}.weight"], expected, rtol=1e-5)
    assert merged["norm.weight"] is base["norm.weight"]


@pytest.mark.parametrize(
    ("path", "rename"),
    [
        ("model/layers_0/q_proj/kernel", {}),
        ("params/model/layers/0/q_proj/kernel", {}),
        ("layers_0/q_proj/kernel", {}),
        ("params/h_0/attn/q/kernel", {"model.layers.*.q_proj": "params/h_*/attn/q"}),
        ("params/h/0/w", {"model.layers.*.q_proj": "params/h/*/w"}),
    ],
)
def test_a_flax_kernel_gets_the_transposed_product(tmp_path, path, rename):
    arrays, base = pair(1, LAYER, 5, 5), {path: draw(0, 5, 5)}
    got = difference(peft(tmp_path, arrays), base, path, rename=rename)
    np.testing.assert_allclose(got, 3 * product(arrays).T, rtol=1e-4, atol=1e-6)


def test_layers_that_store_what_goes_in_first_do_so(tmp_path):
    arrays = pair(1, "c_proj", 5, 5) | pair(2, "c_attn", 5, 9)
    base = {"c_proj.weight": draw(0, 5, 5), "c_attn.weight": draw(3, 5, 9)}
    adapter = peft(tmp_path, arrays, fan_in_fan_out=True)
    for name in ("c_proj", "c_attn"):
        got = difference(adapter, base, f"{name}.weight")
        expected = 3 * product(arrays, name).T
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_where_fan_in_fan_out_is_wrong_square_matrices_are_refused(tmp_path):
    arrays = pair(1, "c_proj", 5, 5) | pair(2, "c_attn", 5, 9)
    base = {"c_proj.weight": draw(0, 5, 5), "c_attn.weight": draw(3, 5, 9)}
    adapter = peft(tmp_path, arrays)
    with pytest.raises(ValueError, match="fold_lora: ") as error:
        fold_lora(adapter, base)
    assert str(error.value) == (
        f"fold_lora: expected {tmp_path} to fit the leaves of the base, got 1 "
        "difference. Pass the base that it was trained on; axes= says of a leaf which "
        "of its axes go in and out:\n"
        "  c_proj.weight is square, and fan_in_fan_out is wrong of others: give its "
        "axes"
    )
    got = difference(adapter, base, "c_proj.weight", axes={"c_proj.weight": "io"})
    expected = 3 * product(arrays, "c_proj").T
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_heads_of_a_kernel_are_those_of_the_product(tmp_path):
    arrays = pair(1, "query", 6, 8) | pair(2, "out", 8, 6)
    base = {"query/kernel": draw(0, 6, 2, 4), "out/kernel": draw(3, 2, 4, 6)}
    adapter = peft(tmp_path, arrays)
    for name, path in {"query": "query/kernel", "out": "out/kernel"}.items():
        got = difference(adapter, base, path).reshape(product(arrays, name).T.shape)
        expected = 3 * product(arrays, name).T
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_layers_of_a_scanned_kernel_are_changed_one_by_one(tmp_path):
    arrays = {**pair(1, "h.0.q", 5, 7), **pair(2, "h.2.q", 5, 7)}
    base = {"layers/q/kernel": draw(0, 3, 5, 7)}
    rename = {"h.*.q": "layers/q/kernel[*]"}
    adapter = peft(tmp_path, arrays)
    got = difference(adapter, base, "layers/q/kernel", rename=rename)
    for layer, name in {0: "h.0.q", 2: "h.2.q"}.items():
        expected = 3 * product(arrays, name).T
        np.testing.assert_allclose(got[layer], expected, rtol=1e-4, atol=1e-6)
    assert not got[1].any()


@pytest.mark.parametrize("path", ["embed.weight", "embed/embedding"])
def test_tables_get_the_product_of_their_own_factors(tmp_path, path):
    arrays = {
        "embed.lora_embedding_A": draw(1, 2, 11),
        "embed.lora_embedding_B": draw(2, 5, 2),
    }
    got = difference(peft(tmp_path, arrays), {path: draw(0, 11, 5)}, path)
    expected = (
        3
        * (
            np.float64(arrays["embed.lora_embedding_B"])
            @ arrays["embed.lora_embedding_A"]
        ).T
    )
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("is_torch", [True, False])
@pytest.mark.parametrize("window", [(3,), (3, 2)])
def test_a_folded_convolution_is_both_convolutions(tmp_path, window, is_torch):
    arrays = {
        "conv.lora_A.weight": draw(1, 2, 3, *window),
        "conv.lora_B.weight": draw(2, 4, 2, *(1,) * len(window)),
    }
    rank, letters = len(window), "WHD"[: len(window)]
    order = ("NC" + letters, "OI" + letters, "NC" + letters)
    shape, path = (4, 3, *window), "conv.weight"
    if not is_torch:
        order = ("N" + letters + "C", letters + "IO", "N" + letters + "C")
        shape, path = (*window, 3, 4), "conv/kernel"
    base = {path: draw(0, *shape)}
    x = draw(5, 2, *((3, *(8,) * rank) if is_torch else (*(8,) * rank, 3)))

    def conv(x, kernel, order):
        stride = (1,) * rank
        return jax.lax.conv_general_dilated(
            x, kernel, stride, "SAME", dimension_numbers=order
        )

    a, b = arrays["conv.lora_A.weight"], arrays["conv.lora_B.weight"]
    if not is_torch:
        turn = (*range(2, rank + 2), 1, 0)
        a, b = a.transpose(turn), b.transpose(turn)
    low = conv(conv(x, a, order), b, order)
    expected = conv(x, base[path], order) + 3 * low
    got = conv(x, folded(peft(tmp_path, arrays), base)[path], order)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_factors_of_zeros_leave_the_base_bit_for_bit(tmp_path):
    arrays = pair(1, LAYER, 5, 7)
    arrays[f"{LAYER}.lora_B.weight"] *= 0
    weight = draw(0, 7, 5)
    weight[0, 0] = -0.0
    merged = folded(peft(tmp_path, arrays), {f"{LAYER}.weight": weight})
    assert merged[f"{LAYER}.weight"].tobytes() == weight.tobytes()


CASES = {
    "linear": (pair(1, "x", 5, 7), (7, 5), "weight", (1,)),
    "kernel": (pair(1, "x", 5, 7), (5, 7), "kernel", (0,)),
    "convolution": (
        {
            "x.lora_A.weight": draw(1, 2, 5, 3, 3),
            "x.lora_B.weight": draw(2, 7, 2, 1, 1),
        },
        (7, 5, 3, 3),
        "weight",
        (1, 2, 3),
    ),
    "table": (
        {"x.lora_embedding_A": draw(1, 2, 5), "x.lora_embedding_B": draw(2, 7, 2)},
        (5, 7),
        "weight",
        (0,),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_magnitude_is_the_norm_of_what_goes_into_each_output(tmp_path, case):
    arrays, shape, word, into = CASES[case]
    base, path = {f"x.{word}": draw(0, *shape)}, f"x.{word}"
    plain = np.float64(folded(peft(tmp_path / "plain", arrays), base)[path])
    magnitude = 1 + np.abs(draw(4, 7))
    stored = magnitude.reshape(1, 7, 1, 1) if case == "convolution" else magnitude
    arrays = arrays | {"x.lora_magnitude_vector": stored}
    merged = folded(peft(tmp_path / "dora", arrays, use_dora=True), base)[path]
    norm = np.sqrt(np.square(plain).sum(axis=into, keepdims=True))
    shape = [7 if axis not in into else 1 for axis in range(plain.ndim)]
    expected = magnitude.reshape(shape) * plain / norm
    np.testing.assert_allclose(merged, expected, rtol=1e-5, atol=1e-6)


def test_a_magnitude_of_the_norms_of_the_base_changes_nothing(tmp_path):
    arrays, weight = pair(1, "x", 5, 7), draw(0, 7, 5)
    arrays["x.lora_B.weight"] *= 0
    arrays["x.lora_magnitude_vector"] = np.linalg.norm(weight, axis=1)
    merged = folded(peft(tmp_path, arrays, use_dora=True), {"x.weight": weight})
    np.testing.assert_allclose(merged["x.weight"], weight, rtol=2e-7)


def test_an_output_without_inputs_stays_zero(tmp_path):
    arrays, weight = pair(1, "x", 5, 7), draw(0, 7, 5)
    arrays["x.lora_B.weight"][2] = weight[2] = 0
    arrays["x.lora_magnitude_vector"] = np.ones(7, "float32")
    merged = folded(peft(tmp_path, arrays, use_dora=True), {"x.weight": weight})
    assert np.isfinite(merged["x.weight"]).all()
    assert not merged["x.weight"][2].any()


def test_biases_are_added_or_replaced(tmp_path):
    arrays = pair(1, "x", 5, 7) | {"x.lora_B.bias": draw(3, 7)}
    base = {"x.weight": draw(0, 7, 5), "x.bias": draw(4, 7), "y.bias": draw(5, 3)}
    got = difference(peft(tmp_path / "a", arrays, lora_bias=True), base, "x.bias")
    np.testing.assert_allclose(got, 3 * arrays["x.lora_B.bias"], rtol=1e-5)
    arrays = pair(1, "x", 5, 7)
    arrays |= {"x.base_layer.bias": draw(6, 7), "y.bias": draw(7, 3)}
    merged = folded(peft(tmp_path / "b", arrays, bias="all"), base)
    np.testing.assert_allclose(merged["x.bias"], arrays["x.base_layer.bias"], rtol=1e-6)
    np.testing.assert_allclose(merged["y.bias"], arrays["y.bias"], rtol=1e-6)


def test_modules_saved_whole_take_the_place_of_the_base(tmp_path):
    arrays = {
        "head.weight": draw(1, 3, 5),
        "norm.weight": draw(2, 5),
        "conv.weight": draw(3, 4, 2, 3, 3),
        "bn.running_var": np.abs(draw(4, 5)),
        "bn.num_batches_tracked": np.array(2**31 + 1),
    }
    base = {
        "head/kernel": draw(5, 5, 3),
        "norm/scale": draw(6, 5),
        "conv/kernel": draw(7, 3, 3, 2, 4),
        "bn/var": draw(8, 5),
        "bn/num_batches_tracked": np.array(3),
    }
    adapter = peft(tmp_path, arrays | pair(1, "x", 2, 3), modules_to_save=["head"])
    merged = folded(adapter, base | {"x/kernel": draw(9, 2, 3)})
    close = lambda path, x: np.testing.assert_allclose(merged[path], x, rtol=1e-5)
    close("head/kernel", arrays["head.weight"].T)
    close("norm/scale", arrays["norm.weight"])
    close("conv/kernel", arrays["conv.weight"].transpose(2, 3, 1, 0))
    close("bn/var", arrays["bn.running_var"])
    assert merged["bn/num_batches_tracked"] == 2**31 + 1


def test_a_leaf_of_half_precision_is_rounded_once():
    adapter = tree(0, {"x": (8, 8)})
    base = {"x": {"kernel": jnp.asarray(draw(1, 8, 8), "bfloat16")}}
    merged = folded(adapter, base)["x"]["kernel"]
    update = adapter.updates["x"]
    wide = np.float32(base["x"]["kernel"]) + update.a @ update.b
    assert isinstance(merged, jax.Array)
    assert merged.dtype == jnp.bfloat16
    assert merged.tobytes() == jnp.asarray(wide, "bfloat16").tobytes()


def test_a_base_on_disk_is_folded_when_it_is_read_to_the_same_bits(tmp_path):
    adapter = peft(tmp_path / "a", pair(1, "x", 5, 7))
    base = {"x.weight": draw(0, 7, 5), "y.weight": draw(1, 3)}
    np.savez(tmp_path / "base.npz", **base)
    result = fold_lora(adapter, jmudsc.load(tmp_path / "base.npz", lazy=True))
    assert is_lazy(result.variables)
    jmudsc.save(tmp_path / "merged.safetensors", result)
    merged, expected = (
        jmudsc.load(tmp_path / "merged.safetensors"),
        folded(adapter, base),
    )
    assert merged.keys() == expected.keys()
    assert all(np.array_equal(merged[path], expected[path]) for path in merged)
    recipe = jmudsc.load_provenance(tmp_path / "merged.safetensors")["recipe"]
    assert recipe == {"method": "fold", "adapters": [str(tmp_path / "a")]}


def test_what_was_done_with_each_leaf_is_told(tmp_path):
    arrays = pair(1, "x", 5, 7) | {"x.lora_B.bias": draw(3, 7), "y.weight": draw(2, 3)}
    base = {"x.weight": draw(0, 7, 5), "x.bias": draw(4, 7), "y.weight": draw(5, 3)}
    assert fold_lora(peft(tmp_path, arrays), base).changes == {
        "y.weight": "replaced",
        "x.weight": "an update of rank 2 folded in",
        "x.bias": "a bias added",
    }
