"""Tasks: what a model is trained to do, one module each behind the interface in :mod:`known_core.tasks.base`."""

from known_core.tasks.base import Task
from known_core.tasks.causal_lm import CausalLM
from known_core.tasks.feature_extraction import FeatureExtraction
from known_core.tasks.image_classification import ImageClassification
from known_core.tasks.masked_lm import MaskedLM
from known_core.tasks.semantic_segmentation import SemanticSegmentation
from known_core.tasks.text_classification import TextClassification
from known_core.tasks.token_classification import TokenClassification

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        ImageClassification(),
        SemanticSegmentation(),
        TextClassification(),
        TokenClassification(),
        CausalLM(),
        MaskedLM(),
        FeatureExtraction(),
    )
}
