"""The wake-up: a Celery message that holds a job's id and nothing else. The record is the truth."""

from celery import Celery, group

from app.jobs.placement import CONTROL, KEY_PREFIX, Queue

WAKE = "known.wake"
HELP = "known.help"


def make_celery(redis_url: str) -> Celery:
    """The Celery application, for producers and workers alike; the reasons are in docs/decisions/0003-job-lease.md."""
    celery = Celery("known", broker=redis_url, set_as_current=False)
    celery.conf.update(
        accept_content=["json"],
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "visibility_timeout": 300,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "health_check_interval": 25,
            "global_keyprefix": KEY_PREFIX,
            "queue_order_strategy": "sorted",  # control comes before cpu and gpu
        },
        task_acks_late=False,
        task_default_queue=CONTROL,
        task_ignore_result=True,
        task_reject_on_worker_lost=False,
        task_serializer="json",
        worker_concurrency=1,
        worker_disable_prefetch=True,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_pool="prefork",
        worker_pool_start_method="spawn",
        worker_prefetch_multiplier=1,
        worker_send_task_events=False,
        worker_soft_shutdown_timeout=60,
    )
    return celery


def wake(celery: Celery, job_id: str, queue: Queue, refusals: int = 0) -> None:
    """Ask some worker of a queue to look at a job. Asking twice does no harm.

    Args:
        refusals: how many workers of the queue have looked and cannot take it.
    """
    celery.send_task(WAKE, args=[job_id, refusals], queue=queue)


def call_helpers(celery: Celery, job_id: str, helpers: int) -> None:
    """Ask as many workers to write shards of a job's nowcast. None has to: those that come find what is left."""
    calls = (celery.signature(HELP, args=[job_id, turn, helpers]) for turn in range(helpers))
    group(calls).apply_async(queue=CONTROL)
