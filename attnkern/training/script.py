"""The command line of a script in `examples/`: all that may be wrong with it is said before any work."""

import argparse
import sys
from collections.abc import Callable
from math import inf
from pathlib import Path

from attnkern.atomic import check_output
from attnkern.terminal import Parser, ending
from attnkern.training.outputs import has_matplotlib


class Help(argparse.RawDescriptionHelpFormatter):
    """Says every default, unless there is none to say."""

    def _get_help_string(self, action: argparse.Action) -> str:
        said = action.default is None or action.default is False or "default" in action.help
        return action.help if said or action.default == argparse.SUPPRESS else f"{action.help} (default: %(default)s)"


class Script(Parser):
    """Arguments that are checked when they are parsed: numbers by their range, outputs by writing there.

    Args:
        doc: the script's docstring, which describes it.
    """

    def __init__(self, doc: str):
        super().__init__(description=doc.strip(), formatter_class=Help)
        self._ranges, self._outputs = [], []

    def number(self, name: str, default: float | None, help: str, least: float = 1, most: float = inf, kind=int):
        """An option, at least and at most so much."""
        self._ranges.append((self.add_argument(name, type=kind, default=default, help=help), least, most))

    def seed(self) -> None:
        self.number("--seed", 0, "of all that is drawn by chance", -(2**63), 2**63 - 1)

    def folder(self, name: str, default: str) -> None:
        self._output("folder", name, default, "where results go")

    def file(self, name: str, default: str, help: str, suffixes: tuple[str, ...]) -> None:
        """Whose name ends in one of the suffixes."""
        self._output("file", name, default, help, suffixes)

    def picture(self, name: str, default: str, **options) -> None:
        """A file; without matplotlib the default one is left out later, and another one refused."""
        self._output("picture", name, default, "the picture", (), **options)

    def _output(self, kind: str, name: str, default: str, help: str, suffixes: tuple[str, ...] = (), **options) -> None:
        action = self.add_argument(name, type=Path, default=Path(default), help=help, **options)
        self._outputs.append((action, kind, suffixes))

    def parse_args(self, given: list[str] | None = None) -> argparse.Namespace:
        options = super().parse_args(given)
        for action, least, most in self._ranges:
            value, name = getattr(options, action.dest), action.option_strings[0]
            if value is not None and not least <= value <= most:
                limits = f"at least {least}" if most == inf else f"between {least} and {most}"
                self.error(f"{name} must be {limits}, got {value}")
        for output in self._outputs:
            self._check(getattr(options, output[0].dest), *output)
        return options

    def _check(self, path: Path, action: argparse.Action, kind: str, suffixes: tuple[str, ...]) -> None:
        name = action.option_strings[0] if action.option_strings else action.dest
        if kind == "picture" and path is not action.default:
            if not has_matplotlib():
                self.error(f"{name} {path} needs matplotlib: pip install matplotlib")
            from matplotlib.backend_bases import FigureCanvasBase

            suffixes = tuple(f".{kind}" for kind in FigureCanvasBase.get_supported_filetypes())
        if suffixes and path.suffix not in suffixes:
            self.error(f"{name} must end in {', '.join(suffixes)}, got {path}")
        try:
            check_output(path, kind == "folder")
        except OSError as error:
            self.error(f"{name} {path} cannot be written: {error}")

    def run(self, function: Callable[[argparse.Namespace], None]) -> None:
        """Calls the function with the options. What it cannot do, it says in a line, and exits with 1."""
        name = Path(self.prog).stem
        with ending(name, ImportError, ValueError):
            options = self.parse_args()
            try:
                function(options)
            except KeyboardInterrupt:
                print(f"{name}: stopped", file=sys.stderr)
                raise SystemExit(130) from None
            except ModuleNotFoundError as error:
                raise SystemExit(f"{name}: {error}: pip install '.[examples]'") from None
