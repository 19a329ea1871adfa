#!/usr/bin/env bash
# The trainings behind rzz/results.md: every index embedding at every scale, three seeds each, one after the other on one
# core, with the model and settings of rzz/study/config.json. Finished ones are not done again; interrupted ones go on.
#
#   bash rzz/study/run.sh                        # all: about two hours on one core of an Intel Xeon
#   bash rzz/study/run.sh 10000 waves 1          # one scale, one embedding, one seed
#   bash rzz/study/run.sh 10000 waves 1 "--set model.d_model=64"        # with other settings, in a folder of its own
#
# Scales: 10000 and 50000 are the sizes of ten intervals from the beginning. "height" is ten intervals of 10,000 zeros that
# end where the default test set begins, at zero 11,000,000. Done only where they are asked for: "bfloat16", which is 10000 with
# products in bfloat16, and "full", which is K = 10 intervals of a million, an hour and more each.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/../environment.sh" requirements.txt

for scale in ${1:-10000 50000 height}; do
    case $scale in
        10000) data="--set data.interval_size=10000 --set training.epochs=3" ;;
        50000) data="--set data.interval_size=50000 --set training.epochs=1" ;;
        bfloat16) data="--set data.interval_size=10000 --set training.epochs=3 --set training.precision=bfloat16" ;;
        height) data="--set data.interval_size=10000 --set training.epochs=3 --set data.first_round=1090 --set data.K=1099" ;;
        full) data="--set data.interval_size=1000000 --set training.epochs=1 --set training.batch_size=128
                    --set training.warmup_steps=200 --set training.checkpoint_interval=2000" ;;
        *) echo "There is no scale $scale; use 10000, 50000, height, bfloat16 or full." >&2; exit 2 ;;
    esac
    for embedding in ${2:-digits place smooth primes waves}; do
        for seed in ${3:-1 2 3}; do
            run="$here/runs/${4:+${4//[^a-z0-9=]/}_}${scale}_${embedding}_${seed}"
            [ -f "$run/logs/evaluation.json" ] && continue
            mkdir -p "$run"
            cp "$here/config.json" "$run/config.json"
            settings="$data --set model.index_embedding=$embedding --set training.seed=$seed ${4:-}"
            echo "$scale zeros an interval, $embedding, seed $seed"
            "$python" "$here/../src/train.py" --config "$run/config.json" $settings --resume 2>"$run/train.txt"
            "$python" "$here/../src/evaluate.py" --config "$run/config.json" $settings >"$run/table.txt" 2>>"$run/train.txt"
        done
    done
done
