"""What every training in `examples/` needs and no model should know: runs that can stop and go on, and data files."""

from attnkern.training.adamw import adamw
from attnkern.training.descend import descend
from attnkern.training.lines import BadLine, read_examples
from attnkern.training.run import ResumeError, Run

__all__ = ["BadLine", "ResumeError", "Run", "adamw", "descend", "read_examples"]
