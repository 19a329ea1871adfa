"""Nothing reaches a device that Apple's GPUs or TPUs handle wrongly, and devices are chosen with a reason."""

import os
import platform
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SRC, batch_of
from torch.overrides import TorchFunctionMode

from common import devices
from common.config import ModelConfig, TrainingConfig, UserError
from common.devices import (
    choose_device,
    choose_precision,
    choose_threads,
    compile_failure,
    compiled,
    device_count,
    device_of_worker,
    distributed_backend,
    fast_cores,
    multiplies_bfloat16,
    to_cpu,
)
from data_utils import RiemannZerosDataset
from model.index_embedding import KINDS
from model.network import build_model, cross_entropy_of
from model.sampling import sampled_predictions
from training.optimizer import make_optimizer, training_step

ZEROS = RiemannZerosDataset([10, 11, 12], [497738, 529703, 564462])


class TransfersSeen(TorchFunctionMode):
    """Collects what the program's own calls of .to(device) are made with.

    Not torch's: its fused optimizer asks for a copy of a scalar that lies on the device already, which is none.
    """

    def __init__(self):
        self.transfers = []
        super().__init__()

    def __torch_function__(self, function, kinds, args=(), kwargs=None):
        kwargs = kwargs or {}
        ours = Path(sys._getframe(1).f_code.co_filename).is_relative_to(SRC)
        if ours and function is torch.Tensor.to and any(isinstance(arg, torch.device) for arg in (*args, *kwargs.values())):
            self.transfers.append((args[0].dtype, kwargs.get("non_blocking", False)))
        return function(*args, **kwargs)


@pytest.mark.parametrize("kind", KINDS)
def test_no_float64_and_no_asynchronous_copy_reaches_a_device(kind):
    model = build_model(ModelConfig(d_model=16, num_layers=1, num_heads=2, index_embedding=kind, max_prime=10), 1)
    optimizer = make_optimizer(model, TrainingConfig())
    with TransfersSeen() as seen:
        training_step(model, optimizer, batch_of(model, ZEROS, 3), 1e-3, 1.0, (1, 0))
        cross_entropy_of(model, ZEROS)
        sampled_predictions(model, ZEROS, 2, 0.9, 1)
    assert len(seen.transfers) > 6
    known = (torch.bool, torch.uint8, torch.int64, torch.float32)
    assert all(dtype in known and not late for dtype, late in seen.transfers)
    assert {tensor.dtype for tensor in model.state_dict().values()} <= {torch.float32, torch.bool}


def test_sampling_happens_on_the_cpu_and_copies_wait():
    source = "".join(path.read_text() for path in SRC.rglob("*.py"))
    assert "multinomial" not in source and "non_blocking" not in source and "pin_memory" not in source
    assert "nucleus_sample(logits.cpu()" in source


def test_device_code_keeps_to_its_file():
    for path in SRC.rglob("*.py"):
        if path.name != "devices.py":
            assert not re.search(r"torch\.(cuda|mps|backends)\b|import torch_xla|\.cuda\(\)", path.read_text()), path.name


def test_a_device_is_chosen_with_a_reason_and_an_absent_one_is_an_error(monkeypatch):
    device, reason = choose_device("auto")
    assert device.type in ("cpu", "cuda", "mps", "xla") and reason
    assert choose_device("cpu")[0].type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device cuda was asked for"):
        choose_device("cuda")


INSTALL = "pip install torch==2.9.0 torch_xla[tpu]==2.9.0"
UNDEFINED = "/lib/_XLAC.so: undefined symbol: _ZN5torch8autograd10deleteNodeEPNS0_4NodeE"
BROKEN = f"raise ImportError({UNDEFINED!r})"  # what torch_xla 2.9.0 raises beside torch 2.13.0
WITHOUT_LIBTPU = "class runtime:\n    device_type = staticmethod(lambda: 'CPU')"


