"""Digests: by which bytes are known again."""

import hashlib
from collections.abc import Iterable


def digest_of(parts: Iterable[bytes]) -> str:
    """Return a SHA-256 of some bytes, where one ends and the next begins included.

    Example:
        >>> digest_of([b"a", b"bc"]) == digest_of([b"ab", b"c"])
        False
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
