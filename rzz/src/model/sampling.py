"""Texts that a trained model generates: samples for many zeros, and all there is to say of a single one.

    predictions = sampled_predictions(model, dataset, runs=10, top_p=0.9, seed=1)      # (N, 10), NaN if unreadable
    prediction = predict(model, [11_000_000], runs=10, top_p=0.9, seed=1)[0]           # samples, text, probabilities
    prediction_record(prediction, true=None, training_range=(1, 10_999_999))           # what predict.py --json prints
"""

from dataclasses import dataclass

import numpy as np
import torch

from common.devices import derive_seed
from model.tokenizer import END, PAD, SCALE, decode, encode, encode_prompts, parse_value, vocabulary
from transformer import evaluating, generate
from zeta.riemann_siegel import mean_spacing, smooth_zeros

GENERATION_BATCH = 1024  # zeros × runs generated at a time; bounds the memory of keys and values
MIN_PROBABILITY = 0.001  # of a character that prediction_record lists


def sampled_texts(model, indexes, runs, top_p, seed, written=None):
    """Return for each of `indexes` a list of `runs` texts that the model generates after 'b<i>:', cut after the first 'e'.

    Nucleus sampling with `top_p`; 0 is greedy. What is drawn depends on the seed and on the numbers of indexes and runs. written:
    is called with the number of zeros whose texts have just been written.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed))
    return generate_texts(model, indexes, torch.rand(len(indexes), runs, model.config.context, generator=generator), top_p, written)


def generate_texts(model, indexes, uniforms, top_p, written=None):
    """The same, drawn with `uniforms` (zeros, runs, context), random numbers in [0, 1)."""
    indexes, runs = np.asarray(indexes, np.int64), uniforms.shape[1]
    texts = [None] * len(indexes)
    for positions, prompts in encode_prompts(indexes):
        batches = min(len(positions), -(-len(positions) * runs // GENERATION_BATCH))
        for batch in np.array_split(np.arange(len(positions)), batches):
            zeros = positions[batch]
            rows = generate(model, torch.from_numpy(prompts[batch]), torch.from_numpy(indexes[zeros]), uniforms[zeros], top_p, END)
            for zero, row_runs in zip(zeros, rows.tolist(), strict=True):
                texts[zero] = [up_to_end(row) for row in row_runs]
            if written:
                written(len(batch))
    return texts


def up_to_end(row):
    """Return the text of a row of token ids up to its first 'e', or all of it if there is none."""
    return decode(row[: row.index(END) + 1] if END in row else row)


def sampled_predictions(model, dataset, runs, top_p, seed, written=None):
    """Return the number that the model generates for each zero as float64 (zeros, runs), NaN if it is not a number."""
    texts = sampled_texts(model, dataset.indexes, runs, top_p, seed, written)
    return np.array([[parse_value(text) for text in row] for row in texts], np.float64)  # NaN for None


@dataclass
class Prediction:
    """What a model says of one zero."""

    index: int
    samples: list[float | None]  # by nucleus sampling, None for a text that is not a number; empty if nothing was sampled
    text: str  # 'b<i>:…e', the most probable character at each position
    probabilities: np.ndarray  # float64 (characters of `text` after ':', vocabulary): the distributions they were taken from


def predict(model, indexes, runs, top_p, seed):
    """Return the Prediction of each of `indexes`; runs = 0 samples nothing.

    The random numbers behind a zero's samples depend on the seed and its index, so they are the same whatever else is asked.
    """
    context = model.config.context
    generators = [torch.Generator().manual_seed(derive_seed(seed, index)) for index in indexes]
    uniforms = torch.stack([torch.rand(runs, context, generator=generator) for generator in generators])
    sampled = generate_texts(model, indexes, uniforms, top_p) if runs else [[]] * len(indexes)
    samples = [[parse_value(text) for text in texts] for texts in sampled]
    greedy_texts = [text for (text,) in generate_texts(model, indexes, torch.zeros(len(indexes), 1, context), 0.0)]
    probabilities = character_probabilities(model, indexes, greedy_texts)
    return [Prediction(*fields) for fields in zip(indexes, samples, greedy_texts, probabilities, strict=True)]


def character_probabilities(model, indexes, texts):
    """Return for each of `texts`, 'b<i>:…', float64 (characters, vocabulary): each character after ':' given those before it."""
    rows = np.full((len(texts), model.config.context), PAD, np.uint8)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = encode(text)
    device = model.head.weight.device
    with evaluating(model):
        features = model.features(rows, np.asarray(indexes, np.int64))
        probabilities = model(torch.from_numpy(rows).to(device).long(), features).cpu().double().softmax(-1).numpy()
    return [distributions[text.index(":") : len(text) - 1] for distributions, text in zip(probabilities, texts, strict=True)]


def prediction_record(prediction, true, training_range):
    """Return what there is to say of one zero as a dictionary of plain types; predict.py describes its keys.

    true: the zero's value in ten-thousandths, or None. training_range: (first, last) index that the model was trained on.
    """
    samples, true = prediction.samples, None if true is None else true / SCALE
    readable = [sample for sample in samples if sample is not None]
    greedy = None if samples else parse_value(prediction.text)
    value = float(np.mean(readable)) if readable else greedy
    error = None if value is None or true is None else value - true
    smooth = float(smooth_zeros(prediction.index))
    spacing = float(mean_spacing(smooth))
    return {
        "index": prediction.index, "predicted": value, "spread": float(np.std(readable)) if len(readable) > 1 else None,
        "samples": samples, "text": prediction.text,
        "probabilities": [  # {character: probability}, the most probable one first
            {vocabulary[token]: round(float(p[token]), 6) for token in np.argsort(-p, kind="stable") if p[token] >= MIN_PROBABILITY}
            for p in prediction.probabilities
        ],
        "smooth_count": smooth, "mean_spacing": spacing,
        "true": true, "error": error, "error_in_spacings": None if error is None else error / spacing,
        "trained_on": training_range[0] <= prediction.index <= training_range[1],
    }
