"""Tasks: what a model is trained to do, one module each behind the interface in :mod:`known_core.tasks.base`."""

from known_core.tasks.base import Task
from known_core.tasks.causal_lm import CausalLM
from known_core.tasks.image_classification import ImageClassification
from known_core.tasks.masked_lm import MaskedLM
from known_core.tasks.text_classification import TextClassification
from known_core.tasks.token_classification import TokenClassification

TASKS: dict[str, Task] = {
    task.name: task
    for task in (ImageClassification(), TextClassification(), TokenClassification(), CausalLM(), MaskedLM())
}