@pytest.fixture
def plain_machine(tmp_path, monkeypatch):
    """A machine with neither GPU nor TPU nor torch_xla; returns a function that plugs in PCI devices and installs a torch_xla."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(devices, "PCI", tmp_path / "pci")
    monkeypatch.setattr(devices, "find_spec", lambda name: (tmp_path / f"{name}.py").exists() or None)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch_xla", raising=False)

    def change(pci, source):
        for number, (vendor, device) in enumerate(pci):
            folder = tmp_path / "pci" / f"0000:00:0{number}.0"
            folder.mkdir(parents=True)
            (folder / "vendor").write_text(f"{vendor}\n")
            (folder / "device").write_text(f"{device}\n")
        if source is not None:
            (tmp_path / "torch_xla.py").write_text(source)

    yield change
    sys.modules.pop("torch_xla", None)


NETWORK_CARD, TPU_V5E, OTHER_MAKER = ("0x1ae0", "0x0042"), ("0x1ae0", "0x0063"), ("0x8086", "0x0063")


@pytest.mark.parametrize("source, says", [
    (None, f"torch_xla is not installed: {INSTALL}, then"), (BROKEN, f"does not load ({UNDEFINED}): {INSTALL}, then"),
    (WITHOUT_LIBTPU, f"torch_xla does not find it: {INSTALL}, then"),
])  # fmt: skip
def test_a_tpu_is_not_left_unused_without_saying_what_to_type(plain_machine, source, says):
    plain_machine([NETWORK_CARD, TPU_V5E], source)
    with pytest.raises(UserError) as error:
        choose_device("auto")
    assert says in str(error.value) and str(error.value).endswith("--device cpu.") and "\n" not in str(error.value)
    assert choose_device("cpu") == (torch.device("cpu"), "asked for")


@pytest.mark.parametrize("source, says", [
    (None, "no GPU or TPU was found"), (WITHOUT_LIBTPU, "no GPU or TPU was found"),
    (BROKEN, f"no GPU or TPU was found; torch_xla is installed and does not load ({UNDEFINED}): {INSTALL}"),
])  # fmt: skip
def test_without_a_tpu_the_cpu_computes_and_a_torch_xla_that_does_not_load_shows_its_error(plain_machine, source, says):
    plain_machine([NETWORK_CARD, OTHER_MAKER], source)
    assert choose_device("auto") == (torch.device("cpu"), says)


@pytest.mark.parametrize("source, says", [(None, "is not installed"), (BROKEN, UNDEFINED)])
def test_xla_that_is_asked_for_and_does_not_load_shows_why_and_what_to_type(plain_machine, source, says):
    plain_machine([], source)
    with pytest.raises(UserError, match="The device xla was asked for") as error:
        choose_device("xla")
    assert says in str(error.value) and INSTALL in str(error.value)


@pytest.mark.parametrize("gpu, nccl, expected", [
    (True, True, "cpu:gloo,cuda:nccl"), (False, True, "gloo"), (False, False, "gloo"),
])  # fmt: skip
def test_nccl_is_asked_for_only_beside_a_gpu(monkeypatch, gpu, nccl, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: nccl)
    assert distributed_backend() == expected


def test_to_cpu_copies_nested_tensors():
    tensor = torch.ones(2, requires_grad=True)
    copied = to_cpu({"a": [tensor, 3], "b": (tensor,)})
    assert copied["a"][1] == 3 and isinstance(copied["b"], tuple)
    assert not copied["a"][0].requires_grad and copied["a"][0].data_ptr() != tensor.data_ptr()


@pytest.mark.parametrize("answer, cores", [("4\n", 4), ("", None)])
def test_on_a_mac_the_performance_cores_count_where_the_system_names_them(monkeypatch, answer, cores):
    elsewhere = fast_cores()
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(subprocess, "run", lambda *given, **options: subprocess.CompletedProcess(given, 0, stdout=answer))
    assert fast_cores() == (cores or elsewhere) >= 1


def test_workers_take_turns_on_the_devices_of_a_machine(monkeypatch):
    assert device_of_worker(torch.device("cpu"), 3) == torch.device("cpu") and device_count(torch.device("cpu")) == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)  # where seeds go
    chosen = torch.device("cuda", 0)
    devices = [device_of_worker(chosen, number) for number in range(4)]
    assert [device.index for device in devices] == current == [0, 1, 0, 1] and device_count(chosen) == 2


def test_where_torch_compile_does_not_work_training_goes_without_it_and_says_why(monkeypatch, caplog):
    def no_compiler(*given, **options):
        raise RuntimeError("no C compiler\n  was found")

    monkeypatch.setattr(torch, "compile", no_compiler)
    failure = compile_failure.__wrapped__(torch.device("cpu"))
    assert failure == "no C compiler was found"
    monkeypatch.setattr(devices, "compile_failure", lambda device: failure)
    model = torch.nn.Linear(1, 1)
    assert compiled(model, torch.device("cpu"), "auto") is model and not caplog.records
    assert compiled(model, torch.device("cuda"), "auto") is model and failure in caplog.text
    with pytest.raises(UserError, match=failure):
        compiled(model, torch.device("cpu"), "on")


def test_gradients_that_torch_compile_gets_wrong_are_found_out(monkeypatch):
    """As on CPUs before torch 2.7, where an embedding's gradient came from the last place that looked it up."""
    monkeypatch.setattr(torch, "compile", lambda function: lambda: function() / 64)
    assert "its gradients are wrong" in compile_failure.__wrapped__(torch.device("cpu"))
    monkeypatch.setattr(torch, "compile", lambda function: function)
    assert compile_failure.__wrapped__(torch.device("cpu")) is None


