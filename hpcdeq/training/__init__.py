"""Learn a model from an archive: pre-train the prior, then end to end; resumable, to the bit."""

from hpcdeq.training.export import export_checkpoint
from hpcdeq.training.loop import train

__all__ = ["export_checkpoint", "train"]
