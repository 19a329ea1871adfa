"""The rows, tokens and trajectories of three known zeros, and that whole intervals are encoded like single zeros."""

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.tokenizer import COLON, END, decode, encode, encode_prompts, encode_rows, row_text, trajectories, vocabulary
from zero_values import truncated_value

EXAMPLE_ZEROS = [
    (10, "49.7738324776723021819167846785638367196"),
    (11, "52.9703214777144606441472966088808215661"),
    (12, "56.4462476970633948043677594767060321269"),
]
EXAMPLE_ROWS = [
    "b10:49.7738epppppppppppppppppppp",
    "b11:52.9703epppppppppppppppppppp",
    "b12:56.4462epppppppppppppppppppp",
]


def test_vocabulary_is_the_specified_one_in_its_order():
    assert vocabulary == ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", ".", ":", "b", "e", " ", "p"]


def test_specified_zeros_become_the_specified_rows():
    with mpmath.workdps(40):
        zeros = [(index, mpmath.mpf(text)) for index, text in EXAMPLE_ZEROS]
    assert [row_text(index, truncated_value(zero)) for index, zero in zeros] == EXAMPLE_ROWS
    rows = encode_rows([index for index, _ in zeros], [truncated_value(zero) for _, zero in zeros])
    assert [decode(row) for row in rows] == EXAMPLE_ROWS


def test_specified_example_is_tokenized_character_by_character():
    tokens = ["b", "4", "9", "3", "5", ":", "3", "8", "4", "7", ".", "2", "3", "4", "4", "e"] + ["p"] * 16
    assert [vocabulary[token] for token in encode(row_text(4935, 38472344))] == tokens


def test_specified_trajectories_come_in_their_order():
    assert list(trajectories("b1:23.4567e")) == [
        ("b1:", "2"), ("b1:2", "3"), ("b1:23", "."), ("b1:23.", "4"),
        ("b1:23.4", "5"), ("b1:23.45", "6"), ("b1:23.456", "7"), ("b1:23.4567", "e"),
    ]  # fmt: skip


def test_a_character_outside_the_vocabulary_is_an_error():
    with pytest.raises(ValueError, match="'x'"):
        encode("b1x")


@pytest.mark.parametrize("decimals, value", [("25.01085758", 250108), ("21.02203963", 210220), ("0.99999999", 9999)])
def test_values_are_cut_and_not_rounded(decimals, value):
    assert truncated_value(mpmath.mpf(decimals)) == value


def test_cutting_does_not_depend_on_the_working_precision():
    with mpmath.workdps(60):
        just_below = mpmath.mpf("14.1346999999999999999999999999999999999999")
    with mpmath.workdps(5):
        assert truncated_value(just_below) == 141346


def decode_rows(rows):
    """Return (indexes, values), int64 of shape (n,), of well-formed rows (n, 32): the inverse of encode_rows."""
    rows = np.asarray(rows)
    colon, end = (rows == COLON).argmax(1), (rows == END).argmax(1)
    indexes, values = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    for column in range(rows.shape[1]):
        token = rows[:, column].astype(np.int64)
        digit = token < 10
        in_index, in_value = digit & (column < colon), digit & (column > colon) & (column < end)
        indexes = np.where(in_index, 10 * indexes + token, indexes)
        values = np.where(in_value, 10 * values + token, values)
    return indexes, values


zeros = st.lists(st.tuples(st.integers(1, 10**12 - 1), st.integers(1, 10**15)), min_size=1, max_size=30)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(zeros)
def test_interval_encoding_equals_encoding_one_zero_at_a_time_and_decodes_back(pairs):
    indexes, values = np.array(pairs, np.int64).T
    rows = encode_rows(indexes, values)
    assert [decode(row) for row in rows] == [row_text(index, value) for index, value in pairs]
    back = decode_rows(rows)
    assert (back[0] == indexes).all() and (back[1] == values).all()


def test_a_row_that_does_not_fit_names_its_zero():
    with pytest.raises(ValueError, match="b1000000000000:"):
        encode_rows([10**12], [10**16])


def test_prompts_are_the_rows_up_to_the_colon():
    indexes = np.array([7, 1234, 99, 10, 12])
    texts = {}
    for positions, prompts in encode_prompts(indexes):
        for position, prompt in zip(positions, prompts, strict=True):
            texts[int(position)] = decode(prompt)
    assert [texts[k] for k in range(5)] == ["b7:", "b1234:", "b99:", "b10:", "b12:"]
