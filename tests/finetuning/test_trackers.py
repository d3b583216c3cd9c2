import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from product_classificator.errors import DataError
from product_classificator.finetuning.trackers import tracking
from product_classificator.training import Callbacks, EpochFacts

EPOCH = EpochFacts(1, None, 0.5, {"sex": 0.75}, valid_loss=2.5, recall_at_1=0.25)


def test_tensorboard_shows_the_curves_and_the_settings(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = []
    settings = {"encoder": "lite", "heads": {"hidden": 512}}
    with tracking(Callbacks(on_stage=lines.append), "tensorboard", tmp_path, settings) as callbacks:
        callbacks.on_stage("Splitting")
        for step in (1, 2):
            callbacks.on_step(2, step, 2, 3.0 - step)
        callbacks.on_epoch(EPOCH)
    assert lines == ["Splitting"]
    events = EventAccumulator(str(tmp_path / "tensorboard/product_classificator")).Reload()
    assert [(point.step, point.value) for point in events.Scalars("contrastive loss/step")] == [(3, 2.0), (4, 1.0)]
    assert [(point.step, point.value) for point in events.Scalars("valid macro-F1/sex")] == [(1, 0.75)]
    assert "contrastive loss/train" not in events.Tags()["scalars"]
    (hparams,) = tmp_path.rglob("hparams.yml")
    assert "heads.hidden: 512" in hparams.read_text()


@pytest.fixture
def result(tmp_path):
    """The folder of a report, and scores."""
    (tmp_path / "report").mkdir()
    (tmp_path / "report/report.md").write_text("# Кружки", encoding="utf-8")
    return tmp_path / "report", SimpleNamespace(characteristics={}, mean_macro_f1=0.5)


def test_tensorboard_shows_the_report(tmp_path, result):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tracking(Callbacks(), "tensorboard", tmp_path, {}) as callbacks:
        callbacks.on_result(*result)
    events = EventAccumulator(str(tmp_path / "tensorboard/product_classificator")).Reload()
    (shown,) = events.Tensors("report/text_summary")
    assert "# Кружки" in shown.tensor_proto.string_val[0].decode()


def test_mlflow_gets_settings_scores_and_the_report(tmp_path, result, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    with tracking(Callbacks(), "mlflow", tmp_path, {"heads": {"hidden": 8}}) as callbacks:
        callbacks.on_result(*result)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("product_classificator").experiment_id])
    assert run.data.params["heads.hidden"] == "8"
    assert run.data.metrics == {"macro-F1/mean": 0.5}
    assert next(tmp_path.rglob("artifacts/report/report.md")).is_file()


@pytest.mark.slow
def test_a_clearml_task_gets_the_curves_and_the_stages(tmp_path):
    script = f"""
import os
from clearml import Task
from product_classificator.finetuning.trackers import tracking
from product_classificator.training import Callbacks, EpochFacts
from pathlib import Path
Task.set_offline(True)
task = Task.init("shop", "tuning", auto_connect_frameworks=False, auto_resource_monitoring=False)
with tracking(Callbacks(), task, Path("unused"), {{}}) as callbacks:
    callbacks.on_stage("Splitting")
    callbacks.on_epoch({EPOCH})
task.get_logger().flush(wait=True)
os._exit(0)  # closing the task would wait for the analysis of installed packages
"""
    environment = {**os.environ, "CLEARML_CACHE_DIR": str(tmp_path)}
    # Its background process would keep a pipe open.
    subprocess.run([sys.executable, "-c", script], env=environment, cwd=tmp_path, check=True, stderr=subprocess.DEVNULL)  # noqa: S603
    (metrics,) = tmp_path.rglob("metrics.jsonl")
    points = [point for line in metrics.read_text().splitlines() for point in json.loads(line)]
    found = {(point["metric"], point["variant"], point["iter"], point["value"]) for point in points}
    assert ("valid macro-F1", "sex", 1, 0.75) in found
    assert ("contrastive loss", "valid", 1, 2.5) in found
    (log,) = tmp_path.rglob("log.jsonl")
    assert "Splitting" in log.read_text()


def test_heads_have_curves_of_their_own_names(tmp_path):
    points = []

    class Task:
        def get_logger(self):
            return self

        def connect(self, settings, name):
            pass

        def report_text(self, text):
            pass

        def report_scalar(self, title, series, value, iteration):
            points.append((title, series, value, iteration))

    with tracking(Callbacks(), Task(), tmp_path, {}) as callbacks:
        callbacks.on_epoch(EpochFacts(2, 1.5, 0.5, {"sex": 0.75}))
    assert points == [
        ("train loss", "all characteristics", 1.5, 2),
        ("valid macro-F1", "mean", 0.5, 2),
        ("valid macro-F1", "sex", 0.75, 2),
    ]


def test_without_a_task_callbacks_stay_as_they_are(tmp_path):
    callbacks = Callbacks()
    with tracking(callbacks, None, tmp_path, {}) as same:
        assert same is callbacks


def test_an_unknown_or_uninstalled_tracker_is_refused(tmp_path, monkeypatch):
    with (
        pytest.raises(DataError, match="there is no tracker 'tensorbord': did you mean 'tensorboard'"),
        tracking(Callbacks(), "tensorbord", tmp_path, {}),
    ):
        pass
    with (
        pytest.raises(DataError, match="'swanlab' needs a package that is not installed: pip install swanlab"),
        tracking(Callbacks(), "swanlab", tmp_path, {}),
    ):
        pass
