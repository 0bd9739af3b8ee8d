"""Tile sizes of the Triton kernels: one table, and measurements that outlive the process.

The first entry of a row is the default. With `ATTNKERN_TUNE=1` the first call of each kind of problem
times the whole row and keeps the winner in `$ATTNKERN_CACHE_DIR/tuning.json` (`~/.cache/attnkern`);
later processes read it from there, with or without the variable.
"""

import functools
import os
import warnings
from collections.abc import Callable
from typing import NamedTuple

from attnkern import cache
from attnkern.problem import UNLIMITED, Problem

FILE = "tuning.json"
FEWEST_ROWS = 16  # of a tile: the tensor cores' least


class Config(NamedTuple):
    """Rows and keys of a tile, warps of a program, stages of its loop."""

    block_m: int
    block_n: int
    num_warps: int = 4
    num_stages: int = 2


INTERPRETER = Config(64, 64)  # every operation costs the same there, whatever its size

# kernel -> largest head size -> candidates
Table = dict[str, dict[int, tuple[Config, ...]]]

COMBINE_SPLITS = {256: (Config(16, 64, 4, 1),)}  # a row is a program, and has no tiles

SIXTEEN_BIT: Table = {
    "softmax_forward": {
        64: (Config(64, 64, 4, 3), Config(128, 64, 8, 3), Config(128, 128, 8, 3)),
        128: (Config(128, 64, 8, 3), Config(128, 128, 8, 2), Config(64, 64, 4, 2)),
        256: (Config(64, 32, 8, 2), Config(64, 64, 8, 2)),
    },
    "backward_query": {
        64: (Config(128, 64, 8, 2), Config(64, 64, 4, 2)),
        128: (Config(64, 64, 8, 2), Config(128, 64, 8, 2)),
        256: (Config(32, 32, 8, 1), Config(64, 32, 8, 1)),
    },
    "backward_key_value": {
        64: (Config(32, 64, 8, 2), Config(64, 64, 8, 2), Config(64, 128, 8, 2)),
        128: (Config(32, 64, 8, 2), Config(64, 128, 8, 2)),
        256: (Config(32, 32, 8, 1),),
    },
    "backward_mask": {64: (Config(64, 64, 8, 1),), 128: (Config(64, 64, 8, 1),), 256: (Config(32, 32, 4, 1),)},
    "attention_weights": {64: (Config(64, 64, 4, 1),), 128: (Config(64, 64, 4, 1),), 256: (Config(64, 32, 4, 1),)},
    "combine_splits": COMBINE_SPLITS,
    "far_rows": {64: (Config(64, 64, 4, 1),), 128: (Config(64, 64, 4, 1),), 256: (Config(64, 32, 4, 1),)},
    "sample_forward": {
        64: (Config(64, 64, 8, 3), Config(128, 64, 8, 3), Config(64, 64, 4, 3)),
        128: (Config(64, 64, 8, 2), Config(128, 64, 8, 2)),
        256: (Config(32, 64, 4, 1), Config(64, 64, 8, 1)),
    },
}

# on sm_90 four warps share one product of 64 rows; eight on 64 rows take twice as long
HOPPER: Table = {
    "softmax_forward": {
        64: (Config(128, 64, 4, 3), Config(128, 64, 8, 3), Config(64, 128, 4, 3), Config(64, 64, 4, 2)),
        128: (Config(128, 128, 8, 3), Config(128, 64, 8, 3), Config(64, 64, 4, 3)),
        256: (Config(128, 64, 8, 2), Config(64, 64, 8, 2)),
    },
    "backward_query": {
        64: (Config(128, 64, 8, 3), Config(64, 64, 4, 2), Config(64, 64, 4, 3)),
        128: (Config(128, 64, 8, 3), Config(128, 64, 8, 4), Config(64, 64, 4, 2)),
        256: SIXTEEN_BIT["backward_query"][256],
    },
    "backward_key_value": {
        64: (Config(32, 64, 4, 2), Config(64, 64, 4, 2), Config(32, 64, 4, 3)),
        128: (Config(32, 64, 4, 2), Config(64, 128, 8, 3), Config(32, 128, 8, 2)),
        256: SIXTEEN_BIT["backward_key_value"][256],
    },
    "sample_forward": {
        64: (Config(64, 64, 4, 3), Config(128, 64, 8, 3)),
        128: (Config(64, 64, 4, 3), Config(64, 64, 4, 2), Config(128, 64, 8, 3)),
        256: SIXTEEN_BIT["sample_forward"][256],
    },
}

