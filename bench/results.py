"""A measurement as one line of JSON: read from files of any age and quality, written by appending."""

import json
import math
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch

import attnkern
from attnkern.bench.problems import EVERYWHERE, KINDS, LOSSES, PHASES, Row
from attnkern.mac.roofline import cpu_name
from attnkern.problem import is_number

FILE = "attnkern_bench.jsonl"
Limit = Literal["matrix", "memory", "exp"]
Role = Literal["ours", "peer", "other"]
MOST = 1e30  # of anything that is counted
LIMITS, ROLES = get_args(Limit), get_args(Role)
MACHINE = ("device", "threads", "driver", "python", "torch", "triton", "attnkern", "commit", "date", "run")


class Roof(NamedTuple):
    """The least time for a row's work on its device, what sets it, and the device's measured best, each a second."""

    ms: float
    limit: Limit
    macs: float
    bytes: float
    exps: float


@dataclass(frozen=True)
class Result:
    """What one implementation did with one row.

    Attributes:
        role: "ours", "peer", or "other" for what computes something else.
        ms: milliseconds of one call: "median", "p20" and "p80"; None if there is no right result.
        useful_macs, issued_macs, bytes, exps: its work, see `attnkern.mac.Count`; None where it is not known.
        memory: bytes that one call takes at its peak.
        error: why there is no time.
        machine: `MACHINE`'s entries, as text.
    """

    row: Row
    impl: str
    role: Role = "peer"
    ms: dict[str, float] | None = None
    useful_macs: int | None = None
    issued_macs: int | None = None
    bytes: int | None = None
    exps: int | None = None
    roof: Roof | None = None
    memory: int | None = None
    error: str | None = None
    machine: dict[str, str] = field(default_factory=dict)

    @property
    def macs_per_second(self) -> float | None:
        return self.useful_macs / self.ms["median"] * 1e3 if self.ms and self.useful_macs else None

    @property
    def bytes_per_second(self) -> float | None:
        return self.bytes / self.ms["median"] * 1e3 if self.ms and self.bytes else None

    @property
    def share_of_roof(self) -> float | None:
        return self.roof.ms / self.ms["median"] if self.ms and self.roof else None

    @property
    def useful_share(self) -> float | None:
        """Of the multiply-accumulates issued."""
        return self.useful_macs / self.issued_macs if self.useful_macs and self.issued_macs else None


def to_json(result: Result) -> str:
    """One line; "row" is its name, for people, and "pass" its phase."""
    row = asdict(result.row)
    line = {"row": result.row.name, "impl": result.impl, "role": result.role, "pass": row.pop("phase"), **row}
    line["ms"] = {name: round(value, 5) for name, value in result.ms.items()} if result.ms else None
    line |= {name: getattr(result, name) for name in ("useful_macs", "issued_macs", "bytes", "exps")}
    line["roof"] = dict(result.roof._asdict(), share=result.share_of_roof) if result.roof else None
    return json.dumps(line | {"memory": result.memory, "error": result.error} | result.machine)


def from_json(text: str) -> Result:
    """The result in a line, of this format or of the one before it.

    Raises:
        ValueError: it is none; the message says why.
    """
    try:
        line = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        raise ValueError("not JSON, or a number in it is not finite") from None
    if not isinstance(line, dict) or not {"kind", "pass", "impl", "ms"} <= line.keys():
        raise ValueError("not a result of 'attnkern bench'")
    try:
        json.dumps(line, ensure_ascii=False).encode()  # half a character is none
        return _result(line)
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"not a result of 'attnkern bench' ({error})") from None


