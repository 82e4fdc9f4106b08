"""Hub cache: models that were downloaded from the Hugging Face Hub before."""

import os
import re
from pathlib import Path

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def cached(name: str) -> Path | None:
    """Return the directory of a model in the cache of the Hub; nothing is fetched.

    Args:
        name: `org/model`.

    Returns:
        Its main revision, or the only one there is; None if there is none.
    """
    if not _HUB_NAME.fullmatch(name):
        return None
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()
    folder = hub / f"models--{name.replace('/', '--')}"
    main = folder / "refs" / "main"
    if main.is_file():
        found = folder / "snapshots" / main.read_text().strip()
        return found if found.is_dir() else None
    only = list((folder / "snapshots").glob("*"))
    return only[0] if len(only) == 1 else None
