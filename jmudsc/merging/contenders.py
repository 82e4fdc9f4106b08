"""Contenders: the merges that method "best" tries beside the parents as they are."""

from collections.abc import Iterator
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
        plain = replace(options, method=method, alpha=alpha, refit=None)
        yield method, plain
        yield f"{method} + refit", replace(plain, refit=refit)
