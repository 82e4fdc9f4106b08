"""Compiled: which XLA programs a piece of code compiles, eager operations included."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import jax
import jax.monitoring

_EVENT = "/jax/core/compile/backend_compile_duration"


@dataclass
class Compiled:
    """What was compiled.

    Attributes:
        names: what the compiled functions are called, in the order of compilation.
        durations: how many seconds the compiler took for each.
        ends: when it was done with each, as `time.time` says.
    """

    names: list[str] = field(default_factory=list)
    durations: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long the compiler took for all of them."""
        return sum(self.durations)


_open: list[Compiled] = []


def _listen(event: str, seconds: float, **details: object) -> None:
    if event == _EVENT:
        for compiled in _open:
            compiled.names.append(str(details.get("fun_name", "?")))
            compiled.durations.append(seconds)
            compiled.ends.append(time.time())


jax.monitoring.register_event_duration_secs_listener(_listen)


@contextlib.contextmanager
def programs(anew: bool = True) -> Iterator[Compiled]:
    """Watch what is compiled inside.

    A program that is read from the persistent compilation cache counts as well.

    Args:
        anew: whether to forget first what this process has compiled before.
    """
    if anew:
        jax.clear_caches()
    compiled = Compiled()
    _open.append(compiled)
    try:
        yield compiled
    finally:
        _open.remove(compiled)
