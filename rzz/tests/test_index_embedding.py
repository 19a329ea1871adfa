"""What the model is told about the index is the formula it claims to be, computed here digit by digit with mpmath."""

import dataclasses

import mpmath
import numpy as np
import pytest
import torch
from conftest import batch_of

from common.config import Config, ModelConfig, TrainingConfig, UserError
from data_utils import RiemannZerosDataset
from model.index_embedding import (
    KINDS,
    LOWEST,
    NEXT_IS_END,
    NEXT_IS_POINT,
    NOTHING_LEFT,
    IndexEmbedding,
    PartCost,
    PlaceValue,
    SmoothCount,
    describe_embedding,
    phases_of,
    position_from_colon,
    primes_up_to,
    residual_features,
)
from model.network import build_model, parameter_count
from model.tokenizer import encode, row_text
from training.optimizer import make_optimizer, training_step
from tuning.cost import parameters_of
from tuning.grid import key_of, trial_key_settings


def tokens_of(*texts):
    width = max(map(len, texts))
    return np.array([encode(text.ljust(width, "p")) for text in texts], np.uint8)


def codes(text, smooth):
    code, _, _, distance = residual_features(tokens_of(text), np.array([smooth]))[:4]
    return code[0].tolist(), distance[0]


def test_places_count_back_from_the_colon_for_the_index_and_forward_for_the_value():
    positions = position_from_colon(tokens_of("b10:49.7738e", "b345:1.0000e"))
    assert positions[0].tolist() == [29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40]
    assert positions[1].tolist()[:5] == [28, 29, 30, 31, 32]


def test_what_is_left_is_the_next_digit_of_the_smooth_count_while_the_value_follows_it():
    code, distance = codes("b10:49.7738e", 49.773851)
    nothing = [NOTHING_LEFT] * 3
    assert code[:3] == nothing
    assert [c + LOWEST for c in code[3:5]] == [4, 9]
    assert code[5] == NEXT_IS_POINT
    assert [c + LOWEST for c in code[6:10]] == [7, 7, 3, 8]
    assert code[10] == NEXT_IS_END
    assert distance[3, 0] == pytest.approx(0.9773851, abs=1e-6)
    assert distance[9, 0] == pytest.approx(0.51, abs=1e-6)


@pytest.mark.parametrize("text, expected", [
    # 33190.0 by the formula; the model wrote 3318 and must go on with 9 and a carry: 9.97 -> 10 tenths left of 33189.
    ("b99:33189.", 10),
    ("b99:33190.", 0),
    ("b99:33191.", -2),
])  # fmt: skip
def test_a_carry_shows_as_a_digit_beyond_nine_or_below_zero(text, expected):
    code, _ = codes(text, 33190.0512)
    assert code[-1] + LOWEST == expected


@pytest.mark.parametrize("text, smooth, digit, other, spacings", [
    ("b99:818", 81889.9634, 8, 9, 0.0366),  # the ninth ten begins 0.0366 further on
    ("b99:818", 81880.0366, 8, 7, 0.0366),
    ("b99:818", 81883.0, 8, 7, 3.0),
    ("b99:81889.", 81889.9634, 9, 10, 0.0366),
    ("b99:81890.", 81889.9634, -1, 0, 0.0366),
])  # fmt: skip
def test_the_digit_across_the_nearer_multiple_is_told_with_how_possible_it_is(text, smooth, digit, other, spacings):
    code, across, weight = residual_features(tokens_of(text), np.array([smooth]))[:3]
    assert (int(code[0, -1]) + LOWEST, int(across[0, -1]) + LOWEST) == (digit, other)
    spacing = 2 * np.pi / np.log(smooth / (2 * np.pi))
    assert weight[0, -1] == pytest.approx(max(0, 1 - spacings / spacing / 2), abs=1e-5)


def test_distances_are_in_mean_spacings_of_the_zeros():
    smooth = 33190.25
    spacing = float(2 * mpmath.pi / mpmath.log(smooth / (2 * mpmath.pi)))
    _, distance = codes("b99:3318", smooth)  # u = 10.25 units: 0.25 above the tenth of them, 0.75 below the eleventh
    assert distance[-1] == pytest.approx([0.25, 1, 0.25 / spacing / 8, 0.75 / spacing / 8], rel=1e-5)
    _, distance = codes("b99:33189.", smooth)  # u = 12.5 tenths
    assert distance[-1] == pytest.approx([0.5, 1.25 / spacing / 8, 0.05 / spacing / 8, 0.05 / spacing / 8], rel=1e-5)


