"""Saved adapters come back as they were; nothing else is ever replaced."""

import json

import numpy as np
import pytest
from loras import draw, pair, peft, tree

from jmudsc.lora.flax_pairs import lora_from_tree
from jmudsc.lora.fold_lora import fold_lora
from jmudsc.lora.load_lora import load_lora
from jmudsc.lora.save_lora import lora_to_tree, save_lora

ARRAYS = {
    **pair(1, "x", 5, 7),
    **pair(2, "block.y", 7, 7, rank=3),
    "e.lora_embedding_A": draw(3, 2, 11),
    "e.lora_embedding_B": draw(4, 5, 2),
    "conv.lora_A.weight": draw(5, 2, 3, 3, 3),
    "conv.lora_B.weight": draw(6, 4, 2, 1, 1),
    "x.lora_B.bias": draw(7, 7),
    "head.weight": draw(8, 3, 7),
    "bn.num_batches_tracked": np.array(3),
}
CONFIG = {"rank_pattern": {"y": 3}, "alpha_pattern": {"conv": 1}, "lora_bias": True}
BASE = {
    "x.weight": draw(0, 7, 5),
    "x.bias": draw(1, 7),
    "block.y.weight": draw(2, 7, 7),
    "e.weight": draw(3, 11, 5),
    "conv.weight": draw(4, 4, 3, 3, 3),
    "head.weight": draw(5, 3, 7),
    "bn.num_batches_tracked": np.array(1),
}
MAGNITUDES = {
    "x": draw(1, 7),
    "block.y": draw(2, 7),
    "e": draw(3, 5),
    "conv": draw(4, 1, 4, 1, 1),
}


@pytest.mark.parametrize("is_dora", [False, True])
def test_a_saved_adapter_is_folded_as_it_was(tmp_path, is_dora):
    arrays, config = dict(ARRAYS), dict(CONFIG)
    if is_dora:
        arrays |= {f"{n}.lora_magnitude_vector": x for n, x in MAGNITUDES.items()}
        config["use_dora"] = True
    adapter = peft(tmp_path / "a", arrays, **config)
    where = save_lora(tmp_path / "b", adapter, base_model="someone/model")
    assert where == tmp_path / "b"
    again = load_lora(where)
    got, expected = (fold_lora(each, BASE).variables for each in (again, adapter))
    for path, leaf in expected.items():
        np.testing.assert_array_equal(got[path], leaf)
    written = json.loads((where / "adapter_config.json").read_text())
    assert written["target_modules"] == ["block.y", "conv", "e", "x"]
    assert written["modules_to_save"] == ["bn", "head"]
    assert written["r"] == 2
    assert written["rank_pattern"] == {"^block\\.y": 3}
    assert written["base_model_name_or_path"] == "someone/model"


def test_a_folder_is_replaced_only_if_it_is_an_adapter(tmp_path):
    adapter = peft(tmp_path / "a", ARRAYS, **CONFIG)
    with pytest.raises(FileExistsError) as error:
        save_lora(tmp_path / "a", adapter)
    assert str(error.value) == (
        f"{tmp_path}/a: expected a free path, got one that exists. Choose another or "
        "pass overwrite=True (--overwrite)."
    )
    (tmp_path / "a" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError) as error:
        save_lora(tmp_path / "a", adapter, overwrite=True)
    assert str(error.value) == (
        f"{tmp_path}/a: expected a free path, got one with notes.txt. Choose another."
    )
    (tmp_path / "a" / "notes.txt").unlink()
    save_lora(tmp_path / "a", adapter, overwrite=True)
    assert load_lora(tmp_path / "a").updates.keys() == adapter.updates.keys()
    assert {x.name for x in tmp_path.iterdir()} == {"a"}


def test_an_adapter_of_a_tree_goes_to_a_tree_and_back(tmp_path):
    adapter = tree(0, {"x/y": (5, 7), "z": (3, 3)}, alpha=3.0)
    again = lora_from_tree(lora_to_tree(adapter))
    base = {"x/y/kernel": draw(0, 5, 7), "z/kernel": draw(1, 3, 3)}
    got, expected = (fold_lora(each, base).variables for each in (again, adapter))
    for path, leaf in expected.items():
        np.testing.assert_allclose(got[path], leaf, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="for which PEFT has no names") as error:
        save_lora(tmp_path / "b", adapter)
    assert str(error.value) == (
        f"{tmp_path}/b: expected an adapter of torch modules, got one of a JAX tree, "
        "for which PEFT has no names. Save lora_to_tree(adapter) as a tree."
    )


def test_an_adapter_of_torch_does_not_go_to_a_tree(tmp_path):
    adapter = peft(tmp_path, pair(1, "x", 5, 7))
    with pytest.raises(ValueError, match="expected an adapter of a JAX tree") as error:
        lora_to_tree(adapter)
    assert str(error.value) == (
        f"{tmp_path}: expected an adapter of a JAX tree, got one of torch modules. "
        "Save it with save_lora."
    )
