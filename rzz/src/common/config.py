"""Load, check, override and write back config.json, the one file of settings that all stages share.

    config = load_config("rzz/config.json", overrides=["data.K=3", "training.learning_rate=0.001"])
    config.data.K            # 3
    config.folder            # the run folder: data/, checkpoints/ and logs/ lie in it

The dataclasses below are the schema: names, types, full-scale defaults and the values allowed. A key that config.json
leaves out has its default; a key that is not here, or of another type, is an error that says what to write instead.
"""

import dataclasses
import json
import os
import re
import shutil
import types
import typing
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from common.files import atomic_write, remove_abandoned
from common.text import did_you_mean

CONTEXT = 32  # tokens of a row
SOURCE = Path(__file__).resolve().parents[1]  # where the scripts are
DEFAULT_CONFIG = SOURCE.parent / "config.json"
LARGEST = 2**63 - 1  # what int64 holds


class UserError(Exception):
    """Something that the user can fix: shown as one line, exit code 2."""


def setting(default, **allowed):
    """A field of a settings dataclass: its default and, for check_value, the values that it may have."""
    value = {"default_factory": default} if callable(default) else {"default": default}
    return field(**value, metadata=allowed)


@dataclass
class DataConfig:
    K: int = 10  # rounds end with interval K
    N: int = setting(1000, low=1)  # test zeros, the first of interval K + 1
    interval_size: int = setting(1_000_000, low=10)  # zeros
    first_round: int = setting(1, low=0)  # 0 begins with the interval of zeros 1, 2, 3, ...
    validation_fraction: float = setting(0.01, above=0, high=1)  # of the following interval, drawn once a round
    platt_tables: str = ""  # folder with index.db and *.dat in the LMFDB format; "" computes the zeros


@dataclass
class ModelConfig:
    d_model: int = setting(64, low=1, high=65_536)
    num_layers: int = setting(1, low=1, high=65_536)
    num_heads: int = setting(4, low=1, high=65_536)
    d_k: int | None = setting(None, low=1, high=65_536)  # query and key dimension of a head; null: d_model / num_heads
    d_v: int | None = setting(None, low=1, high=65_536)  # value dimension of a head; null: d_model / num_heads
    d_ff: int | None = setting(None, low=1, high=65_536)  # hidden dimension of the feed-forward layers; null: 4 d_model
    dropout: float = setting(0.0, low=0, below=1)
    index_embedding: str = "waves"  # digits | place | smooth | primes | waves, see model/index_embedding.py
    max_number: int = setting(1500, low=1, high=1_000_000)  # "waves": whole numbers up to here; 1.6 √(t/2π) at the last zero t
    max_prime: int = setting(1000, low=2, high=1_000_000)  # "primes": primes up to here; "waves": powers, or to max_number

    def head_sizes(self):
        """Return (d_k, d_v, d_ff) with the nulls filled in."""
        head = self.d_model // self.num_heads
        return self.d_k or head, self.d_v or head, self.d_ff or 4 * self.d_model


@dataclass
class TrainingConfig:
    epochs: int = setting(1, low=1)  # passes over each interval
    learning_rate: float = setting(0.004, low=1e-12)  # highest, after the warm-up; cosine decay to zero over the whole run
    warmup_steps: int = setting(200, low=0)
    batch_size: int = setting(128, low=1, high=1_000_000)  # zeros
    weight_decay: float = setting(0.01, low=0)
    index_noise: float = setting(0.5, low=0, high=1)  # "waves": share of the index's digits that are random in training
    gradient_clip: float = setting(1.0, low=1e-12)  # largest norm of all gradients together
    checkpoint_interval: int = setting(1000, low=1)  # steps between saves of checkpoints/last.pt
    log_interval: int = setting(100, low=1)  # steps between lines in logs/training.log
    validation_interval: int = setting(1000, low=1)  # steps between validations, more where validation_share asks for it
    validation_share: float = setting(0.05, above=0, high=1)  # of a round's work that validations may take
    max_bad_steps: int = setting(20, low=1)  # updates in a row that are not finite, after which training stops
    compile: str = setting("auto", choices=("auto", "on", "off"))  # torch.compile: auto is on CUDA
    precision: str = setting("auto", choices=("auto", "float32", "bfloat16"))  # of matrix products; auto: what is faster
    mse_zeros: int = setting(100, low=1)  # zeros of each set that are written out for the MSE within a round; at its end, all
    seed: int = setting(1, low=0)


@dataclass
class Throughput:
    """What one processor sustains: an update takes layer_ms · (layers + 1), plus its arithmetic, plus its memory traffic."""

    tflops: float = setting(0.4, low=1e-9)  # a tenth of the peak of the M4's GPU, on products as small as these
    gb_per_s: float = setting(20.0, low=1e-9)  # of activations, each moved about six times: a sixth of the M4's 120 GB/s
    layer_ms: float = setting(1.6, low=1e-9)  # launching a layer's operations: 8 ms for four layers and the rest


