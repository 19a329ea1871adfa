#!/usr/bin/env bash
# The whole pipeline in minutes, on real zeros: tune, train, evaluate, with everything in rzz/demo/run.
# Interrupted, it goes on where it stopped when run again; remove rzz/demo/run to begin again.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/../environment.sh" requirements.txt

src="$root/rzz/src" config="$here/run/config.json"
mkdir -p "$here/run"
[ -f "$config" ] || cp "$here/config.json" "$config"
echo "1/3 tune: which sizes and rates learn best, on the first 10,000 zeros" >&2
"$python" "$src/tune_hyper_parameters.py" --config "$config"
echo "2/3 train: ten rounds of 10,000 zeros" >&2
"$python" "$src/train.py" --config "$config" --resume
echo "3/3 evaluate: the 1,000 zeros after them, which the model has never seen" >&2
"$python" "$src/evaluate.py" --config "$config"
if "$python" -c "import matplotlib" 2>/dev/null; then
    report=$("$python" "$src/report.py" --config "$config" --quiet)
else
    report="${python#"$PWD/"} -m pip install matplotlib; ${python#"$PWD/"} ${src#"$PWD/"}/report.py --config ${config#"$PWD/"}"
fi
cat >&2 <<END

What next, from $PWD:
  a zero, which the model has not seen
    ${python#"$PWD/"} ${src#"$PWD/"}/predict.py --config ${config#"$PWD/"} 110500
  the report, a page with all pictures
    ${report#"$PWD/"}
  your own run, of ten million zeros; its settings are in rzz/config.json
    ${python#"$PWD/"} ${src#"$PWD/"}/train.py --resume
END
