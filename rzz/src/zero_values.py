"""The zeros of zeros_db, which may be the user's own, as values: checked while they are read, errors said in a line.

    with zeros_source(config, first, count):
        values = checked_zeros(np.fromiter(values_from(first, count), np.int64), first, count)
"""

import hashlib
import importlib.util
import itertools
import os
import sys
import traceback
from collections.abc import Iterable
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from pathlib import Path

import mpmath
import numpy as np

from common.config import UserError
from model.tokenizer import SCALE
from zeta import zeros as zeta_zeros
from zeta.riemann_siegel import mean_spacing, smooth_zeros

OWN_ZEROS_DB = "c6dcf2588a622187747a5a7db74327ea5558ef1a7e6290af2a4e1bb341b16b5d"  # SHA-256 of our zeros_db.py
BLOCK = 200  # zeros; so many on a coarse grid are not there by chance
DECIMAL_GRIDS = tuple(10**k for k in range(4))  # points in a unit of the grids that are coarser than four decimals
BINARY_GRIDS = tuple(2**k for k in range(14))


def load_zeros_db():
    """Return the module zeros_db, which may be the user's own. Raises UserError if it cannot be imported or lacks its function."""
    try:
        import zeros_db
    except Exception as error:
        raise UserError(f"rzz/src/zeros_db.py cannot be imported: {described(error)}.") from error
    if not callable(getattr(zeros_db, "zeros_starting_at_N", None)):
        raise UserError("rzz/src/zeros_db.py has no function zeros_starting_at_N(N, number_of_zeros).")
    content_digest(zeros_db)  # now, while the file is what was imported
    return zeros_db


@cache
def content_digest(module):
    """Return the SHA-256 of the file of a module, whichever way its lines end."""
    return hashlib.sha256(Path(module.__file__).read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def is_own_zeros_db():
    """Return whether zeros_db is the one that computes the zeros with proof, not a user's."""
    return "zeros_db" in sys.modules and content_digest(sys.modules["zeros_db"]) == OWN_ZEROS_DB


def zeros_origin(config):
    """Return where zeros come from with these settings, as text that differs if the zeros may differ.

    It names our method with its version or a user's zeros_db.py with the digest of its content, and Platt's tables, if the settings
    name their folder, with a digest of the names, sizes and times of their files; without one if the folder is not there.
    """
    zeros_db = load_zeros_db()
    own = is_own_zeros_db()
    origin = f"method {zeta_zeros.VERSION}" if own else f"zeros_db.py {content_digest(zeros_db)[:16]}"
    if not config.data.platt_tables:
        return origin
    folder = platt_folder(config)
    files = sorted(path for pattern in ("index.db", "*.dat", "data/*.dat") for path in folder.glob(pattern))
    states = [(path.name, (state := path.stat()).st_size, state.st_mtime_ns) for path in files]
    digest = hashlib.sha256(repr(states).encode()).hexdigest()[:16] if states else ""
    return f"{'' if own else origin + ', '}Platt's tables {digest}"


def is_from(origin, wanted):
    """Return whether zeros of this origin are those `wanted`, both from zeros_origin; tables that are not there cannot differ."""
    return origin == wanted or lacks_tables(wanted) and origin.startswith(wanted)


def lacks_tables(origin):
    """Return whether an origin is that of Platt's tables whose folder is not there, so that nothing can be compared with them."""
    return origin.endswith("tables ")


def platt_folder(config):
    return config.folder / os.path.expanduser(config.data.platt_tables)


def described(error):
    """Return what an exception in zeros_db says, in a line; if the file is the user's own, with the place in it."""
    text, place = error, ""
    if isinstance(error, SyntaxError):
        text, place = error.msg, f" ({error.filename}:{error.lineno})"
    elif not is_own_zeros_db():
        spec = importlib.util.find_spec("zeros_db")
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if spec and frame.filename == spec.origin]
        place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    named = place or not isinstance(error, (ValueError, OSError))
    return " ".join(f"{type(error).__name__}: {text}{place}".split() if named else str(text).split())


@contextmanager
def zeros_source(config, first, count):
    """Let zeros_db, which may be the user's own, read Platt's tables if the settings name them.

    Within the block its errors become UserErrors; after it mpmath gets its precision back.
    """
    zeros_db = load_zeros_db()
    if config.data.platt_tables:
        if not hasattr(zeros_db, "use_platt_tables"):
            raise UserError('This zeros_db.py does not read Platt\'s tables; set data.platt_tables to "".')
        zeros_db.use_platt_tables(str(platt_folder(config)))
    with mpmath.workprec(mpmath.mp.prec):
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            asked = f"zero {first:,}" if count == 1 else f"zeros {first:,} … {first + count - 1:,}"
            raise UserError(f"zeros_db could not give {asked}: {described(error)}.") from error


def values_from(first, count):
    """Yield the values of zeros_db from index `first` on. Raises UserError if the indexes are not first, first + 1, …

    The LMFDB's reader begins one too late if the request begins at a block's border. So if zero first + 1 comes first, the
    request is repeated from one zero earlier, and zeros before `first` are skipped. Pairs are taken one at a time: with a list of
    them Python's garbage collector takes as long as computing the zeros.
    """
    for earlier in (0, 1):
        zeros = itertools.dropwhile(lambda pair: pair[0] < first, pairs_from(first - earlier, count + earlier))
        begin = list(itertools.islice(zeros, 1))
        if not begin or begin[0][0] != first + 1:
            break
    for expected, (index, zero) in enumerate(itertools.chain(begin, zeros), first):
        if index != expected:
            raise UserError(f"zeros_db gave zero {index} instead of zero {expected}.")
        yield truncated_value(zero)


