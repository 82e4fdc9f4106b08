"""Files of other libraries become the variables of a network with the same outputs."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import re

import flax.linen as nn
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import jmudsc
from jmudsc.conversion.convert import converted
from jmudsc.paths import flatten

X = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)


class Net(nn.Module):
    """A small convolutional network, its layers called as torch's are below."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), padding="VALID", name="conv")(x)
        x = nn.BatchNorm(use_running_average=True, name="norm", epsilon=1e-3)(x)
        x = nn.relu(x).mean(axis=(1, 2))
        x = nn.Dense(4, name="square")(x)
        return nn.Dense(5, name="head")(x)


def like():
    return Net().init(jax.random.key(1), X)


def torch_arrays(seed=0):
    draw = np.random.default_rng(seed).normal
    shapes = {
        "conv.weight": (4, 3, 3, 3),
        "conv.bias": (4,),
        "norm.weight": (4,),
        "norm.bias": (4,),
        "norm.running_mean": (4,),
        "norm.running_var": (4,),
        "square.weight": (4, 4),
        "square.bias": (4,),
        "head.weight": (5, 4),
        "head.bias": (5,),
    }
    return {n: np.abs(draw(size=x)).astype(np.float32) for n, x in shapes.items()}


def by_torch(a, x):
    """The network as torch computes it, by loops over windows and matrix products."""
    x = x.transpose(0, 3, 1, 2)
    out = np.zeros((len(x), 4, 6, 6))
    for i in range(6):
        for j in range(6):
            window = x[:, :, i : i + 3, j : j + 3]
            out[:, :, i, j] = np.einsum("ncij,ocij->no", window, a["conv.weight"])
    at = lambda name: a[name][None, :, None, None]
    out = out + at("conv.bias")
    out = (out - at("norm.running_mean")) / np.sqrt(at("norm.running_var") + 1e-3)
    out = out * at("norm.weight") + at("norm.bias")
    out = np.maximum(out, 0).mean(axis=(2, 3))
    out = out @ a["square.weight"].T + a["square.bias"]
    return out @ a["head.weight"].T + a["head.bias"]


@pytest.fixture
def torch_file(tmp_path):
    arrays = {**torch_arrays(), "norm.num_batches_tracked": np.array(7)}
    save_file(arrays, tmp_path / "net.safetensors")
    return str(tmp_path / "net.safetensors")


def test_weights_of_torch_give_the_outputs_of_torch(torch_file):
    found = converted(torch_file, like())
    assert jax.tree.structure(found) == jax.tree.structure(like())
    outputs = Net().apply(found, X)
    np.testing.assert_allclose(outputs, by_torch(torch_arrays(), X), rtol=1e-4)


def test_a_square_weight_lies_as_the_others_do(tmp_path):
    arrays = {n: x for n, x in torch_arrays().items() if "square" in n or "head" in n}
    shapes = {n: x for n, x in like()["params"].items() if n in ("square", "head")}
    save_file(arrays, tmp_path / "net.safetensors")
    found = converted(str(tmp_path / "net.safetensors"), shapes)
    np.testing.assert_array_equal(found["square"]["kernel"], arrays["square.weight"].T)
    as_it_is = {n: np.ascontiguousarray(x.T) for n, x in arrays.items()}
    save_file(as_it_is, tmp_path / "net.safetensors")
    found = converted(str(tmp_path / "net.safetensors"), shapes)
    np.testing.assert_array_equal(found["square"]["kernel"], as_it_is["square.weight"])


def test_a_square_weight_alone_may_be_either(tmp_path):
    weight = np.arange(16.0, dtype=np.float32).reshape(4, 4)
    save_file({"square.weight": weight}, tmp_path / "net.safetensors")
    path, wanted = str(tmp_path / "net.safetensors"), {"square": {"kernel": weight}}
    with pytest.raises(ValueError, match="say which by --layout") as failure:
        converted(path, wanted)
    assert "square/kernel: square.weight fits as torch and as JAX" in str(failure.value)
    kernel = converted(path, wanted, layout="torch")["square"]["kernel"]
    np.testing.assert_array_equal(kernel, weight.T)
    kernel = converted(path, wanted, layout="jax")["square"]["kernel"]
    np.testing.assert_array_equal(kernel, weight)


