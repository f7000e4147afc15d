"""What a person sees in a terminal: progress by phase with the time left, and the before/after table."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from known_core.notebook import NotebookProgress
from known_core.points import points

if TYPE_CHECKING:
    from known_core.client.records import Estimate, Range
    from known_core.reproduce import Comparison

_ENDED = ("succeeded", "failed", "canceled")


class Fields(Protocol):
    """An event of a job: a mapping, or the client's Event."""

    def __getitem__(self, name: str, /) -> Any: ...


class _TimeLeft(ProgressColumn):
    """The estimate that came with the task (``eta_s``, seconds), else the bar's own."""

    def render(self, task: Task) -> Text:
        left_s = task.fields.get("eta_s", task.time_remaining)
        return Text(f"{left_s:.0f} s left" if left_s and not task.finished else "")


def progress_bars(console: Console) -> Progress:
    """Bars with steps, elapsed time and an estimate of the time left."""
    return _bars(console, MofNCompleteColumn())


def byte_bars(console: Console) -> Progress:
    """The same in bytes, with their speed."""
    return _bars(console, DownloadColumn(), TransferSpeedColumn())


def _bars(console: Console, *counts: ProgressColumn) -> Progress:
    kind = NotebookProgress if console.is_jupyter else Progress
    return kind(
        TextColumn("{task.description:<18}"),
        BarColumn(bar_width=20),
        *counts,
        TimeElapsedColumn(),
        _TimeLeft(),
        console=console,
    )


@contextmanager
def job_bars(console: Console) -> Iterator[Callable[[Fields], None]]:
    """Draws each event of a job that it is given: a bar for each phase."""
    with progress_bars(console) as progress:
        current: TaskID | None = None

        def draw(event: Fields) -> None:
            nonlocal current
            if event["type"] == "phase":
                _complete(progress, current)
                label = f"{event['phase']} {event['detail']}".strip()
                current = progress.add_task(label, total=None)
            elif event["type"] == "progress" and current is not None:
                progress.update(current, completed=event["step"], total=event["total"], eta_s=event["eta_seconds"])
            elif event["type"] == "out_of_memory":
                how = ", recomputing activations" if event["gradient_checkpointing"] else ""
                progress.console.print(f"memory ran out: micro-batch halved to {event['micro_batch_size']}{how}")
            elif event["type"] == "waiting" and event["waiting_for"]:
                progress.console.print(f"waits for {event['waiting_for']}")
            elif event["type"] == "status" and event["status"] == "paused":
                progress.console.print("paused: goes on with known jobs resume")
            elif event["type"] == "status" and event["status"] in _ENDED:
                _complete(progress, current)
                current = None

        yield draw
        _complete(progress, current)


def seen() -> Console | None:
    """Standard error, where somebody sees bars on it: a terminal, or a notebook."""
    console = Console(stderr=True)
    return console if console.is_terminal or console.is_jupyter else None


@contextmanager
def bars_where_seen() -> Iterator[Callable[[Fields], None]]:
    """:func:`job_bars` on standard error where somebody sees it; else nothing is drawn."""
    console = seen()
    if console is None:
        yield lambda event: None
        return
    with job_bars(console) as draw:
        yield draw


def show_events(events: Iterable[Fields], console: Console) -> None:
    """Draw a job's events until they end."""
    ended = ""
    with job_bars(console) as draw:
        for event in events:
            draw(event)
            if event["type"] == "status" and event["status"] in _ENDED:
                ended = event["status"]
    console.print(f"job {ended}")


def _complete(progress: Progress, task: TaskID | None) -> None:
    if task is None:
        return
    total = progress.tasks[task].total or 1
    progress.update(task, completed=total, total=total)
    progress.stop_task(task)


def show_resolved(resolved: dict[str, Any], console: Console) -> None:
    """What a dry run understood of the inputs, one fact a line."""
    for name, value in resolved.items():
        lines = value.items() if isinstance(value, dict) else [("", value)]
        for part, fact in lines:
            shown, label = str(fact), f"{name}.{part}" if part else name
            shortened = shown if len(shown) <= 200 else shown[:197] + "..."
            console.print(f"{label}: {shortened}", markup=False, soft_wrap=True)


_NO_ESTIMATE = {
    "no_calibration": "no worker has calibrated its device yet",
    "model_not_counted": "the network's passes cannot be counted",
    "inputs_not_sampled": "the data cannot be looked at before it is unpacked",
}


