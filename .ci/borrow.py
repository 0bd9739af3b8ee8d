"""Lets a virtual environment see the packages of the Python that runs this, and this checkout.

`venv --system-site-packages` would not do: where that Python is itself in a virtual environment, it
shows the packages of the one below.
"""

import site
import sys
from pathlib import Path

checkout = Path(__file__).resolve().parent.parent
(packages,) = Path(sys.argv[1]).glob("lib/python*/site-packages")
borrowed = [folder for folder in (*site.getsitepackages(), site.getusersitepackages()) if Path(folder).is_dir()]
lines = [f"import site; site.addsitedir({folder!r})" for folder in borrowed]
(packages / "borrowed.pth").write_text("\n".join([str(checkout), *lines, ""]))