def test_all_that_does_not_fit_is_listed_at_once(tmp_path):
    arrays = torch_arrays()
    arrays["haed.weight"] = arrays.pop("head.weight")
    arrays["norm.weight"] = arrays["norm.weight"][:3].copy()
    save_file(arrays, tmp_path / "net.safetensors")
    path = str(tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="did you mean") as failure:
        converted(path, like())
    assert str(failure.value) == (
        f"{path}: expected an array for every leaf of the network and no others, got 3 "
        'that do not fit. Rename what has another name (--rename "OLD=NEW", with '
        "nothing after = to leave arrays out):\n"
        '  params/head/kernel: nothing in the file; did you mean "haed.weight"?\n'
        "  haed.weight: no leaf of the network\n"
        "  params/norm/scale: [4], norm.weight is [3]"
    )
    arrays["norm.weight"] = torch_arrays()["norm.weight"]
    save_file(arrays, tmp_path / "net.safetensors")
    found = converted(path, like(), {"haed.*": "head.*"})
    np.testing.assert_array_equal(
        found["params"]["head"]["kernel"], arrays["haed.weight"].T
    )


def test_two_arrays_for_one_leaf_are_listed(tmp_path):
    arrays = torch_arrays()
    arrays["conv/kernel"] = arrays["conv.weight"]
    save_file(arrays, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"params/conv/kernel: may be ") as failure:
        converted(str(tmp_path / "net.safetensors"), like())
    assert "conv.weight" in str(failure.value)
    left_out = converted(
        str(tmp_path / "net.safetensors"), like(), {"conv/kernel": None}
    )
    assert left_out["params"]["conv"]["kernel"].shape == (3, 3, 3, 4)


def test_heads_of_attention_are_split_off(tmp_path):
    wanted = {
        "q": {"kernel": np.zeros((6, 2, 4)), "bias": np.zeros((2, 4))},
        "o": {"kernel": np.zeros((2, 4, 6))},
    }
    draw = np.random.default_rng(0).normal
    arrays = {
        "q.weight": draw(size=(8, 6)),
        "q.bias": draw(size=(8,)),
        "o.weight": draw(size=(6, 8)),
    }
    arrays = {name: x.astype(np.float32) for name, x in arrays.items()}
    save_file(arrays, tmp_path / "net.safetensors")
    found = converted(str(tmp_path / "net.safetensors"), wanted)
    x = draw(size=(3, 6))
    ours = np.einsum("nd,dhk->nhk", x, found["q"]["kernel"]) + found["q"]["bias"]
    theirs = (x @ arrays["q.weight"].T + arrays["q.bias"]).reshape(3, 2, 4)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    np.testing.assert_allclose(
        np.einsum("nhk,hkd->nd", ours, found["o"]["kernel"]),
        theirs.reshape(3, 8) @ arrays["o.weight"].T,
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_table_of_embeddings_is_not_transposed(tmp_path):
    table = np.arange(16.0, dtype=np.float32).reshape(4, 4)
    save_file({"embed.weight": table}, tmp_path / "net.safetensors")
    wanted = {"params": {"embed": {"embedding": jax.ShapeDtypeStruct((4, 4), "f4")}}}
    found = converted(str(tmp_path / "net.safetensors"), wanted)
    np.testing.assert_array_equal(found["params"]["embed"]["embedding"], table)


def test_a_transposed_convolution_of_torch_is_refused(tmp_path):
    weight = np.ones((4, 4, 3, 3), np.float32)
    save_file({"ConvTranspose_0.weight": weight}, tmp_path / "net.safetensors")
    wanted = {"ConvTranspose_0": {"kernel": np.ones((3, 3, 4, 4))}}
    with pytest.raises(ValueError, match="whose window is flipped"):
        converted(str(tmp_path / "net.safetensors"), wanted)


def keras_model():
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, name="stem"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(4, 3),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4),
            layers.Dense(4),
        ]
    )
    draw = np.random.default_rng(1).normal
    model.set_weights([np.abs(draw(size=x.shape)) for x in model.get_weights()])
    return model


@pytest.mark.parametrize("name", ["net.keras", "net.weights.h5", "net.h5"])
@pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras, saving
def test_files_of_keras_give_the_outputs_of_keras(name, tmp_path):
    from jmudsc import adapters

    with jax.numpy_rank_promotion("allow"):  # as Keras relies on
        model = keras_model()
        model.compile(optimizer="adam", loss="mse")
        model.fit(X, np.zeros((2, 4)), verbose=0)  # so that there is an optimizer
        save = model.save_weights if "weights" in name else model.save
        save(tmp_path / name)
        made = adapters.keras.functions(keras_model())
        found = converted(str(tmp_path / name), made.variables)
        wanted = model(X, training=False)
        np.testing.assert_array_equal(made.apply_fn(found, X), wanted)


def test_a_file_of_weights_written_by_hand_is_read_by_position(tmp_path):
    path = tmp_path / "net.weights.h5"
    arrays = [np.full(4, n, np.float32) for n in range(4)]
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/norm/vars")
        for number, array in enumerate(arrays):
            group[str(number)] = array
    wanted = {"norm": dict.fromkeys(("beta", "gamma", "moving_mean"), np.zeros(4))}
    wanted["norm"]["moving_variance"] = np.zeros(4)
    found = converted(str(path), wanted)["norm"]
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    assert [float(found[name][0]) for name in names] == [0, 1, 2, 3]