def test_what_torch_compile_leaves_on_a_cpu_goes_with_its_process(tmp_path):
    """The C++ compiler writes a library in place, so that a start which is killed may leave half of one."""
    found = """
import torch
from common.devices import compile_failure
torch.optim.AdamW([torch.ones(1)])  # with which torch names a cache of all processes
print(compile_failure(torch.device("cpu")))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    command = [sys.executable, "-c", found]
    done = subprocess.run(command, env={**environment, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, cwd=SRC)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    if done.stdout != "None\n":
        pytest.skip(done.stdout + done.stderr)


PAGES_OF_A_SECOND_ROUND = """
import resource, torch
from common.devices import tune_glibc_malloc
tune_glibc_malloc()
faults = []
for _ in range(3):
    tensors = [torch.ones(1_000_000) for _ in range(50)]
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    del tensors
print(faults[-1] - faults[-2])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it speaks to glibc alone")
def test_the_memory_of_freed_tensors_is_not_asked_for_again():
    command = [sys.executable, "-c", PAGES_OF_A_SECOND_ROUND]
    pages = int(subprocess.run(command, cwd=SRC, capture_output=True, text=True, check=True).stdout)
    assert pages < 50 * 4_000_000 / resource.getpagesize() / 20  # one tensor in fifty may find its place taken


def test_training_multiplies_in_bfloat16_where_a_gpu_has_it(monkeypatch):
    cuda = torch.device("cuda")
    for there, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, there=there: there)
        assert choose_precision(cuda, "auto", None)[0] == dtype
        assert choose_precision(cuda, "float32", None) == (torch.float32, "asked for")
    for kind in ("mps", "xla"):
        assert choose_precision(torch.device(kind), "auto", None)[0] == torch.float32
        assert choose_precision(torch.device(kind), "bfloat16", None)[0] == torch.bfloat16


@pytest.mark.parametrize("flags, there", [("avx2 avx512_bf16", True), ("amx_bf16 amx_tile", True), ("avx512f avx_bf16", False)])
def test_a_processor_says_whether_it_multiplies_bfloat16(monkeypatch, flags, there):
    text = f"processor\t: 0\nmodel name\t: amx_bf16\nflags\t\t: {flags}\nbugs\t\t: amx_bf16\n"
    monkeypatch.setattr(devices.Path, "exists", lambda path: True)
    monkeypatch.setattr(devices.Path, "read_text", lambda path, encoding: text)
    assert multiplies_bfloat16(torch.device("cpu")) == there
    monkeypatch.setattr(devices.Path, "exists", lambda path: False)  # a Mac
    assert not multiplies_bfloat16(torch.device("cpu"))


