"""What a waiting caller sees: bars on standard error of a terminal, or in the cell of a notebook; else nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from known_core.terminal import byte_bars, job_bars, seen


@contextmanager
def job_progress(job_id: str, show: bool) -> Iterator[Callable[[Any], None]]:
    """Draws each event of a job that it is given. An interruption says how to come back."""
    console = seen() if show else None
    if console is None:
        yield lambda event: None
        return
    try:
        with job_bars(console) as draw:
            yield draw
    except KeyboardInterrupt:
        console.print(f"no longer waiting; the job goes on: known jobs watch {job_id}", highlight=False)
        raise


@contextmanager
def upload_progress(show: bool) -> Iterator[Callable[[Path, int, int], None]]:
    """Draws uploads: a bar for each file that is told of."""
    console = seen() if show else None
    if console is None:
        yield lambda path, done, total: None
        return
    with byte_bars(console) as bars:
        tasks: dict[Path, Any] = {}

        def draw(path: Path, done: int, total: int) -> None:
            if path not in tasks:
                tasks[path] = bars.add_task(path.name, total=total)
            bars.update(tasks[path], completed=done, total=total)

        yield draw
