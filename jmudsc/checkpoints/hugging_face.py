"""Hugging Face: the directory of a model, as transformers reads and writes it.

It holds `config.json`, safetensors files with leaves in torch's layout under names such
as `model.layers.0.mlp.up_proj.weight`, and what belongs to the tokenizer. Torch is not
needed for any of it, and no code in it is run.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmudsc.checkpoints import safetensors
from jmudsc.checkpoints.safetensors import INDEX
from jmudsc.checkpoints.shards import shard_names, sharded
from jmudsc.lazy import LazyArray
from jmudsc.paths import did_you_mean, listed, matches

CONFIG = "config.json"
SHARD_SIZE = 5 * 10**9

_MODEL = "model"
_SAFETENSORS = ".safetensors"
# What says which type the parameters are of; the older name first.
_DTYPE_KEYS = ("torch_dtype", "dtype")
# Leaves with a row for each token, by the end of their names.
_TABLES = (
    "embed_tokens.weight",
    "word_embeddings.weight",
    "wte.weight",
    "shared.weight",
    "lm_head.weight",
    "embed_in.weight",
    "embed_out.weight",
)
# Modules of transformers that keep a linear layer as (in, out), by the type of model.
_GPT2 = ("*c_attn.weight", "*c_proj.weight", "*c_fc.weight", "*q_attn.weight")
_TRANSPOSED: dict[str, tuple[str, ...]] = {
    "gpt2": _GPT2,
    "openai-gpt": _GPT2,
    "imagegpt": _GPT2,
    "decision_transformer": _GPT2,
}
# What is copied from the donor: all that a model needs besides its parameters.
_COPIED = (
    CONFIG,
    "generation_config.json",
    "*processor_config.json",
    "*.py",  # of models that are not part of transformers
)
_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
    "chat_template*",
    "additional_chat_templates/*",
)


@dataclass(frozen=True)
class HuggingFace:
    """How to write the directory of a Hugging Face model.

    Attributes:
        donor: such a directory, of the base or a parent: names and shapes of the leaves
            must be those in it; its configuration, tokenizer and code are copied.
        parents: directories or Hub names (`org/name`) of what was merged, for the card.
            A directory in the cache of the Hub counts as its name.
        shard_size: how many bytes of leaves a file holds at most; a leaf that is larger
            is in a file of its own.
        tokenizer: a directory that the tokenizer and its chat template are copied from,
            if not the donor.
    """

    donor: str | os.PathLike[str]
    parents: tuple[str | os.PathLike[str], ...] = ()
    shard_size: int = SHARD_SIZE
    tokenizer: str | os.PathLike[str] | None = None


def is_model(directory: Path) -> bool:
    """Whether a directory is that of a model, with its parameters in safetensors."""
    return (directory / CONFIG).is_file() and weights_of(directory) is not None


def weights_of(directory: Path) -> Path | None:
    """Return the one file, or index of several, that holds the parameters, if any.

    Of several that called `model` counts.

    Args:
        directory: of a model.
    """
    for ending in (INDEX, _SAFETENSORS):
        found = sorted(directory.glob(f"*{ending}"))
        named = [x for x in found if x.name == f"{_MODEL}{ending}"]
        if len(found) == 1 or named:
            return (named or found)[0]
    return None


def open_directory(directory: Path) -> dict[str, LazyArray]:
    """Return the leaves of a model by their names, from shapes and dtypes alone.

    Args:
        directory: of a model.

    Raises:
        ValueError: as for safetensors files.
    """
    return safetensors.open_safetensors(_weights(directory))


def files_of(directory: Path) -> list[Path]:
    """Return the files that decide what is read from a directory."""
    return [directory / CONFIG, *safetensors.files_of(_weights(directory))]


def config_of(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the configuration of a model.

    Args:
        directory: of the model.

    Raises:
        ValueError: if it is no JSON object.
    """
    file = Path(directory, CONFIG)
    try:
        content = json.loads(file.read_text())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(
            f"{file}: expected a JSON object, got something else. Copy it again."
        )
    return content


