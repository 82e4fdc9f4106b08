"""Journal: steps of a long computation, kept on disk so that it can be taken up again.

Each step is kept under a digest of all that decides it, so what is found there is what
would be computed, whatever was interrupted when.
"""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jmudsc.digests import digest_of


@dataclass(frozen=True)
class Journal:
    """Where steps are kept.

    Attributes:
        folder: made when the first step is kept.
        identity: what decides all steps and is not told with each of them.
    """

    folder: Path
    identity: str

    def of(self, more: str) -> "Journal":
        """Return a journal of the same folder whose steps more decides."""
        return replace(self, identity=f"{self.identity} {more}")

    def recall(
        self,
        state: Callable[[], Iterable[bytes]],
        compute: Callable[[], Mapping[str, np.ndarray]],
    ) -> dict[str, np.ndarray]:
        """Return the result of a step, computed and kept if it is not known.

        A step that cannot be kept, because the disk is full say, is computed only.

        Args:
            state: tells what decides the step, besides `identity`.
            compute: computes it.

        Returns:
            Arrays by name, bit for bit as they were computed.
        """
        file = self.folder / f"{digest_of([self.identity.encode(), *state()])}.npz"
        # What a crash left half-written fails its checksum, or is no archive at all.
        with (
            contextlib.suppress(Exception),
            file.open("rb") as opened,
            np.load(opened, allow_pickle=False) as kept,
        ):
            return {name: kept[name] for name in kept}
        found = dict(compute())
        with contextlib.suppress(OSError):
            self._keep(file, found)
        return found

    def _keep(self, file: Path, found: Mapping[str, np.ndarray]) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f"{os.getpid()}-{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("wb") as opened:
                np.savez(opened, allow_pickle=False, **found)
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
