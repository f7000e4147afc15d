"""Tasks: what a model is trained to do, one module each behind the interface in :mod:`known_core.tasks.base`."""

from known_core.tasks.base import Task
from known_core.tasks.image_classification import ImageClassification

TASKS: dict[str, Task] = {"image-classification": ImageClassification()}
