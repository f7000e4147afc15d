"""The method for people with a training script: any torch module, any data, no server. See docs/library.md."""

from known_core.library.batches import correct, default_loss
from known_core.library.enhancing import enhance
from known_core.library.probe import Probe
from known_core.library.result import Candidates, Enhanced

__all__ = ["Candidates", "Enhanced", "Probe", "correct", "default_loss", "enhance"]
