"""The sums at the boundaries of the next digit are those of their formulas, written out with complex numbers and mpmath."""

import mpmath
import numpy as np
import pytest
import torch

from common import devices
from common.config import ModelConfig
from model import waves
from model.index_embedding import NO_SLOT, Boundaries, IndexRows
from model.tokenizer import encode
from model.waves import FADE, SPLINES, STEPS, cubic_splines, prime_powers, primes_up_to
from zeta.riemann_siegel import smooth_zeros

TEXTS, INDEXES = ["b110000:81584.3634e", "b99999:74919.0", "b20010:18055.7"], [110_000, 99_999, 20_010]


def part_and_rows(texts=TEXTS, indexes=INDEXES):
    torch.manual_seed(1)
    tokens = np.array([encode(text.ljust(20, "p")) for text in texts], np.uint8)
    return Boundaries(ModelConfig(d_model=8, max_number=60, max_prime=30)), IndexRows(tokens, np.array(indexes), 0)


def heights(features, smooth):
    """The heights of all boundaries, float64 (B, boundaries)."""
    begin = [features[f"begin_{slot}"].double().numpy()[:, None] for slot in range(len(STEPS))]
    return smooth[:, None] + np.concatenate([each + steps for each, steps in zip(begin, STEPS, strict=True)], axis=1)


def test_the_boundaries_are_where_the_next_digit_would_change():
    part, rows = part_and_rows()
    features = part.features(rows)
    found = heights(features, smooth_zeros(rows.indexes))
    written = [(81580, 81584, 81584.3), (74910, 74919, 74919.0), (18050, 18055, 18055.7)]  # before units, tenths, hundredths
    for row, (units, tenths, hundredths) in enumerate(written):
        ten = round(rows.smooth[row] / 10) * 10
        ends = [units + np.arange(11), tenths + np.arange(11) / 10, hundredths + np.arange(11) / 100]
        np.testing.assert_allclose(found[row], np.concatenate([[ten - 1, ten, ten + 1], *ends]), atol=5e-6)
    slots = features["slot"][0].tolist()  # after each character of b110000:81584.3634e: which digit comes next
    assert slots == [NO_SLOT] * 7 + [0] * 4 + [1, NO_SLOT, 2, 3, 4, 5] + [NO_SLOT] * 3


def summed(part, features):
    """The channels of whole numbers and of prime powers, and r, at all boundaries."""
    prepared, waves = part.prepare(features), part.waves
    return waves.over_numbers(prepared["over_numbers"]), waves.over_powers(prepared["over_powers"]), prepared["above"]


def spline_basis(x, count):
    """The cubic B-splines over count − 3 equal intervals of [0, 1], by the recursion of Cox and de Boor; (count, N)."""
    knots = np.arange(-3, count + 1) / (count - 3)
    at = np.clip(x, 0, 1 - 1e-12)  # the recursion's intervals are open on the right
    basis = [((left <= at) & (at < right)).astype(float) for left, right in zip(knots, knots[1:], strict=False)]
    for degree in (1, 2, 3):
        basis = [(at - knots[i]) / (knots[i + degree] - knots[i]) * basis[i]
                 + (knots[i + degree + 1] - at) / (knots[i + degree + 1] - knots[i + 1]) * basis[i + 1]
                 for i in range(len(basis) - 1)]  # fmt: skip
    return np.array(basis)


@pytest.mark.parametrize("count", [4, 8, 11])
def test_the_splines_are_those_of_the_recursion(count):
    x = np.random.default_rng(1).random(100).tolist() + [0, 1]
    np.testing.assert_allclose(cubic_splines(x, count), spline_basis(x, count), atol=1e-9)


def test_both_sums_are_those_of_the_formula_at_every_boundary():
    part, rows = part_and_rows()
    features, waves = part.features(rows), part.waves
    t = heights(features, rows.smooth)
    with torch.no_grad():
        for seed, sums in enumerate((waves.over_numbers, waves.over_powers)):
            sums.weight.normal_(generator=torch.Generator().manual_seed(seed))
        turned, primes, above = (found.double().numpy() for found in summed(part, features))
    logs = np.log(waves.numbers)
    turns = np.exp(-1j * t[..., None] * logs)  # n^(−it), (B, boundaries, N)

    def splines(logs, weight):
        re, minus_im = np.split(weight.double().detach().numpy(), 2, axis=1)
        return spline_basis((logs - logs.min()) / np.ptp(logs), SPLINES).T @ (re - 1j * minus_im).T

    powers = waves.numbers[-waves.powers :]
    is_prime = np.isin(powers, primes_up_to(60))[:, None]
    weights = waves.over_powers.weight.view(-1, 2, 2, SPLINES).unbind(2)
    of_primes, of_higher = (splines(np.log(powers), weight.flatten(1)) for weight in weights)
    over_powers = turns[..., -waves.powers :] @ np.where(is_prime, of_primes, of_higher)
    np.testing.assert_allclose(primes, over_powers.real, atol=2e-3)
    density = np.log(rows.smooth / (2 * np.pi)) / (2 * np.pi)
    np.testing.assert_allclose(above[..., 0], (t - rows.smooth[:, None]) * density[:, None], atol=1e-5)
    edge = np.log(np.sqrt(rows.smooth / (2 * np.pi)))[:, None]
    share = 1 / (1 + np.exp(FADE * (logs[: waves.summed] - edge)))
    numbers = turns[..., : waves.summed] * share[:, None]
    over_numbers = numbers @ splines(logs[: waves.summed], waves.over_numbers.weight) * np.exp(1j * np.pi * above)
    np.testing.assert_allclose(turned, over_numbers.real, atol=5e-3)


