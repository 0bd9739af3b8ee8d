"""Sums over the tiles of a problem of any size, without a walk over all of them."""

import math
from collections.abc import Callable, Iterable

from attnkern.problem import UNLIMITED, Problem


def query_bends(problem: Problem) -> list[int]:
    """Queries at which the range of keys in sight begins or stops to move."""
    return _bends(*problem.band, problem.query_offset, problem.len_k)


def key_bends(problem: Problem) -> list[int]:
    """Keys at which the range of queries that see them does."""
    left, right = problem.band
    offset = problem.query_offset
    return _bends(right, left, None if offset is None else -offset, problem.len_q)


def _bends(before: int, after: int, offset: int | None, length: int) -> list[int]:
    """Of the range `[i + offset - before, i + offset + after]` within `[0, length)`."""
    if offset is None:
        return []
    sides = [before] * (before != UNLIMITED) + [-after] * (after != UNLIMITED)
    return [side - offset + end for side in sides for end in (0, length)]


def total(value: Callable[[int], int], length: int, step: int, tile: int, bends: Iterable[int], room: int = 0) -> int:
    """The sum of `value(first)` over every `step`-th place of `[0, length)`.

    Away from bends it must be linear but for what tiles of that size repeat; `room`: how far from a bend that begins,
    beyond a step and a tile.
    """
    count = -(-length // step)
    near = -(-(room + 2 * tile) // step) + 2
    ranges = [(bend // step - near, bend // step + near) for bend in (*bends, length)]
    marks = sorted({0, count, *(min(max(0, mark), count) for ends in ranges for mark in ends)})
    period, found = tile // math.gcd(step, tile), 0
    for begin, end in zip(marks, marks[1:]):
        bent = any(begin < high and low < end for low, high in ranges)
        repeats = 1 if bent else (end - begin) // period
        if repeats < 3:
            found += sum(value(step * place) for place in range(begin, end))
            continue
        first, second = (
            sum(value(step * place) for place in range(start, start + period)) for start in (begin, begin + period)
        )
        found += repeats * first + repeats * (repeats - 1) // 2 * (second - first)
        found += sum(value(step * place) for place in range(begin + repeats * period, end))
    return found
