# Sourced by rzz/demo/run.sh and rzz/tests/run.sh: makes .venv at the root of the project if there is none, installs
# the requirements files named in the arguments, and sets `python` to its interpreter. PYTHON chooses what .venv is made of.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python="$root/.venv/bin/python"

if [ ! -x "$python" ]; then
    base=${PYTHON:-python3}
    if ! command -v "$base" >/dev/null; then
        echo "There is no $base here; install Python 3.10 or newer, or name one: PYTHON=/path/to/python3 bash $0" >&2
        exit 2
    fi
    if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        echo "rzz needs Python 3.10 or newer, but $base is $("$base" -V 2>&1); name another: PYTHON=python3.12 bash $0" >&2
        exit 2
    fi
    # A machine that has torch already, such as Colab, keeps its own.
    site=$("$base" -c 'import importlib.util as u; print("--system-site-packages" if u.find_spec("torch") else "")')
    echo "Making $root/.venv" >&2
    if ! "$base" -m venv $site "$root/.venv"; then
        rm -rf "$root/.venv"
        echo "$base cannot make a virtual environment; on Debian and Ubuntu: sudo apt install python3-venv" >&2
        exit 2
    fi
fi
for requirements in "$@"; do
    "$python" -c "import torch" 2>/dev/null ||
        echo "Installing $requirements: some minutes, 1 GB on the disk, more where torch brings CUDA" >&2
    if ! "$python" -m pip install --quiet --disable-pip-version-check -r "$root/$requirements"; then
        echo "Installing $requirements failed; mend what pip says above and run bash $0 again." >&2
        exit 2
    fi
done
