"""Compare folded adapters with what PEFT itself makes of them.

In two steps, since PEFT wants torch, which jmudsc does not: one environment writes tiny
models with adapters of random numbers, with every option, and what `merge_and_unload`
makes of them; the other folds and compares, and loads what jmudsc merged back by PEFT.

    python3 -m venv peft && peft/bin/pip install torch peft transformers
    peft/bin/python scripts/compare_peft.py write DIR
    .venv/bin/python scripts/compare_peft.py check DIR
    peft/bin/python scripts/compare_peft.py reload DIR
"""
# pyright: reportMissingImports=false

import argparse
import json
from pathlib import Path

import numpy as np

LINEAR, CONV, TABLE = ["first", "second", "head"], ["conv", "conv1d"], ["table"]
# Name -> the options of a LoRA of the small network.
CASES = {
    "plain": {"target_modules": LINEAR},
    "rslora": {"target_modules": LINEAR, "use_rslora": True},
    "patterns": {
        "target_modules": LINEAR,
        "rank_pattern": {"first": 3, "^head": 6},
        "alpha_pattern": {"block.second": 10, "hea.": 5},
    },
    "patterns-rslora": {
        "target_modules": LINEAR,
        "use_rslora": True,
        "rank_pattern": {"second": 1},
        "alpha_pattern": {"second": 10},
    },
    "bias-all": {"target_modules": ["first", "head"], "bias": "all"},
    "bias-lora-only": {"target_modules": ["first", "head"], "bias": "lora_only"},
    "lora-bias": {"target_modules": ["first", "head", "conv"], "lora_bias": True},
    "saved": {"target_modules": ["first"], "modules_to_save": ["head", "norm"]},
    "conv": {"target_modules": CONV},
    "table": {"target_modules": TABLE},
    "conv1d-gpt": {"target_modules": ["swapped", "square"], "fan_in_fan_out": True},
    "mixed-fan": {"target_modules": ["swapped", "head"], "fan_in_fan_out": True},
    "all": {"target_modules": [*LINEAR, *CONV, *TABLE], "use_rslora": True},
    "dora": {"target_modules": LINEAR, "use_dora": True},
    "dora-conv": {"target_modules": CONV, "use_dora": True},
    "dora-table": {"target_modules": TABLE, "use_dora": True},
    "dora-gpt": {
        "target_modules": ["swapped", "square"],
        "use_dora": True,
        "fan_in_fan_out": True,
    },
    "dora-all": {
        "target_modules": [*LINEAR, *CONV, *TABLE],
        "use_dora": True,
        "use_rslora": True,
        "rank_pattern": {"head": 2},
    },
    "gaussian": {"target_modules": LINEAR, "init_lora_weights": "gaussian"},
}
LLAMA = {
    "llama": {"target_modules": "all-linear"},
    "llama-attention": {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "llama-table": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "llama-dora": {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "llama-saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


def small_network():
    """Return a network with every kind of layer that LoRA is of."""
    import torch
    from transformers.pytorch_utils import Conv1D

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Linear(6, 8)
            self.second = torch.nn.Linear(8, 8, bias=False)

        def forward(self, x):
            return self.second(torch.relu(self.first(x)))

    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(11, 6)
            self.conv = torch.nn.Conv2d(1, 4, 3, padding=1)
            self.conv1d = torch.nn.Conv1d(6, 6, 3, padding=1)
            self.block = Block()
            self.swapped = Conv1D(12, 8)
            self.square = Conv1D(12, 12)
            self.norm = torch.nn.LayerNorm(12)
            self.head = torch.nn.Linear(12, 5)

        def forward(self, x):
            x = self.table(x)
            x = x + self.conv(x[:, None]).mean(1)
            x = x + self.conv1d(x.transpose(1, 2)).transpose(1, 2)
            return self.head(self.norm(self.square(self.swapped(self.block(x)))))

    return Small()


def llama():
    """Return a small language model of random numbers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def write(folder):
    """Write a base, an adapter and what PEFT makes of both, for every case."""
    import torch
    from peft import get_peft_model, LoraConfig
    from safetensors.torch import save_file

    torch.manual_seed(0)
    makers = {case: (small_network, CASES[case]) for case in CASES}
    makers |= {case: (llama, LLAMA[case]) for case in LLAMA}
    for case, (make, options) in makers.items():
        base = make()
        with torch.no_grad():
            for leaf in base.parameters():
                leaf.copy_(torch.randn_like(leaf) * 0.5)
        place = folder / case
        place.mkdir(parents=True, exist_ok=True)
        before = {name: leaf.clone() for name, leaf in base.state_dict().items()}
        save_file(before, place / "base.safetensors")
        model = get_peft_model(base, LoraConfig(r=4, lora_alpha=7, **options))
        with torch.no_grad():
            for name, leaf in model.named_parameters():
                if "lora_magnitude" in name:
                    leaf.mul_(1 + 0.2 * torch.rand_like(leaf))
                elif leaf.requires_grad:
                    leaf.copy_(leaf + torch.randn_like(leaf) * 0.3)
        model.eval().save_pretrained(place / "adapter")
        batch = torch.arange(10).reshape(2, 5)
        with torch.no_grad():
            outputs = model(batch)
            merged = model.merge_and_unload()
            again = merged(batch)
        outputs, again = (getattr(x, "logits", x) for x in (outputs, again))
        torch.testing.assert_close(outputs, again, rtol=1e-4, atol=1e-4)
        leaves = {n: x.contiguous().clone() for n, x in merged.state_dict().items()}
        save_file(leaves, place / "merged.safetensors")


def check(folder):
    """Fold every adapter, and compare; refactor it for PEFT to read."""
    import jmudsc
    from jmudsc.checkpoints.load import load

    worst = {}
    for case in sorted(x.name for x in folder.iterdir() if x.is_dir()):
        place = folder / case
        base = load(place / "base.safetensors", lazy=True)
        adapter = jmudsc.load_lora(place / "adapter")
        folded = jmudsc.fold_lora(adapter, base).variables
        expected = load(place / "merged.safetensors")
        assert folded.keys() == expected.keys()
        worst[case] = max(
            float(np.abs(np.asarray(folded[x]) - expected[x]).max())
            / float(np.abs(expected[x]).max())
            for x in expected
        )
        changed = [x for x in expected if (np.asarray(base[x]) != expected[x]).any()]
        print(f"{case}: {len(changed)} of {len(expected)} leaves, {worst[case]:.1e}")
        again = jmudsc.factor_loras([adapter], base, "linear", rank=64)
        jmudsc.save_lora(place / "again", again.adapter, overwrite=True)
    print(f"largest difference: {max(worst.values()):.1e}")
    assert max(worst.values()) < 1e-5


def reload(folder):
    """Let PEFT merge what jmudsc refactored, and compare."""
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file

    for case in sorted(x.name for x in folder.iterdir() if x.is_dir()):
        base = llama() if case in LLAMA else small_network()
        base.load_state_dict(load_file(folder / case / "base.safetensors"))
        model = PeftModel.from_pretrained(base, folder / case / "again")
        merged = model.merge_and_unload().state_dict()
        expected = load_file(folder / case / "merged.safetensors")
        assert merged.keys() == expected.keys()
        off = max(float((merged[x] - expected[x]).abs().max()) for x in expected)
        kind = json.loads((folder / case / "again/adapter_config.json").read_text())
        print(f"{case}: rank {kind['r']}, {off:.1e}")
        for x in expected:
            torch.testing.assert_close(merged[x], expected[x], rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("write", "check", "reload"))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    {"write": write, "check": check, "reload": reload}[given.step](given.folder)
