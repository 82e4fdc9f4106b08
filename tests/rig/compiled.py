"""Compiled: which XLA programs a piece of code compiles, eager operations included."""

import contextlib
from collections import Counter
from collections.abc import Iterator

import jax
import jax.monitoring

_EVENT = "/jax/core/compile/backend_compile_duration"
_seen: list[str] = []


def _listen(event: str, seconds: float, **details: object) -> None:
    if event == _EVENT:
        _seen.append(str(details.get("fun_name", "?")))


jax.monitoring.register_event_duration_secs_listener(_listen)


@contextlib.contextmanager
def programs() -> Iterator[Counter[str]]:
    """Count the programs that are compiled inside, by what the function is called.

    What was compiled before in this process is forgotten first. A program that is read
    from the persistent compilation cache counts as well.
    """
    jax.clear_caches()
    found: Counter[str] = Counter()
    start = len(_seen)
    yield found
    found.update(_seen[start:])
