"""Values of zeros: taken from zeros_db, cut after four decimals, and checked, for zeros_db may be the user's own.

    values = values_in_memory(config, 1, 99)  # int64: 141347, 210220, …

A value is the imaginary part of a zero as an int64 of ten-thousandths: 497738 for 49.7738.
"""

import itertools
import os
from contextlib import contextmanager

import mpmath
import numpy as np

import zeros_db
from common.config import UserError
from zeta.riemann_siegel import mean_spacing, smooth_zeros

DECIMALS = 4
UNIT = 10**DECIMALS  # a value counts ten-thousandths


def values_in_memory(config, first, count):
    """Return the values (count,) of the zeros first … first + count - 1 straight from zeros_db."""
    choose_source(config)
    with source_errors(first, count):
        values = values_of_pairs(itertools.islice(pairs_from(first, count), count), first)
    if len(values) != count:
        raise UserError(f"zeros_db gave {len(values)} zeros from index {first} on instead of {count}.")
    return checked(values, first)


def choose_source(config):
    """Tell zeros_db where Platt's tables are, if the settings name them."""
    if config.data.platt_tables:
        if not hasattr(zeros_db, "use_platt_tables"):
            raise UserError('This zeros_db.py does not read Platt\'s tables; set data.platt_tables to "".')
        zeros_db.use_platt_tables(str(config.folder / os.path.expanduser(config.data.platt_tables)))


@contextmanager
def source_errors(first, count):
    """Turn what zeros_db, which may be the user's own, raises within the block into a UserError; give mpmath its precision back."""
    with mpmath.workprec(mpmath.mp.prec):
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            reason = str(error) if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {error}"
            raise UserError(f"zeros_db could not give zeros {first} … {first + count - 1}: {reason}.") from error


def pairs_from(first, count):
    """Return an iterator over what zeros_db gives from index `first` on.

    The LMFDB's reader, asked for the zero at a block's border, begins one too late. So where zero first + 1 comes first,
    it is asked again from one zero before, and what comes before `first` is left out.
    """
    for earlier in (0, 1):
        zeros = iter(zeros_db.zeros_starting_at_N(first - earlier, count + earlier))
        zeros = itertools.dropwhile(lambda pair: pair[0] < first, zeros)
        begin = next(zeros, None)
        if begin is None or begin[0] != first + 1:
            break
    return itertools.chain([] if begin is None else [begin], zeros)


def values_of_pairs(pairs, first):
    """Return the int64 values of an iterator of (index, mpf). Raises UserError where an index is not first, first + 1, …

    Pair by pair: in a list of them Python's garbage collector would spend as long as their computation takes.
    """

    def values():
        for expected, (index, zero) in enumerate(pairs, first):
            if index != expected:
                raise UserError(f"zeros_db gave zero {index} where zero {expected} was expected.")
            yield truncated_value(zero)

    return np.fromiter(values(), np.int64)


def truncated_value(zero):
    """Return the int of ten-thousandths below the mpf `zero`, cut and not rounded, exactly.

    Works on the number's own mantissa and exponent, so mpmath's working precision does not matter.
    """
    sign, mantissa, exponent, _ = zero._mpf_
    if sign or not mantissa:
        raise ValueError(f"{zero} is not a positive number")
    return int(mantissa * UNIT >> -exponent if exponent < 0 else mantissa * UNIT << exponent)


def checked(values, first):
    """Return `values`. Raises UserError where they cannot be the zeros from index `first` on."""
    try:
        check_values(values, first, "zeros_db")
    except ValueError as error:
        raise UserError(f"{error}; rzz/src/zeros_db.py is not to be trusted here.") from error
    return values


def check_values(values, first, source):
    """Raise ValueError where `values` are not increasing or lie far from where the smooth count expects them.

    A zero is about S(t) mean spacings away from the smooth count, and |S(t)| was below 3.4 wherever anyone computed it
    (Bober and Hiary, "New computations of the Riemann zeta function on the critical line", 2018). So a wrong digit
    jumps out, and a list whose indexes are off by one is off by one spacing on the average, where the true zeros are
    off by less than 0.02 over any 100.
    """
    if (np.diff(values) <= 0).any():
        position = int(np.flatnonzero(np.diff(values) <= 0)[0])
        raise ValueError(f"{source}: zero {first + position + 1} is not above zero {first + position}")
    indexes = np.arange(first, first + len(values), dtype=np.int64)
    smooth = smooth_zeros(indexes)
    spacing = mean_spacing(smooth)
    off = np.abs(values / UNIT - smooth) / spacing
    if off.max(initial=0) > 4:
        position = int(off.argmax())
        raise ValueError(
            f"{source}: zero {first + position} is given as {values[position] / UNIT}, "
            f"{off[position]:.1f} mean spacings from {smooth[position]:.4f}, where the smooth count expects it"
        )
    drift = float(np.mean((values / UNIT - smooth) / spacing))
    if len(values) >= 100 and abs(drift) > 0.5:
        raise ValueError(f"{source}: zeros {first} … lie {drift:+.2f} mean spacings off on the average: the indexes are shifted")
