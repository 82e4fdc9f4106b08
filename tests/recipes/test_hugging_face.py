"""Recipes of Hugging Face models: written as one, heads, vocabularies and layouts."""

import json
import logging
import re

import numpy as np
import pytest
import safetensors.numpy
import tiny_llama as llama
import yaml
from checkpoint_checks import sentence

from jmudsc.checkpoints.load import load
from jmudsc.finetunes.merge_finetunes import merge_finetunes
from jmudsc.recipes.hugging_face import vocabulary_of
from jmudsc.recipes.machine_speed import Rates
from jmudsc.recipes.merge import merge_recipe
from jmudsc.recipes.plan import plan_recipe

BASE = llama.leaves(0)
A, B = (llama.leaves(n, near=BASE) for n in (1, 2))
RATES = Rates(1e9, 1e9, 1e9, 1e-7, 1e-7, 0.1)
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


def recipe(folder, **keys):
    plain = {"base": "base", "models": ["a", "b"], "method": "task_arithmetic"}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**plain, "output": "out", **keys}))
    return path


def write(folder, base=BASE, a=A, b=B, **options):
    for name, leaves in {"base": base, "a": a, "b": b}.items():
        llama.write(folder / name, leaves, **options)


def test_the_result_is_a_directory_like_the_base(tmp_path):
    write(tmp_path, files=2)
    out, _ = merge_recipe(recipe(tmp_path, shard_size=2000, lambda_=0.5))
    files = sorted(x.name for x in out.glob("model-*"))
    assert len(files) > 2
    found = {}
    for file in files:
        found |= safetensors.numpy.load_file(out / file)
    theirs = merge_finetunes([A, B], BASE, lambda_=0.5).variables
    for name, leaf in theirs.items():
        np.testing.assert_array_equal(found[name], leaf)
    kept = json.loads((out / "config.json").read_text())
    assert kept == json.loads((tmp_path / "base" / "config.json").read_text())
    card = (out / "README.md").read_text()
    assert re.findall(r"^- `(\w+)`, SHA-256 `[0-9a-f]{64}`$", card, re.M) == [
        *("a", "b", "base")
    ]
    assert "method: task_arithmetic" in card
    assert str(tmp_path) not in card
    assert (out / "jmudsc" / "recipe.yaml").is_file()


def test_other_outputs_are_as_before(tmp_path):
    write(tmp_path)
    renamed = {"rename": {"*.weight": "*.kernel"}}
    sources = [{"path": name, **renamed} for name in ("a", "b")]
    keys = {"base": {"path": "base", **renamed}, "models": sources}
    out, _ = merge_recipe(recipe(tmp_path, **keys))
    assert not (out / "config.json").exists()
    assert "model.norm.kernel" in load(out)
    out, _ = merge_recipe(recipe(tmp_path, output="out.npz"))
    assert out.is_file()


