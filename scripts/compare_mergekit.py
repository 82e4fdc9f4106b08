"""Merge tiny random models with mergekit and with jmudsc, and compare leaf by leaf.

    python -m venv /tmp/mergekit
    /tmp/mergekit/bin/pip install torch mergekit
    python scripts/compare_mergekit.py --mergekit /tmp/mergekit/bin/mergekit-yaml

mergekit needs torch, so it has an environment of its own; jmudsc and this script run
without. A base and three fine-tunes of the Llama architecture are drawn at random and
written as Hugging Face directories. Every configuration below is then given, as it is,
to `mergekit-yaml` and to `jmudsc merge`. Printed is, for each, the largest difference
of a parameter, as a share of the largest change of its leaf from the base, and how many
leaves differ by more than rounding.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import safetensors.numpy
import yaml

LAYERS, WIDTH, INNER, VOCABULARY = 4, 32, 56, 96
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
# Differences below this share of the change are those of sums in another order.
ROUNDING = 2e-5
# There is no tokenizer here, and its card would ask the Hub for the models.
QUIET = ("--no-copy-tokenizer", "--no-write-model-card")


def entries(**parameters):
    """Three fine-tunes, each with its own value of every parameter."""
    return [
        {
            "model": name,
            "parameters": {key: values[n] for key, values in parameters.items()},
        }
        for n, name in enumerate(("a", "b", "c"))
    ]


def task_vectors(method, **shared):
    """Return a configuration of a method that sums what fine-tuning added."""
    weights = {"weight": [0.5, 0.3, 0.4]}
    own = {"density": [0.5, 0.4, 0.7]} if method != "task_arithmetic" else {}
    return {
        "merge_method": method,
        "base_model": "base",
        "models": entries(**weights, **own),
        "parameters": {"lambda": 0.8, **shared},
    }


PAIR = [{"model": "a"}, {"model": "b"}]
GRADIENTS = {
    "t": [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
        {"value": 0.5},
    ]
}
CONFIGURATIONS = {
    "linear": {"merge_method": "linear", "models": entries(weight=[0.5, 0.3, 0.4])},
    "linear, not normalized": {
        "merge_method": "linear",
        "models": entries(weight=[0.5, 0.3, 0.4]),
        "parameters": {"normalize": False},
    },
    "slerp": {
        "merge_method": "slerp",
        "base_model": "a",
        "models": PAIR,
        "parameters": {"t": 0.3},
    },
    "slerp, gradients and filters": {
        "merge_method": "slerp",
        "base_model": "a",
        "slices": [
            {
                "sources": [
                    {"model": "a", "layer_range": [0, LAYERS]},
                    {"model": "b", "layer_range": [0, LAYERS]},
                ]
            }
        ],
        "parameters": GRADIENTS,
    },
    "nuslerp": {
        "merge_method": "nuslerp",
        "models": entries(weight=[0.5, 0.3, 0.4])[:2],
    },
    "nuslerp of deltas": {
        "merge_method": "nuslerp",
        "base_model": "base",
        "models": entries(weight=[0.5, 0.3, 0.4])[:2],
    },
    "nuslerp by row": {
        "merge_method": "nuslerp",
        "base_model": "base",
        "models": entries(weight=[0.5, 0.3, 0.4])[:2],
        "parameters": {"nuslerp_flatten": False},
    },
    "karcher": {
        "merge_method": "karcher",
        "models": [{"model": name} for name in "abc"],
    },
    "model_stock": {
        "merge_method": "model_stock",
        "base_model": "base",
        "models": [{"model": name} for name in "abc"],
    },
    "model_stock, filter_wise": {
        "merge_method": "model_stock",
        "base_model": "base",
        "models": [{"model": name} for name in "abc"],
        "parameters": {"filter_wise": True},
    },
    "task_arithmetic": task_vectors("task_arithmetic"),
    "task_arithmetic, normalized": task_vectors("task_arithmetic", normalize=True),
    "ties": task_vectors("ties"),
    "ties, int8_mask": task_vectors("ties", int8_mask=True, normalize=False),
    "breadcrumbs": task_vectors("breadcrumbs", gamma=0.05),
    "breadcrumbs_ties": task_vectors("breadcrumbs_ties", gamma=0.05),
    "sce": {
        "merge_method": "sce",
        "base_model": "base",
        "models": [{"model": name} for name in "abc"],
        "parameters": {"select_topk": 0.4},
    },
    "passthrough": {
        "merge_method": "passthrough",
        "models": [{"model": "a", "parameters": {"scale": 0.5}}],
    },
}


def shapes():
    """Return the shape of every leaf by its name, (out, in) as torch has it."""
    keys = WIDTH // 2
    found = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for n in range(LAYERS):
        own = {
            "input_layernorm": (WIDTH,),
            "post_attention_layernorm": (WIDTH,),
            "self_attn.q_proj": (WIDTH, WIDTH),
            "self_attn.k_proj": (keys, WIDTH),
            "self_attn.v_proj": (keys, WIDTH),
            "self_attn.o_proj": (WIDTH, WIDTH),
            "mlp.gate_proj": (INNER, WIDTH),
            "mlp.up_proj": (INNER, WIDTH),
            "mlp.down_proj": (WIDTH, INNER),
        }
        found |= {f"model.layers.{n}.{k}.weight": shape for k, shape in own.items()}
    return found | {
        "model.norm.weight": (WIDTH,),
        "lm_head.weight": (VOCABULARY, WIDTH),
    }


def write_models(folder, seed):
    """Draw a base and three fine-tunes that share a part of their change."""
    draw = np.random.default_rng(seed).normal
    base = {name: draw(size=shape, scale=0.2) for name, shape in shapes().items()}
    common = {name: draw(size=x.shape, scale=0.02) for name, x in base.items()}
    models = {"base": base}
    for name in "abc":
        models[name] = {
            leaf: x + common[leaf] + draw(size=x.shape, scale=0.03)
            for leaf, x in base.items()
        }
    for name, leaves in models.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(CONFIG))
        single = {leaf: x.astype(np.float32) for leaf, x in leaves.items()}
        file = folder / name / "model.safetensors"
        safetensors.numpy.save_file(single, file, metadata={"format": "pt"})


def read(folder):
    """Read every leaf of a directory by the library alone."""
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= safetensors.numpy.load_file(file)
    return found


def run(command, folder):
    """Run a command in a folder; return what it said if it failed."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True
    )
    said = f"{done.stderr or done.stdout}".strip().splitlines()
    return None if done.returncode == 0 else (said or ["no message"])[-1]


