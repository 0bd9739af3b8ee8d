"""Which backend runs a problem, and why each other one would not."""

import importlib
from dataclasses import dataclass
from functools import cache
from types import ModuleType

from attnkern.backends.tuning import FEWEST_ROWS
from attnkern.problem import Problem, UnsupportedProblem

# fastest first; the reference stores the whole score matrix and runs anything
PREFERENCE = ("cuda", "triton", "cpu", "blocked", "reference")
NOT_BUILT = {
    "cpu": "its kernels are not built (a C++ compiler is needed at installation)",
    "cuda": "its kernels are not built (nvcc is needed at installation)",
    "emulated": "it is not built: python csrc/build.py emulated",
}
FOR_TESTS = ("emulated",)  # never chosen unless named


@dataclass(frozen=True)
class Explanation:
    """`chosen` backend (None if there is none) and each backend's reason for not running, or None."""

    problem: Problem
    chosen: str | None
    reasons: dict[str, str | None]

    def __str__(self) -> str:
        lines = [f"problem   {self.problem}"]
        for name, reason in self.reasons.items():
            verdict = "chosen" if name == self.chosen else "could run" if reason is None else f"no: {reason}"
            lines.append(f"{name:<9} {verdict}")
        return "\n".join(lines)


def explain(problem: Problem) -> Explanation:
    """Which backend `backend=None` would pick for the problem, and each other one's reason for not."""
    reasons = {name: refusal(name, problem) or _reserved(name, problem) for name in PREFERENCE}
    chosen = next((name for name, reason in reasons.items() if reason is None), None)
    return Explanation(problem, chosen, reasons)


def choose(problem: Problem, name: str | None = None) -> str:
    """The name of the backend that will run the problem.

    Raises:
        UnsupportedProblem: the named backend, or every one, refuses it.
        ValueError: there is no backend of that name.
    """
    if name is not None:
        if (reason := refusal(name, problem)) is not None:
            raise UnsupportedProblem(f"backend {name!r} cannot run [{problem}]: {reason}")
        return name
    for candidate in PREFERENCE:
        if _reserved(candidate, problem) is None and refusal(candidate, problem) is None:
            return candidate
    raise UnsupportedProblem(f"no backend can run this problem\n{explain(problem)}")


def refusal(name: str, problem: Problem) -> str | None:
    """Why the named backend cannot run the problem, or None."""
    if name not in PREFERENCE + FOR_TESTS:
        raise ValueError(f"backend must be None or one of {', '.join(PREFERENCE)}, got {name!r}")
    if name == "reference":
        return None
    module = load(name)
    return module if isinstance(module, str) else module.refuses(problem)


@cache
def load(name: str) -> ModuleType | str:
    """The backend's module, imported on first use; a sentence if it cannot be imported here."""
    try:
        return importlib.import_module(f"attnkern.backends.{name}")
    except ImportError as error:
        return NOT_BUILT.get(name) or f"{error.name or error} is not installed"


def _reserved(name: str, problem: Problem) -> str | None:
    """Why a backend that could run the problem is not chosen unless named."""
    if name == "triton" and problem.device == "cpu":
        return "on a CPU it is Triton's interpreter, for tests; runs when named"
    if name == "cuda" and problem.len_q <= FEWEST_ROWS and problem.kind in ("global", "local"):
        return "Triton divides the keys of so few queries among programs; runs when named"
    if name == "cuda" and (problem.mask or problem.softcap or problem.dropout_p or problem.center):
        return "with a mask, softcap, dropout or learned centres it has not been timed against Triton; runs when named"
    return None
