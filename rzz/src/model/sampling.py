"""What a trained model writes: texts by nucleus sampling, predictions of many zeros, and all there is to say of a single one.

    predictions = sampled_predictions(model, dataset, runs=10, top_p=0.9, seed=1)      # (N, 10), NaN if unreadable
    prediction = predict(model, [11_000_000], runs=10, top_p=0.9, seed=1)[0]
    prediction.value, prediction.spread          # mean and standard deviation of the samples
"""

from dataclasses import dataclass

import numpy as np
import torch

from common.devices import derive_seed
from model.tokenizer import END, PAD, SCALE, decode, encode, encode_prompts, parse_value, vocabulary
from transformer import evaluating, generate, on_device
from zeta.riemann_siegel import mean_spacing, smooth_zeros

GENERATION_BATCH = 1024  # zeros × runs written at a time; bounds the memory of keys and values


def sampled_texts(model, indexes, runs, top_p, seed):
    """Return for each of `indexes` a list of `runs` texts that the model writes after 'b<i>:', cut after the first 'e'.

    Nucleus sampling with `top_p`; 0 is greedy. What is drawn depends on the seed and on the numbers of indexes and runs.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed))
    return written_texts(model, indexes, torch.rand(len(indexes), runs, model.config.context, generator=generator), top_p)


def written_texts(model, indexes, uniforms, top_p):
    """The same, drawn with `uniforms` (zeros, runs, context), random numbers in [0, 1)."""
    runs = uniforms.shape[1]
    texts = [None] * len(indexes)
    for positions, prompts in encode_prompts(indexes):
        for part in np.array_split(np.arange(len(positions)), -(-len(positions) * runs // GENERATION_BATCH)):
            chosen = positions[part]
            rows = generate(model, torch.from_numpy(prompts[part]), torch.from_numpy(np.asarray(indexes)[chosen]),
                            uniforms[chosen], top_p, END)
            for position, row_runs in zip(chosen, rows.tolist(), strict=True):
                texts[position] = [up_to_end(row) for row in row_runs]
    return texts


def up_to_end(row):
    """Return the text of a row of token ids up to its first 'e', or all of it where there is none."""
    return decode(row[: row.index(END) + 1] if END in row else row)


def sampled_predictions(model, dataset, runs, top_p, seed):
    """Return what the model writes for each zero as float64 (zeros, runs), NaN where it is not a number."""
    texts = sampled_texts(model, dataset.indexes, runs, top_p, seed)
    values = [[parse_value(text) for text in row] for row in texts]
    return np.array([[np.nan if value is None else value for value in row] for row in values], np.float64)


SHOWN = 0.001  # probability from which a character is told


@dataclass
class Prediction:
    """What a model says of one zero.

    samples: what it wrote by nucleus sampling, None where that is no number; empty where nothing was sampled.
    text: 'b<i>:…e', the most probable character at each place. probabilities: float64 (characters of the text after ':',
    vocabulary), the distribution from which each of them was taken.
    """

    index: int
    samples: list[float | None]
    text: str
    probabilities: np.ndarray

    @property
    def readable(self):
        return [sample for sample in self.samples if sample is not None]

    @property
    def value(self):
        """The mean of the readable samples, or the number in `text` where nothing was sampled; None where there is none."""
        if not self.samples:
            return parse_value(self.text)
        return float(np.mean(self.readable)) if self.readable else None

    @property
    def spread(self):
        """The standard deviation of the readable samples; None where there are fewer than two."""
        return float(np.std(self.readable)) if len(self.readable) > 1 else None


def predict(model, indexes, runs, top_p, seed):
    """Return the Prediction of each of `indexes`; runs = 0 samples nothing.

    The random numbers behind a zero's samples depend on the seed and its index, so they are the same whatever else is asked.
    """
    context = model.config.context
    generators = [torch.Generator().manual_seed(derive_seed(seed, index)) for index in indexes]
    uniforms = torch.stack([torch.rand(runs, context, generator=generator) for generator in generators])
    sampled = written_texts(model, indexes, uniforms, top_p) if runs else [[]] * len(indexes)
    likeliest = [texts[0] for texts in written_texts(model, indexes, torch.zeros(len(indexes), 1, context), 0.0)]
    probabilities = character_probabilities(model, indexes, likeliest)
    return [Prediction(index, [parse_value(text) for text in texts], text, of_text)
            for index, texts, text, of_text in zip(indexes, sampled, likeliest, probabilities, strict=True)]  # fmt: skip


def character_probabilities(model, indexes, texts):
    """Return for each of `texts`, 'b<i>:…', the probabilities of every character after ':', given those before it.

    float64 (characters, vocabulary) each. One pass over all texts: no position sees a later one.
    """
    rows = np.full((len(texts), model.config.context), PAD, np.uint8)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = encode(text)
    device = model.head.weight.device
    features = on_device(model.position_embedding.features(rows, np.asarray(indexes, np.int64)), device)
    with evaluating(model):
        probabilities = model(torch.from_numpy(rows).to(device).long(), features).cpu().double().softmax(-1).numpy()
    return [given[text.index(":") : len(text) - 1] for given, text in zip(probabilities, texts, strict=True)]


def answer(prediction, true, trained):
    """Return what there is to say of one zero as a dictionary of plain types; predict.py describes its keys.

    true: the zero's value in ten-thousandths, or None. trained: (first, last) index that the model was trained on.
    """
    smooth = float(smooth_zeros(prediction.index))
    spacing = float(mean_spacing(smooth))
    value, true = prediction.value, None if true is None else true / SCALE
    error = None if value is None or true is None else value - true
    return {
        "index": prediction.index,
        "predicted": value,
        "spread": prediction.spread,
        "samples": prediction.samples,
        "text": prediction.text,
        "probabilities": [likeliest_first(given) for given in prediction.probabilities],
        "smooth_count": smooth,
        "mean_spacing": spacing,
        "true": true,
        "error": error,
        "error_in_spacings": None if error is None else error / spacing,
        "trained_on": trained[0] <= prediction.index <= trained[1],
    }


def likeliest_first(probabilities):
    """Return {character: probability} of those that are at least SHOWN, the most probable one first."""
    order = np.argsort(-probabilities, kind="stable")
    return {vocabulary[token]: round(float(probabilities[token]), 6) for token in order if probabilities[token] >= SHOWN}
