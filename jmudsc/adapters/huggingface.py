"""Hugging Face: Flax models of `transformers` before version 5."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import PyTree

from jmudsc.adapters.functions import checked, Functions


def functions(model: Any, output: str = "logits") -> Functions:
    """Return a Flax model of `transformers` as pure functions.

    Args:
        model: a `FlaxPreTrainedModel`; also one made with `_do_init=False`, which
            allocates nothing: then variables are shapes.
        output: which of its outputs to return; `"last_hidden_state"` for a model
            without a head.

    Returns:
        The functions. Variables are `{"params": ...}`, as in its checkpoints. A batch
        is what the tokenizer returns, `{"input_ids": ..., "attention_mask": ...}`, or
        the first input alone (token ids, pixel values).
    """

    def apply_fn(variables: PyTree, batch: PyTree) -> PyTree:
        inputs = dict(batch) if isinstance(batch, Mapping) else {_first(model): batch}
        outputs = model(**inputs, params=variables["params"], train=False)
        return outputs[output]

    return Functions({"params": _params_of(model)}, apply_fn, None)


def build(model: Any, variables: PyTree) -> Any:
    """Return a Flax model of `transformers` with other variables.

    Args:
        model: of which the configuration is taken.
        variables: as `functions` returns them, or a merge of such.

    Returns:
        The new model, ready for `save_pretrained`.

    Raises:
        ValueError: if the variables are not those of such a model.
    """
    own = {"params": _params_of(model)}
    whole = checked("huggingface.build", own, variables)
    copy = type(model)(model.config, dtype=model.dtype, _do_init=False)
    copy._is_initialized = True
    copy.params = whole["params"]
    return copy


def _params_of(model: Any) -> PyTree:
    return model.params if model._is_initialized else model.params_shape_tree


def _first(model: Any) -> str:
    return model.main_input_name if hasattr(model, "main_input_name") else "input_ids"
