"""Run everything once on this machine: a real BERT, errors, speed, and a picture of it."""

import argparse
import time
from pathlib import Path

import torch

from attnkern.commands import CommandError, check_file
from attnkern.commands.info import backends, device, environment, missing

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--quick", action="store_true", help="short lengths and one dtype: a few seconds")
    add("--output", type=Path, default=Path("attnkern_demo.png"), metavar="PNG", help="picture (default: %(default)s)")
    add("--model", metavar="NAME", help="BERT to run: a folder, an installed package or a hub id (default: MiniLM)")


def run(arguments: argparse.Namespace) -> int:
    if absent := missing("rich", "matplotlib"):
        raise CommandError(f"needs {' and '.join(absent)}: pip install 'attnkern[demo]'")
    check_file("--output", arguments.output)
    from attnkern.commands.demo import accuracy, bert, picture, show, speed

    began = time.perf_counter()
    where, quick = device(), arguments.quick
    show.lines("This machine", [*environment(), *backends(where)])

    result = None
    if reason := bert.absent(arguments.model):
        show.note(f"BERT skipped: {reason}")
    else:
        result = show.working("embedding sentences", bert.compare, arguments.model, where, 0.2 if quick else 2.0)
        show.bert(result)

    checks = show.working("checking errors", accuracy.check, where, DTYPES[:1] if quick else DTYPES)
    show.checks(checks)

    lengths = speed.QUICK_LENGTHS if quick else speed.LENGTHS[where]
    rows = show.progress("timing", speed.measure(where, lengths, 0.1 if quick else 0.6), speed.count(lengths))
    show.speed(rows, where)

    picture.save(arguments.output, show.title(where), rows, checks)
    passed = all(row.passed for row in checks) and all(row.agrees for row in rows)
    passed = passed and (result is None or result.passed)
    show.note(f"{time.perf_counter() - began:.0f} s, picture: {arguments.output}, everything: ", show.verdict(passed))
    return 0 if passed else 1
