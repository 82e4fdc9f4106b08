"""Model card: what a merged Hugging Face model says of itself in its README.md."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from jmudsc.checkpoints.provenance import versions
from jmudsc.merging.result import MergeResult

_PROJECT = "jmudsc"
_RECIPE = "recipe.yaml"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# A model in the cache of the Hub lies at models--ORG--NAME/snapshots/REVISION.
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")


def model_card(
    result: MergeResult,
    parents: Sequence[str | os.PathLike[str]],
    config: Mapping[str, Any],
    notes: Mapping[str, str],
) -> str:
    """Write the card of a merged model, with the front matter that the Hub reads.

    A parent is named as on the Hub, if that is known, else by the name of its
    directory: the front matter has names of the Hub only.

    Args:
        result: the merge.
        parents: directories or Hub names of what was merged.
        config: the configuration of the model.
        notes: file name -> text of what is stored beside the model; of these the
            recipe is shown.

    Returns:
        Markdown.
    """
    hub = [name for parent in parents if (name := hub_name(parent))]
    front: dict[str, Any] = {"base_model": list(dict.fromkeys(hub))} if hub else {}
    library = "diffusers" if "_class_name" in config else "transformers"
    front |= {"library_name": library, "tags": ["merge", _PROJECT]}
    method = result.recipe.get("method", "merge")
    named = method if isinstance(method, str) else "several methods"
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        "",
        "# A merged model",
        "",
        f"Merged without training by `{named}`, with {_PROJECT} "
        f"{versions()[_PROJECT]}.",
    ]
    if parents:
        lines += ["", "## What was merged", ""]
        lines += [f"- {_shown(parent)}" for parent in parents]
    lines += ["", "## How", "", "```yaml", _told(result, notes).strip(), "```", ""]
    lines += ["The folder `jmudsc` has the record, with a SHA-256 of every leaf."]
    return "\n".join(lines) + "\n"


def hub_name(parent: str | os.PathLike[str]) -> str | None:
    """Return what a model is called on the Hub, None if that is not known.

    Args:
        parent: `org/name`, or a directory; of one in the cache of the Hub the name is
            known.

    Example:
        >>> hub_name("~/.cache/huggingface/hub/models--org--net/snapshots/0a1b")
        'org/net'
    """
    text = os.fspath(parent)
    found = [match for part in Path(text).parts if (match := _CACHED.fullmatch(part))]
    if found:
        return f"{found[-1][1]}/{found[-1][2]}"
    is_name = _HUB_NAME.fullmatch(text) and not text.startswith(".")
    return text if is_name and not Path(text).exists() else None


def _shown(parent: str | os.PathLike[str]) -> str:
    name = hub_name(parent)
    if name:
        return f"[{name}](https://huggingface.co/{name})"
    return f"`{Path(parent).name}`"


def _told(result: MergeResult, notes: Mapping[str, str]) -> str:
    """Return what decided a merge: its recipe, without comments, if there is one."""
    if _RECIPE in notes:
        text = notes[_RECIPE]
        return "\n".join(x for x in text.splitlines() if not x.startswith("#"))
    return yaml.safe_dump(dict(result.recipe), sort_keys=False)
