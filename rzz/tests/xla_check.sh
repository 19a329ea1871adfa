#!/usr/bin/env bash
# Training, resuming and evaluation under torch_xla, without a TPU: XLA compiles for the CPU. Makes a virtual environment
# .venv-xla of its own at the root of the project, since torch_xla wants its own version of torch (7 GB, some minutes).
#
#   bash rzz/tests/xla_check.sh
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
environment="$here/../../.venv-xla"
[ -x "$environment/bin/python" ] || "${PYTHON:-python3}" -m venv "$environment"
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.9.0 torch_xla==2.9.0 mpmath numpy tqdm pytest
cd "$here"
PJRT_DEVICE=CPU "$environment/bin/python" -m pytest test_xla.py "$@"
