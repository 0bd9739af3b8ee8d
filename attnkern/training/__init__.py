"""What every training needs: a run that goes on where it stopped, and data files that are read line by line."""

from attnkern.training.lines import BadLine, read_examples
from attnkern.training.run import BadCheckpoint, Run

__all__ = ["BadCheckpoint", "BadLine", "Run", "read_examples"]