@dataclass
class HardwareProfile:
    """The machine that forecasts are made for; tune_hyper_parameters.py --measure-host fills in the one it runs on."""

    name: str = "Mac mini M4"
    device: Throughput = setting(Throughput)  # which does the full training
    core: Throughput = setting(lambda: Throughput(0.16, 1.3, 0.8))  # each that tunes: figures of a Xeon core
    cores: int = setting(4, low=1)  # fast ones


@dataclass
class TuningConfig:
    zeros: int = setting(10_000, low=100)  # the first ones; their last tenth validates
    max_memory_gb: float = setting(8.0, low=1e-9)  # half of a Mac mini M4, which shares its memory with the system
    max_training_hours: float = setting(10.0, low=1e-9)  # a night; forecast for the full training on the host
    rungs: list[int] = setting(lambda: [1, 2, 4, 8, 16])  # epochs after which the best trials go on
    seeds: int = setting(3, low=1, high=1000)  # of the trials that are trained to the end: how much of a score is chance
    keep: float = setting(0.25, above=0, high=1)  # share of them that goes on, of the trials of each batch size
    state_folder: str = ""  # folder on a local disk for the states of trials while the search goes on; "" is checkpoints/tuning
    workers: int | None = setting(None, low=1, high=1024)  # trials, or stacks of them, trained at a time; null: one a fast core
    host: HardwareProfile = setting(HardwareProfile)
    grid: dict[str, list] = setting(lambda: {
        "epochs": list(range(1, 17)), "learning_rate": [0.004, 0.008, 0.016], "batch_size": [16, 32, 64, 128],
        "d_model": [32, 64], "num_heads": [2, 4], "num_layers": [1, 2], "d_k": [8, 16], "d_v": [8, 16], "dropout": [0.0, 0.1],
    })  # fmt: skip


@dataclass
class EvaluationConfig:
    runs: int = setting(10, low=1)
    top_p: float = setting(0.9, above=0, high=1)
    seed: int = setting(1, low=0)


@dataclass
class RuntimeConfig:
    device: str = setting("auto", choices=("auto", "mps", "cuda", "xla", "cpu"))
    dollars_per_hour: float = setting(0.0, low=0)  # what the machine costs; 0 leaves the cost out of the log


@dataclass
class Config:
    data: DataConfig = setting(DataConfig)
    model: ModelConfig = setting(ModelConfig)
    training: TrainingConfig = setting(TrainingConfig)
    tuning: TuningConfig = setting(TuningConfig)
    evaluation: EvaluationConfig = setting(EvaluationConfig)
    runtime: RuntimeConfig = setting(RuntimeConfig)
    path: Path = DEFAULT_CONFIG

    # the run folder, from which every path of a run is taken
    folder = property(lambda self: self.path.parent)
    data_folder = property(lambda self: self.folder / "data")
    checkpoint_folder = property(lambda self: self.folder / "checkpoints")
    log_folder = property(lambda self: self.folder / "logs")

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
    path = Path(os.path.abspath(os.path.expanduser(path)))
    settings = read_settings(path)
    for override in [*overrides, *([] if device is None else [f"runtime.device={device}"])]:
        section, key, value = split_override(override)
        if not isinstance(settings.setdefault(section, {}), dict):
            raise UserError(f"{path}: {section} must be an object with keys and values.")
        settings[section][key] = value
    config = Config(path=path, **checked_keys(SECTIONS, "", settings))
    check_config(config)
    return config


