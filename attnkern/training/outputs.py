"""Pictures."""

from pathlib import Path
from typing import TYPE_CHECKING

from attnkern.atomic import written

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def has_matplotlib() -> bool:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def new_figure(path: Path, width: float, height: float) -> "Figure | None":
    """Of that many inches, to draw on; None, and a line that says so, where matplotlib is not installed."""
    if not has_matplotlib():
        print(f"not drawn: {path} needs matplotlib (pip install matplotlib)")
        return None
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: Path) -> None:
    """Appears whole or not at all, and says where."""
    with written(path) as draft:
        figure.savefig(draft, dpi=110)
    print(f"drawn: {path}")
