"""The picture of the readme: the first zeros that the demo was tested on, on the curve that is 0 there.

    .venv/bin/python rzz/demo/picture.py                # after rzz/demo/run.sh; writes rzz/demo/picture.png; needs matplotlib
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from common.cli import run_script
from common.config import UserError
from common.files import read_json_lines
from reporting.figures import can_draw
from reporting.sections import stretch_figures

HERE = Path(__file__).resolve().parent


def main():
    predictions = read_json_lines(HERE / "run" / "logs" / "predictions.jsonl")
    if not predictions or not can_draw():
        raise UserError("The picture shows a finished demo and needs matplotlib: bash rzz/demo/run.sh, bash rzz/tests/run.sh")
    (figure,) = stretch_figures(predictions)
    figure.drawing.savefig(HERE / "picture.png", dpi=110, facecolor="white")


if __name__ == "__main__":
    run_script(main)
