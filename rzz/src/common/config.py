"""Load, check, override and write back config.json, the one file of settings that all stages share.

    config = load_config("rzz/config.json", overrides=["data.K=3", "training.learning_rate=0.001"])
    config.data.K            # 3
    config.folder            # the run folder: data/, checkpoints/ and logs/ lie in it

The dataclasses below are the schema: names, types and full-scale defaults. A key that config.json leaves out has
its default; a key that is not here, or of another type, is an error that says what to write instead.
"""

import dataclasses
import difflib
import json
import os
import re
import shutil
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

from common.files import atomic_write

CONTEXT = 32  # tokens; fixed by the specification
COMPILE = ("auto", "on", "off")
PRECISIONS = ("auto", "float32", "bfloat16")
INDEX_EMBEDDINGS = ("digits", "place", "smooth", "primes")
DEFAULT_CONFIG = Path(__file__).resolve().parents[2] / "config.json"


class UserError(Exception):
    """Something that the person at the keyboard can mend: shown as one line, exit code 2."""


@dataclass
class DataConfig:
    K: int = 10  # rounds end with interval K
    N: int = 1000  # test zeros, the first of interval K + 1
    interval_size: int = 1_000_000  # zeros
    first_round: int = 1  # 0 begins with the interval of zeros 1, 2, 3, ...
    validation_fraction: float = 0.01  # of the following interval, drawn once a round
    platt_tables: str = ""  # folder with index.db and *.dat in the LMFDB format; "" computes the zeros


@dataclass
class ModelConfig:
    d_model: int = 128
    num_layers: int = 4
    num_heads: int = 4
    d_k: int | None = None  # query and key dimension of a head; null: d_model / num_heads
    d_v: int | None = None  # value dimension of a head; null: d_model / num_heads
    d_ff: int | None = None  # hidden dimension of the feed-forward layers; null: 4 d_model
    dropout: float = 0.0
    index_embedding: str = "primes"  # digits | place | smooth | primes
    max_prime: int = 1000  # index_embedding "primes": phases of the primes up to here

    def head_sizes(self):
        """Return (d_k, d_v, d_ff) with the nulls filled in."""
        head = self.d_model // self.num_heads
        return self.d_k or head, self.d_v or head, self.d_ff or 4 * self.d_model


@dataclass
class TrainingConfig:
    epochs: int = 1  # passes over each interval
    learning_rate: float = 0.002  # highest, after the warm-up; cosine decay to zero over the whole run
    warmup_steps: int = 200
    batch_size: int = 128  # zeros
    weight_decay: float = 0.01
    gradient_clip: float = 1.0  # largest norm of all gradients together
    checkpoint_interval: int = 1000  # steps between saves of checkpoints/last.pt
    log_interval: int = 100  # steps between lines in logs/training.log
    validation_interval: int = 1000  # steps between looks at the validation sample
    max_bad_steps: int = 20  # updates in a row with a loss or gradient that is not finite, after which training stops
    compile: str = "auto"  # torch.compile: auto (on CUDA) | on | off
    precision: str = "auto"  # of the matrix products of training: auto (bfloat16 on CUDA) | float32 | bfloat16
    mse_zeros: int = 100  # zeros of each set that are written out by sampling for the logged MSE
    seed: int = 1


@dataclass
class Throughput:
    """What one processor sustains: an update takes layer_ms · (layers + 1), plus its arithmetic, plus its memory traffic."""

    tflops: float = 0.4  # a tenth of the peak of the M4's GPU, on products as small as these
    gb_per_s: float = 20.0  # of activations, each of which is moved about six times: a sixth of the M4's 120 GB/s
    layer_ms: float = 1.6  # launching a layer's operations: 8 ms for four layers and the rest


@dataclass
class HardwareProfile:
    """The machine that forecasts are made for; tune_hyper_parameters.py --measure-host fills in the one it runs on."""

    name: str = "Mac mini M4"
    device: Throughput = field(default_factory=Throughput)  # which does the full training
    core: Throughput = field(default_factory=lambda: Throughput(0.16, 1.3, 0.8))  # each that tunes; measured on a Xeon core
    cores: int = 4  # fast ones