def show_estimate(plan: "Estimate", console: Console) -> None:
    """What a job would take, each figure with its range, and what it was estimated from; or why nobody can say."""
    estimate = plan.estimate
    if estimate is None:
        console.print(f"no estimate: {_NO_ESTIMATE.get(str(plan.no_estimate), plan.no_estimate)}", soft_wrap=True)
        return
    table = Table(title="Estimate", box=box.SIMPLE)
    for column in ("", "expected", "from", "to"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    rows: list[tuple[str, Range | None, Callable[[float], str]]] = [
        ("time", estimate.seconds, duration),
        ("memory", estimate.memory_bytes, binary_size),
        ("GPU memory", estimate.gpu_memory_bytes, binary_size),
        ("disk", estimate.disk_bytes, binary_size),
    ]
    for name, figure, shown in rows:
        if figure is None:
            table.add_row(name, "–", "", "")
        else:
            table.add_row(name, shown(figure.expected), shown(figure.low), shown(figure.high))
    console.print(table)
    phases = ", ".join(f"{name} {duration(seconds)}" for name, seconds in estimate.by_phase.items())
    console.print(f"phases: {phases}", soft_wrap=True)
    if estimate.basis:
        console.print(estimate.basis, style="dim", soft_wrap=True)


def duration(seconds: float) -> str:
    """In the two largest units: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def binary_size(count: float) -> str:
    """Bytes in the unit in which they are at least one."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def show_report(report: dict[str, Any], console: Console) -> None:
    """The before/after table, the conclusion, and the notes on how to read them."""
    if "transfer" in report or report.get("own_task"):
        console.print(before_and_after(report))
    console.print("* delivered. " + report["conclusion"], soft_wrap=True)
    for note in report["notes"]:
        console.print(f"- {note}", style="dim", soft_wrap=True)


def before_and_after(report: dict[str, Any]) -> Table:
    """The transfer probe of every candidate, and how it does on its own task, as far as they were measured."""
    probed, own_task = report.get("transfer", {}), report.get("own_task", {})
    table = Table(title=f"Before and after: {report['metric']} in %")
    table.add_column("candidate", no_wrap=True)
    for column in ("downstream", "gain, points [95%]", "lr", "own task"):
        table.add_column(column, justify="right", no_wrap=True)
    for name in probed or own_task:
        row = probed.get(name)
        table.add_row(
            name + (" *" if name == report["selected"] else ""),
            f"{100 * row['mean']:.2f}" if row else "–",
            points(row["gain"]) if row else "–",
            f"{row['learning_rate']:g}" if row else "–",
            f"{100 * own_task[name]['accuracy']:.2f}" if name in own_task else "–",
        )
    return table


def show_engines(rows: list[dict[str, Any]], console: Console) -> None:
    """What `known bench nowcast` measured."""
    table = Table(title="Predicting every weight, from files to files", box=box.SIMPLE)
    for column in ("model", "engine", "seconds", "ns/weight", "alone", "x eager", "matmul", "MiB"):
        table.add_column(column, justify="left" if column in ("model", "engine") else "right", no_wrap=True)
    for row in rows:
        ratio, memory, engine_s = row["ratio_to_eager"], row["peak_rss_bytes"], row["engine_seconds_per_parameter"]
        table.add_row(
            row["model"],
            row["engine"],
            f"{row['seconds']:.1f}",
            f"{1e9 * row['seconds_per_parameter']:.3g}",
            "–" if engine_s is None else f"{1e9 * engine_s:.3g}",
            "–" if ratio is None else f"{ratio:.2f}",
            f"{row['fraction_of_matmul_ceiling']:.0%}",
            "–" if memory is None else f"{memory / (1 << 20):,.0f}",
        )
    console.print(table)
    first = rows[0]
    console.print(
        f"{first['hypermodel']} on {first['device']}, predictions a run: {first['recurrences']}. "
        "ns: of one prediction; alone: by the engine without files; matmul: share of that ceiling. Ceilings: "
        f"float32 matrix product {first['matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s, "
        f"copy {first['copy_bytes_per_second'] / 1e9:.1f} GB/s.",
        soft_wrap=True,
    )


def show_comparison(comparison: "Comparison", console: Console) -> None:
    """Whether running a job again gave the same: one line where it did, else what differs, and what that means."""
    if comparison.identical:
        console.print(f"identical, every byte: {len(comparison.files)} files", soft_wrap=True)
        return
    files = Table(title="Files", box=box.SIMPLE)
    files.add_column("file")
    files.add_column("")
    for path, state in comparison.files.items():
        files.add_row(Text(path), state, style="dim" if state == "same" else None)
    console.print(files)
    if comparison.stack:
        stack = _side_by_side("Versions and device", "")
        for name, difference in comparison.stack.items():
            stack.add_row(Text(name), Text(str(difference.expected)), Text(str(difference.found)))
        console.print(stack)
        console.print("That is the usual reason for other bytes.", soft_wrap=True)
    else:
        console.print(
            "Versions, device and engine are the same. A GPU adds in another order from run to run; on a CPU the same "
            "stack should give the same bytes.",
            soft_wrap=True,
        )
    figures = comparison.figures
    if figures is None:
        console.print(
            "No figures were compared: the job measured nothing, or its report.json is not beside the manifest.",
            soft_wrap=True,
        )
        return
    gains = _side_by_side("Gains, points [95%]", "candidate")
    for name, difference in figures.gains.items():
        gains.add_row(Text(name), points(difference.expected), points(difference.found))
    gains.add_row("selected", Text(figures.selected.expected), Text(figures.selected.found))
    console.print(gains)
    console.print(
        "The figures agree: the same candidate, intervals that overlap, the same conclusion."
        if figures.agree
        else "The figures do not agree.",
        soft_wrap=True,
    )


def _side_by_side(title: str, first: str) -> Table:
    table = Table(title=title, box=box.SIMPLE)
    for column in (first, "manifest", "here"):
        table.add_column(column)
    return table
