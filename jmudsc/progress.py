"""Progress: tell a caller what is being done, and how much of it."""

from collections.abc import Callable, Iterable, Iterator, Sized

from jaxtyping import PyTree

# Called with what is being done, how much of it is done, and out of how much.
Progress = Callable[[str, int, int | None], None]


def counted(
    batches: Iterable[PyTree], stage: str, progress: Progress
) -> Iterator[PyTree]:
    """Yield batches, telling how many were read.

    Args:
        batches: any iterable.
        stage: what they are read for.
        progress: called before each.

    Yields:
        The batches.
    """
    total = len(batches) if isinstance(batches, Sized) else None
    for done, batch in enumerate(batches):
        progress(stage, done, total)
        yield batch


def silent(stage: str, done: int, total: int | None) -> None:
    """Tell nothing."""


def prefixed(progress: Progress | None, prefix: str) -> Progress:
    """Put something before what is being done.

    Args:
        progress: who is told; None for nobody.
        prefix: what to put before.

    Returns:
        A function that tells it.
    """
    if progress is None:
        return silent
    return lambda stage, done, total: progress(f"{prefix}{stage}", done, total)
