"""Hugging Face: Flax models of `transformers` as pure functions, and back."""

import warnings

import jax
import numpy as np
import pytest

import jmudsc

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

    from jmudsc.adapters import huggingface as adapter

pytestmark = pytest.mark.filterwarnings("ignore")

CONFIG = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "vocab_size": 40,
    "max_position_embeddings": 16,
}


@pytest.fixture(autouse=True)
def _as_users_write():
    with jax.numpy_rank_promotion("allow"):
        yield


def bert(seed=0, **more):
    config = transformers.BertConfig(**CONFIG)
    return transformers.FlaxBertForSequenceClassification(config, seed=seed, **more)


def tokens(seed):
    ids = np.random.default_rng(seed).integers(0, 40, (4, 7))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def same(a, b):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_outputs_are_the_logits_of_the_model():
    model = bert()
    variables, apply_fn, update_fn = adapter.functions(model)
    same(apply_fn(variables, tokens(0)), model(**tokens(0)).logits)
    assert update_fn is None
    ids = tokens(0)["input_ids"]
    hidden = adapter.functions(
        transformers.FlaxBertModel(model.config), "last_hidden_state"
    )
    assert hidden.apply_fn(hidden.variables, ids).shape == (4, 7, 12)


def test_shapes_alone_give_a_spec():
    model = bert(_do_init=False)
    variables, apply_fn, _ = adapter.functions(model)
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(variables))
    spec = jmudsc.infer_spec(apply_fn, variables, tokens(0))
    assert {label.size for label in spec.labels.values()} == {3, 4, 12, 20}


def test_a_merge_goes_back_into_a_model_and_its_own_files(tmp_path):
    models = [bert(0), bert(1)]
    (first, apply_fn, _), (second, *_) = map(adapter.functions, models)
    batches = [tokens(0), tokens(1)]
    result = jmudsc.merge(apply_fn, [first, second], batches, key=jax.random.key(0))
    merged = adapter.build(models[0], result.variables)
    same(merged(**tokens(2)).logits, apply_fn(result.variables, tokens(2)))
    same(models[0](**tokens(2)).logits, apply_fn(first, tokens(2)))
    merged.save_pretrained(tmp_path)
    again = type(merged).from_pretrained(tmp_path)
    same(again(**tokens(2)).logits, merged(**tokens(2)).logits)
