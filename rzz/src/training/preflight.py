"""--check: what a stage would meet on this machine, found out before it begins and without writing anything.

    zeros, seconds = sample_zeros(config, *interval(config, 1))
    report(device, reason, {"zeros": zeros_text(config, [interval(config, 1)], seconds)})
"""

import os
import shutil
import time

from common.config import UserError
from common.devices import describe_device, memory, synchronize
from common.text import format_duration
from data_utils import missing_zeros, zeros_in_memory

SAMPLE = 8192  # zeros, most that are computed for a look
TIMING_BUDGET_S = 2.0  # seconds that may be spent on timing
STATE_BYTES = 12  # of a parameter in a checkpoint: weight and two averages of AdamW, float32
ZERO_BYTES = 8  # of a zero in an interval file


def print_preflight(device, reason, facts):
    """Print what the device is, why it was chosen, what of its memory was used up to here, and {name: text} of `facts`."""
    used, in_all = memory(device)
    facts = {
        "device": f"{describe_device(device)}: {reason}",
        "memory": "the device does not say" if used is None else f"{used / 1e9:.2f} of {in_all / 1e9:.1f} GB used at most",
        **facts,
    }
    width = max(map(len, facts))
    for name, text in facts.items():
        print(f"{name:<{width}}  {text}")
    print("Nothing was written.")


def sample_zeros(config, first, count):
    """Return (zeros of the first half of an interval, in memory, SAMPLE at most; seconds that one of the second half takes).

    The first ones are not timed, since zeros_db may prepare tables then.
    """
    count = max(1, min(count // 2, SAMPLE))
    zeros = zeros_in_memory(config, first, count)
    began = time.perf_counter()
    zeros_in_memory(config, first + count, count)
    return zeros, (time.perf_counter() - began) / count


def median_seconds(work, device):
    """Return the median seconds of a call of `work`, after a first call that is not timed."""
    work()
    seconds = []
    while not seconds or (sum(seconds) < TIMING_BUDGET_S and len(seconds) < 20):
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[len(seconds) // 2]


def zeros_text(config, intervals, seconds_each):
    """Where the zeros of `intervals`, pairs (first, count), come from. seconds_each: what one takes to compute."""
    missing, wanted = missing_zeros(config, intervals), sum(count for _, count in intervals)
    source = f"Platt's tables in {config.data.platt_tables}" if config.data.platt_tables else "zeros_db.py"
    if not missing:
        return f"{wanted:,}, all in {config.data_folder}"
    return f"{wanted:,}, of which {missing:,} come from {source}, in {format_duration(missing * seconds_each)}"


def check_disk_space(config, intervals, other_bytes=0):
    """What will be written: interval files that are missing, and `other_bytes` of checkpoints.

    Raises UserError where the folders cannot be written to or have not enough space.
    """
    for folder in (config.data_folder, config.checkpoint_folder, config.log_folder):
        if not os.access(folder if folder.exists() else config.folder, os.W_OK):
            raise UserError(f"Cannot write to {folder}; change its permissions or copy config.json to a folder of yours.")
    missing = [interval for interval in intervals if missing_zeros(config, [interval])]
    zeros = sum(count for _, count in missing) + max((count for _, count in missing), default=0)  # one of them is there twice
    needed = ZERO_BYTES * zeros + other_bytes
    free = shutil.disk_usage(config.folder).free
    text = f"{needed / 1e6:,.1f} MB needed for zeros and checkpoints, {free / 1e9:,.1f} GB free in {config.folder}"
    if needed > free:
        raise UserError(f"Not enough space: {text}. Free some, or copy config.json to another disk and name it with --config.")
    return text
