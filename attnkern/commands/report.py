"""Draw results of 'attnkern bench': a page of charts and a table, or a picture."""

import argparse
from pathlib import Path

from attnkern.commands import CommandError, check_file
from attnkern.commands.bench import FILE
from attnkern.commands.info import missing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("files", nargs="*", type=Path, default=[FILE], metavar="JSONL", help=f"results (default: {FILE})")
    add(
        "-o", "--output", type=Path, default=Path("attnkern_report.html"), metavar="FILE",
        help="a page, or a picture if it ends in .png (default: %(default)s)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    from attnkern.bench import report
    from attnkern.bench.compare import load

    output = arguments.output
    picture = output.suffix == ".png"
    if not picture and output.suffix not in (".html", ".htm"):
        raise CommandError(f"--output {output} must end in .html or .png")
    if picture and missing("matplotlib"):
        raise CommandError("a picture needs matplotlib: pip install 'attnkern[bench]'")
    check_file("--output", output)
    found = [result for file in arguments.files for result in load(file)]
    if not found:
        raise CommandError(f"there are no results in {', '.join(map(str, arguments.files))}: nothing was written")
    if picture:
        from attnkern.bench import picture

        picture.write(output, found)
    else:
        report.write(output, found)
    print(f"{len(found)} results drawn in {output}")
    return 0
