"""Everything that differs between mps, cuda, xla and cpu: choosing one, saying why, seeding, waiting, memory.

    device, reason = choose_device("auto")
    print(device, reason)

All of the program computes in float32 on the device, except for the matrix products of training if bfloat16 is faster.
float64 does not exist on Apple's GPUs, so what needs more than float32 is prepared on the CPU, by numpy.
"""

import atexit
import ctypes
import functools
import gc
import logging
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional as F

from common.config import UserError

TIMED_S = 1.0  # seconds that are spent on finding out which of several ways is fastest
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WORTHWHILE = 1.1  # times as fast bfloat16 has to be: less is within what other work on the machine changes
USERS_COMPILE_CACHE = os.environ.get("TORCHINDUCTOR_CACHE_DIR")  # torch sets it too, as soon as an optimizer is built
CACHED_FLOATS = 2**19  # a core's own cache has a megabyte or more
PCI = Path("/sys/bus/pci/devices")
TPU_IDS = ("0x0027", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")  # v2 and v3, v4, v5p, v5e, v6e, 7x: PCI devices of Google's
XLA_PACKAGES = "pip install torch==2.9.0 torch_xla[tpu]==2.9.0"  # the last torch_xla that there is, and the torch it is made for
NO_XLA = f"torch_xla is not installed: {XLA_PACKAGES}"


def choose_device(name="auto"):
    """Return (torch.device, why it was chosen) for a value of runtime.device.

    "auto" takes CUDA, then a TPU through torch_xla, then Apple's GPU, then the CPU. Raises UserError if a device
    that was asked for by name is not there, or if "auto" would leave a TPU unused.
    """
    available = {
        "cuda": torch.cuda.is_available,
        "xla": lambda: xla_failure() is None and (name == "xla" or torch_xla().runtime.device_type() == "TPU"),
        "mps": torch.backends.mps.is_available,
        "cpu": lambda: True,
    }
    if name != "auto":
        if not available[name]():
            why = f" ({xla_failure()})" if name == "xla" else ""
            raise UserError(f"The device {name} was asked for but is not there{why}; use --device auto or one of the others.")
        return make_device(name), "asked for"
    kind = next(kind for kind, is_available in available.items() if is_available())
    if kind != "cpu":
        return make_device(kind), "the fastest one found"
    failure = xla_failure()
    if has_tpu():
        why = failure or f"torch_xla does not find it: {XLA_PACKAGES}"
        raise UserError(f"This machine has a TPU, but {why}, then run this again; or do without the TPU: --device cpu.")
    return make_device("cpu"), "no GPU or TPU was found" if failure in (None, NO_XLA) else f"no GPU or TPU was found; {failure}"


def make_device(kind):
    tune_glibc_malloc()
    if kind == "cuda":  # torchrun starts one process for each of a machine's GPUs
        number, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if number >= count:
            raise UserError(f"This machine has {count} CUDA device(s): use --nproc_per_node={count}, a process each.")
        return set_cuda_device(number)
    return torch_xla().device() if kind == "xla" else torch.device(kind)


def compiled(model, device, setting):
    """Return `model` compiled by torch.compile if training.compile is "on", or "auto" and the device gains from it.

    CUDA gains, also by CUDA graphs. A CPU needs a C++ compiler and a minute at every start. Apple's GPUs misbehave, XLA
    compiles itself.
    """
    if setting == "off" or (setting == "auto" and device.type != "cuda"):
        return model
    failure = compile_failure(device)
    if failure is None:
        return torch.compile(model, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else None)
    if setting == "on":
        raise UserError(f'torch.compile does not work here: {failure}. Set training.compile to "off".')
    logging.getLogger("rzz").warning("Training without torch.compile, more slowly: %s", failure)
    return model


def use_own_compile_cache():
    """Let torch.compile keep what it makes for the CPU in a folder that goes with this process.

    The C++ compiler's output is written in place: in a cache of all processes, a killed start would leave half of a library, with
    which every later start fails, or of a header, whose folder cannot be chosen, so that none is made.
    """
    from torch._inductor import config as inductor  # takes seconds

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder = tempfile.mkdtemp(prefix="rzz_compile_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if hasattr(inductor, "cpp_cache_precompile_headers"):
        inductor.cpp_cache_precompile_headers = False


@functools.cache
def compile_failure(device):
    """Return None if torch.compile works, else why it does not, found out by trying it on a tiny function.

    On CUDA it takes a C compiler, Python's headers, and a GPU that Triton knows. On CPUs its gradients of an embedding in
    which one row is looked up more than once are wrong before torch 2.7 (pytorch#147961).
    """
    if device.type == "cpu" and not USERS_COMPILE_CACHE:
        use_own_compile_cache()
    table = torch.ones(16, 16, device=device, requires_grad=True)
    rows = torch.zeros(64, dtype=torch.int64, device=device)
    try:
        torch.compile(lambda: F.embedding(rows, table).sum())().backward()
    except Exception as error:  # of many kinds: dynamo's, inductor's, Triton's, the compiler's
        return " ".join(str(error).split())[:200]
    right = table.grad[0].eq(len(rows)).all() & table.grad[1:].eq(0).all()
    return None if right else f"with torch {torch.__version__} its gradients are wrong"


def torch_xla():
    """The torch_xla module. Nothing else in the program imports it."""
    import torch_xla

    return torch_xla


def xla_failure():
    """Return None if torch_xla loads, else why not, also the error of its own that importing it raises, and what to type."""
    if find_spec("torch_xla") is None:
        return NO_XLA
    try:
        torch_xla()
    except Exception as error:  # an ImportError if it was made for another torch; it also looks for devices
        return f"torch_xla is installed and does not load ({' '.join(str(error).split())[:200]}): {XLA_PACKAGES}"
    return None


def has_tpu():
    """Whether a TPU is plugged into this machine, whatever is installed. Linux lists what is, by maker and kind, in PCI."""
    chips = [path.parent for path in PCI.glob("*/vendor") if path.read_text().strip() == "0x1ae0"]  # Google's, network cards too
    return any((chip / "device").read_text().strip() in TPU_IDS for chip in chips)


def distributed_backend():
    """The backend of torch.distributed; NCCL, which torch may have without a GPU, needs one."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and torch.distributed.is_nccl_available() else "gloo"


def describe_device(device):
    """One line: kind, name, memory, torch version."""
    name = {"cuda": lambda: torch.cuda.get_device_properties(device).name, "mps": lambda: "Apple GPU",
            "xla": lambda: os.environ.get("PJRT_DEVICE", "TPU"),
            "cpu": lambda: f"{cpu_name()}, {torch.get_num_threads()} thread(s)"}[device.type]()  # fmt: skip
    _, total = memory(device)
    size = "" if total is None else f", {total / 2**30:.0f} GiB"
    return f"{device.type} ({name}{size}), torch {torch.__version__}"


def choose_precision(device, setting, work, before=None):
    """Return (torch.dtype, why) of the matrix products of training on `device`, for a value of training.precision.

    All else, and all of validation and evaluation, is float32: weights, gradients, optimizer, softmax, norms, phases. On a CPU
    that multiplies bfloat16 two kinds of step are timed: `work` is a function of the dtype that makes one, or None if several
    processes might choose differently. before: the name of the dtype with which a run has begun on a CPU; it keeps that.
    """
    if setting != "auto":
        return PRECISIONS[setting], "asked for"
    if device.type != "cpu":
        if multiplies_bfloat16(device):
            return torch.bfloat16, "it learns as float32 does (rzz/results.md), and faster here"
        return torch.float32, {"cuda": "this GPU has no bfloat16", "mps": "bfloat16 is slower on Apple's GPUs",
                               "xla": "a TPU multiplies float32 through bfloat16 by itself"}[device.type]  # fmt: skip
    if not multiplies_bfloat16(device):
        return torch.float32, "this processor has no bfloat16 products"
    if before:
        return PRECISIONS[before], "as before: another one gives other bits"
    if work is None:
        return torch.float32, "several processes compute"
    seconds = time_in_turn({name: functools.partial(work, dtype) for name, dtype in PRECISIONS.items()})
    chosen = "bfloat16" if seconds["float32"] > WORTHWHILE * seconds["bfloat16"] else "float32"
    times = " and ".join(f"{1e3 * each:.1f} ms in {name}" for name, each in seconds.items())
    return PRECISIONS[chosen], f"a step takes {times}"


def multiplies_bfloat16(device):
    """Whether products in bfloat16 are made by the device itself. Where a CPU has none, torch's take up to 500 times as long."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    path = Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*:(.*)", path.read_text(encoding="utf-8"), re.MULTILINE) if path.exists() else None
    return device.type == "cpu" and found is not None and not {"amx_bf16", "avx512_bf16"}.isdisjoint(found[1].split())


def time_in_turn(ways):
    """Call each of `ways` {name: function} in turn, for about TIMED_S in all; return {name: median seconds}."""
    seconds = {name: [] for name in ways}
    while sum(map(sum, seconds.values())) < TIMED_S or min(map(len, seconds.values())) < 4:
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(measured[1:]) for name, measured in seconds.items()}  # the first one prepares memory


def device_of_worker(device, number):
    """Return the device for worker `number`, from 0: on a machine with several CUDA devices they take turns."""
    return set_cuda_device(number % torch.cuda.device_count()) if device.type == "cuda" else device


def set_cuda_device(number):
    """Return CUDA device `number` after making it the current one of this process, which seeding needs."""
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def device_count(device):
    """How many devices of this kind the machine has."""
    return torch.cuda.device_count() if device.type == "cuda" else 1


def cpu_name():
    """The processor's own name if the system tells it, else its architecture."""
    path = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*: (.*)", path.read_text(encoding="utf-8")) if path.exists() else None
    return match[1].strip() if match else platform.processor() or platform.machine()


def fast_cores():
    """Number of cores that work can be spread over evenly: Apple's performance cores, else all that this process may use."""
    if platform.system() == "Darwin":
        answer = subprocess.run(["sysctl", "-n", "hw.perflevel0.physicalcpu"], capture_output=True, text=True).stdout
        if answer.strip().isdigit():
            return int(answer)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_threads(device, work, before=None):
    """Set how many threads torch computes with on a CPU, one or all, whichever does `work` sooner; return (count, why).

    Models this small gain little from more threads, and lose much as soon as anything else runs on the machine: threads then wait
    for one that waits for a core. OMP_NUM_THREADS is obeyed. before: the number with which a run has begun; it keeps that, since
    another one adds up in another order, or takes all that there are if they are fewer and work is None. (None, "") on other
    devices.
    """
    if device.type != "cpu":
        return None, ""
    most = torch.get_num_threads()
    if os.environ.get("OMP_NUM_THREADS"):
        return most, "as OMP_NUM_THREADS says"
    if before and (before <= most or work is None):
        torch.set_num_threads(min(before, most))
        return min(before, most), "as before: another number adds up in another order"
    if most == 1:
        return 1, "there is one core"

    def with_threads(count):
        torch.set_num_threads(count)
        work()

    seconds = time_in_turn({count: functools.partial(with_threads, count) for count in (1, most)})
    fastest = min(seconds, key=seconds.get)
    torch.set_num_threads(fastest)
    return fastest, f"a step takes {1e3 * seconds[1]:.0f} ms with one, {1e3 * seconds[most]:.0f} ms with {most}"


def seed_device(device, *numbers):
    """Seed the generator of `device` with a function of `numbers` alone, for example (seed, step).

    Dropout drawn after it is the same in every run, also in one that was resumed, with no generator state to store.
    torch.manual_seed would seed the generators of all kinds of device, which takes long compared with a small model's step.
    """
    seed = {"cpu": torch.default_generator.manual_seed, "cuda": torch.cuda.manual_seed, "mps": torch.mps.manual_seed,
            "xla": lambda seed: torch_xla().manual_seed(seed)}[device.type]  # fmt: skip
    seed(derive_seed(*numbers))


def derive_seed(*numbers):
    """Return an integer in [0, 2^63) from integers, so that neighbouring tuples give unrelated ones.

    Each number is added to the state, which then goes through the finaliser of SplitMix64 (Steele, Lea and Flood,
    "Fast splittable pseudorandom number generators", 2014).
    """
    mask, state = 2**64 - 1, 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state >> 1


class FusedAdamW(NamedTuple):
    available: bool  # one launch for all parameters
    supports_found_inf: bool  # leaves everything as it is if `found_inf` says so


@functools.cache
def fused_adamw(device):
    """Try what the fused AdamW of a device can do: XLA has none, Apple's ignores found_inf before torch 2.13 (pytorch#186360)."""
    parameter = torch.nn.Parameter(torch.ones(1, device=device))
    parameter.grad = torch.ones_like(parameter)
    try:
        optimizer = torch.optim.AdamW([parameter], fused=True)
        optimizer.found_inf, optimizer.grad_scale = torch.ones((), device=device), None
        optimizer.step()
    except RuntimeError:
        return FusedAdamW(False, False)
    return FusedAdamW(True, parameter.item() == 1)


def slicing_device(device):
    """Return the device on which batches are cut from larger tensors: XLA would compile a program for every offset."""
    return torch.device("cpu") if device.type == "xla" else device


def rows_at_once(device, floats):
    """Return how many rows of so many floats are best computed at once: what a core's cache holds, or 64 MB elsewhere."""
    return max(1, (CACHED_FLOATS if device.type == "cpu" else 2**24) // floats)


def end_step(device):
    """End one step of a loop: XLA runs what it has recorded since the last one. The others have run it already."""
    if device.type == "xla":
        torch_xla().sync()


def synchronize(device):
    """Wait until the device has done all that it was given; needed before a clock is read."""
    wait = {"cuda": lambda: torch.cuda.synchronize(device), "mps": torch.mps.synchronize,
            "xla": lambda: torch_xla().sync(wait=True), "cpu": lambda: None}[device.type]  # fmt: skip
    wait()


def is_out_of_memory(error):
    """Whether an exception says that the device's memory is exhausted; CUDA has a type for it, the others a text."""
    texts = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(text in str(error).lower() for text in texts))  # fmt: skip


def tune_glibc_malloc():
    """Let glibc keep the memory of freed tensors for the next ones: else each step gets it from the system again, page by page."""
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold = -1, -3  # the numbers of M_TRIM_THRESHOLD and M_MMAP_THRESHOLD in malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 2**25)  # bytes; more is not allowed
        libc.mallopt(trim_threshold, 2**31 - 1)


def free_memory(device):
    """Give cached memory back to the device before something smaller is tried."""
    gc.collect()
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).empty_cache()


def memory(device):
    """Return (bytes used at most so far, bytes in all) of the device's memory; (None, None) if it does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.driver_allocated_memory(), torch.mps.recommended_max_memory()
    if device.type == "xla":
        return None, None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
    return used, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def to_cpu(value):
    """Return nested dictionaries, lists and tuples with every tensor as a detached copy on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, dict):
        return {key: to_cpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_cpu(item) for item in value)
    return value