def _result(line: dict) -> Result:
    sizes = {one.name: line[one.name] for one in fields(Row) if one.name in line}
    sizes |= {"phase": line["pass"], "window": tuple(line["window"] or EVERYWHERE)}
    if "len_k" not in line:  # the first format: self-attention, a time without its spread, and TFLOP/s
        sizes |= {"len_k": line["len_q"], "kv_heads": line["heads"]}
    if None in [size for name, size in sizes.items() if name != "mask"]:
        raise ValueError("a size is missing")
    row = Row(**sizes)
    _check("kind", row.kind, KINDS)
    _check("pass", row.phase, PHASES)
    _check("loss", row.loss, tuple(LOSSES))
    row.problem("cpu")  # checks the sizes
    ms, macs = line["ms"], line.get("useful_macs")
    if is_number(ms):
        ms = dict.fromkeys(("median", "p20", "p80"), float(ms))
        macs = round(line["tflops"] * 1e12 / 2 * ms["median"] / 1e3) if line.get("tflops") else None
    if ms is not None:
        ms = {name: _rate(ms[name]) for name in ("median", "p20", "p80")}
        if not ms["p20"] <= ms["median"] <= ms["p80"]:
            raise ValueError("times are out of order")
    roof = line.get("roof")
    if roof:
        _check("limit of the roof", roof["limit"], LIMITS)
        roof = Roof(limit=roof["limit"], **{name: _rate(roof[name]) for name in Roof._fields if name != "limit"})
    impl = line["impl"].replace("sdpa", "SDPA")
    amounts = {name: _amount(line.get(name)) for name in ("issued_macs", "bytes", "exps", "memory")}
    error = None if line.get("error") is None else str(line["error"])
    machine = {name: str(line[name]) for name in MACHINE if name in line}
    machine.setdefault("run", f"{line.get('date')} {line.get('variant')}")
    role = line.get("role") or ("ours" if impl.startswith("attnkern") else "peer")
    _check("role", role, ROLES)
    return Result(row, impl, role, ms=ms, useful_macs=_amount(macs), roof=roof, machine=machine, error=error, **amounts)


def _check(what: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"unknown {what}: {value!r}")


def _amount(value: object) -> float | None:
    """One that can be drawn."""
    return None if value is None or is_number(value) and value == 0 else _rate(value)


def _rate(value: object) -> float:
    """One that can be divided by, too."""
    if not (is_number(value) and 1 / MOST <= value <= MOST):
        raise ValueError(f"{value!r} is no amount of anything")
    return value


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is not finite")
    return number


def read(path: Path) -> list[Result]:
    """Results in the order of the file; what is none is named on standard error, with its line, and skipped.

    Raises:
        OSError: it cannot be read.
    """
    found, damaged = [], []
    for number, text in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").split("\n"), 1):
        try:
            if text.strip():
                found.append(from_json(text))
        except ValueError as error:
            damaged.append(f"{path}:{number}: {error}")
    if damaged:
        more = f", and {len(damaged) - 1} more lines" if len(damaged) > 1 else ""
        print(f"{damaged[0]}; skipped{more}", file=sys.stderr)
    return found


def latest(results: list[Result]) -> list[Result]:
    """Of each row on each device the last run that has it: times of different runs are not comparable."""
    last = {}
    for result in results:
        last[result.machine.get("device"), result.row] = result.machine.get("run")
    kept = {}  # a run may have been repeated within its second
    for result in results:
        place = result.machine.get("device"), result.row
        if result.machine.get("run") == last[place]:
            kept[(*place, result.impl)] = result
    return list(kept.values())


def machine(device: str) -> dict[str, str]:
    """Device, versions, commit and date: the same for every line of a run."""
    gpu, now = device == "cuda", datetime.now().astimezone()
    return {
        "device": torch.cuda.get_device_name() if gpu else cpu_name(),
        "threads": str(torch.get_num_threads()),
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if gpu else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "attnkern": attnkern.__version__,
        "commit": os.environ.get("ATTNKERN_COMMIT") or _commit(),
        "date": f"{now:%Y-%m-%d}",
        "run": now.isoformat(timespec="seconds"),
    }


def _commit() -> str:
    """Of the checkout that runs, if it is one."""
    checkout = Path(attnkern.__file__).parents[1]
    known = (checkout / ".git").exists()
    return _said("git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD") if known else "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"