def transposed_axes(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """Return the letters of leaves that are (in, out) although they are torch's.

    A leaf called `weight` is taken for (out, in) by its name. Models of the GPT-2
    family keep most of theirs the other way around.

    Args:
        config: the configuration of the model.
        names: of its leaves.

    Returns:
        Pattern of leaves -> letters, as `axes` of `merge_finetunes` takes them.

    Example:
        >>> transposed_axes({"model_type": "gpt2"}, ["h.0.mlp.c_fc.weight"])
        {'*c_fc.weight': 'io'}
    """
    names = list(names)
    patterns = _TRANSPOSED.get(str(config.get("model_type")), ())
    found = [x for x in patterns if any(matches(name, [x]) for name in names)]
    return dict.fromkeys(found, "io")


def is_table(name: str) -> bool:
    """Whether a leaf has a row for each token, by its name."""
    return name.endswith(_TABLES)


def check_donor(where: str, options: HuggingFace) -> Path:
    """Check that there is a donor, and that shards have a size.

    Args:
        where: what is to be written, for errors.
        options: how.

    Returns:
        The directory of the donor.

    Raises:
        ValueError: if it is no directory of a model, the size is no whole number, or
            the tokenizer is from no directory.
    """
    donor, size = Path(options.donor).expanduser().absolute(), options.shard_size
    if not is_model(donor):
        raise ValueError(
            f"{where}: expected a directory with {CONFIG} and safetensors to take the "
            f"configuration from, got {donor}. Give that of the base or of a model."
        )
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(
            f"{where}: expected a shard_size of 1 or more bytes, got {size!r}. Leave "
            f"it out for {SHARD_SIZE}."
        )
    if options.tokenizer and not Path(options.tokenizer).expanduser().is_dir():
        raise ValueError(
            f"{where}: expected a directory to take the tokenizer from, got "
            f"{options.tokenizer}. Leave it out for that of the donor."
        )
    return donor


def check_like_donor(where: str, leaves: Mapping[str, Any], donor: Path) -> None:
    """Check that leaves are named and shaped like those of the donor.

    Tables of tokens may have another number of rows, and a head that the donor stores
    besides its table may be left out where its configuration ties the two.

    Args:
        where: what is to be written, for the error.
        leaves: name -> array.
        donor: the directory that the configuration is from.

    Raises:
        ValueError: listing every difference.
    """
    known = open_directory(donor)
    tied = bool(config_of(donor).get("tie_word_embeddings"))
    lines = [
        f"{name}: not in the donor{did_you_mean(name, known)}"
        for name in leaves
        if name not in known
    ]
    lines += [
        f"{name}: is missing"
        for name in known
        if name not in leaves and not (tied and name.endswith("lm_head.weight"))
    ]
    for name in known.keys() & leaves.keys():
        ours, theirs = np.shape(leaves[name]), known[name].shape
        rows = 1 if is_table(name) and len(ours) == len(theirs) else 0
        if ours[rows:] != theirs[rows:]:
            lines.append(f"{name}: {list(ours)}, {list(theirs)} in the donor")
    if lines:
        raise ValueError(
            f"{where}: expected the leaves that {donor} has, got {len(lines)} that "
            "differ. Rename the leaves, transpose them as torch has them, or save in "
            f"another format:\n{listed(sorted(lines))}"
        )


def write_directory(
    options: HuggingFace,
    directory: Path,
    leaves: PyTree[LazyArray],
) -> None:
    """Write the directory of a model, leaf by leaf.

    Args:
        options: how.
        directory: to make.
        leaves: name -> array, each read when it is its turn.
    """
    donor = Path(options.donor).expanduser().absolute()
    directory.mkdir()
    stem = _weights(donor).name.removesuffix(INDEX).removesuffix(_SAFETENSORS)
    _write_shards(directory, _without_number(stem), leaves, options.shard_size)
    _copy(donor, directory, _COPIED)
    source = Path(options.tokenizer or donor).expanduser().absolute()
    _copy(source, directory, _TOKENIZER)
    _write_config(directory, config_of(donor), leaves)


def _copy(source: Path, directory: Path, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        for file in sorted(source.glob(pattern)):
            if file.is_file():
                target = directory / file.relative_to(source)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)


def _without_number(stem: str) -> str:
    """Return what a shard is called without its number."""
    return stem.partition("-00001-of-")[0]


def _write_shards(
    directory: Path, stem: str, leaves: Mapping[str, LazyArray], size: int
) -> None:
    shards = sharded(leaves, size)
    names = shard_names(stem, len(shards))
    files = {}
    for name, shard in zip(names, shards, strict=True):
        # transformers refuses files whose metadata say of no framework.
        safetensors.write_safetensors(directory / name, shard, {"format": "pt"})
        files |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        total = {"total_size": sum(leaf.nbytes for leaf in leaves.values())}
        index = {"metadata": total, "weight_map": dict(sorted(files.items()))}
        text = json.dumps(index, indent=2)
        (directory / f"{stem}{INDEX}").write_text(f"{text}\n")


def _write_config(
    directory: Path, config: Mapping[str, Any], leaves: Mapping[str, LazyArray]
) -> None:
    """Write a configuration anew if it says something else of the leaves."""
    told: dict[str, Any] = {
        key: _main_dtype(leaves) for key in _DTYPE_KEYS if key in config
    }
    tables = [leaf.shape[0] for name, leaf in leaves.items() if is_table(name)]
    if "vocab_size" in config and tables:
        told["vocab_size"] = tables[0]
    if any(config[key] != value for key, value in told.items()):
        text = json.dumps({**config, **told}, indent=2, ensure_ascii=False)
        (directory / CONFIG).write_text(f"{text}\n")


def _main_dtype(leaves: Mapping[str, LazyArray]) -> str:
    """Return the name of the floating-point type of most parameters."""
    sizes: dict[str, int] = {}
    for leaf in leaves.values():
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            sizes[leaf.dtype.name] = sizes.get(leaf.dtype.name, 0) + leaf.size
    return max(sizes, key=lambda name: sizes[name]) if sizes else "float32"


def _weights(directory: Path) -> Path:
    found = weights_of(directory)
    assert found is not None  # as `is_model` says
    return found
