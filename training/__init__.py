"""Training: from a config and a directory to a model, its metrics and its checkpoints."""

from training.run import train
from training.runs import Run, load_run

__all__ = ['Run', 'load_run', 'train']
