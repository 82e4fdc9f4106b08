"""Adapters: models of a library as pure functions of variables, and back."""

_LIBRARIES = ("equinox", "haiku", "huggingface", "keras", "linen", "nnx")


def __getattr__(name: str) -> object:
    """Import an adapter, and so its library, at its first use."""
    if name in _LIBRARIES:
        from importlib import import_module

        return import_module(f"jmudsc.adapters.{name}")
    raise AttributeError(f"module 'jmudsc.adapters' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LIBRARIES})
