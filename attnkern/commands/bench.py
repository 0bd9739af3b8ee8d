"""Time attnkern beside its peers on this machine, each result checked first; or compare two measurements."""

import argparse
from pathlib import Path

from attnkern.bench.problems import SUITES
from attnkern.commands import CommandError

FILE = Path("attnkern_bench.jsonl")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--suite", metavar="NAMES", help=f"some of {', '.join(SUITES)}, with commas (default: all)")
    add("--rows", default="", metavar="REGEX", help="only rows in whose name it is found, such as '4k.*forward'")
    add("--peers", metavar="NAMES", help="whom to measure beside attnkern, '' for nobody (default: all there are)")
    add("--backends", metavar="NAMES", help="backends of attnkern to measure (default: those for the device)")
    add("--device", metavar="NAME", help="cpu or cuda (default: the GPU, where there is one)")
    add("--seconds", type=float, metavar="S", help="begin no row after that time, nor any further round")
    add("--out", type=Path, default=FILE, metavar="JSONL", help="results are appended to it (default: %(default)s)")
    add("--compare", nargs=2, type=Path, metavar=("A", "B"), help="measure nothing: show what changed from A to B")


def run(arguments: argparse.Namespace) -> int:
    if arguments.compare:
        from attnkern.bench.compare import compare

        return compare(*arguments.compare)
    if arguments.seconds is not None and not arguments.seconds > 0:
        raise CommandError(f"--seconds must be positive, got {arguments.seconds:g}")
    from attnkern.bench import run

    return run.run(arguments)
