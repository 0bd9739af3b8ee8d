"""The command line: `python -m attnkern COMMAND`, also installed as `attnkern`."""

import argparse
import sys

import attnkern
from attnkern.commands import CommandError, bench, demo, explain, info, profile, report

COMMANDS = {
    "demo": demo,
    "bench": bench,
    "report": report,
    "profile": profile,
    "info": info,
    "explain": explain,
}


class _Parser(argparse.ArgumentParser):
    """One line for a wrong argument, without the usage in front."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}; see '{self.prog} --help'\n")


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 1 for a failed check, 2 for wrong use, 130 for Ctrl-C."""
    parser = _Parser(prog="attnkern", description=attnkern.__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"attnkern {attnkern.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        summary = module.__doc__.splitlines()[0]
        module.add_arguments(subparsers.add_parser(name, help=summary, description=module.__doc__))
    arguments = parser.parse_args(argv)
    try:
        return COMMANDS[arguments.command].run(arguments)
    except CommandError as error:
        print(f"attnkern {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
