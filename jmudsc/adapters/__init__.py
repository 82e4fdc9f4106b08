"""Adapters: models of a library as pure functions of variables, and back."""

from jmudsc.adapters.libraries import LIBRARIES


def __getattr__(name: str) -> object:
    """Import an adapter, and so its library, at its first use."""
    if name in LIBRARIES:
        from importlib import import_module

        return import_module(f"jmudsc.adapters.{name}")
    raise AttributeError(f"module 'jmudsc.adapters' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *LIBRARIES})
