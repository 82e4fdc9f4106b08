"""The command line of adapters, called in process."""

import numpy as np
import pytest
from commands import fails, run
from loras import ADAPTED, draw, llama_with_two, pair, peft, write_peft
from safetensors.numpy import save_file

import jmudsc

BASE = {"model.x.weight": draw(0, 7, 5), "model.y.weight": draw(1, 7, 7)}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file(BASE, tmp_path / "base.safetensors")
    for n in range(2):
        arrays = pair(n, "model.x", 5, 7) | pair(n + 20, "model.y", 7, 7)
        write_peft(tmp_path / f"a{n}", arrays)
    return tmp_path


def adapters(place):
    return [jmudsc.load_lora(place / f"a{n}") for n in range(2)]


def same(path, expected):
    found = jmudsc.load(path)
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf)


def test_an_adapter_is_folded(place, monkeypatch, capsys):
    where = ["--base", "base.safetensors", "--out", "out.safetensors"]
    run(monkeypatch, "lora", "a0", *where)
    said = "Folded 1 adapter: 2 leaves changed.\nWrote out.safetensors\n"
    assert capsys.readouterr().out == said
    same("out.safetensors", jmudsc.fold_lora(adapters(place)[0], BASE).variables)
    assert "out.safetensors: expected a free path" in fails(
        monkeypatch, "lora", "a0", *where
    )
    run(monkeypatch, "lora", "a1", *where, "--overwrite")
    same("out.safetensors", jmudsc.fold_lora(adapters(place)[1], BASE).variables)


def test_loras_are_merged(place, monkeypatch, capsys):
    where = ["--base", "base.safetensors", "--out", "out.npz"]
    options = ["--method", "ties", "--space", "core", "--scale", "0.5"]
    options += ["--options", "density=0.5", "agg=sum", "--weights", "1.0", "2.0"]
    run(monkeypatch, "lora", "a0", "a1", *where, *options)
    said = "Merged 2 adapters: 2 leaves changed.\nWrote out.npz\n"
    assert capsys.readouterr().out == said
    options = {"density": 0.5, "agg": "sum", "weight": [1.0, 2.0], "lambda_": 0.5}
    expected = jmudsc.merge_loras(
        adapters(place), BASE, "ties", space="core", **options
    )
    same("out.npz", expected.variables)


def test_loras_become_one(place, monkeypatch, capsys):
    where = ["--base", "base.safetensors", "--out", "out"]
    run(monkeypatch, "lora", "a0", "a1", *where, "--rank", "3", "--method", "linear")
    found = jmudsc.factor_loras(adapters(place), BASE, "linear", rank=3)
    worst = max(found.lost, key=found.lost.get)
    assert capsys.readouterr().out == (
        f"Merged 2 adapters to rank 3, which loses {found.total:.2%} of the energy "
        f"(most of {worst}, {found.lost[worst]:.2%}).\nWrote out\n"
    )
    again = jmudsc.fold_lora(jmudsc.load_lora("out"), BASE).variables
    expected = jmudsc.fold_lora(found.adapter, BASE).variables
    for name, leaf in expected.items():
        np.testing.assert_allclose(again[name], leaf, rtol=1e-5, atol=1e-6)


def test_of_a_hugging_face_base_such_a_directory_is_written(place, monkeypatch):
    named = llama_with_two(place)
    (place / "l0" / "tokenizer_config.json").write_text('{"own": true}')
    options = ["--base", "llama", "--shard-size", "1500", "--tokenizer", "l0"]
    run(monkeypatch, "lora", "l0", "l1", *options, "--out", "merged")
    two = [jmudsc.load_lora(place / f"l{n}") for n in range(2)]
    same("merged", jmudsc.merge_loras(two, named).variables)
    assert len(list((place / "merged").glob("model-*-of-*.safetensors"))) > 1
    card = (place / "merged" / "README.md").read_text()
    assert all(f"- `{name}`\n" in card for name in ("llama", "l0", "l1"))
    config = (place / "merged" / "config.json").read_text()
    assert config == (place / "llama" / "config.json").read_text()
    told = (place / "merged" / "tokenizer_config.json").read_text()
    assert told == '{"own": true}'
    run(monkeypatch, "lora", "l0", "--base", "llama", "--out", "one.npz")
    found = jmudsc.load(place / "one.npz")
    expected = jmudsc.fold_lora(two[0], named).variables
    np.testing.assert_array_equal(
        found[f"{ADAPTED}.weight"], expected[f"{ADAPTED}.weight"]
    )
    said = fails(
        monkeypatch, "lora", "l0", *options[:4], "--tokenizer", "no", "--out", "x"
    )
    assert "x: expected a directory to take the tokenizer from, got no." in said


def test_names_are_mapped_by_rules(place, monkeypatch):
    np.savez("flax.npz", **{"net/x/w": draw(0, 5, 7), "net/y/w": draw(1, 7, 7)})
    where = ["--base", "flax.npz", "--out", "out.npz", "--rename"]
    run(monkeypatch, "lora", "a0", *where, "model.*=net/*/w", "--axes", "net/y/w=oi")
    base = jmudsc.load("flax.npz")
    naming = {"rename": {"model.*": "net/*/w"}, "axes": {"net/y/w": "oi"}}
    expected = jmudsc.fold_lora(adapters(place)[0], base, **naming).variables
    found = jmudsc.load("out.npz")
    for name in "xy":
        np.testing.assert_array_equal(
            found["net"][name]["w"], expected["net"][name]["w"]
        )


def test_what_is_wrong_is_one_sentence(place, monkeypatch):
    where = ["--base", "base.safetensors", "--out", "out"]
    assert fails(monkeypatch, "lora", "a0", *where, "--options", "density") == (
        "jmudsc: --options: expected NAME=VALUE, got density. Put = between."
    )
    said = fails(monkeypatch, "lora", "none", *where)
    assert said.startswith("jmudsc: none: expected the folder of an adapter, got none")
    peft(place / "b", pair(1, "z", 5, 7))
    said = fails(monkeypatch, "lora", "a0", "b", *where)
    assert said.startswith("jmudsc: merge_loras: expected a leaf of the base for")
    assert not (place / "out").exists()
