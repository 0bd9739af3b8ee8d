"""What every training in `examples/` needs and no model should know: runs that can stop and go on, and data files."""

from attnkern.training.adamw import adamw
from attnkern.training.lines import BadLine, read_examples
from attnkern.training.run import CheckpointError, Run

__all__ = ["BadLine", "CheckpointError", "Run", "adamw", "read_examples"]
