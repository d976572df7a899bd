"""Everything that a run writes into MLflow, and the only code of a run that imports it.

One experiment per use case, one parent run per federation, one child run per agency. A round writes `time/round_seconds` and
`rounds/late`; an agency's run has its own `overall/...` and `privacy/epsilon_total`, so that one MLflow table compares them all.
"""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from federation.server.archive import charts
from federation.server.archive.address import SETTINGS, TrackerError
from federation.server.archive.demand import (
    agency_facts,
    agency_metrics,
    demand_files,
    demand_metrics,
    is_demand,
)
from federation.server.archive.names import epsilons, estimates, finite, published_metrics, user_metrics
from federation.server.archive.texts import as_json, environment, flat_params, neutral, published, tags_of

NOBODY = {"mlflow.user": "fedrisk", "mlflow.source.name": "fedrisk", "mlflow.source.type": "LOCAL"}
FILES = ("report", "evidence", "model_card", "atrs")  # of result["files"]; the model goes to the registry


def told_files(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """The report and the cards that `result` names, whether or not they are there; nothing outside of the run's `folder`."""
    named = (folder / str(name) for kind, name in (result.get("files") or {}).items() if kind in FILES)
    return [path for path in named if path.resolve().is_relative_to(folder.resolve())]


def log_file(client: Any, run: str, path: Path, place: str | None = None) -> None:
    """Archive `path`, where it exists, in the folder `place` of the artifacts of `run`.

    Byte for byte, but for JSON that holds what may not be published: that is emptied first.
    """
    if not path.is_file():
        return
    if path.suffix == ".json":
        value = json.loads(path.read_text())
        clean = published(value)
        if clean != value:
            client.log_text(run, as_json(clean), path.name if place is None else f"{place}/{path.name}")
            return
    client.log_artifact(run, str(path), place)


@final
class Writer:
    """All of MLflow. Records wait here until they are known to be written: a later call repairs a failed one.

    Everything is stamped with the time at which it happened, and MLflow keeps equal metrics once.
    """

    def __init__(
        self, uri: str, experiment: str, *, artifacts: str | None = None, state: Path | None = None
    ) -> None:
        self._uri, self._experiment, self._artifacts, self._state = uri, experiment, artifacts, state
        self._client: Any = None
        self._header: Mapping[str, Any] | None = None
        self._described = False
        self._runs: dict[str, str] = {}  # "" is the federation, the other keys are agencies
        self._waiting: list[tuple[str, Mapping[str, Any], int]] = []
        self._seen = {"round": -1, "tune": -1, "test": -1}

    def connect(self) -> None:
        """Import MLflow, let it create or check its tables, find the experiment."""
        if self._client is None:
            os.environ.update(SETTINGS | os.environ)
            from mlflow import MlflowClient

            client = MlflowClient(tracking_uri=self._uri)
            self._experiment_id = self._find_experiment(client)
            self._client = client
            self._save_view()

    @property
    def page(self) -> str | None:
        """Where the charts of the experiment are, behind MLflow's address; None before `connect`."""
        return None if self._client is None else charts.page(self._experiment_id)

    def start(self, header: Mapping[str, Any]) -> None:
        """Open the federation's run and one per agency; after a resume, open them again."""
        self._header = header
        self._open()

    def round(self, record: Mapping[str, Any], at: int) -> None:
        """Keep a round for the next batch. at: milliseconds since 1970."""
        self._waiting.append(("round", record, at))

    def checkpoint(self, record: Mapping[str, Any], at: int) -> None:
        """Write all that waits, this included, as one batch per run."""
        self._waiting.append((str(record.get("part", "tune")), record, at))
        self._flush()

    def finish(self, result: Mapping[str, Any], folder: Path, at: int) -> None:
        """Write what is missing, then facts, files and the end of each run."""
        known = {(kind, record["round"]) for kind, record, _ in self._waiting}
        final = result.get("final")
        whole = {"round": result.get("rounds"), "tune": result.get("checkpoints"), "test": final and [final]}
        for kind, records in whole.items():
            self._waiting += [
                (kind, record, at) for record in records or () if (kind, record["round"]) not in known
            ]
        self._flush()
        self._facts(result, at)
        self._files(result, folder)
        finished = result.get("status", "finished") == "finished"
        for agency, run in self._runs.items():
            status = agency_facts(result).get(agency, {}).get("status", "trained")
            inside = status in ("trained", "counted", "no label")
            self._client.set_terminated(run, "KILLED" if not finished else "FINISHED" if inside else "FAILED")

    def fail(self, reason: str, status: str = "FAILED") -> None:
        """Close the runs with one sentence. A run that never started leaves nothing."""
        if self._header is None:
            return
        self._flush()
        self._client.set_tag(self._runs[""], "fedrisk.reason", reason[:500])
        if reason in ("KeyboardInterrupt", "SystemExit"):
            status = "KILLED"
        for run in self._runs.values():
            self._client.set_terminated(run, status)

    def _find_experiment(self, client: Any) -> str:
        found = client.get_experiment_by_name(self._experiment)
        if found is None:
            try:
                return str(client.create_experiment(self._experiment, artifact_location=self._artifacts))
            except Exception:  # unless another run has just made it
                found = client.get_experiment_by_name(self._experiment)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            raise TrackerError(
                f"the experiment {self._experiment} is deleted in MLflow: restore it or rename yours"
            )
        return str(found.experiment_id)

    def _save_view(self) -> None:
        """Once per experiment: whoever changes or hides it in MLflow has the last word. A reader's view is nobody's to save."""
        from mlflow.exceptions import MlflowException

        if charts.TAG not in self._client.get_experiment(self._experiment_id).tags:
            with contextlib.suppress(MlflowException):
                view = charts.saved_view(int(time.time() * 1000))
                self._client.set_experiment_tag(self._experiment_id, charts.TAG, view)

    def _open(self) -> None:
        if self._described:
            return
        if self._header is None:
            raise TrackerError("a record came before the run's header")
        self.connect()
        resumed = self._recall()
        self._run_of("", self._header)
        for agency, facts in (self._header.get("agencies") or {}).items():
            self._run_of(agency, facts)
        if not resumed:
            self._describe(self._header)
        self._described = True

    def _recall(self) -> bool:
        """Take up the runs of an interrupted federation, if this store has them; False where they are still to be described."""
        if self._runs or self._state is None or not self._state.exists():
            return False
        from mlflow.exceptions import MlflowException

        try:
            runs = json.loads(self._state.read_text())
            data = self._client.get_run(runs[""]).data
        except (MlflowException, ValueError, KeyError):
            return False
        self._runs = runs
        self._seen = {kind: int(data.tags.get(f"fedrisk.last_{kind}", -1)) for kind in self._seen}
        for run in runs.values():
            self._client.update_run(run, status="RUNNING")
        self._client.set_tag(runs[""], "fedrisk.resumed", "yes")
        return bool(data.params)

    def _run_of(self, agency: str, facts: Mapping[str, Any]) -> str:
        """The MLflow run of `agency`, made when first asked for; it names no person and no machine."""
        if agency not in self._runs:
            tags = dict(NOBODY)
            if agency:
                tags |= {"mlflow.parentRunId": self._runs[""], "fedrisk.agency": agency}
            name = agency or str(facts.get("run_id", "federation"))
            run = self._client.create_run(self._experiment_id, tags={**tags_of(facts), **tags}, run_name=name)
            self._runs[agency] = run.info.run_id
            if self._state is not None:
                self._state.write_text(as_json(self._runs))
        return self._runs[agency]

    def _describe(self, header: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        run, params = self._runs[""], flat_params(neutral(header.get("config") or {}))
        self._client.log_batch(run, params=[Param(name, value) for name, value in params.items()])
        for part in ("config", "contract", "plan"):
            if isinstance(header.get(part), Mapping):
                self._client.log_text(run, as_json(neutral(header[part])), f"{part}.json")
        code = {key: header[key] for key in ("code_sha256", "fedrisk_version") if key in header}
        self._client.log_text(run, as_json(code | environment()), "environment.json")

    def _flush(self) -> None:
        """One batch per run. Its tags say how far MLflow knows the story: a resumed run starts from there."""
        from mlflow.entities import RunTag

        self._open()
        seen, batch = dict(self._seen), _Batch()
        for kind, record, at in self._waiting:
            if record["round"] > self._seen[kind]:
                seen[kind] = max(seen[kind], record["round"])
                batch.round(record, at) if kind == "round" else batch.checkpoint(kind, record, at)
        for agency, metrics in batch.by_run.items():
            tags = [] if agency else [RunTag(f"fedrisk.last_{kind}", str(n)) for kind, n in seen.items()]
            self._client.log_batch(self._run_of(agency, {}), metrics=metrics, tags=tags)
        self._seen = seen
        self._waiting.clear()

    def _facts(self, result: Mapping[str, Any], at: int) -> None:
        """Tags of each run, and what each agency spent, at the last round."""
        from mlflow.entities import RunTag

        step, batch = max(0, *self._seen.values()), _Batch()
        several = (result.get("privacy") or {}).get("epsilon_at_several_agencies") or {}
        spent = {f"privacy/epsilon_at_{count}_agencies": value for count, value in several.items()}
        batch.add("", spent, step, at)
        for agency, facts in {"": result, **agency_facts(result)}.items():
            own = epsilons(facts.get("epsilon"))
            if agency == "":
                own |= user_metrics(facts.get("users")) | demand_metrics(facts)
            else:
                own |= agency_metrics(facts)
                own |= {"rounds/trained": facts.get("rounds")}
                own |= {f"rounds/{kind}": facts.get(kind) for kind in ("rejected", "bounded")}
            batch.add(agency, own, step, at)
            tags = [RunTag(key, value) for key, value in tags_of(facts).items()]
            self._client.log_batch(self._run_of(agency, facts), metrics=batch.by_run[agency], tags=tags)

    def _files(self, result: Mapping[str, Any], folder: Path) -> None:
        """result.json (map.json and the like), the report, the cards or tables, and the gates where a panel has judged them.

        What is not there is not missed.
        """
        stored = folder / (f"{result['kind']}.json" if is_demand(result) else "result.json")
        if not stored.exists():
            self._client.log_text(self._runs[""], as_json(published(result)), stored.name)
        for path in (stored, folder / "gates.json", *told_files(result, folder)):
            log_file(self._client, self._runs[""], path)
        for path, place in demand_files(result, folder):
            log_file(self._client, self._runs[""], path, place)


@final
class _Batch:
    """Metrics by run ("" is the federation's)."""

    def __init__(self) -> None:
        self.by_run: dict[str, list[Any]] = {"": []}

    def add(self, agency: str, values: Mapping[str, Any], step: int, at: int) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(name, value, at, step) for name, value in finite(values).items()]
        self.by_run.setdefault(agency, []).extend(metrics)

    def round(self, record: Mapping[str, Any], at: int) -> None:
        kinds = ("replied", "late", "refused", "rejected", "bounded")
        counts = {f"rounds/{kind}": len(record.get(kind) or ()) for kind in kinds}
        self.add("", {"time/round_seconds": record.get("seconds"), **counts}, record["round"], at)

    def checkpoint(self, part: str, record: Mapping[str, Any], at: int) -> None:
        metrics, spent = record.get("metrics") or {}, record.get("epsilon") or {}
        test = "test/" if part == "test" else ""
        own = {f"{test}{name}": value for name, value in published_metrics(metrics).items()}
        own |= finite({"privacy/epsilon_busiest": record.get("epsilon_busiest")})
        self.add("", own, record["round"], at)
        for agency, table in (metrics.get("agencies") or {}).items():
            self.add(agency, estimates(f"{test}overall", table), record["round"], at)
        for agency, epsilon in spent.items():
            self.add(agency, epsilons(epsilon), record["round"], at)