@pytest.fixture
def steps(monkeypatch):
    """On a CPU that multiplies bfloat16: a function (float32, bfloat16) -> a step that takes so many seconds of a clock."""
    now = [0.0]
    monkeypatch.setattr(devices.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(devices, "multiplies_bfloat16", lambda device: True)

    def steps(float32, bfloat16):
        def step(dtype):
            now[0] += {torch.float32: float32, torch.bfloat16: bfloat16}[dtype]

        return step

    return steps


@pytest.mark.parametrize("float32, bfloat16, chosen", [(0.08, 0.05, "bfloat16"), (0.042, 0.04, "float32"), (0.01, 5.0, "float32")])
def test_a_cpu_multiplies_in_bfloat16_where_that_makes_a_step_faster(steps, float32, bfloat16, chosen):
    dtype, why = choose_precision(torch.device("cpu"), "auto", steps(float32, bfloat16))
    assert str(dtype) == f"torch.{chosen}"
    assert why == f"a step takes {1e3 * float32:.1f} ms in float32 and {1e3 * bfloat16:.1f} ms in bfloat16"


def test_a_run_keeps_its_precision_unless_the_processor_lacks_it_or_the_user_says_otherwise(steps, monkeypatch):
    cpu, faster = torch.device("cpu"), steps(2.0, 1.0)
    assert choose_precision(cpu, "auto", faster, "float32")[0] == torch.float32
    assert choose_precision(cpu, "auto", steps(1.0, 2.0), "bfloat16")[0] == torch.bfloat16
    assert choose_precision(cpu, "float32", faster, "bfloat16") == (torch.float32, "asked for")
    assert choose_precision(cpu, "auto", None) == (torch.float32, "several processes compute")
    monkeypatch.setattr(devices, "multiplies_bfloat16", lambda device: False)
    for before in (None, "bfloat16"):
        assert choose_precision(cpu, "auto", faster, before)[0] == torch.float32


@pytest.fixture
def two_cores(monkeypatch):
    """As on a machine with two cores whose user has not set OMP_NUM_THREADS; returns {threads: seconds of a step} to fill."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    now, threads, seconds = [0.0], [2], {}
    monkeypatch.setattr(devices.torch, "get_num_threads", lambda: threads[0])
    monkeypatch.setattr(devices.torch, "set_num_threads", lambda count: threads.__setitem__(0, count))
    monkeypatch.setattr(devices.time, "perf_counter", lambda: now[0])

    def work():
        now[0] += seconds[threads[0]]

    seconds["work"] = work
    return seconds


@pytest.mark.parametrize("one, two, fastest", [(0.132, 0.085, 2), (0.132, 0.373, 1), (0.132, 3.766, 1)])
def test_as_many_threads_compute_as_make_a_step_fastest(two_cores, one, two, fastest):
    two_cores |= {1: one, 2: two}
    assert choose_threads(torch.device("cpu"), two_cores["work"]) == (
        fastest, f"a step takes {1e3 * one:.0f} ms with one, {1e3 * two:.0f} ms with 2")  # fmt: skip
    assert torch.get_num_threads() == fastest


def test_a_run_keeps_its_number_of_threads_and_the_user_has_the_last_word(two_cores, monkeypatch):
    cpu, found = torch.device("cpu"), lambda *arguments: choose_threads(*arguments)[0]
    assert found(cpu, None, 1) == torch.get_num_threads() == 1
    assert choose_threads(cpu, None) == (1, "there is one core")
    torch.set_num_threads(2)
    two_cores |= {1: 1.0, 2: 2.0}
    assert found(cpu, None, 8) == 2  # it began on a machine with more cores
    assert found(cpu, two_cores["work"], 8) == 1
    torch.set_num_threads(2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert choose_threads(cpu, None, 1) == (2, "as OMP_NUM_THREADS says")
    assert choose_threads(torch.device("meta"), None) == (None, "")
