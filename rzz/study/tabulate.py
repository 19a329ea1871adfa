"""The tables of rzz/results.md from the runs of rzz/study/run.sh: one line a scale and embedding, over all seeds; then the
curves of the models that see digits alone, and those of bfloat16 beside float32.

    .venv/bin/python rzz/study/tabulate.py
"""

import json
from pathlib import Path

import numpy as np

RUNS = Path(__file__).resolve().parent / "runs"
SCALES = ("10000", "50000", "height", "full", "bfloat16")
EMBEDDINGS = ("digits", "place", "smooth", "primes", "waves")
HEADER = ("embedding", "seeds", "MSE, sampled", "over the smooth count's", "of the seeds", "MSE, mean of 10 runs",
          "over the smooth count's", "median error, spacings", "nats/zero", "readable")  # fmt: skip


def main():
    for scale in SCALES:
        found = {embedding: results(scale, embedding) for embedding in EMBEDDINGS}
        some = next((runs[0] for runs in found.values() if runs), None)
        if some is None:
            continue
        smooth = some["baselines"]["smooth count"]["mse"]
        others = ", ".join(f"of the {name} {baseline['mse']:.4g} ({baseline['mse'] / smooth:.3g}×)"
                           for name, baseline in some["baselines"].items() if name != "smooth count")  # fmt: skip
        print(f"\n**{scale}**: test zeros {some['first_index']:,} … {some['last_index']:,}; MSE of the smooth count {smooth:.4g}, "
              f"{others}\n")
        print("| " + " | ".join(HEADER) + " |\n|" + "---|" * len(HEADER))
        for embedding, runs in found.items():
            if runs:
                print("| " + " | ".join((f"`{embedding}`", str(len(runs)), *cells(runs))) + " |")

    print_curves("MSE on the validation sample", "mse_validation", ".1e", SCALES[:-1], ("digits", "place"))
    print_curves("Nats per token on the validation sample", "loss", ".4f", ("10000", "bfloat16"), ("digits", "primes"))


def print_curves(title, key, form, scales, embeddings):
    curves = {(scale, embedding): curve(scale, embedding, key) for scale in scales for embedding in embeddings}
    if not any(map(len, curves.values())):
        return
    print(f"\n{title} at the end of each round, median of the seeds\n")
    print("| scale, embedding | " + " | ".join(map(str, range(1, 11))) + " |\n|" + "---|" * 11)
    for (scale, embedding), rounds in curves.items():
        if len(rounds):
            print(f"| {scale}, `{embedding}` | " + " | ".join(f"{value:{form}}" for value in rounds) + " |")


def curve(scale, embedding, key):
    """Return the median over the seeds of the last `key` of each round; infinite where there is none."""
    seeds = []
    for path in sorted(RUNS.glob(f"{scale}_{embedding}_*/logs/evaluation.json")):
        lines = [json.loads(line) for line in path.with_name("training.jsonl").read_text().splitlines()]
        last = {line["round"]: line[key] for line in lines if line["kind"] == "validation"}
        seeds.append([np.inf if value is None else value for _, value in sorted(last.items())])
    return np.median(seeds, axis=0) if seeds else []


def results(scale, embedding):
    """Return the evaluation of every seed that has one; a measure is infinite where nothing was readable."""
    paths = sorted(RUNS.glob(f"{scale}_{embedding}_*/logs/evaluation.json"))
    found = [json.loads(path.read_text()) for path in paths]
    return [{key: np.inf if value is None else value for key, value in run.items()} for run in found]


def cells(runs):
    def mean(key):
        return np.mean([run[key] for run in runs])

    smooth = runs[0]["baselines"]["smooth count"]["mse"]
    each = ", ".join(f"{run['mse'] / smooth:.3g}" for run in runs)
    return (f"{mean('mse'):.3g}", f"{mean('mse') / smooth:.3g}×", each, f"{mean('mse_of_mean_prediction'):.3g}",
            f"{mean('mse_of_mean_prediction') / smooth:.3g}×", f"{mean('median_error_in_spacings'):.3g}",
            f"{mean('nats_per_zero'):.2f}", f"{mean('readable'):.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
