"""Progress bar: stage, share that is done and time left, on a terminal."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def drawn() -> Iterator[Any]:
    """Draw a bar per stage on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    # Markup is imported when it is drawn, by a thread, and TFDS patches imports.
    text = TextColumn("{task.description}", markup=False)
    share = TextColumn("{task.fields[share]}", markup=False)
    columns = text, BarColumn(), share, TimeElapsedColumn()
    silent = not console.is_terminal
    bars = Progress(*columns, console=console, transient=True, disable=silent)
    with bars:
        task = bars.add_task("starting", total=None, share="")
        stage_now, started = "", time.monotonic()

        def progress(stage: str, done: int, total: int | None) -> None:
            nonlocal task, stage_now, started
            name = stage.partition(" (")[0]
            if name != stage_now:
                bars.remove_task(task)
                task, stage_now = bars.add_task(stage, total=total, share=""), name
                started = time.monotonic()
            share = share_done(done, total, time.monotonic() - started)
            bars.update(
                task, description=stage, completed=done, total=total, share=share
            )

        yield progress


def share_done(done: int, total: int | None, seconds: float) -> str:
    """Say which share of a stage is done, and how long the rest takes at that pace.

    Args:
        done: how much is done.
        total: out of how much; None where that is not known.
        seconds: since the stage began.

    Returns:
        A text; nothing for a stage that is not counted, or has a single step.

    Example:
        >>> share_done(25, 100, 40.0), share_done(0, 100, 2.0), share_done(0, 1, 2.0)
        ('25%, 2:00 left', '0%', '')
    """
    if total is None or total < 2:
        return ""
    share = f"{done / total:.0%}"
    if not 0 < done < total:
        return share
    minutes, rest = divmod(round(seconds * (total - done) / done), 60)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
    return f"{share}, {clock} left"
