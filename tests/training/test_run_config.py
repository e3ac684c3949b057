"""train.toml: what it means, and what it gets for mistakes."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

from featurestore.errors import InvalidInputError, NotFoundError
from training import Balanced, RunConfig, Stratified, Weighted

FULL = """
[data]
store = "golden"
table = "flights"
features = ["speed", "carrier"]
label = "late"
memory_limit = "2GiB"

[split]
kind = "time"
valid = 2013-10-01
test = "2013-11-15"
embargo = "1d"

[pipeline]
standardize = ["speed"]

[model]
kind = "tabular"
task = "binary"
params = { hidden = [32, 16], dropout = 0.1 }

[train]
epochs = 3
learning_rate = 0.01
shuffle = "global"
class_weight = { 1 = 4.0 }
tensorboard = "logs"
"""


def minimal(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "data": {"store": "golden", "table": "t", "features": ["x", "c"], "label": "y"},
        "split": {"kind": "time", "valid": "2013-10-01"},
    }
    for section, values in changes.items():
        content[section] = {**content.get(section, {}), **values}
    return content


def sampling(**sample: Any) -> dict[str, Any]:
    return minimal(loader={"sample": sample})


@pytest.mark.parametrize(
    ("sample", "found"),
    [
        ({"kind": "balanced"}, Balanced()),
        ({"kind": "balanced", "by": "c", "rows": 10}, Balanced("c", 10)),
        ({"kind": "weighted", "by": "x", "rows": 10}, Weighted("x", 10)),
        ({"kind": "stratified", "by": ["c", "x"]}, Stratified(["c", "x"])),
    ],
)
def test_how_rows_are_sampled(sample: dict[str, Any], found: Any) -> None:
    config = RunConfig.from_mapping(sampling(**sample))
    chosen = config.loader.sampled()
    assert chosen is not None
    assert chosen.sampling() == found
    assert RunConfig.from_mapping(config.to_json()).to_json() == config.to_json()
    assert RunConfig.from_mapping(minimal()).loader.sampled() is None


def test_a_file_is_read_and_paths_are_beside_it(tmp_path: Path) -> None:
    (tmp_path / "train.toml").write_text(FULL)
    config = RunConfig.from_toml(tmp_path / "train.toml")
    assert config.data.store == str(tmp_path / "golden")
    assert config.data.features == ("speed", "carrier")
    assert config.split.valid == dt.date(2013, 10, 1)
    assert config.pipeline.impute is True
    assert config.pipeline.standardize == ("speed",)
    assert config.model.params == {"hidden": [32, 16], "dropout": 0.1}
    assert config.train.batch_size == 4096
    assert config.train.class_weight == {"1": 4.0}
    assert config.train.tensorboard == str(tmp_path / "logs")


def test_stores_elsewhere_keep_their_url(tmp_path: Path) -> None:
    (tmp_path / "train.toml").write_text(FULL.replace('"golden"', '"s3://bucket/golden"'))
    assert RunConfig.from_toml(tmp_path / "train.toml").data.store == "s3://bucket/golden"


def test_the_resolved_configuration_reads_back(tmp_path: Path) -> None:
    (tmp_path / "train.toml").write_text(FULL)
    config = RunConfig.from_toml(tmp_path / "train.toml")
    content = json.loads(json.dumps(config.to_json()))
    again = RunConfig.from_mapping(content)
    assert again.to_json() == config.to_json()
    assert content["train"]["batch_size"] == 4096
    assert content["split"]["valid"] == "2013-10-01"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (minimal(train={"epoch": 3}), r"(?s)\[train\].*'epoch'.*did you mean 'epochs'"),
        ({**minimal(), "trian": {}}, r"(?s)unknown section 'trian'.*did you mean 'train'"),
        (minimal(train={"epochs": 0}), r"(?s)epochs = 0 .*an integer from 1 on"),
        (minimal(train={"epochs": True}), r"epochs = True"),
        (minimal(train={"batch_size": 1.5}), r"batch_size = 1.5"),
        (minimal(train={"learning_rate": -1}), r"(?s)learning_rate = -1.*above 0"),
        (minimal(train={"shuffle": "blocks"}), r"shuffle = 'blocks'"),
        (minimal(train={"shuffle": 1}), r"shuffle = 1"),
        (minimal(train={"checkpoint_steps": -1}), r"checkpoint_steps = -1"),
        (minimal(train={"checkpoint_keep": 0}), r"(?s)checkpoint_keep = 0.*from 1 on"),
        (minimal(train={"class_weight": "even"}), r"(?s)class_weight = 'even'.*'balanced'"),
        (minimal(train={"class_weight": {"late": 2}}), r"class_weight = {'late': 2}"),
        (minimal(train={"class_weight": {"1": 0}}), r"(?s)class_weight.*above 0"),
        (minimal(train={"class_weight": {}}), r"class_weight = {}"),
        (minimal(train={"mixed_precision": "float64"}), r"(?s)mixed_precision.*'bfloat16'"),
        (minimal(train={"steps_per_execution": 0}), r"(?s)steps_per_execution = 0.*'auto'"),
        (minimal(train={"steps_per_execution": "all"}), r"steps_per_execution = 'all'"),
        (minimal(train={"tensorboard": ""}), r"tensorboard = ''"),
        (
            minimal(model={"kind": "xgboost"}, train={"mixed_precision": "float16"}),
            r"(?s)\['mixed_precision'\] are of Keras models.*scale_pos_weight",
        ),
        (
            minimal(model={"kind": "xgboost"}, train={"drop_last": True, "shuffle": False}),
            r"\['drop_last', 'shuffle'\] are of Keras models",
        ),
        (minimal(train={"learning_rate": float("inf")}), r"learning_rate = inf"),
        (minimal(loader={"prefetch": 2}), r"(?s)\[loader\].*unknown key 'prefetch'.*'sample'"),
        (minimal(loader={"pack": "no"}), r"(?s)\[loader\]: pack = 'no'.*true or false"),
        (minimal(loader={"hold": "device"}), r"(?s)hold = 'device'.*'memory'.*PyTorch and JAX"),
        (minimal(loader={"dtype": "float64"}), r"(?s)dtype = 'float64'.*'float16'"),
        (minimal(loader={"cache_limit": "2 potatoes"}), r"\[loader\]: cache_limit.*potatoes"),
        (minimal(loader={"cache_limit": 0}), r"\[loader\]: cache_limit"),
        (minimal(loader={"block_rows": 0}), r"(?s)block_rows = 0.*from 1 on"),
        (minimal(loader={"window_blocks": True}), r"window_blocks = True"),
        (minimal(loader={"sample": "balanced"}), r"(?s)sample = 'balanced'.*{ kind = 'balanced'"),
        (sampling(kind="even"), r"(?s)\[loader.sample\]: kind = 'even'.*'stratified'"),
        (sampling(by="c"), r"(?s)\[loader.sample\]: \['kind'\] must be given"),
        (sampling(kind="balanced", bye="c"), r"(?s)unknown key 'bye'.*did you mean 'by'"),
        (sampling(kind="balanced", by=[]), r"(?s)by = \[\].*a column, or a list"),
        (sampling(kind="balanced", by=3), r"by = 3"),
        (sampling(kind="balanced", rows=0), r"(?s)rows = 0.*from 1 on"),
        (sampling(kind="weighted"), r"(?s)'weighted' with by = None.*one numeric column"),
        (sampling(kind="weighted", by=["c", "x"]), r"with by = \('c', 'x'\)"),
        (sampling(kind="stratified", rows=9), r"(?s)rows = 9.*once in an epoch.*'balanced'"),
        (
            {**sampling(kind="balanced"), "train": {"shuffle": "global"}},
            r"(?s)sample = {'kind': 'balanced'} and \[train\] shuffle = 'global' are two orders",
        ),
        (
            {**sampling(kind="balanced"), "train": {"class_weight": "balanced"}},
            r"(?s)make up for rare classes.*leave one",
        ),
        (
            {**sampling(kind="balanced", by="y"), "train": {"class_weight": "balanced"}},
            r"make up for rare classes",
        ),
        (
            minimal(loader={"pack": False, "sample": {"kind": "stratified"}}),
            r"(?s)pack = false.*sample = .*hold = 'memory'",
        ),
        (
            minimal(loader={"pack": False}, train={"shuffle": "global"}),
            r"(?s)pack = false.*shuffle = 'global'.*hold = 'memory'",
        ),
        (
            {**sampling(kind="balanced"), "model": {"kind": "xgboost"}},
            r"(?s)sample = .*as often as it is there.*scale_pos_weight",
        ),
        (
            minimal(model={"kind": "xgboost"}, loader={"pack": False}),
            r"(?s)pack = false.*several times.*hold = 'memory'",
        ),
        (
            minimal(model={"kind": "xgboost"}, loader={"window_blocks": 3}),
            r"(?s)\['window_blocks'\] are of an order.*leave them out",
        ),
        (minimal(split={"kind": "hash", "valid": float("nan")}), r"valid = nan"),
        (minimal(data={"features": []}), r"features = \[\]"),
        (minimal(data={"features": "x"}), r"features = 'x'"),
        (minimal(data={"label": "x"}), r"label = 'x' is also among the features"),
        (minimal(data={"where": "late > 3"}), r"(?s)where = .*module:name"),
        (minimal(data={"memory_limit": "2 potatoes"}), r"memory_limit.*potatoes"),
        (minimal(model={"kind": "forest"}), r"(?s)kind = 'forest'.*'tabular', 'xgboost'"),
        (minimal(model={"task": "multiclass"}), r"(?s)how many classes.*set classes"),
        (minimal(split={"kind": "hash"}), r"no shares"),
        (minimal(split={"kind": "hash", "valid": 0.1, "embargo": "1d"}), r"embargo"),
        (minimal(split={"by": ["c"]}), r"by = "),
        (
            {"split": minimal()["split"]},
            r"(?s)'store', 'table', 'features', 'label'.*must be given",
        ),
        ({**minimal(), "train": 3}, r"train is 3"),
    ],
)
def test_mistakes_are_named_with_file_key_value_and_remedy(
    content: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        RunConfig.from_mapping(content, "train.toml")
    assert "train.toml" in str(caught.value)
    assert caught.value.remedy


def test_files_that_are_not_toml_say_where(tmp_path: Path) -> None:
    (tmp_path / "train.toml").write_text("[data\n")
    with pytest.raises(InvalidInputError, match=r"train.toml is not TOML.*line 1"):
        RunConfig.from_toml(tmp_path / "train.toml")
    with pytest.raises(NotFoundError, match="there is no file"):
        RunConfig.from_toml(tmp_path / "other.toml")
