"""Work that is done again and again beside a worker's jobs."""

import logging
from collections.abc import Callable
from threading import Event, Thread

_log = logging.getLogger(__name__)


class Periodic:
    """A thread that calls ``work`` at once and then every so many seconds, whatever it raises.

    Args:
        name: of the thread; what a failure is logged with.
    """

    def __init__(self, every_s: float, work: Callable[[], object], *, name: str) -> None:
        self._every_s, self._work = every_s, work
        self._stop = Event()
        self._thread = Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._work()
            except Exception:  # the thread must outlive any outage of the store
                _log.exception("the %s failed; it will try again", self._thread.name)
            self._stop.wait(self._every_s)
