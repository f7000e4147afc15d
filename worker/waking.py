"""Wake-ups as workers send them: into the queue where a worker can take the job, and no more than are needed."""

import time

from celery import Celery

from app.jobs.placement import CONTROL, QUEUES, Queue, place
from app.jobs.queue import wake
from app.jobs.record import Job, JobStatus
from app.jobs.repository import JobRepository

_REST_S = 1.0  # a worker that cannot take a job leaves its wake-up to the others for so long


class Waker:
    """See :mod:`app.jobs.placement` for where a job waits."""

    def __init__(self, celery: Celery, repository: JobRepository) -> None:
        self._celery, self._repository = celery, repository

    def send(self, job_id: str) -> None:
        """Wake a worker for this job. Raises: JobNotFound."""
        for queue in self._queues(self._repository.get(job_id)):
            wake(self._celery, job_id, queue)

    def send_if_missing(self, job_id: str) -> None:
        """The same, unless as many messages lie in the queue as jobs wait there. Raises: JobNotFound."""
        for queue in self._queues(self._repository.get(job_id)):
            if self._repository.wake_ups(queue) < self._waiting(queue):
                wake(self._celery, job_id, queue)

    def pass_on(self, job_id: str, mine: tuple[Queue, ...], refusals: int) -> None:
        """This worker cannot take the job, another one can: give it the wake-up. Raises: JobNotFound.

        Args:
            mine: the queues that this worker serves.
            refusals: how many have passed it on before; it stops where all who live have.
        """
        living = self._repository.capacities()
        placement = place(self._repository.needs(job_id), living)
        if placement.waiting_for is not None or refusals >= len(living):
            return  # the end of a job, or the reaper, sends the next
        for queue in placement.queues:
            if queue in mine:
                wake(self._celery, job_id, queue, refusals + 1)
                time.sleep(_REST_S)
            elif self._repository.wake_ups(queue) == 0:
                wake(self._celery, job_id, queue)

    def look_after(self, job_ids: list[str]) -> int:
        """Say of jobs that nobody works on what they wait for, and send the wake-ups that are missing.

        Returns:
            How many were sent. A message that lies in a queue counts for one of the jobs that wait there.
        """
        sent, living = 0, self._repository.capacities()
        lying: dict[Queue, int] = {}
        for job_id in job_ids:
            job = self._repository.find(job_id)
            if job is None:
                continue
            placement = place(job.needs, living)
            self._repository.wait_for(job_id, placement.waiting_for)
            for queue in self._queues(job, placement.queues):
                left = lying.setdefault(queue, self._repository.wake_ups(queue))
                if job.status is JobStatus.QUEUED and left > 0:
                    lying[queue] = left - 1
                else:
                    wake(self._celery, job_id, queue)
                    sent += 1
        return sent

    def join(self) -> None:
        """A worker has joined: look after all that waits, and take back what was sent to a queue for nothing.

        That is so where nobody lived when a job came that any device can run: it woke both queues.
        """
        self.look_after(self._repository.queued())
        served = {queue for worker in self._repository.capacities() for queue in worker.queues}
        for queue in set(QUEUES) - served:
            if self._repository.wake_ups(queue) and not self._waiting(queue):
                self._repository.clear(queue)

    def _waiting(self, queue: Queue) -> int:
        living = self._repository.capacities()
        return sum(queue in place(needs, living).queues for needs in self._repository.queued_needs())

    def _queues(self, job: Job, placed: tuple[Queue, ...] | None = None) -> tuple[Queue, ...]:
        if job.republish is not None or job.pausing or job.status is JobStatus.CANCELING:
            return (CONTROL,)  # any worker can do what is left of it
        return placed or place(job.needs, self._repository.capacities()).queues
