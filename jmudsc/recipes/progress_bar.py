"""Progress bar: a bar for each stage, on a terminal."""

import contextlib
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
    columns = text, BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("starting", total=None)
        stage_now = ""

        def progress(stage: str, done: int, total: int | None) -> None:
            nonlocal task, stage_now
            name = stage.partition(" (")[0]
            if name != stage_now:
                bars.remove_task(task)
                task, stage_now = bars.add_task(stage, total=total), name
            bars.update(task, description=stage, completed=done, total=total)

        yield progress
