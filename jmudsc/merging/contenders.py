"""Contenders: the merges that method "best" tries beside the parents as they are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jmudsc.matching.methods import METHODS, TABLE
from jmudsc.merging.option_values import MERGE, quoted
from jmudsc.paths import did_you_mean
from jmudsc.repairs.table import names_of as repairs_of

BEST = "best"
# The methods that it tries where none are named.
BEST_OF = ("average", "mudsc-align", "mudsc-zip")
_REFIT = "refit"
# What may stand behind a method, and the option and value that it is.
REPAIRS: Mapping[str, tuple[str, str]] = {
    _REFIT: ("refit", repairs_of("refit")[0]),
    **{
        name: (option, name)
        for option in ("refit", "repair")
        for name in repairs_of(option)
    },
}
# Options of a refit, where there is none.
_UNFITTED = {"target": None, "sample_weight": None, "only": ()}


def with_and_without_refit(options: Any) -> Iterator[tuple[str, Any]]:
    """Yield every merge that `best` tries.

    Args:
        options: of the merge, a record such as `MergeOptions`.

    Yields:
        Its name, and its options.
    """
    refit = options.refit or repairs_of("refit")[0]
    for method in BEST_OF:
        refitted = replace(_by(options, method), refit=refit)
        yield method, replace(refitted, refit=None, **_UNFITTED)
        yield f"{method} + refit", refitted


def named(options: Any) -> Iterator[tuple[str, Any]]:
    """Yield the merges whose names the option `among` has.

    A repair that a name does not have is not made, whatever the options say.

    Args:
        options: of the merge, a record such as `MergeOptions`.

    Yields:
        The name of each, and its options.
    """
    for name in options.among:
        method, repairs = _parts(name)
        given = dict(REPAIRS[repair] for repair in repairs)
        rest = {"refit": None, "repair": None}
        rest |= {} if "refit" in given else {**_UNFITTED, "start": MERGE}
        yield name, replace(_by(options, method), **{**rest, **given})


def methods_of(among: Sequence[str]) -> tuple[str, ...]:
    """Return the methods that some contenders merge by, each once.

    Args:
        among: their names.

    Example:
        >>> methods_of(["average", "mudsc-zip", "mudsc-zip + refit"])
        ('average', 'mudsc-zip')
    """
    return tuple(dict.fromkeys(_parts(name)[0] for name in among))


def contenders_to_try(value: Any) -> tuple[str, ...]:
    """Read the names of contenders: a method, and its repairs with + before each.

    Example:
        >>> contenders_to_try(["average", "mudsc-zip+refit"])
        ('average', 'mudsc-zip + refit')
    """
    if not isinstance(value, list | tuple) or not all(
        isinstance(name, str) for name in value
    ):
        raise ValueError(
            f'expected a list of methods, with repairs as in "mudsc-zip + refit", got '
            f"{quoted(value)}. Put each in quotes."
        )
    names = tuple(" + ".join(_words(name)) for name in value)
    wrong = [line for name in names for line in _unknown(name)]
    once = dict.fromkeys(names)
    wrong += [f'"{n}" stands there twice.' for n in once if names.count(n) > 1]
    if wrong:
        raise ValueError(
            'expected methods, each once, with repairs as in "mudsc-zip + refit". '
            + " ".join(wrong)
        )
    return names


def with_a_new_readout(
    options: Any, parent: int, readout: Sequence[str]
) -> tuple[str, Any]:
    """Return the contender that keeps a parent and fits its last layer to all.

    Args:
        options: of the merge.
        parent: the number of the parent.
        readout: the leaves of its last layer.

    Returns:
        Its name, and its options.
    """
    refit = options.refit or repairs_of("refit")[0]
    kept = replace(_by(options, BEST_OF[0]), refit=refit)
    name = f"parent {parent} + read-out"
    return name, replace(kept, start=parent, only=tuple(readout))


def _by(options: Any, method: str) -> Any:
    """Return options of another method, with a balance only where it has one."""
    alpha = options.alpha if TABLE[method].blends else 0.5
    return replace(options, method=method, alpha=alpha, among=())


def _words(name: str) -> list[str]:
    return [word.strip() for word in name.split("+")]


def _parts(name: str) -> tuple[str, list[str]]:
    method, *repairs = _words(name)
    return method, repairs


def _unknown(name: str) -> Iterator[str]:
    """Say what is no method and no repair in the name of a contender."""
    method, repairs = _parts(name)
    known = ", ".join(REPAIRS)
    if method not in METHODS:
        hint = did_you_mean(method, METHODS) or f". Use one of {', '.join(METHODS)}."
        yield f'There is no method "{method}"{hint}'
    for repair in repairs:
        if repair not in REPAIRS:
            hint = did_you_mean(repair, REPAIRS) or f". Use one of {known}."
            yield f'There is no repair "{repair}"{hint}'
    options = [REPAIRS[repair][0] for repair in repairs if repair in REPAIRS]
    if len(set(options)) < len(options):
        yield f'"{name}" has two repairs of one kind. Leave out one of them.'
