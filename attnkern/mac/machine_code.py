"""What a kernel's main loop issues, read off its machine code: no GPU is needed.

The rates are those of compute capability 9.0 (CUDA C++ Programming Guide, arithmetic instructions).
"""

import functools
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

QUARTERS = 4  # of a multiprocessor; each issues an instruction of one warp in a clock
MACS_PER_CLOCK = 512  # 16-bit, of a quarter: 2048 of a multiprocessor
UNITS = ("issue", "matrix", "exp", "fma", "alu", "shared")


class Class(NamedTuple):
    """Instructions alike: what they are for, which unit runs them, and for how many clocks a warp keeps it busy."""

    kind: str
    unit: str
    clocks: int


CLASSES = {
    r"[HIQ]G?MMA": Class("matrix", "matrix", 0),  # by its size
    r"MUFU": Class("exp", "exp", 8),
    r"FFMA|FADD|FMUL": Class("float", "fma", 1),
    r"F\w+": Class("float", "alu", 2),  # comparisons, choices, conversions
    r"IMAD": Class("integer", "fma", 2),
    r"LDS|STS|ATOMS|LDSM|STSM|SHFL": Class("shared", "shared", QUARTERS),  # for each 4 bytes of a thread
    r"I\w+|LOP3|SHF|PRMT|LEA|SEL|VI\w+|PLOP3|P2R|R2P|LOP": Class("integer", "alu", 2),
}
OTHER = Class("other", "issue", 0)
KINDS = (*dict.fromkeys(found.kind for found in CLASSES.values()), "other")


@dataclass(frozen=True)
class Loop:
    """One turn of a kernel's main loop, as one warp runs it.

    Attributes:
        kernel: its name.
        instructions: by kind.
        clocks: that a quarter of a multiprocessor needs for them, by unit; "issue" takes one for each.
        macs: multiply-accumulates; those of a warpgroup's product are a quarter each warp's.
    """

    kernel: str
    instructions: dict[str, int]
    clocks: dict[str, float]
    macs: int

    @property
    def limit(self) -> str:
        """The unit that is busy longest."""
        return max(self.clocks, key=self.clocks.get)

    @property
    def matrix_share(self) -> float:
        """Of the matrix units' rate, at most, however well the units overlap."""
        return self.clocks["matrix"] / self.clocks[self.limit]

    def per_score(self, features: int) -> dict[str, float]:
        """Instructions of a thread by kind, for each score; `features` are the MACs of a score, such as E + Ev."""
        scores = self.macs / features / 32
        return {kind: count / scores for kind, count in self.instructions.items()}

    def clocks_per_score(self, features: int) -> float:
        """Of a multiprocessor, at least."""
        return self.clocks[self.limit] / QUARTERS / (self.macs / features)


def main_loops(binary: str | Path) -> list[Loop]:
    """Of every kernel in a cubin or in a module compiled by nvcc that has a loop with matrix products.

    Raises:
        FileNotFoundError: there is no such file, or no cuobjdump (Triton's wheel brings it).
        ValueError: cuobjdump finds no machine code in the file.
    """
    if not Path(binary).is_file():
        raise FileNotFoundError(f"there is no file {binary}")
    try:
        listing = cuobjdump("--dump-sass", str(binary))
    except subprocess.CalledProcessError as error:
        raise ValueError(f"{binary} holds no machine code: {error.stderr.strip()}") from None
    return loops_of(listing)


def loops_of(listing: str) -> list[Loop]:
    """The same from what `cuobjdump --dump-sass` prints."""
    parts = re.split(r"^\s+Function : ", listing, flags=re.MULTILINE)[1:]
    found = (main_loop(part.split(maxsplit=1)[0], part) for part in parts)
    return [loop for loop in found if loop is not None]


