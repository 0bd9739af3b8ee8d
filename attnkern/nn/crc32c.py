"""The checksum CRC-32C (Castagnoli) of megabytes, in numpy.

A CRC is linear: of two pieces, `crc(ab) = shift(crc(a), len(b)) ^ crc(b)`, where `shift` lets zero bytes follow. So
all words of four bytes are looked up at once, and then neighbours are joined, pair by pair.
"""

from functools import cache

import numpy as np

POLYNOMIAL = 0x82F63B78  # reflected
ONES = 0xFFFFFFFF
CHUNK = 1 << 18  # bytes that are joined at a time: what stays in the caches


def crc32c(data: bytes) -> int:
    state = np.full(1, ONES, np.uint32)
    for start in range(0, len(data), CHUNK):
        chunk = data[start : start + CHUNK]
        for level in range(len(chunk).bit_length()):
            if len(chunk) >> level & 1:
                state = _shift(state, level)
        state = state ^ _from_zero(chunk)
    return int(state[0]) ^ ONES


def _from_zero(data: bytes) -> np.ndarray:
    """The state after these bytes, if it was 0 before: zeros in front change nothing."""
    words = np.frombuffer(bytes(-len(data) % 4) + data, "<u4")
    crc, level = _shift(words, 2), 2
    while len(crc) > 1:
        if len(crc) % 2:
            crc = np.concatenate([np.zeros(1, np.uint32), crc])
        crc = _shift(crc[::2], level) ^ crc[1::2]
        level += 1
    return crc


def _shift(state: np.ndarray, level: int) -> np.ndarray:
    """States after `2 ** level` zero bytes."""
    low, high = _shift_tables(level)
    return low[state & 0xFFFF] ^ high[state >> 16]


@cache
def _shift_tables(level: int) -> tuple[np.ndarray, np.ndarray]:
    """That of each lower half of a state, and of each upper half."""
    if level:
        return tuple(_shift(table, level - 1) for table in _shift_tables(level - 1))
    state = np.arange(1 << 16, dtype=np.uint32) << np.array([[0], [16]], np.uint32)
    for _ in range(8):
        state = state >> 1 ^ (state & 1) * np.uint32(POLYNOMIAL)
    return tuple(state)