@dataclass
class TuningConfig:
    zeros: int = 10_000  # the first ones; their last tenth validates
    max_memory_gb: float = 8.0  # half of a Mac mini M4, which shares its memory with the system
    max_training_hours: float = 24.0  # forecast for the full training on the host
    rungs: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16])  # epochs after which the better part goes on
    keep: float = 0.25  # that part, of the points of each batch size
    workers: int | None = None  # points, or stacks of points, trained at a time; null: one a fast core
    host: HardwareProfile = field(default_factory=HardwareProfile)
    grid: dict[str, list] = field(
        default_factory=lambda: {
            "epochs": list(range(1, 17)),
            "learning_rate": [0.0005, 0.001, 0.002, 0.004],
            "batch_size": [16, 32, 64, 128],
            "d_model": [64, 128],
            "num_heads": [4, 8],
            "num_layers": [2, 4],
            "d_k": [16, 32],
            "d_v": [16, 32],
            "dropout": [0.0, 0.1],
            "index_embedding": ["digits", "place", "smooth", "primes"],
        }
    )


@dataclass
class EvaluationConfig:
    runs: int = 10
    top_p: float = 0.9
    seed: int = 1


@dataclass
class RuntimeConfig:
    device: str = "auto"  # auto | mps | cuda | xla | cpu
    dollars_per_hour: float = 0.0  # what the machine costs; 0 leaves the cost out of the log


@dataclass
class Config:
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    path: Path = DEFAULT_CONFIG

    @property
    def folder(self):
        """The run folder, from which every path of a run is taken."""
        return self.path.parent

    @property
    def data_folder(self):
        return self.folder / "data"

    @property
    def checkpoint_folder(self):
        return self.folder / "checkpoints"

    @property
    def log_folder(self):
        return self.folder / "logs"

    @property
    def settings(self):
        """All settings as nested dictionaries of plain types, as in config.json."""
        return {name: dataclasses.asdict(getattr(self, name)) for name in SECTIONS}


SECTIONS = {name: kind for name, kind in typing.get_type_hints(Config).items() if name != "path"}
GRID_AXES = {  # axis of tuning.grid: the section of config.json that its winner is written to
    **dict.fromkeys(typing.get_type_hints(ModelConfig), "model"),
    **dict.fromkeys(("epochs", "learning_rate", "batch_size", "weight_decay"), "training"),
}


def load_config(path=DEFAULT_CONFIG, overrides=(), device=None):
    """Read and check `path`, apply the "section.key=value" strings of `overrides`, and return a Config.

    Raises UserError for a missing or unreadable file, an unknown or ill-typed key, or a value out of range.
    """
    path = Path(os.path.expanduser(path)).resolve()
    settings = read_settings(path)
    for override in [*overrides, *([] if device is None else [f"runtime.device={device}"])]:
        section, key, value = split_override(override)
        if not isinstance(settings.setdefault(section, {}), dict):
            raise UserError(f"{path}: {section} must be an object with keys and values.")
        settings[section][key] = value
    sections = {}
    for name, values in settings.items():
        if name not in SECTIONS:
            raise UserError(f"{path}: unknown section {name!r}{did_you_mean(name, SECTIONS)}.")
        sections[name] = section_from_values(SECTIONS[name], name, values)
    config = Config(path=path, **sections)
    check_config(config)
    return config


