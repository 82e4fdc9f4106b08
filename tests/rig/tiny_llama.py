"""Tiny random models of the Llama family, as directories of Hugging Face models."""

import json

import ml_dtypes
import numpy as np
import safetensors.numpy

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 16,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def shapes(layers=3, width=8, inner=12, vocab=16):
    """Name -> shape, (out, in) as torch has it."""
    found = {"model.embed_tokens.weight": (vocab, width)}
    for n in range(layers):
        start = f"model.layers.{n}"
        for name, shape in {
            "input_layernorm": (width,),
            "mlp.down_proj": (width, inner),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "post_attention_layernorm": (width,),
            "self_attn.k_proj": (width // 2, width),
            "self_attn.o_proj": (width, width),
            "self_attn.q_proj": (width, width),
            "self_attn.v_proj": (width // 2, width),
        }.items():
            found[f"{start}.{name}.weight"] = shape
    return found | {"model.norm.weight": (width,), "lm_head.weight": (vocab, width)}


def leaves(seed, near=None, scale=0.1, dtype="float32", **sizes):
    """Random leaves, or those of another model a little changed."""
    draw = np.random.default_rng(seed).normal
    dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    found = {}
    for name, shape in shapes(**sizes).items():
        start = 0 if near is None else near[name].astype("float32")
        size = 1 if near is None else scale
        found[name] = (start + draw(size=shape, scale=size)).astype(dtype)
    return found


def vocabulary(size=16):
    return {f"token {n}": n for n in range(size)}


def write(folder, named, config=None, files=1, vocab=None):
    """Write a directory with the library of safetensors, in several files if asked."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    tokens = {"model": {"type": "BPE", "vocab": vocab or vocabulary()}}
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 32}')
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    (folder / "modeling_own.py").write_text("# code of the model\n")
    (folder / "README.md").write_text("# The parent's own card\n")
    save = safetensors.numpy.save_file
    if files == 1:
        save(named, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    files_of = {
        name: f"model-{n % files + 1:05}-of-{files:05}.safetensors"
        for n, name in enumerate(named)
    }
    for file in set(files_of.values()):
        part = {n: x for n, x in named.items() if files_of[n] == file}
        save(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": files_of}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
