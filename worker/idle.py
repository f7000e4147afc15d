"""Ending a worker that nobody needs: where a platform starts one for each waiting job, none is stopped at work."""

import logging
import time
from collections.abc import Callable

from worker.periodic import Periodic

_log = logging.getLogger(__name__)
_LOOK_S = 0.5


class Idle(Periodic):
    """Calls ``end`` once, when nothing was done for ``after_s`` seconds.

    Args:
        busy: whether a message is being worked on, or has been taken and will be. One that is taken while the worker
            ends goes back to its queue, as it does when a worker is stopped.
    """

    def __init__(self, busy: Callable[[], bool], after_s: float, end: Callable[[], None]) -> None:
        super().__init__(_LOOK_S, self._look, name="idle")
        self._busy, self._after_s, self._end = busy, after_s, end
        self._last = time.monotonic()

    def _look(self) -> None:
        if self._busy():
            self._last = time.monotonic()
        elif time.monotonic() - self._last >= self._after_s:
            _log.info("nothing to do for %g s: this worker ends", self._after_s)
            self._end()
            self._last = float("inf")
