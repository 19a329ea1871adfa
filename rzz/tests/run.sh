#!/usr/bin/env bash
# All tests, in the virtual environment .venv, which is made if there is none. Arguments go to pytest: -k checkpoint
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/../environment.sh" requirements.txt rzz/tests/requirements.txt

cd "$here"
"$python" -m pytest -q "$@"
