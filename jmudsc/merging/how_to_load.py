"""How to load: the lines of Python that get a merged network back from disk."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from jmudsc.checkpoints.formats import format_of

# Of a format the lines that load it without jmudsc.
_ALONE = {
    "orbax": """\
import pathlib

import orbax.checkpoint as ocp

# `variables` are those of a parent, or of a network that was just made
path = pathlib.Path("{name}").resolve()
variables = ocp.StandardCheckpointer().restore(path, variables)""",
    "safetensors": """\
import safetensors.flax

arrays = safetensors.flax.load_file("{name}")  # {joined}""",
    "npz": """\
import numpy

arrays = dict(numpy.load("{name}"))  # {joined}""",
    "msgpack": """\
import pathlib

import flax.serialization

content = pathlib.Path("{name}").read_bytes()
variables = flax.serialization.msgpack_restore(content)""",
}
_JOINED = "by names such as params/Dense_0/kernel"


def how_to_load(
    variables: PyTree,
    config: Mapping[str, Any] | None,
    path: str | os.PathLike[str],
) -> list[str]:
    """Say how a merged network is loaded in three libraries.

    Args:
        variables: the merged variables; of these only the structure is looked at.
        config: the configuration of the Hugging Face model that it is stored as; None
            for what is stored in another way.
        path: of the checkpoint.

    Returns:
        Lines of Markdown.
    """
    name = Path(os.fspath(path)).name
    if config is not None:
        return _of_hugging_face(name, config)
    whole = "variables" if _has_collections(variables) else '{"params": variables}'
    kind = format_of(path).name
    folder = f"{name}.jmudsc" if format_of(path).endings else "jmudsc"
    return [
        "In Flax linen, with the module that the parents are of:",
        "",
        *_block(
            "import jmudsc",
            "",
            f'variables = jmudsc.load("{name}")',
            f"outputs = module.apply({whole}, batch)",
        ),
        "",
        "In Flax NNX, with a model that is built as the parents are:",
        "",
        *_block(
            "import jmudsc",
            "from jmudsc.adapters import nnx",
            "",
            "like = nnx.functions(model).variables",
            f'model = nnx.build(model, jmudsc.load("{name}", like=like))',
        ),
        "",
        f"Without jmudsc, from {kind}:",
        "",
        *_block(_ALONE[kind].format(name=name, joined=_JOINED)),
        "",
        "Equinox, Haiku and Keras have adapters like that of NNX.",
        _record(folder),
    ]


def _of_hugging_face(name: str, config: Mapping[str, Any]) -> list[str]:
    library, of = "transformers", "AutoModel"
    if "_class_name" in config:
        library, of = "diffusers", str(config["_class_name"])
    elif config.get("architectures"):
        of = str(config["architectures"][0])
    return [
        f"In {library}, as its parents are loaded:",
        "",
        *_block(
            f"from {library} import {of}", "", f'model = {of}.from_pretrained("{name}")'
        ),
        "",
        "In JAX, as a dictionary of arrays under torch's names and in its layout:",
        "",
        *_block("import jmudsc", "", f'variables = jmudsc.load("{name}")'),
        "",
        _record("jmudsc"),
    ]


def _has_collections(variables: PyTree) -> bool:
    return isinstance(variables, Mapping) and "params" in variables


def _block(*lines: str) -> list[str]:
    return ["```python", *lines, "```"]


def _record(folder: str) -> str:
    return f"The folder `{folder}` has the record, with a SHA-256 of every leaf."
