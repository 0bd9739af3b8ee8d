"""Describe an attention call and show which backend would run it, why, and how much work it is."""

import argparse

import attnkern
from attnkern import mac
from attnkern.backends.choose import choose
from attnkern.commands import CommandError, problem_flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    problem_flags.add_arguments(parser, kind="global")


def run(arguments: argparse.Namespace) -> int:
    problem = problem_flags.problem_of(arguments)
    if arguments.backend:
        try:
            choose(problem, arguments.backend)
        except attnkern.UnsupportedProblem as error:
            raise CommandError(f"{error}; leave --backend out to have one chosen") from None
    print(attnkern.explain(problem))
    if arguments.backend:
        print(f"asked     {arguments.backend} runs it")
    pairs, count = problem.pairs(), mac.count(problem, backend=arguments.backend)
    print(f"pairs     {pairs:,} (query, key) pairs in {problem.batch * problem.heads} heads")
    print(f"MACs      {count.useful_macs:,} multiply-accumulates forward; {count.issued_macs:,} with whole tiles")
    print(f"bytes     {count.bytes:,} at least, every operand and result moved once")
    print(f"exps      {count.exps:,} exponentials")
    return 0
