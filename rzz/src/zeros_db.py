"""Where the zeros of the Riemann zeta function come from: zeros_starting_at_N(N, number_of_zeros).

    >>> for i, zero in zeros_starting_at_N(10, 3):
    ...     print(i, mpmath.nstr(zero, 10))
    10 49.77383248
    11 52.97032148
    12 56.4462477

    python rzz/src/zeros_db.py 10 3                      # the same from the command line, cut after four decimals
    python rzz/src/zeros_db.py 10 3 --digits 38          # with so many right digits
    python rzz/src/zeros_db.py --height 1000 5           # the first five from a height on

They are read from David Platt's tables if use_platt_tables has named their folder, and computed otherwise.
"""

import argparse
import math
import os
import sys
from itertools import chain, islice

import mpmath
from mpmath.libmp import from_man_exp

from zeta import platt_tables
from zeta import zeros as zeta_zeros
from zeta.riemann_siegel import theta

_platt_folder = None


def use_platt_tables(folder):
    """Read zeros from the tables in `folder` (index.db and *.dat in the LMFDB's format); None or "" computes them."""
    global _platt_folder
    _platt_folder = folder or None


def zeros_starting_at_N(N, number_of_zeros, dps=None):
    """Yield (i, mpf) for the number_of_zeros zeros from index N on: the i-th zero is 1/2 + mpf * 1j.

    Indexes are 1-based: zero 1 is 14.1347..., and N = 0 begins there too. A value is within 1e-8 of its zero and its first four
    decimals are always right; with `dps`, dps digits are right, which takes half a second a zero at 10^7 (38 digits, measured on
    2 AMD EPYC cores). Platt's tables hold multiples of 2^-101, so numbers taken from them, such as
    49.7738324776723021819167846785638367196 for zero 10, are right to 30 decimals; dps=38 gives ...856372405772. Zeros are
    computed in blocks of 8192 while they are consumed. mpmath's precision does not change.

    Raises ValueError at the call for arguments that are not whole numbers or out of range; while the zeros are consumed,
    TableError, a ValueError, if Platt's tables lack zeros or are damaged, and ArithmeticError, naming the indexes, if the number
    of zeros found is not the proven one.
    """
    for name, value, low in (("N", N, 0), ("number_of_zeros", number_of_zeros, 0), ("dps", 1 if dps is None else dps, 1)):
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < low:
            raise ValueError(f"{name} must be a whole number of at least {low}, not {value!r}")
    first, number_of_zeros = max(int(N), 1), int(number_of_zeros)
    if _platt_folder:
        fixed_point, bits = platt_tables.zeros(_platt_folder, first, number_of_zeros), platt_tables.FRACTION_BITS
    else:
        blocks, bits = zeta_zeros.zeros(first, number_of_zeros), zeta_zeros.FRACTION_BITS
        fixed_point = chain.from_iterable(enumerate(values, index) for index, values in blocks)
    make_mpf = mpmath.mp.make_mpf
    pairs = ((i, make_mpf(from_man_exp(value, -bits))) for i, value in fixed_point)  # without rounding
    return pairs if dps is None else ((i, _refined(zero, int(dps))) for i, zero in pairs)


def _refined(zero, dps):
    """Improve a zero given to 1e-8 to dps digits (at least 25, to keep the fourth decimal) by secant steps on Z."""
    dps = max(dps, 25)
    with mpmath.workdps(dps + 10):
        tolerance = zero * mpmath.mpf(10) ** -(dps + 5)
        a, b = zero, zero + mpmath.mpf(10) ** -8
        Z_a = mpmath.siegelz(a)
        while abs(b - a) > tolerance:
            Z_b = mpmath.siegelz(b)
            a, b, Z_a = b, b - Z_b * (b - a) / (Z_b - Z_a), Z_b
    with mpmath.workdps(dps):
        return +b


def zeros_from_height(height, dps=None):
    """Yield (i, mpf) of the zeros from a height on, as zeros_starting_at_N does. Raises ValueError beyond the last known."""
    # |S(t)| < 4 as far as zeros are known here, so that N(t), theta(t)/pi + 1 + S(t), is at least this:
    least = float(theta(min(max(height, 7.0), 2.0**32))) / math.pi + 1 - 4
    if not least <= zeta_zeros.LAST_INDEX - 10:  # or if the height is not a number
        raise ValueError(f"height {height:g}: {zeta_zeros.RANGE}")
    before = max(1, int(least))
    return ((i, zero) for i, zero in zeros_starting_at_N(before, zeta_zeros.LAST_INDEX - before + 1, dps) if zero >= height)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Print zeros of the Riemann zeta function, one a line: index and imaginary part.")
    parser.add_argument("numbers", nargs="*", metavar="N [COUNT]", help="first index and how many (1); with --height how many")
    parser.add_argument("--digits", type=int, help="right digits of each, instead of four decimals")
    parser.add_argument("--height", type=float, help="begin with the first zero at this height or above it")
    args = parser.parse_args(argv)
    texts = [text.replace(",", "") for text in args.numbers]
    if not all(text.isdecimal() for text in texts) or len(texts) not in ((1, 2) if args.height is None else (0, 1)):
        parser.exit(2, "Write an index and how many zeros, 10 3, or --height 1000 and how many.\n")
    numbers = [int(text) for text in texts]
    try:
        if args.height is None:
            found = zeros_starting_at_N(numbers[0], (numbers[1:] or [1])[0], args.digits)
        else:
            found = islice(zeros_from_height(args.height, args.digits), (numbers or [1])[0])
        for index, zero in found:
            if args.digits:
                with mpmath.workdps(args.digits + 10):
                    print(index, mpmath.nstr(zero, args.digits, strip_zeros=False))
            else:
                cut = int(mpmath.floor(zero * 10_000))
                print(f"{index} {cut // 10_000}.{cut % 10_000:04d}")
        sys.stdout.flush()
    except (ValueError, ArithmeticError) as error:
        parser.exit(2, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "Interrupted.\n")
    except BrokenPipeError:  # nobody reads on, as behind `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        parser.exit(1)


if __name__ == "__main__":
    sys.exit(main())
