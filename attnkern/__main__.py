"""The command line: `python -m attnkern COMMAND`, also installed as `attnkern`."""

import sys

import attnkern
from attnkern.commands import CommandError, bench, demo, explain, info, profile, report
from attnkern.terminal import Parser, ending

COMMANDS = {
    "demo": demo,
    "bench": bench,
    "report": report,
    "profile": profile,
    "info": info,
    "explain": explain,
}


class _Parser(Parser):
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
    with ending("attnkern"):
        arguments = parser.parse_args(_joined(sys.argv[1:] if argv is None else argv))
        try:
            return COMMANDS[arguments.command].run(arguments)
        except CommandError as error:
            print(f"attnkern {arguments.command}: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130


def _joined(argv: list[str]) -> list[str]:
    """`--window -1,128` as `--window=-1,128`: what begins with a minus sign would count as an option."""
    found = []
    for argument in argv:
        if found and found[-1].startswith("--w") and "--window".startswith(found[-1]) and argument.startswith("-"):
            argument = f"{found.pop()}={argument}"
        found.append(argument)
    return found


if __name__ == "__main__":
    sys.exit(main())
