"""Checks a request's inputs before anything is queued, in a process of its own.

What is read there is a stranger's: a crash or a hang costs that process, not the API, which stays free of torch.
"""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from threading import Lock
from typing import TYPE_CHECKING, Any, get_args

from app.jobs.settings import HubAccess
from known_core.errors import KnownError
from known_core.spec import JobSpec

if TYPE_CHECKING:
    from known_core.inputs import Sources

_log = logging.getLogger(__name__)


class Inspector:
    """One warm process that inspects; started again when it dies.

    Args:
        timeout_s: an inspection that takes longer is given up and its process killed.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._pool: ProcessPoolExecutor | None = None
        self._abilities: dict[str, list[str]] | None = None
        self._lock = Lock()

    def start(self) -> None:
        """Start the process and let it load its libraries, without waiting for it."""
        self._ready_pool().submit(_load)

    def stop(self) -> None:
        with self._lock:
            if self._pool is not None:
                _kill(self._pool)
                self._pool = None

    def inspect(
        self,
        spec: JobSpec,
        hub: dict[str, dict[str, Any]],
        access: HubAccess,
        device: dict[str, Any] | None,
    ) -> dict[str, Any]:
        """What was understood of a job's inputs.

        Args:
            hub: the inputs that are on the Hub, by name: repo_id and revision.
            device: the calibration of what it will run on, where there is one.

        Returns:
            ``resolved``, for people, with where inputs came from in ``sources``; ``hub``, every revision a commit; and
            ``estimate``, or None and ``no_estimate``, the reason.

        Raises:
            KnownError: what is wrong with them, or ``inspection_failed`` when the check itself died or hung.
        """
        found: dict[str, Any] = self._ask(_inspect, spec, hub, access, device)
        return found

    def abilities(self) -> dict[str, list[str]]:
        """The tasks, libraries, hyper-models and engines there are. Raises: KnownError ``inspection_failed``."""
        if self._abilities is None:
            self._abilities = self._ask(_abilities)
        return self._abilities

    def _ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        pool = self._ready_pool()
        try:
            return pool.submit(question, *arguments).result(self._timeout_s)
        except (BrokenProcessPool, FutureTimeoutError) as error:
            self.stop()
            what = "took longer than" if isinstance(error, FutureTimeoutError) else "died within"
            raise KnownError(
                "inspection_failed",
                f"checking the inputs {what} {self._timeout_s:g} s",
                "Try again; if it happens again, the inputs are too large or malformed.",
                retryable=True,
            ) from error

    def _ready_pool(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ProcessPoolExecutor(
                    1, mp_context=get_context("spawn"), initializer=_die_with, initargs=(os.getpid(),)
                )
            return self._pool


def _die_with(parent: int) -> None:
    from known_core.processes import die_with_parent

    die_with_parent(parent)  # seconds after the start: what is inspected with was imported first


def _load() -> None:
    import known_core.estimate  # seconds of imports, done before the first request
    import known_core.fetching
    import known_core.inspection
    import known_core.publish  # noqa: F401


def _inspect(
    spec: JobSpec, wanted: dict[str, dict[str, Any]], access: HubAccess, device: dict[str, Any] | None
) -> dict[str, Any]:
    from known_core.fetching import open_all, origins, resolve_refs
    from known_core.inputs import pointing_at
    from known_core.inspection import inspect
    from known_core.publish import check_target

    hub = access.open()
    refs = resolve_refs(hub, {name: (ref["repo_id"], ref["revision"]) for name, ref in wanted.items()})
    came_from = origins(refs)
    if spec.output.hub is not None:
        with pointing_at("/output/hub"):
            check_target(spec.output.hub, endpoint=access.endpoint, token=access.secret)
    sources = open_all(spec, hub, refs)
    resolved = inspect(spec, sources)
    return {
        "resolved": {**resolved, "sources": came_from},
        "hub": {name: vars(ref) for name, ref in refs.items()},
        **_estimate(spec, sources, device),
    }


def _estimate(spec: JobSpec, sources: "Sources", device: dict[str, Any] | None) -> dict[str, Any]:
    from known_core.device import Device
    from known_core.estimate import NoEstimate, estimate

    calibrated = Device.parse(device) if device is not None else None
    if calibrated is None:
        return {"estimate": None, "no_estimate": "no_calibration"}
    try:
        return {"estimate": estimate(spec, calibrated, sources).as_dict(), "no_estimate": None}
    except NoEstimate as error:
        return {"estimate": None, "no_estimate": error.reason}
    except Exception:  # whatever a stranger's network or data does to it: the job itself may be in order
        _log.exception("no estimate")
        return {"estimate": None, "no_estimate": "model_not_counted"}


def _abilities() -> dict[str, list[str]]:
    from known_core.hypermodels import shipped_hypermodels
    from known_core.kernels.choice import NAMES
    from known_core.models.base import Library
    from known_core.tasks import TASKS

    return {
        "tasks": list(TASKS),
        "libraries": sorted(get_args(Library)),
        "hypermodels": shipped_hypermodels(),
        "engines": list(NAMES),
    }


def _kill(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool.shutdown(wait=True, cancel_futures=True)
