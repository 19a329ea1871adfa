#!/usr/bin/env bash
# All tests, in the virtual environment .venv, which is made if there is none. Arguments go to pytest: -k checkpoint
# RZZ_TEST_DEVICE=cuda (or mps) before it runs the stages and the stacks there instead of on the CPU.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/../environment.sh" requirements.txt rzz/tests/requirements.txt

cd "$here"
"$python" -m pytest -q -n 2 --dist loadfile "$@"  # -n 0: in one process, as --pdb needs it
