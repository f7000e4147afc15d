"""What a running job says of itself: a stream of small events, each a JSON object."""

import time
from collections.abc import Callable
from typing import Any

Emit = Callable[[dict[str, Any]], None]
_INTERVAL_S = 0.5  # between two progress events of one phase


class Reporter:
    """Turns steps into ``phase`` and ``progress`` events, with an estimate of the time left.

    Args:
        emit: takes each event: ``{"type": "phase"|"progress"|"metric"|"status", ...}``.
    """

    def __init__(self, emit: Emit) -> None:
        self.emit = emit
        self.seconds: dict[str, float] = {}
        self.phase_name = ""
        self._begun = self._last = time.monotonic()
        self._losses: list[float] = []  # since the last progress event

    def phase(self, name: str, detail: str = "") -> None:
        """A phase begins; the one before it has ended."""
        self.phase_name, self._begun, self._last = name, time.monotonic(), 0.0
        self._losses = []
        self.emit({"type": "phase", "phase": name, "detail": detail})

    def step(self, step: int, total: int, loss: float | None = None) -> None:
        """``step`` of ``total`` steps of this phase are done.

        Args:
            loss: of this step, where it is one of training; the event has the mean since the event before.
        """
        if loss is not None:
            self._losses.append(loss)
        now = time.monotonic()
        if step < total and now - self._last < _INTERVAL_S:
            return
        self._last = now
        eta_s = (now - self._begun) / step * (total - step) if step else None
        losses, self._losses = self._losses, []
        self.emit({
            "type": "progress", "phase": self.phase_name, "step": step, "total": total,
            "eta_seconds": None if eta_s is None else round(eta_s, 1),
            **({"loss": round(sum(losses) / len(losses), 6)} if losses else {}),
        })  # fmt: skip

    def less_memory(self, found: dict[str, Any]) -> None:
        """Memory ran out in this phase; the job goes on with what was ``found`` to try next."""
        self.emit({"type": "out_of_memory", "phase": self.phase_name, **found})

    def metric(self, name: str, value: float, **labels: Any) -> None:
        self.emit({"type": "metric", "name": name, "value": value, "phase": self.phase_name, **labels})