def pairs_from(first, count):
    """Yield the pairs (index, zero) of zeros_db. Raises UserError if it gives anything else."""
    given = load_zeros_db().zeros_starting_at_N(first, count)
    if not isinstance(given, Iterable):
        raise UserError(f"zeros_starting_at_N({first}, {count}) of rzz/src/zeros_db.py returned {given!r:.80} instead of pairs "
                        "(index, zero).")  # fmt: skip
    for pair in given:
        try:
            index, zero = pair
        except (TypeError, ValueError):
            raise UserError(f"rzz/src/zeros_db.py gave {pair!r:.80} instead of a pair (index, zero).") from None
        yield index, zero


def truncated_value(zero):
    """Return a zero in ten-thousandths, cut and not rounded, as an int.

    zero: an mpf, any other real number, or its decimals as text; of 1/2 + i t, as mpmath.zetazero returns it, t is taken. Raises
    ValueError if it is none of these, is not positive, or is of a type that does not hold four decimals at this height.
    """
    try:
        sign, mantissa, exponent, _ = zero._mpf_  # its own, so mpmath's working precision does not matter
    except AttributeError:
        return truncated_other(zero)
    if sign or not mantissa:
        raise ValueError(f"{zero} is not a positive number")
    value = int(mantissa * SCALE >> -exponent if exponent < 0 else mantissa * SCALE << exponent)
    return value + (mantissa.bit_length() <= 53 and zero == (value + 1) / SCALE)  # the float next to 49.7738 is a little less


def truncated_other(zero):
    if hasattr(zero, "_mpc_") or isinstance(zero, (complex, np.complexfloating)):
        if zero.real != 0.5:
            raise ValueError(f"{zero} is not of the form 1/2 + i t; wanted is t, a real number")
        return truncated_value(zero.imag)
    if isinstance(zero, np.floating) and np.spacing(zero) > 0.5 / SCALE:
        raise ValueError(f"{zero} is a {zero.dtype}, precise to {np.spacing(zero):.1g} there; wanted are four right decimals")
    try:
        number = Fraction(str(zero))  # the decimals that it shows: 49.7738 as a binary number may be a little less
    except ValueError:
        raise ValueError(f"{zero!r:.80} is not a number; wanted is an mpmath.mpf") from None
    if number <= 0:
        raise ValueError(f"{zero} is not a positive number")
    return int(number * SCALE)


def checked_zeros(values, first, count):
    """Return `values` of zeros_db. Raises UserError if they cannot be the zeros first … first + count - 1."""
    if len(values) != count:
        more = " or more" if len(values) > count else ""
        raise UserError(f"zeros_db gave {len(values)} zeros{more} from index {first} on instead of {count}.")
    try:
        return checked(values, first, "zeros_db")
    except ValueError as error:
        raise UserError(f"{error}; rzz/src/zeros_db.py returned invalid zeros.") from error


def checked(values, first, source):
    """Return `values`. Raises ValueError, naming the `source`, if they cannot be the zeros from index `first` on.

    They increase, have four decimals, and lie near the smooth count.
    A zero is about S(t) mean spacings away from the smooth count, and |S(t)| was below 3.4 wherever it was computed (Bober and
    Hiary, "New computations of the Riemann zeta function on the critical line", 2018). So a wrong digit is noticed, and so are
    indexes that are off by one: they shift the mean deviation by one spacing, while that of true zeros is below 0.02 over any 100.
    """
    if (begin := coarse_block(values)) is not None:
        raise ValueError(f"{source}: zeros {first + begin} … are given as multiples of "
                         f"{coarsest_step(values[begin : begin + BLOCK]):g}; wanted are four right decimals")  # fmt: skip
    if (drops := np.flatnonzero(np.diff(values) <= 0)).size:
        raise ValueError(f"{source}: zero {first + drops[0] + 1} is not above zero {first + drops[0]}")
    smooth = smooth_zeros(np.arange(first, first + len(values)))
    deviation = (values / SCALE - smooth) / mean_spacing(smooth)
    if np.abs(deviation).max(initial=0) > 4:
        worst = int(np.abs(deviation).argmax())
        raise ValueError(f"{source}: zero {first + worst} is given as {values[worst] / SCALE}, {abs(deviation[worst]):.1f} mean "
                         f"spacings from {smooth[worst]:.4f}, which the smooth count expects")  # fmt: skip
    if len(values) >= 100 and abs(deviation.mean()) > 0.5:
        raise ValueError(f"{source}: zeros {first} … deviate by {deviation.mean():+.2f} mean spacings on average: the indexes are "
                         "shifted")  # fmt: skip
    return values


def coarse_block(values):
    """Return where in `values` the first BLOCK begins that a coarse grid holds, decimal or binary; None if there is none.

    On the finest of these grids, the 0.001 and the 1/8192, lie 0.2 and 0.83 of the values of zeros, and never all of so many.
    """
    if len(values) < BLOCK:
        return None
    for points in (DECIMAL_GRIDS[-1], BINARY_GRIDS[-1]):
        whole = on_grid(values[: len(values) // BLOCK * BLOCK], points).reshape(-1, BLOCK).all(axis=1)
        if whole.any():
            return int(whole.argmax()) * BLOCK
    return None


def coarsest_step(values):
    """Return the step of the coarsest grid that holds all `values`."""
    return next(1 / points for points in sorted(DECIMAL_GRIDS + BINARY_GRIDS) if on_grid(values, points).all())


def on_grid(values, points):
    """Return which values are those of a multiple of 1 / points, or the one before, as a binary number may be a little less."""
    return (values + 1) * points // SCALE > (values * points - 1) // SCALE