def test_rows_are_summed_in_pieces_of_any_size(monkeypatch):
    part, rows = part_and_rows()
    whole = part.prepare(part.features(rows))
    monkeypatch.setattr(devices, "CACHED_FLOATS", 250)  # two rows
    in_pieces = part.prepare(part.features(rows))
    assert whole.keys() == in_pieces.keys() and "phase" not in whole
    for name, feature in whole.items():
        torch.testing.assert_close(in_pieces[name], feature, rtol=0, atol=1e-5)


def test_with_the_weights_of_the_riemann_siegel_formula_the_turned_sum_is_z(monkeypatch):
    """What training has to find: c(n) = n^(−1/2), cut at √(t/2π). Z(t) = 2 Re e^{iθ(t)} Σ n^(−1/2−it), and θ(γ̄) = π(i − 3/2)."""
    monkeypatch.setattr(waves, "FADE", 2000)
    part, rows = part_and_rows(["b20010:18055.7"], [20_010])
    features = part.features(rows)
    numbers = np.arange(1, 61)
    basis = spline_basis(np.log(numbers) / np.log(60), SPLINES)
    coefficients = np.linalg.lstsq(basis.T, numbers**-0.5, rcond=None)[0]
    np.testing.assert_allclose(coefficients @ basis, numbers**-0.5, rtol=3e-4)
    with torch.no_grad():
        part.waves.over_numbers.weight.zero_()[0, SPLINES:] = torch.tensor(coefficients)
        turned = summed(part, features)[0][0]
    found = -2 * turned[:, 0].double().numpy()  # the index is even: e^{iθ(γ̄)} = i, and Re iG = −Im G
    expected = np.array([float(mpmath.siegelz(t)) for t in heights(features, rows.smooth)[0]])
    remainder = (rows.smooth[0] / (2 * np.pi)) ** -0.25
    assert np.abs(found - expected).max() < remainder < 0.2 * np.abs(expected).max()
    large = np.abs(expected) > remainder
    assert large.sum() > 20 and (np.sign(found) == np.sign(expected))[large].all()


@pytest.mark.parametrize("faintest, found", [(waves.FAINTEST, False), (-1e9, True)])
def test_heights_that_the_window_hides_leave_no_subnormal_gradients(monkeypatch, faintest, found):
    monkeypatch.setattr(waves, "FAINTEST", faintest)
    part, rows = part_and_rows(TEXTS[:1] * 300, INDEXES[:1] * 300)
    features = part.features(rows)
    features |= {f"begin_{slot}": torch.linspace(-6, 6, 300) for slot in range(len(STEPS))}
    sums = []
    part.waves.over_numbers.register_forward_hook(lambda module, inputs, output: sums.append(output))
    vectors, _ = part.waves(part.prepare(features))
    gradients = torch.autograd.grad(vectors.square().sum(), sums)
    assert any(((0 < each.abs()) & (each.abs() < torch.finfo(torch.float32).tiny)).any() for each in gradients) == found


def test_columns_whose_next_digit_has_no_boundaries_are_told_nothing():
    part, rows = part_and_rows()
    features = part.features(rows)
    with torch.no_grad():
        vectors, _ = part.waves(part.prepare({**features, "weight": torch.ones(features["slot"].shape)}))
    silent = (features["slot"] == 0) | (features["slot"] >= len(STEPS))
    assert silent.any() and (vectors[silent] == 0).all() and (vectors[~silent] != 0).any(-1).all()


@pytest.mark.parametrize("limit", [2, 3, 100, 128])
def test_primes_and_their_powers_are_those_that_trial_division_finds(limit):
    primes = [n for n in range(2, limit + 1) if all(n % d for d in range(2, n))]
    assert primes_up_to(limit).tolist() == primes
    bases = [next((p for p in primes for k in range(1, 8) if p**k == n), 1) for n in range(limit + 1)]
    assert prime_powers(limit).tolist() == bases


@pytest.mark.parametrize("text, smooth, below, above", [
    ("b99:818", 81889.9634, 8, 9),  # the next ten begins 0.0366 above γ̄
    ("b99:818", 81880.0366, 7, 8),  # it began 0.0366 below
    ("b99:818", 81885.2, 8, 8),  # none is near
    ("b99:81", 81999.9, 9, 9),  # 820 would have been written already
    ("b99:82", 81999.9, 0, 0),  # it was: what follows is no longer open
    ("b99:81", 82000.1, 9, 9),  # 819 although γ̄ has 820
])  # fmt: skip
def test_a_carry_is_decided_by_the_side_of_the_nearest_ten_unless_the_digits_so_far_have_decided(text, smooth, below, above):
    part, rows = part_and_rows([text], [99])
    rows.smooth = np.array([smooth])
    features = part.features(rows)
    column = len(text) - 1
    with torch.no_grad():
        part.waves.digits.copy_(torch.arange(10)[:, None].expand_as(part.waves.digits))  # each says what it is
        part.waves.carry.weight.zero_()
        for bias, digit in ((-50.0, below), (50.0, above)):
            part.waves.carry.bias.fill_(bias)
            assert sum(part(part.prepare(features)))[0, column].tolist() == pytest.approx([digit] * 8)


def test_a_digit_before_the_units_is_told_in_the_same_way_wherever_it_stands():
    part, rows = part_and_rows(["b99:8", "b10000000:", "b10000000:8", "b10000000:888"], [99, *[10**7] * 3])
    rows.smooth = np.array([8805.0, 885.0, 8888805.0, 8888805.0])
    with torch.no_grad():
        vectors = sum(part(part.prepare(part.features(rows))))
    last = [vectors[row, column] for row, column in enumerate((4, 9, 10, 12))]
    assert all(torch.equal(vector, part.waves.digits[8]) for vector in last)
