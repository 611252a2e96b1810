"""MLflow."""

from __future__ import annotations

import time
from collections.abc import Mapping

from driftline.errors import ConfigError
from driftline.stream.trackers.base import settings

LONGEST = 500
"""Characters of a parameter that MLflow takes."""


class MLflowTracker:
    """Sends a run's settings and numbers to MLflow, by stream position (needs the 'mlflow' extra).

    Parameters
    ----------
    uri : str, optional
        Tracking server or store, such as ``sqlite:///mlflow.db`` or a folder; default: MLflow's own.
    experiment : str
        Made when it is not there.
    run_id : str, optional
        A run of MLflow to go on with.
    """

    def __init__(self, uri: str | None = None, experiment: str = "driftline", run_id: str | None = None) -> None:
        try:
            from mlflow.tracking import MlflowClient
        except ImportError:
            raise ConfigError("MLflow is not installed; pip install 'driftline[mlflow]'") from None
        self._client = MlflowClient(tracking_uri=uri)
        self.experiment, self.run_id = experiment, run_id

    def start(self, record: Mapping[str, object]) -> None:
        """Begin a run, with what it is made with as parameters."""
        from mlflow.entities import Param

        if self.run_id is not None:
            return
        found = self._client.get_experiment_by_name(self.experiment)
        number = self._client.create_experiment(self.experiment) if found is None else found.experiment_id
        self.run_id = self._client.create_run(number, run_name=str(record["name"])).info.run_id
        parameters = [Param(name, str(value)[:LONGEST]) for name, value in settings(record).items()]
        self._client.log_batch(self.run_id, params=parameters[:100])

    def log(self, values: Mapping[str, float], position: int) -> None:
        """Send values."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name.replace("@", "/"), value, now, position) for name, value in values.items()]
        self._client.log_batch(self._begun(), metrics=metrics)

    def finish(self, record: Mapping[str, object]) -> None:
        """End the run."""
        ends = {"finished": "FINISHED", "stopped": "KILLED"}
        self._client.set_terminated(self._begun(), ends.get(str(record["status"]), "FAILED"))

    def _begun(self) -> str:
        if self.run_id is None:
            raise ConfigError("MLflowTracker has not been started; give it to run(trackers=[...])")
        return self.run_id
