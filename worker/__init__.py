"""The Celery worker of known: wakes up, supervises a trainer process, looks after lost jobs."""