def compare(ours, theirs, start):
    """Return the largest relative difference, and the leaves that differ."""
    worst, differing = 0.0, []
    for name in theirs:
        apart = float(np.abs(ours[name] - theirs[name]).max())
        change = max(float(np.abs(theirs[name] - start[name]).max()), 1e-3)
        worst = max(worst, apart / change)
        if apart / change > ROUNDING:
            differing.append(name)
    return worst, differing


def main():
    """Compare what is asked for, and fail if a difference is not expected."""
    parser = argparse.ArgumentParser(description="Compare with mergekit.")
    parser.add_argument("--mergekit", default="mergekit-yaml", help="its command")
    parser.add_argument("--only", nargs="*", default=list(CONFIGURATIONS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="an empty folder to work in")
    options = parser.parse_args()
    folder = options.out or Path(tempfile.mkdtemp(prefix="compare-mergekit-"))
    folder.mkdir(exist_ok=True)
    write_models(folder, options.seed)
    start = read(folder / "base")
    code = "from jmudsc.cli import main; main()"
    print("| configuration | largest difference | leaves that differ |")
    print("|:--|--:|--:|")
    failed = False
    for number, name in enumerate(options.only):
        file = f"{number}.yaml"
        (folder / file).write_text(yaml.safe_dump(CONFIGURATIONS[name]))
        theirs, ours = f"theirs-{number}", f"ours-{number}"
        commands = (
            [options.mergekit, file, theirs, *QUIET],
            [sys.executable, "-c", code, "merge", file, "--output", ours],
        )
        errors = [error for each in commands if (error := run(each, folder))]
        if errors:
            failed = True
            print(f"| {name} | failed | {'; '.join(errors)} |", flush=True)
            continue
        found = read(folder / ours), read(folder / theirs)
        assert found[0].keys() == found[1].keys(), name
        worst, differing = compare(*found, start)
        told = f"{len(differing)} of {len(start)}"
        print(f"| {name} | {worst:.1e} | {told} |", flush=True)
    print(f"\nModels and results are in {folder}.")
    sys.exit(failed)


if __name__ == "__main__":
    main()
