"""The charts that MLflow's page of an experiment opens with: a saved view, written once, which people may change or delete there.

MLflow keeps a saved view as an experiment tag `mlflow.sharedViewState.ID`: a JSON envelope whose `state` is the page's, zlib and base64
behind `deflate;`. Read from MLflow 3.17.2, mlflow/server/js/src/experiment-tracking/components/experiment-page: utils/savedViewEnvelope.ts,
hooks/useSharedExperimentViewState.ts, models/ExperimentPageUIState.tsx, and runs-charts/runs-charts.types.ts beside it.
It is no documented interface: where another MLflow reads it otherwise, its page says so and the metrics are the same.
"""

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any

ID = "fedrisk"
TAG = f"mlflow.sharedViewState.{ID}"
LONGEST = 5000  # characters of an experiment's tag; MLflow's own limit
FEDERATIONS = "tags.`fedrisk.run_id` LIKE '%'"  # their agencies' runs have no such tag
LINES = (
    ("overall/auc", "overall/auc_low", "overall/auc_high"),
    ("overall/worst_gap", "overall/worst_gap_low", "overall/worst_gap_high"),
    ("privacy/epsilon_busiest",),
)
BARS = ("test/overall/auc", "test/overall/worst_gap", "test/overall/net_benefit_gain")
BY_ROUND, AT_END = "By round: AUC, worst gap, ε", "At the end, on test"


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
    """What the page is to show: the federations, newest first, and the charts.

    MLflow puts every other metric behind them, in sections of its own.
    """
    cards = [_line(BY_ROUND, keys) for keys in LINES] + [_card(AT_END, "BAR", key) for key in BARS]
    return {
        "searchFilter": FEDERATIONS,
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "runsHiddenMode": "FIRST_10_RUNS",
        "compareRunCharts": cards,
        "compareRunSections": [
            {"uuid": title, "name": title, "display": True, "isReordered": True, "deleted": False}
            for title in (BY_ROUND, AT_END)
        ],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
    }


def _card(section: str, kind: str, key: str) -> dict[str, Any]:
    return {
        "uuid": f"fedrisk-{key}",
        "type": kind,
        "metricSectionId": section,
        "metricKey": key,
        "runsCountToCompare": 10,
        "deleted": False,
        "isGenerated": False,
    }


def _line(section: str, keys: Sequence[str]) -> dict[str, Any]:
    """One line for each of `keys` by round: a number and the ends of its interval."""
    return _card(section, "LINE", keys[0]) | {
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