def test_what_is_no_file_of_keras_is_told(tmp_path):
    (tmp_path / "net.h5").write_text("no")
    with pytest.raises(ValueError, match="expected a file of Keras with the variables"):
        converted(str(tmp_path / "net.h5"), {})
    with pytest.raises(FileNotFoundError, match="expected a file, got no such file"):
        converted(str(tmp_path / "none.h5"), {})


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError) as failure:
        converted(str(tmp_path / "net.onnx"), {})
    assert str(failure.value) == (
        f"{tmp_path / 'net.onnx'}: expected the package onnx, got none. Run: pip "
        "install 'jmudsc[onnx]'"
    )


@pytest.mark.parametrize("transposed", [0, 1])
def test_initializers_of_onnx_lie_as_what_reads_them_says(transposed, tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    draw = np.random.default_rng(0).normal
    gemm, matmul = (draw(size=(4, 4)).astype(np.float32) for _ in range(2))
    conv = draw(size=(4, 3, 3, 3)).astype(np.float32)
    named = {"conv.weight": conv, "fc.weight": gemm, "last.weight": matmul}
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["y"]),
        helper.make_node("Gemm", ["y", "fc.weight"], ["z"], transB=transposed),
        helper.make_node("MatMul", ["z", "last.weight"], ["out"]),
    ]
    given = [numpy_helper.from_array(x, name) for name, x in named.items()]
    graph = helper.make_graph(nodes, "net", [], [], given)
    onnx.save(helper.make_model(graph), str(tmp_path / "net.onnx"))
    wanted = {
        "conv": {"kernel": np.zeros((3, 3, 3, 4))},
        "fc": {"kernel": np.zeros((4, 4))},
        "last": {"kernel": np.zeros((4, 4))},
    }
    found = converted(str(tmp_path / "net.onnx"), wanted)
    kernel = found["conv"]["kernel"]
    np.testing.assert_array_equal(kernel, conv.transpose(2, 3, 1, 0))
    kernel = gemm.T if transposed else gemm
    np.testing.assert_array_equal(found["fc"]["kernel"], kernel)
    np.testing.assert_array_equal(found["last"]["kernel"], matmul)
    (tmp_path / "no.onnx").write_text("no")
    with pytest.raises(ValueError, match="expected an ONNX model, got something else"):
        converted(str(tmp_path / "no.onnx"), wanted)


def test_types_stay_and_leaves_of_other_formats_are_taken_as_they_are(tmp_path):
    tree = {"a": {"kernel": jnp.ones((2, 3), jnp.bfloat16)}}
    np.savez(tmp_path / "net.npz", **{"a/kernel": np.ones((2, 3), np.float16)})
    found = converted(str(tmp_path / "net.npz"), tree)
    assert flatten(found)["a/kernel"].dtype == np.float16


COMMAND = """
import flax.linen as nn
import flax.nnx as nnx
import numpy as np

def both():
    return nn.Dense(2), {"params": {"kernel": np.zeros((3, 2))}}

def make():
    return nnx.Linear(3, 2, rngs=nnx.Rngs(0))

shapes = {"lin": {"kernel": 0}}
"""


def test_the_command_writes_a_checkpoint(tmp_path, monkeypatch, capsys):
    from commands import fails, run

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "convert_net.py").write_text(COMMAND)
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    arrays = {"lin.weight": weight, "lin.bias": weight[:, 0].copy()}
    save_file(arrays, tmp_path / "a.safetensors")
    command = "convert", "a.safetensors", "--like", "convert_net:make", "-o", "out"
    rename = "--rename", "lin.*=*"
    run(monkeypatch, *command, "--adapter", "nnx", *rename)
    assert f"Wrote {tmp_path / 'out'}" in capsys.readouterr().out
    np.testing.assert_array_equal(jmudsc.load(tmp_path / "out")["kernel"], weight.T)
    text = fails(monkeypatch, *command, "--adapter", "nxn")
    assert text == (
        "jmudsc: --adapter: expected one of equinox, haiku, huggingface, keras, linen, "
        'nnx, got "nxn"; did you mean "nnx"?'
    )
    text = fails(monkeypatch, *command[:3], "convert_net:mkae", *command[4:])
    assert re.match(r"jmudsc: --like: expected \"mkae\" in convert_net", text)
    text = fails(monkeypatch, *command[:3], "convert_net:both", *command[4:])
    assert text == (
        "jmudsc: --like: expected variables, arrays or their shapes, got an object of "
        "type Dense among them. Pass --adapter linen (or nnx, equinox, haiku, keras, "
        "huggingface) if it is a model."
    )
