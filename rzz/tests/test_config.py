"""Settings are checked before anything else happens, and what is wrong is said in one line."""

import json

import pytest

from common.config import DEFAULT_CONFIG, Config, UserError, load_config, write_back


def config_with(tmp_path, settings, overrides=()):
    path = tmp_path / "config.json"
    path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return load_config(path, overrides)


def test_the_config_that_is_shipped_spells_out_every_default():
    assert json.loads(DEFAULT_CONFIG.read_text()) == Config().settings


def test_specified_defaults():
    config = load_config()
    assert (config.data.K, config.data.N, config.evaluation.runs, config.evaluation.top_p) == (10, 1000, 10, 0.9)
    assert config.tuning.grid["batch_size"] == [16, 32, 64, 128]
    assert {1, 16} <= set(config.tuning.grid["epochs"])


def test_keys_left_out_have_their_default_and_overrides_are_typed(tmp_path):
    config = config_with(tmp_path, {"data": {"K": 3}}, ["training.learning_rate=1", "model.d_k=8", "model.index_embedding=place"])
    assert config.data.K == 3 and config.data.N == 1000
    assert config.training.learning_rate == 1.0 and config.model.d_k == 8 and config.model.index_embedding == "place"
    assert config.folder == tmp_path


@pytest.mark.parametrize("settings, says", [
    ({"data": {"k": 3}}, "data.k"),
    ({"model": {"dmodel": 3}}, "did you mean 'd_model'?"),
    ({"dta": {}}, "did you mean 'data'?"),
    ({"runtime": {"device": "gpu"}}, "runtime.device is 'gpu', not one of auto, mps, cuda, xla, cpu"),
    ({"data": {"K": "3"}}, 'data.K must be of type int, not "3"'),
    ({"data": {"K": True}}, "data.K must be of type int"),
    ({"data": {"K": 2.5}}, "data.K must be of type int"),
    ({"data": 3}, "data must be an object"),
    ({"model": {"d_k": "x"}}, "model.d_k must be of type int or null"),
    ({"data": {"K": 0}}, "data.K is 0"),
    ({"data": {"N": 0}}, "data.N is 0"),
    ({"data": {"N": 999_999}}, "lower data.N or data.validation_fraction"),
    ({"data": {"interval_size": 10**12}}, "32 tokens"),
    ({"data": {"validation_fraction": 0}}, "validation_fraction"),
    ({"model": {"d_model": 30}}, "not divisible by model.num_heads"),
    ({"model": {"num_heads": 0}}, "num_heads is 0"),
    ({"model": {"dropout": 1}}, "dropout"),
    ({"training": {"learning_rate": -1}}, "learning_rate"),
    ({"training": {"learning_rate": float("nan")}}, "learning_rate"),
    ({"training": {"batch_size": 0}}, "batch_size"),
    ({"evaluation": {"top_p": 0}}, "top_p"),
    ({"tuning": {"rungs": [1, 4, 2]}}, "tuning.rungs is 2, but must be at least 5"),
    ({"tuning": {"rungs": []}}, "at least one value"),
    ({"tuning": {"keep": 0}}, "tuning.keep is 0"),
    ({"tuning": {"workers": 0}}, "tuning.workers is 0"),
    ({"tuning": {"host": {"gpu": 1}}}, "tuning.host.gpu"),
    ({"tuning": {"host": {"core": {"tflops": 0}}}}, "tuning.host.core.tflops is 0"),
    ({"tuning": {"grid": {"depth": [1]}}}, "tuning.grid.depth"),
    ({"tuning": {"grid": {"d_model": []}}}, "at least one value"),
    ({"tuning": {"grid": {"d_model": ["x"]}}}, "tuning.grid.d_model must be of type int"),
    ({"training": {"compile": "maybe"}}, "training.compile is 'maybe', not one of auto, on, off"),
    ({"tuning": {"grid": {"dropout": [1]}}}, "tuning.grid.dropout is 1.0, but must be below 1"),
    ({"tuning": {"grid": {"d_k": [0]}}}, "tuning.grid.d_k is 0"),
    ({"tuning": {"grid": {"num_layers": [-1]}}}, "tuning.grid.num_layers is -1"),
    ({"tuning": {"grid": {"weight_decay": [-1]}}}, "tuning.grid.weight_decay is -1"),
    ({"tuning": {"grid": {"num_heads": [0]}}}, "tuning.grid.num_heads is 0"),
    ({"training": {"seed": 10**20}}, "training.seed"),
    ({"training": {"learning_rate": 10**400}}, "learning_rate"),
    ({"model": {"d_model": 10**6}}, "at most 65536"),
    ({"runtime": None}, "runtime must be an object"),
    ("{", "not valid JSON"),
    ('{"data": {"K": 1, "N": 5, "K": 2}}', "the key 'K' is there twice"),
    ("[" * 100_000, "not valid JSON"),
    ({"data": {"N": 1e30}}, "data.N must be of type int"),
    ("[]", "must hold a JSON object"),
])  # fmt: skip
def test_what_is_wrong_is_named_in_one_line(tmp_path, settings, says):
    with pytest.raises(UserError) as error:
        config_with(tmp_path, settings)
    assert says in str(error.value) and "\n" not in str(error.value) and not str(error.value).endswith("?.")


@pytest.mark.parametrize("override", ["data.K", "K=3", "dat.K=3", "data.Q=3", "data.K=three"])
def test_overrides_that_say_nothing_known_are_errors(tmp_path, override):
    with pytest.raises(UserError):
        config_with(tmp_path, {}, [override])


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UserError, match="nowhere.json"):
        load_config(tmp_path / "nowhere.json")
    (tmp_path / "loop.json").symlink_to("loop.json")
    with pytest.raises(UserError, match="loop.json"):
        load_config(tmp_path / "loop.json")


def test_what_editors_and_people_write_is_read(tmp_path):
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"data": {"interval_size": 1e6, "K": 2.0}}')
    config = load_config(tmp_path / "config.json", ["data.N=1e3"])
    assert (config.data.interval_size, config.data.K, config.data.N) == (1_000_000, 2, 1000)
    assert type(config.data.interval_size) is int


def test_write_back_changes_what_it_is_told_and_keeps_the_file_before(tmp_path):
    before = {"data": {"K": 3}, "model": {"d_model": 64, "num_heads": 2}}
    config_with(tmp_path, before)
    write_back(tmp_path / "config.json", {"model": {"d_model": 32}, "training": {"epochs": 4}})
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "data": {"K": 3}, "model": {"d_model": 32, "num_heads": 2}, "training": {"epochs": 4},
    }  # fmt: skip
    assert json.loads((tmp_path / "config.previous.json").read_text()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "config.previous.json"]


def test_a_full_disk_leaves_config_json_as_it_was(tmp_path, monkeypatch):
    config_with(tmp_path, {"data": {"K": 3}})
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        write_back(tmp_path / "config.json", {"data": {"K": 4}})
    assert json.loads((tmp_path / "config.json").read_text()) == {"data": {"K": 3}}
