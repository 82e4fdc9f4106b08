"""PEFT config: what `adapter_config.json` says of an adapter, and what is refused."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jmudsc import paths

# Keys that decide what a fold computes, and are read.
_READ = {
    "peft_type",
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "fan_in_fan_out",
    "init_lora_weights",
    "bias",
    "lora_bias",
    "modules_to_save",
}
# Keys that were for training, or say what the names of the arrays say too.
_IDLE = {
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "target_modules",
    "exclude_modules",
    "lora_dropout",
    "layers_to_transform",
    "layers_pattern",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "megatron_core",
    "qalora_group_size",
    "runtime_config",
    "velora_config",
}
# Ways to begin that leave the base as it was; others take from it what they begin with.
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class PeftConfig:
    """What decides the updates of a PEFT adapter.

    Attributes:
        rank: of modules that no pattern is of.
        alpha: what the scale is alpha over rank of.
        ranks: pattern of module names -> rank.
        alphas: pattern of module names -> alpha.
        rslora: whether the scale is alpha over the root of the rank.
        dora: whether every update has a magnitude.
        fan_in_fan_out: whether linear layers store (in, out).
    """

    rank: int
    alpha: float
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    dora: bool = False
    fan_in_fan_out: bool = False

    def rank_of(self, module: str) -> int:
        """Return the rank that the update of a module has."""
        return _by_pattern(module, self.ranks, self.rank)

    def scale_of(self, module: str) -> float:
        """Return what the product of the factors of a module is times.

        alpha / r (Hu et al. 2022, arXiv:2106.09685, section 4.1), or alpha / sqrt(r)
        (rsLoRA, arXiv:2312.03732, theorem 3.2).
        """
        alpha, rank = _by_pattern(module, self.alphas, self.alpha), self.rank_of(module)
        return float(alpha) / (math.sqrt(rank) if self.rslora else rank)


def read_config(file: Path) -> PeftConfig:
    """Read the config of an adapter.

    Args:
        file: `adapter_config.json`.

    Returns:
        What decides its updates.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such config, or listing all of it that is not known to
            leave a fold as it is.
    """
    content = _content(file)
    kind = content.get("peft_type")
    if kind != "LORA":
        raise ValueError(
            f"{file}: expected an adapter of the type LORA, got {kind!r}. Fold it by "
            "the library that made it."
        )
    if problems := [*_unknown(content), *_wrong(content)]:
        raise ValueError(
            f"{file}: expected a LoRA that can be folded, got "
            f"{paths.plural(len(problems), 'key')} for which that is not so:\n"
            f"{paths.listed(problems, most=30)}\n"
            "Fold it by the library that made it."
        )
    return PeftConfig(
        content["r"],
        float(content["lora_alpha"]),
        content.get("rank_pattern") or {},
        {x: float(n) for x, n in (content.get("alpha_pattern") or {}).items()},
        bool(content.get("use_rslora")),
        bool(content.get("use_dora")),
        bool(content.get("fan_in_fan_out")),
    )


def _content(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: expected the config of an adapter, got no such file. Copy "
            "adapter_config.json beside adapter_model.safetensors."
        )
    try:
        content = json.loads(file.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file}: expected JSON, got something else ({error}). Copy it again."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{file}: expected a mapping of keys to values, got a "
            f"{type(content).__name__}. Copy it again."
        )
    return content


def _unknown(content: Mapping[str, Any]) -> list[str]:
    """Return keys that are not known and say something."""
    return [
        f"{key}: {paths.cut(json.dumps(value), 60)}, which is not supported"
        for key, value in content.items()
        if key not in _READ | _IDLE and value not in (None, False, [], {}, "")
    ]


def _wrong(content: Mapping[str, Any]) -> list[str]:
    """Return keys that have no value that can be."""
    found, start = [], content.get("init_lora_weights", True)
    if not any(start is each or start == each for each in _PLAIN_STARTS):
        found.append(
            f"init_lora_weights: {start!r}, which changes the base; save it again with "
            "path_initial_model_for_weight_conversion"
        )
    if not _is_rank(content.get("r")):
        found.append(f"r: expected a whole number > 0, got {content.get('r')!r}")
    if not _is_number(content.get("lora_alpha")):
        found.append(
            f"lora_alpha: expected a number, got {content.get('lora_alpha')!r}"
        )
    for key, holds in (("rank_pattern", _is_rank), ("alpha_pattern", _is_number)):
        patterns = content.get(key) or {}
        if not isinstance(patterns, dict) or not all(map(holds, patterns.values())):
            found.append(f"{key}: expected patterns with numbers, got {patterns!r}")
        else:
            found += [
                f"{key}: expected regular expressions, got {pattern!r}"
                for pattern in patterns
                if not _is_regex(pattern)
            ]
    return found


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    return good and math.isfinite(value)


def _is_regex(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _by_pattern(module: str, patterns: Mapping[str, Any], default: Any) -> Any:
    """Return the value of the first pattern that the end of a module's name matches."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