def read_settings(path):
    """Return the nested dictionaries that `path` holds. Raises UserError if it is missing or not JSON."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=distinct_keys)
    except OSError as error:
        raise UserError(f"Cannot read {path} ({error.strerror}); give the settings file with --config PATH.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} must hold a JSON object with the sections {', '.join(SECTIONS)}.")
    return settings


def distinct_keys(pairs):
    """Return the dictionary of the (key, value) `pairs` of a JSON object. Raises ValueError for a key that is there twice."""
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"the key {twice[0]!r} is there twice")
    return dict(pairs)


def split_override(text):
    """Return (section, key, value) of a "section.key=value" string; the value is read as JSON, else as a string."""
    match = re.fullmatch(r"\s*(\w+)\.(\w+)\s*=(.*)", text, re.DOTALL)
    if not match:
        raise UserError(f"--set {text}: write it as section.key=value, for example --set data.K=3.")
    section, key, value = match.groups()
    if section not in SECTIONS:
        raise UserError(f"--set {text}: unknown section {section!r}{did_you_mean(section, SECTIONS)}")
    try:
        return section, key, json.loads(value)
    except ValueError:
        return section, key, value


def checked_keys(hints, name, values):
    """Return the dictionary `values` of the settings under `name`, every key among `hints` {key: type} and of that type."""
    if not isinstance(values, dict):
        raise UserError(f"{name} must be an object with keys and values, not {json.dumps(values)}.")
    for key in values:
        if key not in hints:
            raise UserError(f"Unknown setting {name}{'.' if name else ''}{key}{did_you_mean(key, hints)}")
    return {key: checked_value(hints[key], f"{name}.{key}" if name else key, value) for key, value in values.items()}


def checked_value(hint, name, value):
    """Return `value` as the type `hint`; an int stands for a float, 1e6 for an int, nothing else is converted."""
    if dataclasses.is_dataclass(hint):
        return hint(**checked_keys(typing.get_type_hints(hint), name, value))
    if typing.get_origin(hint) is dict:  # tuning.grid: for each axis a list of values of the setting that it searches
        axes = {axis: list[typing.get_type_hints(SECTIONS[section])[axis]] for axis, section in GRID_AXES.items()}
        return checked_keys(axes, name, value)
    if typing.get_origin(hint) is list:
        if not isinstance(value, list) or not value:
            raise UserError(f"{name} must be a list with at least one value, not {json.dumps(value)}.")
        return [checked_value(*typing.get_args(hint), name, item) for item in value]
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in kinds and type(value) is int and abs(value) <= LARGEST:
        value = float(value)
    if int in kinds and type(value) is float and value.is_integer() and abs(value) <= LARGEST:  # 1e6
        value = int(value)
    if type(value) not in kinds:
        wanted = " or ".join("null" if kind is types.NoneType else kind.__name__ for kind in kinds)
        raise UserError(f"{name} must be of type {wanted}, not {json.dumps(value)} ({type(value).__name__}).")
    return value


def check_config(config):
    """Raise UserError for the first setting that is out of range or does not fit the others."""
    data, model = config.data, config.model
    for section in SECTIONS:
        check_section(getattr(config, section), section)
    for axis, values in config.tuning.grid.items():  # trials whose sizes do not fit each other are excluded later on
        allowed = SECTIONS[GRID_AXES[axis]].__dataclass_fields__[axis].metadata
        for value in values:
            check_value(f"tuning.grid.{axis}", value, **allowed)
    for earlier, later in zip([0, *config.tuning.rungs], config.tuning.rungs, strict=False):
        check_value("A number of epochs in tuning.rungs", later, low=earlier + 1)
    if data.K < data.first_round:
        raise UserError(f"data.K is {data.K}, but training begins at data.first_round = {data.first_round}: raise K.")
    sample = validation_size(data)
    if data.N > data.interval_size - sample:
        raise UserError(f"data.N is {data.N}, but an interval of {data.interval_size} zeros minus the validation sample of "
                        f"{sample} leaves {data.interval_size - sample}: lower data.N or data.validation_fraction, or raise "
                        "data.interval_size.")  # fmt: skip
    last = (data.K + 2) * data.interval_size - 1
    if not row_fits(last):
        raise UserError(f"The last zero of interval K + 1 has index {last}, whose row does not fit {CONTEXT} tokens: lower data.K "
                        "or data.interval_size.")
    if not has_valid_head_dims(model):
        raise UserError(f"model.d_model = {model.d_model} is not divisible by model.num_heads = {model.num_heads}: "
                        "change one of them, or set model.d_k and model.d_v.")  # fmt: skip


def check_section(section, name):
    """Raise UserError for the first value of a settings dataclass that its field does not allow."""
    for each in dataclasses.fields(section):
        value, key = getattr(section, each.name), f"{name}.{each.name}"
        if dataclasses.is_dataclass(value):
            check_section(value, key)
        else:
            check_value(key, value, **each.metadata)


def check_value(name, value, low=None, high=LARGEST, above=None, below=None, choices=None):
    """Raise UserError if `value` is not among `choices`, or not in the range given; NaN is in no range, None in every one."""
    if choices and value not in choices:
        raise UserError(f"{name} is {value!r}, not one of {', '.join(choices)}.")
    if not isinstance(value, (int, float)):
        return
    bounds = {f"at least {low}": low is None or value >= low, f"above {above}": above is None or value > above,
              f"at most {high}": value <= high, f"below {below}": below is None or value < below}  # fmt: skip
    broken = [bound for bound, holds in bounds.items() if not holds]
    if broken:
        raise UserError(f"{name} is {value}, but must be {broken[0]}.")


def has_valid_head_dims(model):
    """Whether every head has its dimensions: given as d_k and d_v, or an equal share of d_model."""
    return (model.d_k is not None and model.d_v is not None) or model.d_model % model.num_heads == 0


def row_fits(index):
    """Whether the row of zero `index` fits the context of 32 tokens.

    A value has at most as many digits as its index whenever that matters: it is the smaller of the two from index
    10,143 on, and the context is full at 12 digits.
    """
    digits = len(str(index))
    return 1 + digits + 1 + digits + len(".0000") + 1 <= CONTEXT


def validation_size(data):
    """Number of zeros in a validation sample."""
    return max(1, round(data.validation_fraction * data.interval_size))


def write_back(path, changes):
    """Change settings in the config.json at `path`, keeping the file before as config.previous.json.

    changes: a dictionary of sections, each a dictionary of keys and values. The new file is written atomically.
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
    """Make missing `folders`, and clean them of what killed processes left. Raises UserError if one cannot be written to."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            usable = os.access(folder, os.W_OK)
            remove_abandoned(folder)
        except OSError as error:
            raise UserError(f"Cannot make the folder {folder} ({error.strerror}); choose another place.") from error
        if not usable:
            raise UserError(f"Cannot write to {folder}; change its permissions or copy config.json to a folder of your own.")