def test_a_head_that_is_the_table_of_tokens_is_left_out_of_all(tmp_path, caplog):
    tied = {name: x for name, x in BASE.items() if name != HEAD}
    stored = {**A, HEAD: A[TABLE]}
    rest = {name: x for name, x in B.items() if name != HEAD}
    write(tmp_path, tied, stored, rest, config={"tie_word_embeddings": True})
    path = recipe(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert plan_recipe(path, rates=RATES).problems == ()
        out, _ = merge_recipe(path)
    told = (
        "recipe: lm_head.weight is left out: in all models it is the table of tokens."
    )
    assert any(told in record.getMessage() for record in caplog.records)
    found = load(out)
    assert HEAD not in found
    expected = tied[TABLE] + (A[TABLE] - tied[TABLE]) + (B[TABLE] - tied[TABLE])
    np.testing.assert_allclose(found[TABLE], expected, rtol=1e-5, atol=1e-6)


def test_a_head_of_its_own_is_refused_where_others_have_none(tmp_path):
    tied = {name: x for name, x in BASE.items() if name != HEAD}
    write(tmp_path, tied)
    expected = (
        "recipe: models: expected a head in all models, or in none of its own, got one "
        "in a, b and none in base, which use the table of tokens for it. Store both in "
        "all models."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        merge_recipe(recipe(tmp_path))
    assert not (tmp_path / "out").exists()


def test_rows_of_other_tokens_are_not_merged(tmp_path):
    write(tmp_path)
    other = llama.vocabulary() | {"token 3": 4, "token 4": 3}
    tokens = {"model": {"vocab": other}}
    (tmp_path / "b" / "tokenizer.json").write_text(json.dumps(tokens))
    expected = (
        "recipe: models: expected one vocabulary, got 2 tokens that differ, so that "
        "rows of different tokens would be merged. Bring the models to one vocabulary "
        "first:\n  'token 3': 3 in a, 4 in b\n  'token 4': 4 in a, 3 in b"
    )
    path = recipe(tmp_path)
    with pytest.raises(ValueError, match=sentence(expected)):
        merge_recipe(path)
    assert expected in plan_recipe(path, rates=RATES).problems


def test_a_number_that_stands_for_two_tokens_is_a_difference(tmp_path):
    write(tmp_path)
    tokens = {"model": {"vocab": llama.vocabulary(12) | {"<|im_end|>": 12}}}
    (tmp_path / "b" / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(ValueError, match=r"12: 'token 12' in a, '<\|im_end\|>' in b"):
        merge_recipe(recipe(tmp_path))


def test_tokens_that_only_some_have_come_after_those_of_all(tmp_path):
    """A fine-tune may name rows that were padding in the base."""
    write(tmp_path, vocab=llama.vocabulary(14))
    added = [{"content": "<tool>", "id": 14}]
    tokens = {"model": {"vocab": llama.vocabulary(14)}, "added_tokens": added}
    (tmp_path / "a" / "tokenizer.json").write_text(json.dumps(tokens))
    (tmp_path / "b" / "tokenizer.json").unlink()
    out, _ = merge_recipe(recipe(tmp_path))
    assert load(out).keys() == BASE.keys()


def test_tables_of_other_sizes_are_refused_by_name(tmp_path):
    longer = llama.leaves(1, vocab=20)
    write(tmp_path, a=longer)
    path = recipe(tmp_path)
    with pytest.raises(ValueError, match="cut tables to the same rows") as error:
        merge_recipe(path)
    assert f"{TABLE} is float32[16, 8] in base, float32[20, 8] in models[0]" in str(
        error.value
    )
    assert any(TABLE in line for line in plan_recipe(path, rates=RATES).problems)


def test_vocabularies_of_every_kind_of_tokenizer(tmp_path):
    file = tmp_path / "tokenizer.json"
    assert vocabulary_of(tmp_path) is None
    pieces = {"model": {"vocab": [["<s>", 0.0], ["a", -1.0]]}, "added_tokens": None}
    file.write_text(json.dumps(pieces))
    assert vocabulary_of(tmp_path) == {"<s>": 0, "a": 1}
    file.write_text("{}")
    expected = (
        f"{file}: expected JSON of a tokenizer with model and vocab, got something "
        "else. Copy it again."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        vocabulary_of(tmp_path)


def test_models_of_the_family_of_gpt2_are_merged_the_other_way_around(tmp_path):
    draw = np.random.default_rng(0).normal
    name = "h.0.mlp.c_fc.weight"
    trees = [{name: np.float32(draw(size=(4, 6)))} for _ in range(3)]
    write(tmp_path, *trees, config={"model_type": "gpt2"})
    out, _ = merge_recipe(recipe(tmp_path, method="wudi", check=False))
    base, *models = [{"kernel": tree[name]} for tree in trees]
    expected = merge_finetunes(models, base, "wudi", check=False).variables["kernel"]
    np.testing.assert_allclose(load(out)[name], expected, rtol=1e-6)
    given = recipe(tmp_path, method="wudi", check=False, axes={"*": "oi"}, output="own")
    out, _ = merge_recipe(given)
    assert not np.allclose(load(out)[name], expected, rtol=1e-3)


def test_a_tokenizer_from_nowhere_is_refused_before_anything_is_read(tmp_path):
    write(tmp_path)
    expected = (
        f"out: expected a directory to take the tokenizer from, got {tmp_path}/c. "
        "Leave it out for that of the donor."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        merge_recipe(recipe(tmp_path, tokenizer="c"))
