"""TensorFlow's checkpoint format, the "tensor bundle", without TensorFlow.

`PREFIX.index` is a LevelDB table: blocks of sorted keys, each with the length that it shares with the one before, then
a footer. Key "" holds the number of shards; a tensor's name holds its dtype, shape, shard, place and checksum, as a
protocol buffer. `PREFIX.data-00000-of-00001` is the tensors' bytes.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from attnkern.atomic import written
from attnkern.nn.crc32c import crc32c

MAGIC = 0xDB4775248B80FB57
FOOTER = 48  # two handles of up to 20 bytes, and the magic number
TRAILER = 5  # of a block: its compression, and its checksum
DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}  # TensorFlow's DataType
INTEGERS, STRING = (3, 9), 7
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protocol buffers' wire types


class BundleError(ValueError):
    """The files are no sound tensor bundle; the message says which file, and how."""


class Entry(NamedTuple):
    """Where a tensor lies; `dtype` is TensorFlow's number."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    sliced: bool


class TensorBundle:
    """A checkpoint's tensors by name. Nothing but the index is read before it is asked for.

    Args:
        prefix: the files' common name, such as ".../bert_model.ckpt".

    Attributes:
        entries: an `Entry` for each name.

    Raises:
        FileNotFoundError: there is no index.
        BundleError: it is damaged, compressed or big-endian.
    """

    def __init__(self, prefix: str | Path):
        self.prefix = str(prefix)
        index = Path(f"{prefix}.index")
        try:
            table = dict(_table(index.read_bytes()))
            header = _message(table.pop(b""))
            self.entries = {name.decode(): _entry(value) for name, value in table.items()}
        except BundleError as error:
            raise BundleError(f"{index}: {error}") from None
        except (IndexError, KeyError, UnicodeDecodeError, struct.error):
            raise BundleError(f"{index} is no index of a TensorFlow checkpoint, or is damaged") from None
        self.shards = header.get(1, [0])[0]
        if header.get(2, [0])[0]:
            raise BundleError(f"{index} says that the tensors are big-endian")

    def read(self, name: str) -> np.ndarray:
        """A tensor's numbers.

        Raises:
            KeyError: there is no such tensor.
            FileNotFoundError: its shard is missing.
            BundleError: it is of a dtype that no BERT has, is stored in slices, or is damaged.
        """
        entry = self.entries[name]
        path = f"{self.prefix}.data-{entry.shard:05d}-of-{self.shards:05d}"
        if entry.sliced or entry.dtype not in DTYPES:
            what = "in slices" if entry.sliced else f"as TensorFlow's type {entry.dtype}"
            raise BundleError(f"{path} stores {name} {what}, which is not supported")
        with open(path, "rb") as file:
            file.seek(entry.offset)
            data = file.read(entry.size)
        dtype = np.dtype(DTYPES[entry.dtype])
        if len(data) < entry.size or _mask(crc32c(data)) != entry.checksum:
            raise BundleError(f"{path} is damaged or cut short: {name} does not have its checksum")
        if entry.size != dtype.itemsize * int(np.prod(entry.shape)):
            raise BundleError(f"{path} stores {name} in {entry.size} bytes, not those of shape {entry.shape}")
        return np.frombuffer(data, dtype).reshape(entry.shape)


def write_bundle(prefix: str | Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a checkpoint of one shard that TensorFlow reads; each file appears whole or not at all."""
    numbers = {np.dtype(name): number for number, name in DTYPES.items()}
    table = {b"": _field(1, VARINT, 1) + _field(3, BYTES, _field(1, VARINT, 1))}  # one shard, version 1
    offset = 0
    with written(f"{prefix}.data-00000-of-00001") as draft, open(draft, "wb") as file:
        for name in sorted(tensors):
            data = tensors[name].tobytes()
            file.write(data)
            shape = b"".join(_field(2, BYTES, _field(1, VARINT, size)) for size in tensors[name].shape)
            table[name.encode()] = (
                _field(1, VARINT, numbers[tensors[name].dtype])
                + _field(2, BYTES, shape)
                + _field(4, VARINT, offset)
                + _field(5, VARINT, len(data))
                + _field(6, FIXED32, _mask(crc32c(data)))
            )
            offset += len(data)
    with written(f"{prefix}.index") as draft, open(draft, "wb") as file:
        handle = _write_block(file, table)
        meta = _write_block(file, {})
        footer = meta + _write_block(file, {max(table): handle})
        file.write(footer.ljust(FOOTER - 8, b"\0") + struct.pack("<Q", MAGIC))


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a LevelDB table."""
    if len(data) < FOOTER or struct.unpack_from("<Q", data, len(data) - 8)[0] != MAGIC:
        raise BundleError("is no LevelDB table, or cut short")
    _, _, at = _handle(data, len(data) - FOOTER)  # of the metadata, which TensorFlow leaves empty
    for _, value in _block(data, *_handle(data, at)[:2]):
        yield from _block(data, *_handle(value, 0)[:2])


def _handle(data: bytes, at: int) -> tuple[int, int, int]:
    """Offset and size of a block, and what comes after the handle."""
    offset, at = _varint(data, at)
    return offset, *_varint(data, at)


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    compression, checksum = struct.unpack_from("<BI", data, offset + size)
    if _mask(crc32c(data[offset : offset + size + 1])) != checksum:
        raise BundleError("is damaged: a block does not have its checksum")
    if compression:
        raise BundleError("is compressed (snappy): write it anew with tf.train.Saver")
    block = data[offset : offset + size]
    restarts = struct.unpack_from("<I", block, size - 4)[0]
    at, end, key = 0, size - 4 * (restarts + 1), b""
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + length]
        at += own + length


def _write_block(file, entries: dict[bytes, bytes]) -> bytes:
    """Writes entries, sharing nothing, as one block; returns its handle."""
    block = b"".join(
        b"\0" + _to_varint(len(key)) + _to_varint(len(value)) + key + value for key, value in sorted(entries.items())
    )
    block += struct.pack("<II", 0, 1)  # where keys are whole: the first alone is enough
    handle = _to_varint(file.tell()) + _to_varint(len(block))
    file.write(block + b"\0" + struct.pack("<I", _mask(crc32c(block + b"\0"))))
    return handle


def _entry(value: bytes) -> Entry:
    fields = _message(value)
    first = {number: values[0] for number, values in fields.items()}
    dims = _message(first.get(2, b"")).get(2, [])
    shape = tuple(_message(dim).get(1, [0])[0] for dim in dims)
    return Entry(first[1], shape, *(first.get(number, 0) for number in (3, 4, 5, 6)), 7 in fields)


def _message(data: bytes) -> dict[int, list[int | bytes]]:
    """The fields of a protocol buffer, by number."""
    fields, at = {}, 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == BYTES:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        elif wire == VARINT:
            value, at = _varint(data, at)
        else:
            size = {FIXED32: 4, FIXED64: 8}[wire]
            value, at = int.from_bytes(data[at : at + size], "little"), at + size
        fields.setdefault(number, []).append(value)
    return fields


def _field(number: int, wire: int, value: int | bytes) -> bytes:
    tag = _to_varint(number << 3 | wire)
    if wire == BYTES:
        return tag + _to_varint(len(value)) + value
    return tag + (struct.pack("<I", value) if wire == FIXED32 else _to_varint(value))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Seven bits a byte, lowest first; and what comes after."""
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _to_varint(value: int) -> bytes:
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _mask(checksum: int) -> int:
    """As LevelDB stores checksums, so that those of data that holds checksums stay good ones."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
