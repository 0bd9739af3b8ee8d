"""What every training in `examples/` needs and no model should know: runs that can stop and go on, data files, the
command line, and pictures."""

from attnkern.training.adamw import adamw
from attnkern.training.descend import descend
from attnkern.training.lines import BadLine, read_examples
from attnkern.training.outputs import new_figure, save_figure
from attnkern.training.run import ResumeError, Run
from attnkern.training.script import Script
from attnkern.training.settings import Settings

__all__ = [
    "BadLine",
    "ResumeError",
    "Run",
    "Script",
    "Settings",
    "adamw",
    "descend",
    "new_figure",
    "read_examples",
    "save_figure",
]
