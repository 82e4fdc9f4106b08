"""Values: how arguments of the command line are read, and what is told."""

import math
from pathlib import Path
from typing import Annotated, Any

import tyro

File = Annotated[Path, tyro.conf.Positional]
# A path or a URL: Path would take `s3://bucket` for a folder of the name `s3:`.
Place = Annotated[str, tyro.conf.Positional]


def place(text: str) -> Any:
    """Return the path that a text or a URL names."""
    from jmudsc.checkpoints.urls import path_of

    return path_of(text)


def told(error: Exception) -> str:
    """Return what an error says, of URLs where it is about copies of them."""
    from jmudsc.checkpoints.urls import by_urls

    return by_urls(str(error))


def speaks() -> bool:
    """Whether this process prints: the only one, or the first of several."""
    from jmudsc.processes import is_first

    return is_first()


def pairs(flag: str, given: tuple[str, ...]) -> list[tuple[str, str]]:
    """Read the names and values that a flag was given as NAME=VALUE."""
    wrong = [text for text in given if "=" not in text]
    if wrong:
        raise ValueError(
            f"--{flag}: expected NAME=VALUE, got {', '.join(wrong)}. Put = between."
        )
    return [(name, value) for name, _, value in (x.partition("=") for x in given)]


def plain(text: str) -> Any:
    """Read a value as YAML has it."""
    import yaml

    return yaml.safe_load(text)


def bytes_of(gib: float | None) -> int | None:
    """Return how many bytes a number of GiB is; None for none."""
    if gib is None:
        return None
    if not 0 <= gib < math.inf:
        raise ValueError(
            f"--memory: expected a number of GiB, 0 or more, got {gib}. Leave it out "
            "for half of the machine's memory."
        )
    return int(gib * 2**30)