# without a softmax the largest tile spills
HOPPER_UNNORMALISED: Table = {
    "softmax_forward": HOPPER["softmax_forward"] | {128: HOPPER["softmax_forward"][128][1:]},
}

# which weights stay takes registers, and memory to bring it into their order
DROPOUT: Table = {
    "softmax_forward": SIXTEEN_BIT["softmax_forward"] | {128: (Config(64, 64, 8, 2), Config(64, 64, 4, 3))},
    "backward_query": SIXTEEN_BIT["backward_query"] | {64: (Config(64, 64, 8, 2), Config(128, 64, 8, 2))},
}

HOPPER_DROPOUT: Table = {
    "softmax_forward": {
        64: (Config(128, 64, 8, 3), Config(64, 64, 4, 3)),
        128: (Config(128, 64, 8, 3), Config(64, 64, 4, 3)),
        256: (Config(128, 32, 8, 2), Config(64, 64, 8, 2)),
    },
    "backward_key_value": HOPPER["backward_key_value"] | {128: (Config(32, 128, 8, 2), Config(32, 64, 4, 2))},
}

# a mask takes a tile of the loop's memory as well
MASKED: Table = {
    "softmax_forward": {
        64: (Config(64, 64, 4, 2), Config(128, 64, 8, 2)),
        128: (Config(64, 32, 4, 2), Config(64, 64, 8, 2), Config(128, 64, 8, 2)),
        256: (Config(32, 32, 4, 1), Config(64, 32, 8, 2)),
    },
    "backward_query": {
        64: (Config(64, 64, 8, 2), Config(128, 64, 8, 2)),
        128: (Config(64, 32, 8, 2), Config(64, 64, 8, 2)),
        256: (Config(32, 32, 8, 1),),
    },
}

HOPPER_MASKED: Table = {
    "backward_query": {
        64: (Config(64, 64, 4, 2), Config(128, 64, 8, 2)),
        128: (Config(64, 32, 4, 2), Config(64, 64, 4, 2), Config(128, 64, 8, 2)),
        256: MASKED["backward_query"][256],
    },
    "backward_key_value": {
        64: (Config(32, 64, 4, 2), Config(64, 64, 4, 2)),
        128: (Config(32, 64, 4, 2), Config(32, 128, 8, 2)),
        256: SIXTEEN_BIT["backward_key_value"][256],
    },
}

# a row's own window and Gaussian take registers, and the tiles that a window fills are few
CENTERED: Table = {
    "softmax_forward": {
        64: (Config(64, 32, 4, 2), Config(64, 64, 4, 2)),
        128: (Config(64, 64, 8, 2), Config(64, 32, 4, 2), Config(128, 64, 8, 2)),
        256: SIXTEEN_BIT["softmax_forward"][256],
    },
    "backward_query": {
        64: (Config(64, 32, 8, 2), Config(64, 32, 4, 2)),
        128: (Config(64, 32, 8, 2), Config(64, 32, 4, 2), Config(32, 32, 4, 2)),
        256: SIXTEEN_BIT["backward_query"][256],
    },
    "backward_key_value": {
        64: (Config(32, 64, 8, 2), Config(64, 64, 8, 2)),
        128: (Config(32, 64, 8, 2),),
        256: SIXTEEN_BIT["backward_key_value"][256],
    },
}

# products without tensor cores keep their operands in registers
THIRTY_TWO_BIT: Table = {
    "softmax_forward": {64: (Config(32, 32, 8, 1),), 128: (Config(32, 16, 8, 1),), 256: (Config(16, 16, 8, 1),)},
    "backward_query": {64: (Config(16, 16, 8, 1),), 128: (Config(16, 16, 8, 1),), 256: (Config(16, 16, 8, 1),)},
    "backward_key_value": {64: (Config(16, 32, 8, 1),), 128: (Config(16, 16, 8, 1),), 256: (Config(16, 16, 8, 1),)},
    "backward_mask": {64: (Config(16, 16, 8, 1),), 128: (Config(16, 16, 8, 1),), 256: (Config(16, 16, 8, 1),)},
    "attention_weights": {64: (Config(32, 32, 8, 1),), 128: (Config(32, 16, 8, 1),), 256: (Config(16, 16, 8, 1),)},
    "combine_splits": COMBINE_SPLITS,
    "far_rows": {64: (Config(32, 32, 8, 1),), 128: (Config(32, 16, 8, 1),), 256: (Config(16, 16, 8, 1),)},
    "sample_forward": {64: (Config(32, 64, 8, 1),), 128: (Config(16, 64, 8, 1),), 256: (Config(16, 64, 8, 1),)},
}

