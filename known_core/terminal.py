"""What a person sees in a terminal: progress by phase with the time left, and the before/after table."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table


def progress_bars(console: Console) -> Progress:
    """Bars with steps, elapsed time and the server's estimate of the time left."""
    return Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[eta]}"),
        TimeElapsedColumn(),
        console=console,
    )


def show_events(events: Iterable[dict[str, Any]], console: Console) -> None:
    """Draw a job's events until they end."""
    with progress_bars(console) as progress:
        current: TaskID | None = None
        for event in events:
            if event["type"] == "phase":
                _complete(progress, current)
                label = f"{event['phase']} {event['detail']}".strip()
                current = progress.add_task(label, total=None, eta="")
            elif event["type"] == "progress" and current is not None:
                eta = event["eta_seconds"]
                left = f"{eta:.0f} s left" if eta else ""
                progress.update(current, completed=event["step"], total=event["total"], eta=left)
            elif event["type"] == "status" and event["status"] in ("succeeded", "failed", "canceled"):
                _complete(progress, current)
                current = None
                progress.console.print(f"job {event['status']}")


def _complete(progress: Progress, task: TaskID | None) -> None:
    if task is None:
        return
    total = progress.tasks[task].total or 1
    progress.update(task, completed=total, total=total, eta="")
    progress.stop_task(task)


def show_report(report: dict[str, Any], console: Console) -> None:
    """The before/after table and the conclusion."""
    table = Table(title="Before and after (accuracy, %)")
    for column in ("candidate", "fine-tuned downstream", "gain [95%], points", "learning rate", "D_0's own task"):
        table.add_column(column, justify="left" if column == "candidate" else "right")
    for name, row in report["transfer"].items():
        gain = row["gain"]
        shown = f"{100 * gain['mean']:+.2f} [{100 * gain['low']:+.2f}, {100 * gain['high']:+.2f}]" if gain else "–"
        table.add_row(
            name + (" *" if name == report["selected"] else ""),
            f"{100 * row['mean']:.2f}",
            shown,
            f"{row['learning_rate']:g}",
            f"{100 * report['own_task'][name]['accuracy']:.2f}",
        )
    console.print(table)
    console.print("* delivered. " + report["conclusion"], soft_wrap=True)
