"""The charts that MLflow's page of an experiment opens with: a saved view, written once, which people may change or delete there.

MLflow keeps a saved view as an experiment tag `mlflow.sharedViewState.ID`: a JSON envelope whose `state` is the page's, zlib and base64
behind `deflate;`. Read from MLflow 3.17.2, mlflow/server/js/src/experiment-tracking/components/experiment-page: utils/savedViewEnvelope.ts,
hooks/useSharedExperimentViewState.ts, models/ExperimentPageUIState.tsx, and runs-charts/runs-charts.types.ts beside it.
It is no documented interface: where another MLflow reads it otherwise, its page says so and the metrics are the same.
"""

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any

ID = "fedrisk"
TAG = f"mlflow.sharedViewState.{ID}"
LONGEST = 5000  # characters of an experiment's tag; MLflow's own limit
FEDERATIONS = "tags.`fedrisk.run_id` LIKE '%'"  # their agencies' runs have no such tag
LINES = {
    "AUC on held-out people, with its interval": ("overall/auc", "overall/auc_low", "overall/auc_high"),
    "Worst gap between groups, with its interval": (
        "overall/worst_gap",
        "overall/worst_gap_low",
        "overall/worst_gap_high",
    ),
    "Privacy spent by the busiest agency (ε)": ("privacy/epsilon_busiest",),
}
BARS = ("test/overall/auc", "test/overall/worst_gap", "test/overall/net_benefit_gain")
ROUNDS, END = "Round by round, on tune", "At the end, on test"


def page(experiment_id: str) -> str:
    """Where the view is, behind MLflow's address and a slash."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={ID}&compareRunsMode=CHART"


def saved_view(at: int) -> str:
    """The value of `TAG`. at: milliseconds since 1970."""
    packed = base64.b64encode(zlib.compress(json.dumps(state()).encode(), 9)).decode()
    return json.dumps(
        {"name": "fedrisk: round by round", "createdAt": at, "updatedAt": at, "state": f"deflate;{packed}"}
    )


def state() -> dict[str, Any]:
    """What the page is to show: the federations, newest first, and the charts."""
    sections = [("rounds", ROUNDS), ("end", END)]
    lines = [
        _chart(f"line-{i}", "rounds", "LINE", title, keys) for i, (title, keys) in enumerate(LINES.items())
    ]
    return {
        "searchFilter": FEDERATIONS,
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "runsHiddenMode": "FIRST_10_RUNS",
        "compareRunCharts": lines + [_chart(key, "end", "BAR", key, (key,)) for key in BARS],
        "compareRunSections": [
            {"uuid": uuid, "name": name, "display": True, "isReordered": True, "deleted": False}
            for uuid, name in sections
        ],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
    }


def _chart(uuid: str, section: str, kind: str, title: str, keys: tuple[str, ...]) -> Mapping[str, Any]:
    common = {
        "uuid": f"fedrisk-{uuid}",
        "type": kind,
        "metricSectionId": section,
        "displayName": title,
        "metricKey": keys[0],
        "runsCountToCompare": 10,
        "deleted": False,
        "isGenerated": False,
    }
    if kind == "BAR":
        return common
    return common | {
        "selectedMetricKeys": list(keys),
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "lineSmoothness": 0,
        "useGlobalLineSmoothing": False,
        "useGlobalXaxisKey": False,
        "displayPoints": True,
        "ignoreOutliers": False,
    }