# where a sequence begins takes registers
PACKED: Table = {
    "backward_query": SIXTEEN_BIT["backward_query"] | {64: (Config(64, 64, 8, 2), Config(128, 32, 8, 2))},
}

# a step of decoding reads keys and values once: few rows, long tiles of keys
FEW_QUERIES: Table = {
    "softmax_forward": {
        64: (Config(16, 128, 4, 3), Config(16, 64, 4, 4)),
        128: (Config(16, 64, 4, 3), Config(16, 128, 4, 2)),
        256: (Config(16, 32, 4, 2),),
    },
}


def candidates(kernel: str, problem: Problem, capability: int) -> tuple[Config, ...]:
    """The kernel's row of the table, for compute capability 80, 90, 100, ..."""
    if problem.dtype.itemsize > 2:
        row = THIRTY_TWO_BIT[kernel]
    else:
        rows = SIXTEEN_BIT | (HOPPER if capability == 90 else {})
        if problem.kind == "mac" and capability == 90:
            rows |= HOPPER_UNNORMALISED
        if problem.packed and capability != 90:
            rows |= PACKED
        if problem.dropout_p:
            rows |= HOPPER_DROPOUT if capability == 90 else DROPOUT
        if problem.mask:
            rows |= MASKED | (HOPPER_MASKED if capability == 90 else {})
        if problem.len_q <= FEWEST_ROWS:
            rows |= FEW_QUERIES
        if problem.center:
            rows |= CENTERED
        row = rows[kernel]
    width = max(problem.head_dim, problem.value_dim)
    return next(configs for limit, configs in row.items() if width <= limit)


def config(
    kernel: str, problem: Problem, device_name: str, capability: int, measure: Callable[[Config], float]
) -> Config:
    """The config to launch with: cached, measured if asked to, else the table's first.

    Args:
        measure: runs the kernel with a config, returns its time; raises if the config does not fit.
    """
    row = candidates(kernel, problem, capability)
    place = _place(kernel, problem, device_name)
    if _known().get(place) in row or len(row) == 1 or os.environ.get("ATTNKERN_TUNE") != "1":
        return settled(kernel, problem, device_name, capability)
    best = _fastest(row, measure)
    keep(kernel, problem, device_name, best)
    cache.add(FILE, place, best)
    return best


def keep(kernel: str, problem: Problem, device_name: str, config: Config) -> None:
    """From now on, in this process, `config` it is."""
    _known()[_place(kernel, problem, device_name)] = config


def settled(kernel: str, problem: Problem, device_name: str, capability: int) -> Config:
    """The config that is cached, else the table's first."""
    row = candidates(kernel, problem, capability)
    known = _known().get(_place(kernel, problem, device_name))
    return known if known in row else row[0]


def _fastest(row: tuple[Config, ...], measure: Callable[[Config], float]) -> Config:
    times = {}
    for candidate in row:
        try:
            times[candidate] = measure(candidate)
        except Exception as error:  # out of shared memory or registers: not a candidate here
            warnings.warn(f"tuning: {candidate} does not run here ({type(error).__name__})", stacklevel=2)
    return min(times, key=times.get) if times else row[0]


def _place(kernel: str, problem: Problem, device_name: str) -> str:
    """What a measurement is valid for; lengths and windows count by their power of two."""
    left, right = problem.band
    sizes = (problem.len_q, problem.len_k, left if left != UNLIMITED else 0, right if right != UNLIMITED else 0)
    rounded = ",".join(str(size.bit_length()) for size in sizes)
    bounded = f"{left != UNLIMITED:d}{right != UNLIMITED:d}"
    choices = f"{problem.mask} {bool(problem.softcap):d}{bool(problem.dropout_p):d} {problem.group}"
    dims = f"{problem.head_dim}/{problem.value_dim} {str(problem.dtype).removeprefix('torch.')}"
    kinds = "".join(f" {name}" for name, there in (("centered", problem.center), ("packed", problem.packed)) if there)
    return f"{device_name} {kernel} {dims} {rounded} {bounded} {choices}{kinds}"


@functools.cache
def _known() -> dict[str, Config]:
    try:
        return {place: Config(*values) for place, values in cache.read(FILE).items()}
    except TypeError:
        cache.warn_unreadable(FILE)
        return {}