def test_a_point_that_comes_earlier_or_later_than_the_formula_has_it_sets_the_true_places():
    for text, smooth, left in (("b9:1000.", 999.98, -0.02), ("b9:999.", 1000.03, 1.03)):
        code, distance = codes(text, smooth)
        assert code[-1] + LOWEST == max(-2, int(np.floor(left * 10)))
        spacing = 2 * np.pi / np.log(smooth / (2 * np.pi))
        assert distance[-1, 1] * 8 == pytest.approx(left / spacing, rel=1e-3)


def test_columns_from_start_are_the_last_columns_of_all():
    tokens = tokens_of(row_text(10, 497738), row_text(1234, 16543210))
    smooth = np.array([50.2, 1655.0])
    for start in (1, 7, 20):
        for whole, part in zip(residual_features(tokens, smooth), residual_features(tokens, smooth, start), strict=True):
            assert (whole[:, start:] == part).all()


def test_prime_phases_keep_their_digits_at_great_height():
    height, primes = 5453351.123456, primes_up_to(1000)
    assert len(primes) == 168 and primes[-1] == 997
    with mpmath.workdps(30):
        exact = [mpmath.frac(mpmath.mpf(height) * mpmath.log(int(p)) / (2 * mpmath.pi)) for p in primes]
    found = phases_of(np.array([height]), primes)[0]
    assert np.abs(found - np.array(exact, float)).max() < 1e-7


class Parity(torch.nn.Module):
    """A part as somebody may write it."""

    description = "whether it is odd"

    def __init__(self, settings):
        super().__init__()
        self.parity = torch.nn.Embedding(2, settings.d_model)

    def features(self, rows):
        return {"parity": torch.from_numpy(rows.indexes % 2)}

    def forward(self, features):
        return [self.parity(features["parity"])[:, None]]

    @staticmethod
    def cost(settings, T):
        return PartCost(2 * settings.d_model)


def test_a_new_kind_is_a_class_and_a_line(monkeypatch):
    monkeypatch.setitem(KINDS, "parity", (PlaceValue, SmoothCount, Parity))
    settings = ModelConfig(d_model=16, num_layers=1, num_heads=2, index_embedding="parity")
    zeros = RiemannZerosDataset([10, 11], [497738, 529703])
    model = build_model(settings, seed=1)
    assert parameter_count(model) == parameters_of(settings)
    assert describe_embedding(settings).endswith("where the smooth count puts the zero, whether it is odd")
    before = model.position_embedding.parity.weight.detach().clone()
    training_step(model, make_optimizer(model, TrainingConfig()), batch_of(model, zeros, 2), 1e-2, 1.0, (1, 0))
    assert (model.position_embedding.parity.weight != before).any(1).all()  # both rows were looked up, and learned
    assert "position_embedding.parity.weight" in model.state_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_the_vectors_of_a_kind_are_the_sum_of_those_of_its_parts(kind):
    embedding = IndexEmbedding(ModelConfig(d_model=8, index_embedding=kind, max_prime=10))
    features = embedding.prepare(embedding.features(tokens_of("b10:49.7738e", "b12:56.4462e"), np.array([10, 12])))
    vectors = [vector.expand(2, 12, 8) for part in embedding.parts for vector in part(features)]
    torch.testing.assert_close(embedding(features), torch.stack(vectors).sum(0))
    assert {id(p) for part in embedding.parts for p in part.parameters()} == {id(p) for p in embedding.parameters()}


def test_a_kind_that_there_is_not_is_an_error_of_one_line():
    with pytest.raises(UserError, match="'prime', not one of digits, place, smooth, primes"):
        build_model(dataclasses.replace(ModelConfig(), index_embedding="prime"), seed=1)


class Loose(torch.nn.Module):
    """A part whose parameter stands outside of a module of its own name."""

    def __init__(self, settings):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(settings.d_model))


@pytest.mark.parametrize("parts, says", [((PlaceValue, Loose), "in modules"), ((PlaceValue, PlaceValue), "two parts")])
def test_parts_that_would_not_be_trained_or_saved_are_found_at_once(monkeypatch, parts, says):
    monkeypatch.setitem(KINDS, "odd", parts)
    with pytest.raises(AssertionError, match=says):
        IndexEmbedding(ModelConfig(index_embedding="odd"))


def test_trials_of_a_new_kind_with_phases_differ_by_their_primes(monkeypatch):
    monkeypatch.setitem(KINDS, "more", (*KINDS["primes"], Parity))
    for kind, keys in (("more", 2), ("primes", 2), ("smooth", 1)):
        models = [ModelConfig(index_embedding=kind, max_prime=limit) for limit in (100, 1000)]
        assert len({key_of(trial_key_settings(Config(model=model))) for model in models}) == keys