def read_settings(path):
    """Return the nested dictionaries that `path` holds. Raises UserError where it is missing or not JSON."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read {path} ({error.strerror}); give the settings file with --config PATH.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} must hold a JSON object with the sections {', '.join(SECTIONS)}.")
    return settings


def split_override(text):
    """Return (section, key, value) of a "section.key=value" string; the value is read as JSON, else as a string."""
    match = re.fullmatch(r"\s*(\w+)\.(\w+)\s*=(.*)", text, re.DOTALL)
    if not match:
        raise UserError(f"--set {text}: write it as section.key=value, for example --set data.K=3.")
    section, key, value = match.groups()
    if section not in SECTIONS:
        raise UserError(f"--set {text}: unknown section {section!r}{did_you_mean(section, SECTIONS)}.")
    try:
        return section, key, json.loads(value)
    except ValueError:
        return section, key, value


def section_from_values(section_type, section, values):
    """Return a `section_type` filled from the dictionary `values`, every key known and of its declared type."""
    if not isinstance(values, dict):
        raise UserError(f"{section} must be an object with keys and values, not {values!r}.")
    hints = typing.get_type_hints(section_type)
    checked = {}
    for key, value in values.items():
        if key not in hints:
            raise UserError(f"Unknown setting {section}.{key}{did_you_mean(key, hints)}.")
        if section == "tuning" and key == "grid":
            checked[key] = checked_grid(value)
        else:
            checked[key] = checked_value(hints[key], f"{section}.{key}", value)
    return section_type(**checked)


def checked_value(hint, name, value):
    """Return `value` as the type `hint`; an int stands for a float, nothing else is converted."""
    if dataclasses.is_dataclass(hint):
        return section_from_values(hint, name, value)
    if typing.get_origin(hint) is list:
        if not isinstance(value, list) or not value:
            raise UserError(f"{name} must be a list with at least one value, not {json.dumps(value)}.")
        return [checked_value(*typing.get_args(hint), name, item) for item in value]
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in kinds and type(value) is int and abs(value) < 2**63:
        value = float(value)
    if type(value) not in kinds:
        wanted = " or ".join("null" if kind is types.NoneType else kind.__name__ for kind in kinds)
        raise UserError(f"{name} must be of type {wanted}, not {json.dumps(value)} ({type(value).__name__}).")
    return value


def checked_grid(grid):
    """Return tuning.grid with every axis known and every value of the type of the setting that it searches."""
    if not isinstance(grid, dict):
        raise UserError(f"tuning.grid must be an object of axes and lists of values, not {json.dumps(grid)}.")
    checked = {}
    for axis, values in grid.items():
        if axis not in GRID_AXES:
            raise UserError(f"Unknown axis tuning.grid.{axis}{did_you_mean(axis, GRID_AXES)}.")
        hint = typing.get_type_hints(SECTIONS[GRID_AXES[axis]])[axis]
        checked[axis] = checked_value(list[hint], f"tuning.grid.{axis}", values)
    return checked


def check_config(config):
    """Raise UserError for the first setting that is out of range or does not fit the others."""
    data, tuning = config.data, config.tuning
    check_range("data.first_round", data.first_round, 0)
    check_range("data.interval_size", data.interval_size, 10)
    check_range("data.N", data.N, 1)
    if data.K < data.first_round:
        raise UserError(f"data.K is {data.K}, but training begins at data.first_round = {data.first_round}: raise K.")
    if not 0 < data.validation_fraction <= 1:
        raise UserError(f"data.validation_fraction is {data.validation_fraction}, but must lie in (0, 1].")
    sample = validation_size(data)
    if data.N > data.interval_size - sample:
        raise UserError(
            f"data.N is {data.N}, but an interval of {data.interval_size} zeros minus the validation sample of {sample} "
            f"leaves {data.interval_size - sample}: lower data.N or data.validation_fraction, or raise data.interval_size."
        )
    check_row_length((data.K + 2) * data.interval_size - 1, "the last zero of interval K + 1")
    check_model_ranges(config.model, "model.")
    check_heads(config.model)
    check_training(config.training, "training.")
    check_range("tuning.zeros", tuning.zeros, 100)
    for name in ("max_memory_gb", "max_training_hours"):
        check_range(f"tuning.{name}", getattr(tuning, name), 1e-9)
    check_range("tuning.keep", tuning.keep, 1e-9, 1)
    for earlier, later in zip([0, *tuning.rungs], tuning.rungs, strict=False):
        check_range("A number of epochs in tuning.rungs", later, earlier + 1)
    if tuning.workers is not None:
        check_range("tuning.workers", tuning.workers, 1, 1024)
    check_range("tuning.host.cores", tuning.host.cores, 1)
    for name in ("device", "core"):
        for figure, value in dataclasses.asdict(getattr(tuning.host, name)).items():
            check_range(f"tuning.host.{name}.{figure}", value, 1e-9)
    check_range("evaluation.runs", config.evaluation.runs, 1)
    check_range("evaluation.seed", config.evaluation.seed, 0)
    if not 0 < config.evaluation.top_p <= 1:
        raise UserError(f"evaluation.top_p is {config.evaluation.top_p}, but must lie in (0, 1].")
    check_range("runtime.dollars_per_hour", config.runtime.dollars_per_hour, 0)
    for axis, values in tuning.grid.items():
        check = check_model_ranges if GRID_AXES[axis] == "model" else check_training
        for value in values:  # whether sizes fit each other is asked of each point, which is then ruled out
            check(dataclasses.replace(getattr(config, GRID_AXES[axis]), **{axis: value}), "tuning.grid.")


def check_range(name, value, low, high=2**63 - 1):
    """Raise UserError where `value` is not in [low, high]; NaN is in no range."""
    if not low <= value <= high:
        raise UserError(f"{name} is {value}, but must be at least {low}{'' if value < low else f' and at most {high}'}.")


def check_model_ranges(model, prefix):
    """Raise UserError for a value of a ModelConfig that no model can have."""
    for name in ("d_model", "num_layers", "num_heads", "d_k", "d_v", "d_ff"):
        if getattr(model, name) is not None:
            check_range(prefix + name, getattr(model, name), 1, 65_536)
    check_range(prefix + "max_prime", model.max_prime, 2, 1_000_000)
    if not 0 <= model.dropout < 1:
        raise UserError(f"{prefix}dropout is {model.dropout}, but must lie in [0, 1).")
    if model.index_embedding not in INDEX_EMBEDDINGS:
        raise UserError(f"{prefix}index_embedding is {model.index_embedding!r}, not one of {', '.join(INDEX_EMBEDDINGS)}.")


def has_valid_head_dims(model):
    """Whether every head has its dimensions: given as d_k and d_v, or an equal share of d_model."""
    return (model.d_k is not None and model.d_v is not None) or model.d_model % model.num_heads == 0


def check_heads(model):
    if not has_valid_head_dims(model):
        raise UserError(
            f"model.d_model = {model.d_model} is not divisible by model.num_heads = {model.num_heads}: "
            "change one of them, or set model.d_k and model.d_v."
        )


def check_training(training, prefix):
    """Raise UserError for a value of a TrainingConfig that no training can have."""
    for name in ("epochs", "checkpoint_interval", "log_interval", "validation_interval", "max_bad_steps", "mse_zeros"):
        check_range(prefix + name, getattr(training, name), 1)
    check_range(prefix + "batch_size", training.batch_size, 1, 1_000_000)
    for name in ("warmup_steps", "seed", "weight_decay"):
        check_range(prefix + name, getattr(training, name), 0)
    for name in ("learning_rate", "gradient_clip"):
        check_range(prefix + name, getattr(training, name), 1e-12)
    for name, choices in (("compile", COMPILE), ("precision", PRECISIONS)):
        if getattr(training, name) not in choices:
            raise UserError(f"{prefix}{name} is {getattr(training, name)!r}, not one of {', '.join(choices)}.")


def row_fits(index):
    """Whether the row of zero `index` fits the context of 32 tokens.

    A value has at most as many digits as its index wherever that matters: it is the smaller of the two from index
    10,143 on, and the context is full at 12 digits.
    """
    digits = len(str(index))
    return 1 + digits + 1 + digits + len(".0000") + 1 <= CONTEXT


def check_row_length(index, what):
    """Raise UserError where the row of zero `index` could exceed the context of 32 tokens."""
    if not row_fits(index):
        raise UserError(f"{what} has index {index}, whose row does not fit {CONTEXT} tokens: lower data.K or data.interval_size.")


def validation_size(data):
    """Number of zeros in a validation sample."""
    return max(1, round(data.validation_fraction * data.interval_size))


def did_you_mean(word, known):
    """'; did you mean …?' with the nearest known word, else the list of what is known."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"


def write_back(path, changes):
    """Change settings in the config.json at `path`, keeping the file before as config.previous.json.

    `changes` is a dictionary of sections, each a dictionary of keys and values. The new file is there whole or not
    at all.
    """
    settings = read_settings(path)
    for section, values in changes.items():
        settings.setdefault(section, {}).update(values)
    shutil.copyfile(path, path.with_name(f"{path.stem}.previous{path.suffix}"))
    with atomic_write(path, "w") as file:
        file.write(settings_json(settings))


def settings_json(settings):
    """JSON with one setting a line: lists stay on the line of their key."""
    text = json.dumps(settings, indent=2)
    return re.sub(r"\[[^\[\]{}]*\]", lambda match: re.sub(r"\s*\n\s*", " ", match[0]), text).replace("[ ", "[").replace(
        " ]", "]") + "\n"


def require_writable(*folders):
    """Make `folders` where they are missing. Raises UserError where one cannot be written to."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            usable = os.access(folder, os.W_OK)
        except OSError as error:
            raise UserError(f"Cannot make the folder {folder} ({error.strerror}); choose another place for config.json.") from error
        if not usable:
            raise UserError(f"Cannot write to {folder}; change its permissions or copy config.json to a folder of yours.")
