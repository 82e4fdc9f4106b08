"""Model card: what a merged network says of itself in its README.md."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jmudsc.checkpoints.provenance import versions
from jmudsc.merging.how_to_load import how_to_load
from jmudsc.merging.report import judgement, verdict_lines
from jmudsc.merging.result import MergeResult

_PROJECT = "jmudsc"
_RECIPE = "recipe.yaml"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# A model in the cache of the Hub lies at models--ORG--NAME/snapshots/REVISION.
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")


@dataclass(frozen=True)
class Parent:
    """A network that went into a merge, as a card names it.

    Attributes:
        name: its path, or its name on the Hub.
        is_on_hub: whether it is that name.
        digest: the SHA-256 of its checkpoint; None where that is not known.
    """

    name: str
    is_on_hub: bool = False
    digest: str | None = None

    @property
    def plain(self) -> dict[str, str | None]:
        """What provenance tells of it."""
        return {"name": self.name, "sha256": self.digest}


def parent_at(
    path: str | os.PathLike[str], shown: str | None = None, digest: str | None = None
) -> Parent:
    """Return how a card names a network.

    Args:
        path: a checkpoint, or a Hub name; of a directory in the cache of the Hub the
            name is known.
        shown: what is shown of the path, if it is no name on the Hub; what a path says
            of the machine is not: of one that is absolute the last part is shown.
        digest: the SHA-256 of the checkpoint.
    """
    if name := hub_name(path):
        return Parent(name, is_on_hub=True, digest=digest)
    text = os.fspath(path) if shown is None else shown
    is_local = "://" not in text and (os.path.isabs(text) or text.startswith("~"))
    return Parent(Path(text).name if is_local else text, digest=digest)


def model_card(
    result: MergeResult,
    parents: Sequence[Parent],
    config: Mapping[str, Any] | None,
    notes: Mapping[str, str],
    path: str | os.PathLike[str],
) -> str:
    """Write the card of a merged network, with the front matter that the Hub reads.

    Args:
        result: the merge, of one network.
        parents: what was merged, as far as that is known.
        config: the configuration of the Hugging Face model that it is stored as; None
            for what is stored in another way.
        notes: file name -> text of what is stored beside the network; of these the
            recipe is shown.
        path: of the checkpoint; its name is shown, and its ending says how it is
            loaded.

    Returns:
        Markdown.
    """
    lines = [*_front(parents, config), "", "# A merged network", ""]
    lines += [_made(result), "", *_scores(result)]
    lines += ["## What was merged", "", *_merged(result, parents), ""]
    lines += ["## How", "", "```yaml", _told(result, notes).strip(), "```", ""]
    lines += ["## How to load it", "", *how_to_load(result.variables, config, path)]
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


def _front(parents: Sequence[Parent], config: Mapping[str, Any] | None) -> list[str]:
    """Write the front matter, which has names of the Hub only."""
    hub = list(dict.fromkeys(each.name for each in parents if each.is_on_hub))
    front: dict[str, Any] = {"base_model": hub} if hub else {}
    if config is not None:
        library = "diffusers" if "_class_name" in config else "transformers"
        front["library_name"] = library
    front["tags"] = ["merge", _PROJECT]
    return ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---"]


def _made(result: MergeResult) -> str:
    method = result.recipe.get("method", "merge")
    named = f"`{method}`" if isinstance(method, str) else "several methods"
    chosen = result.recipe.get("chosen")
    if chosen is not None:
        named = f"`{chosen}`, the best of {len(result.recipe.get('tried', ()))} tried"
    version = versions()[_PROJECT]
    return f"Merged without training by {named}, with {_PROJECT} {version}."


def _scores(result: MergeResult) -> list[str]:
    """Tell how it compares with its parents and their ensemble, or why that is not."""
    if result.verdict is not None:
        said = [*judgement(result), *verdict_lines(result.verdict)]
    else:
        reason = str(result.recipe.get("verdict", "none, since nothing was compared"))
        said = [f"Verdict: {reason}."]
    return ["## Is it good?", "", *said, ""]


def _merged(result: MergeResult, parents: Sequence[Parent]) -> list[str]:
    if not parents:
        count = len(result.recipe.get("weights") or ()) or "several"
        return [f"{count} networks that were in memory."]
    return [f"- {_shown(each)}{_digest(each)}" for each in parents]


def _shown(parent: Parent) -> str:
    if parent.is_on_hub:
        return f"[{parent.name}](https://huggingface.co/{parent.name})"
    return f"`{parent.name}`"


def _digest(parent: Parent) -> str:
    return f", SHA-256 `{parent.digest}`" if parent.digest else ""


def _told(result: MergeResult, notes: Mapping[str, str]) -> str:
    """Return what decided a merge: its recipe, without comments, if there is one."""
    if _RECIPE in notes:
        text = notes[_RECIPE]
        return "\n".join(x for x in text.splitlines() if not x.startswith("#"))
    return yaml.safe_dump(dict(result.recipe), sort_keys=False)
