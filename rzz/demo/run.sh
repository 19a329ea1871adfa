#!/usr/bin/env bash
# The whole pipeline in minutes, on real zeros: tune, train, evaluate, with everything in rzz/demo/run.
# Interrupted, it goes on where it stopped when run again; remove rzz/demo/run to begin again.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/../environment.sh" requirements.txt

mkdir -p "$here/run"
[ -f "$here/run/config.json" ] || cp "$here/config.json" "$here/run/config.json"
"$python" "$here/../src/tune_hyper_parameters.py" --config "$here/run/config.json"
"$python" "$here/../src/train.py" --config "$here/run/config.json" --resume
"$python" "$here/../src/evaluate.py" --config "$here/run/config.json"
if "$python" -c "import matplotlib" 2>/dev/null; then
    "$python" "$here/../src/report.py" --config "$here/run/config.json"
fi