def cuobjdump(*arguments: str) -> str:
    """What NVIDIA's tool of that name prints; Triton brings it along."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


class _Instruction(NamedTuple):
    address: int
    code: str  # with its modifiers
    target: int | None  # of a branch
    always: bool  # the branch is taken, or the end, whatever is in the registers


def main_loop(kernel: str, listing: str) -> Loop | None:
    """The innermost loop with matrix products that issues least for each; None if there is none."""
    code = [_parsed(*found) for found in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+?)\s*;", listing)]
    matrix = [_macs(instruction.code) > 0 for instruction in code]
    places = {instruction.address: place for place, instruction in enumerate(code)}
    loops = {(places[i.target], end) for end, i in enumerate(code) if i.target in places and i.target <= i.address}
    loops = {(begin, end) for begin, end in loops if any(matrix[begin : end + 1])}
    innermost = [
        (begin, end)
        for begin, end in loops
        if not any((b, e) != (begin, end) and begin <= b and e <= end for b, e in loops)
    ]
    ways = [_shortest(code, places, begin, end) for begin, end in innermost]
    found = [_loop(kernel, way) for way in ways if any(_macs(instruction.code) for instruction in way)]
    return min(found, key=lambda loop: loop.clocks["issue"] / loop.macs, default=None)


def _parsed(address: str, text: str) -> _Instruction:
    words = text.split()
    code = words[1] if words[0].startswith("@") else words[0]
    target = re.search(r"(0x[0-9a-f]+)$", text) if code.startswith("BRA") else None
    always = re.fullmatch(r"BRA 0x\w+|EXIT", text) is not None
    return _Instruction(int(address, 16), code, target and int(target[1], 16), always)


def _shortest(code: list[_Instruction], places: dict[int, int], begin: int, end: int) -> list[_Instruction]:
    """The shortest way from the loop's begin to its end by all matrix products: rare work is branched around.

    Empty if the end is reached only from elsewhere.
    """
    best = {begin: (0, None)}
    for place in range(begin, end):
        if place not in best:
            continue
        instruction = code[place]
        cost = best[place][0] + 1 - (1 << 20) * (_macs(instruction.code) > 0)
        branch = places.get(instruction.target)
        nexts = ([] if instruction.always else [place + 1]) + (
            [branch] if branch is not None and place < branch <= end else []
        )
        for following in nexts:
            if following not in best or cost < best[following][0]:
                best[following] = cost, place
    way, place = [], end if end in best else None
    while place is not None:
        way.append(code[place])
        place = best[place][1]
    return way[::-1]


def _loop(kernel: str, code: list[_Instruction]) -> Loop:
    instructions, clocks = Counter(dict.fromkeys(KINDS, 0)), Counter(dict.fromkeys(UNITS, 0))
    macs = 0
    for instruction in code:
        found = _class_of(instruction.code)
        instructions[found.kind] += 1
        clocks["issue"] += 1
        if found.kind == "matrix":
            macs += _macs(instruction.code)
            clocks["matrix"] += _macs(instruction.code) / MACS_PER_CLOCK
        elif found.unit != "issue":
            clocks[found.unit] += found.clocks * (_words(instruction.code) if found.kind == "shared" else 1)
    return Loop(kernel, dict(instructions), dict(clocks), macs)


def _class_of(code: str) -> Class:
    root = code.split(".")[0]
    return next((found for pattern, found in CLASSES.items() if re.fullmatch(pattern, root)), OTHER)


@functools.cache
def _macs(code: str) -> int:
    """Of one warp: HGMMA.64x128x16 is a warpgroup's, HMMA.16816 a warp's product of 16 x 8 x 16."""
    if found := re.match(r"[HIQ]GMMA\.(\d+)x(\d+)x(\d+)", code):
        rows, columns, depth = map(int, found.groups())
        return rows * columns * depth // QUARTERS
    if found := re.match(r"[HIQ]MMA\.168(\d+)", code):
        return 16 * 8 * int(found[1])
    return 0


def _words(code: str) -> int:
    """Of 4 bytes that each thread moves."""
    return next((int(bits) // 32 for bits in code.split(".") if bits in ("64", "128")), 1)
