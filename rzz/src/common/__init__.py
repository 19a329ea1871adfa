"""What every package needs and none is about: settings, devices, files, logs, processes, command line, text.

Every script imports it before all that is not Python's own: what has to hold while torch is being imported stands here.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from common.signals import exit_on_ctrl_c

VERSION = "1.0.0"  # of rzz; checkpoints keep it
ROOT = Path(__file__).resolve().parents[3]  # of the project, with requirements.txt


def open_closed_streams():
    """Let standard streams that are closed (`2>&-`) lead nowhere: else the next file opened would become standard error."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)
            setattr(sys, name, open(descriptor, "r" if name == "stdin" else "w", encoding="utf-8", errors="replace"))


def require_packages():
    """End the script with a line that says how to get the packages that are missing, if there are any."""
    missing = [name for name in ("torch", "numpy", "mpmath", "tqdm") if find_spec(name) is None]
    if not missing:
        return
    environment = ROOT / ".venv"
    python = environment / "bin" / "python"
    if python.exists() and Path(sys.prefix).resolve() != environment.resolve():
        advice = f"run this with {python}"
    else:
        advice = f"{sys.executable} -m pip install -r {ROOT / 'requirements.txt'}"
    print(f"Not installed for {sys.executable}: {', '.join(missing)}; {advice}", file=sys.stderr)
    sys.exit(2)


exit_on_ctrl_c()
open_closed_streams()
require_packages()
