"""Contenders: the merges that method "best" tries beside the parents as they are."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from jmudsc.repairs.table import names_of as repairs_of

BEST = "best"
# The methods that it tries.
BEST_OF = ("average", "mudsc-align", "mudsc-zip")


def with_and_without_refit(options: Any) -> Iterator[tuple[str, Any]]:
    """Yield every merge that `best` tries.

    Args:
        options: of the merge, a record such as `MergeOptions`.

    Yields:
        Its name, and its options.
    """
    refit = options.refit or repairs_of("refit")[0]
    for method in BEST_OF:
        alpha = options.alpha if "mudsc" in method else 0.5
        refitted = replace(options, method=method, alpha=alpha, refit=refit)
        nothing = {"target": None, "sample_weight": None, "only": ()}
        plain = replace(refitted, refit=None, **nothing)
        yield method, plain
        yield f"{method} + refit", refitted


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
    kept = replace(options, method=BEST_OF[0], alpha=0.5, refit=refit)
    name = f"parent {parent} + refit of its last layer"
    return name, replace(kept, start=parent, only=tuple(readout))
