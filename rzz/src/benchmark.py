"""How fast each part is, on this machine.

    python rzz/src/benchmark.py zeros                    zeros a second, beside mpmath and python-flint
    python rzz/src/benchmark.py zeros --count 1000000
"""

import argparse
import time
from importlib import import_module
from itertools import islice

import mpmath

import zeros_db
import zeta_zeros

HEIGHTS = (1, 1_000_000, 10_000_000)  # first indexes
MPMATH_SAMPLE = 3  # zeros: 0.4 to 0.8 s each
FLINT_SAMPLE = 20  # zeros: 5 to 10 ms each
SKIPPED = "not installed"


def cpu_seconds(function, *arguments):
    """The CPU time of a call and its result."""
    start = time.process_time()
    result = function(*arguments)
    return time.process_time() - start, result


def consume(pairs):
    for _ in pairs:
        pass


def mpmath_zeros(first, count):
    return [mpmath.zetazero(i).imag for i in range(first, first + count)]


def flint_zeros(first, count):
    return [zero.imag.mid() for zero in import_module("flint").acb.zeta_zeros(first, count)]


def sample_rate(zeros, first, count):
    """Zeros a second of another library on a sample, and its largest difference from ours; None where it is missing."""
    try:
        seconds, theirs = cpu_seconds(zeros, first, count)
    except ModuleNotFoundError:
        return None
    ours = (zero for _, zero in islice(zeros_db.zeros_starting_at_N(first, count), count))
    return count / seconds, max(abs(float(zero) - float(other)) for zero, other in zip(ours, theirs, strict=True))


def benchmark_zeros(count):
    print(f"zeros a second of CPU time: rzz over {count:,} zeros, the others over {MPMATH_SAMPLE} and {FLINT_SAMPLE}")
    print(f"{'from index':>12} {'int64 blocks':>14} {'(i, mpf) pairs':>15} {'mpmath.zetazero':>16}"
          f" {'acb.zeta_zeros':>15} {'largest difference':>19}")
    for first in HEIGHTS:
        consume(zeta_zeros.zeros(first + count, 1))  # make the tables that all blocks share
        blocks, _ = cpu_seconds(consume, zeta_zeros.zeros(first, count))
        pairs, _ = cpu_seconds(consume, zeros_db.zeros_starting_at_N(first, count))
        others = [sample_rate(mpmath_zeros, first, MPMATH_SAMPLE), sample_rate(flint_zeros, first, FLINT_SAMPLE)]
        rates = [f"{other[0]:,.1f}" if other else SKIPPED for other in others]
        difference = max(other[1] for other in others if other)
        print(f"{first:>12,} {count / blocks:>14,.0f} {count / pairs:>15,.0f} {rates[0]:>16} {rates[1]:>15}"
              f" {difference:>19.1e}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    zeros = commands.add_parser("zeros", help="zeros a second, beside mpmath and python-flint")
    zeros.add_argument("--count", type=int, choices=range(1, 10_000_001), metavar="COUNT", default=500_000,
                       help="zeros at each height (default %(default)s)")
    arguments = parser.parse_args()
    benchmark_zeros(arguments.count)


if __name__ == "__main__":
    main()
