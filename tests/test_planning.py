"""`fedrisk plan`: its numbers are those of the plan's own releases, and what it tells an agency to allow is enough."""

import functools
import json
import math
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from command import Done, fedrisk, files_under
from conftest import CONTRACT

from clients import rules
from clients.budget import Limit, PlanFacts
from clients.ledger import Ledger
from clients.policy import Policy, read_policy
from clients.rules import Situation
from experiments import planning
from experiments.config import compose, read
from experiments.planning import Plan, planned, train_plan
from federation.experiment import Experiment, checked
from federation.plan import Reason, Refused, TrainPlan
from federation.privacy import VIEWERS, Viewer, epsilon, epsilon_at_several, noise_for
from federation.server.masked import noise_variance, together
from models.contract import Contract

SHARED = ["strategy=dp_fedsgd", "privacy=shared", "privacy.dropouts=0"]
CASES = {
    "local": ["privacy.epsilon=2"],
    "local, sampled": ["privacy.sample_rate=0.3", "local.steps=3"],
    "shared": [*SHARED, "privacy.epsilon=1"],
    "shared, sampled": [*SHARED, "privacy.epsilon=1", "privacy.sample_rate=0.1", "rounds=40"],
    "a multiplier": [
        *SHARED,
        "privacy.epsilon=null",
        "privacy.noise_multiplier=4",
        "privacy.evaluate_epsilon=1",
    ],
}


LITTLE = [
    *CASES["a multiplier"],
    "privacy.noise_multiplier=0.2",
    "privacy.evaluate_epsilon=30",
    "privacy.delta=0.001",
]


@pytest.fixture
def facts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three agencies' public facts, without their tables."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "100")
    for table in folder.glob("*.csv"):
        table.unlink()
    return folder


def words(folder: Path, *overrides: str) -> list[str]:
    return [
        "experiment=own",
        f"data.agencies={folder}/agencies.yaml",
        "name=small",
        "rounds=8",
        "evaluation.checkpoints=2",
        *overrides,
    ]


MakeExperiment = Callable[..., Experiment]


@pytest.fixture
def experiment(facts: Path) -> MakeExperiment:
    return lambda *overrides: read(compose(words(facts, *overrides)), tables=False).experiment


@pytest.fixture
def ask(facts: Path) -> Callable[..., Done]:
    return lambda *arguments: fedrisk("plan", *words(facts, *arguments))


def both(experiment: Experiment) -> tuple[Plan, TrainPlan]:
    return answer(experiment.canonical), train_plan(experiment)


@functools.cache
def answer(canonical: str) -> Plan:
    return planned(checked(Experiment, canonical))


# --- what it costs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES)
def test_the_cost_is_that_of_the_plans_own_releases(experiment: MakeExperiment, overrides: list[str]) -> None:
    found, plan = both(experiment(*overrides))
    releases, delta = plan.releases(), plan.privacy.delta
    assert found.cost is not None
    for viewer in VIEWERS:
        cost = found.cost[viewer]
        for part in ("train", "tune", "test"):
            own = [release for release in releases if release.part == part]
            assert getattr(cost, part) == pytest.approx(epsilon(own, delta, viewer=viewer))
        assert cost.total == pytest.approx(epsilon(releases, delta, viewer=viewer))
        assert cost.total == max(cost.train, cost.tune, cost.test)
        for m in (1, 2, 3):
            expected = epsilon_at_several([releases] * 3, delta, m, viewer)
            assert cost.at_agencies[str(m)] == pytest.approx(expected)
    assert found.curve[-1]["epsilon"]["public"] == pytest.approx(found.cost["public"].train)


def test_pld_is_for_own_noise_and_smaller(experiment: MakeExperiment, ask: Callable[..., Done]) -> None:
    found, plan = both(experiment(*CASES["local"]))
    assert found.cost is not None
    assert found.pld_epsilon == pytest.approx(epsilon(plan.releases(), plan.privacy.delta, "pld"))
    assert found.pld_epsilon < found.cost["public"].total
    assert "non-adaptive: valid only if the whole experiment was fixed" in ask(*CASES["local"]).out
    assert both(experiment(*CASES["shared"]))[0].pld_epsilon is None


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES)
def test_more_rounds_never_cost_less(experiment: MakeExperiment, overrides: list[str]) -> None:
    found, _ = both(experiment(*overrides))
    for viewer in VIEWERS:
        values = [point["epsilon"][viewer] for point in found.curve]
        assert values == sorted(values)
    noises = [point["noise_multiplier"] for point in found.noise_for_epsilon]
    assert noises == sorted(noises, reverse=True)


# --- what the noise means -----------------------------------------------------------------------------


def test_the_noise_is_what_agencies_draw(experiment: MakeExperiment) -> None:
    found, plan = both(experiment(*CASES["shared"]))
    noise, shared, release = found.noise, plan.privacy.shared, plan.train_release()
    assert noise is not None
    assert shared is not None
    steps = math.sqrt(3 * release.share_variance)  # type: ignore[union-attr]
    assert noise.sum_noise == pytest.approx(steps / shared.steps_per_norm)
    assert noise.people == pytest.approx(900 * 0.6)
    assert noise.mean_noise == pytest.approx(noise.sum_noise / noise.people)
    for part, table in (("tune", noise.tune), ("test", noise.test)):
        assert table.summed**2 == pytest.approx(noise_variance(plan, part, together(3)))
    assert noise.own_mean_noise / noise.mean_noise == pytest.approx(math.sqrt(2), rel=1e-2)  # h = 2


def test_own_noise_is_weighted_as_the_plan_weighs(experiment: MakeExperiment) -> None:
    found, plan = both(experiment(*CASES["local"]))
    each = [plan.privacy.noise_multiplier / plan.expected_batch(name) / 3 for name in found.agencies]
    assert found.noise is not None
    assert found.noise.mean_noise == pytest.approx(math.hypot(*each))
    assert found.noise.sum_noise == pytest.approx(plan.privacy.noise_multiplier * math.sqrt(3))
    assert found.noise.grid is None


# --- what meets the budget ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["local", "shared", "shared, sampled"])
def test_the_best_field_is_the_smallest(experiment: MakeExperiment, name: str) -> None:
    found, _ = both(experiment(*CASES[name]))
    meets = found.meets
    assert meets is not None
    assert meets.smallest is not None
    assert len(meets.cells) == len(meets.rounds) * len(meets.sample_rates) == 25
    least = min(cell.average_noise for cell in meets.cells if cell.average_noise is not None)
    assert meets.smallest.average_noise == least
    assert meets.smallest in meets.cells
    for cell in meets.cells:
        assert cell.average_noise is not None
        assert cell.best == (cell.average_noise <= 1.001 * least)


def test_a_field_keeps_the_target_with_no_more_noise_than_it_takes(experiment: MakeExperiment) -> None:
    found, plan = both(experiment(*CASES["shared"]))
    assert found.meets is not None
    assert found.noise is not None
    for cell in found.meets.cells:
        assert cell.noise_multiplier == noise_for(1.0, 1e-5, cell.sample_rate, cell.rounds, shared=True)
        mean = (
            cell.noise_multiplier / plan.privacy.noise_multiplier / cell.sample_rate * found.noise.mean_noise
        )
        assert cell.average_noise == pytest.approx(mean / math.sqrt(cell.rounds), rel=1e-5)


def test_own_noise_at_whole_orders_is_never_too_little(experiment: MakeExperiment) -> None:
    found, _ = both(experiment(*CASES["local"]))
    assert found.meets is not None
    for cell in found.meets.cells:
        if cell.sample_rate in (1, 0.1) and cell.rounds <= 8:
            exact = noise_for(2.0, 1e-5, cell.sample_rate, cell.rounds)
            assert cell.noise_multiplier is not None
            assert exact <= cell.noise_multiplier <= exact * (1 if cell.sample_rate == 1 else 1.02)


def test_a_given_multiplier_shows_what_it_costs(experiment: MakeExperiment) -> None:
    found, _ = both(experiment(*CASES["a multiplier"]))
    meets = found.meets
    assert meets is not None
    assert (meets.what, meets.smallest, found.target_epsilon) == ("epsilon", None, None)
    assert not any(cell.best for cell in meets.cells)
    for rate in meets.sample_rates:
        costs = [cell.epsilon for cell in meets.cells if cell.sample_rate == rate]
        assert costs == sorted(costs)
    (now,) = (cell for cell in meets.cells if (cell.rounds, cell.sample_rate) == (8, 1))
    assert found.cost is not None
    assert now.epsilon == pytest.approx(found.cost["coordinator"].train)


# --- what a node must allow ---------------------------------------------------------------------------


def reserve(policy: Policy, plan: TrainPlan, path: Path, lower: Viewer | None = None) -> None:
    """As a node does: review the plan, then reserve it in a ledger; `lower`: 0.01 less to that viewer."""
    rules.review(policy, plan, Situation(datetime.now(UTC), Contract.from_dict(CONTRACT)))
    assert policy.budget is not None
    (life,) = policy.budget.limits()
    less = {viewer: most - (viewer == lower) * 0.01 for viewer, most in life.epsilon.items()}
    budget = (Limit("life", None, life.delta, less),)
    plan_facts = PlanFacts(plan.sha256, plan.run_id, plan.experiment, plan.purpose)
    with Ledger(path, budget=budget, scope="this run alone", people="of a test") as ledger:
        ledger.reserve(plan_facts, plan.releases())
        assert ledger.reservations()


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES)
def test_the_printed_limits_admit_the_plan_and_a_hair_less_does_not(
    experiment: MakeExperiment, overrides: list[str], tmp_path: Path
) -> None:
    found, plan = both(experiment(*overrides))
    assert found.policy is not None
    path = tmp_path / "policy.toml"
    path.write_text(f'{found.policy.toml}\n[purposes.{plan.purpose}]\nlegal_basis = "made up"\n')
    policy = read_policy(path)
    reserve(policy, plan, tmp_path / "ledger.db")
    for viewer in VIEWERS:
        with pytest.raises(Refused) as refused:
            reserve(policy, plan, tmp_path / f"{viewer}.db", viewer)
        assert refused.value.reason is Reason.BUDGET
    assert found.cost is not None
    assert all(found.policy.life[viewer] >= found.cost[viewer].total - 1e-9 for viewer in VIEWERS)


def test_little_noise_is_said_in_the_policy_too(experiment: MakeExperiment, tmp_path: Path) -> None:
    found, plan = both(experiment(*LITTLE))
    assert found.policy is not None
    path = tmp_path / "policy.toml"
    path.write_text(f'{found.policy.toml}\n[purposes.{plan.purpose}]\nlegal_basis = "made up"\n')
    assert {"min_noise_multiplier", "min_table_sigma", "max_delta"} <= {
        line.split()[0] for line in found.policy.toml.splitlines()
    }
    reserve(read_policy(path), plan, tmp_path / "ledger.db")


# --- what cannot be planned ---------------------------------------------------------------------------


def test_too_few_agencies_are_one_sentence(ask: Callable[..., Done], facts: Path) -> None:
    done = ask("strategy=dp_fedsgd", "privacy=shared")  # 3 agencies, c = d = 1
    assert (done.code, done.out, len(done.problems)) == (1, "", 1)
    assert "more than 2 x dropouts + colluders = 3 agencies, got 3" in done.problems[0]
    listing = yaml.safe_load((facts / "agencies.yaml").read_text())
    listing["agencies"] = listing["agencies"][:2]
    (facts / "agencies.yaml").write_text(yaml.safe_dump(listing))
    done = ask(*SHARED)
    assert (done.code, done.out, len(done.problems)) == (1, "", 1)
    assert "at least 3 agencies, got 2" in done.problems[0]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["privacy=shared"], "strategy must be dp_fedsgd where privacy is shared"),
        (["rouns=3"], "did you mean rounds?"),
        (["--bogus"], "'--bogus' is not an option of this command"),
        (["--plot", "plan.pdf"], "--plot must name a file that ends in .svg or .png, got plan.pdf"),
    ],
)
def test_a_wrong_setting_is_one_sentence(
    ask: Callable[..., Done], overrides: list[str], sentence: str
) -> None:
    done = ask(*overrides)
    assert (done.code, done.out, len(done.problems)) == (1, "", 1)
    assert sentence in done.problems[0]


def test_weights_that_sharing_cannot_keep_are_one_sentence(ask: Callable[..., Done], facts: Path) -> None:
    listing = yaml.safe_load((facts / "agencies.yaml").read_text())
    listing["agencies"][0]["weight"] = 5.0
    (facts / "agencies.yaml").write_text(yaml.safe_dump(listing))
    done = ask(*SHARED)
    assert (done.code, len(done.problems)) == (1, 1)
    assert "weight must be its public_size" in done.problems[0]


# --- what is shown ------------------------------------------------------------------------------------


def test_json_is_one_object_with_the_keys_of_the_docs(ask: Callable[..., Done]) -> None:
    done = ask(*CASES["shared"], "--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert set(found) == {field.name for field in fields(Plan)}
    assert all(key in (planning.__doc__ or "") for key in found)
    assert set(found["cost"]["everybody"]) == {"train", "tune", "test", "total", "at_agencies"}
    assert found["shared"] == {"colluders": 1, "dropouts": 0, "honest": 2, "threshold": 3}
    assert set(found["meets"]) == {"what", "rounds", "sample_rates", "cells", "smallest"}
    assert set(found["policy"]["life"]) == set(VIEWERS)


def test_the_screen_says_it_all_in_order(ask: Callable[..., Done], experiment: MakeExperiment) -> None:
    done = ask(*CASES["shared"])
    assert (done.code, done.err) == (0, "")
    titles = ["small:", "What it costs", "The noise", "What meets", "round by round", "policy.toml", "Next"]
    places = [done.out.index(title) for title in titles]
    assert places == sorted(places)
    policy = both(experiment(*CASES["shared"]))[0].policy
    assert policy is not None
    assert f"\n{policy.toml}\n" in done.out, "as it can be pasted"
    assert "fedrisk run experiment=own" in done.out
    assert "★" in done.out
    assert max(map(len, done.out.split("Next")[0].splitlines())) <= 100


def test_no_number_is_cut_on_a_narrow_screen(
    ask: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = ask(*SHARED, "rounds=20000", "privacy.sample_rate=0.01", "model=mlp")
    assert done.code == 0
    assert "…" not in done.out


def test_own_noise_is_one_row(ask: Callable[..., Done]) -> None:
    done = ask(*CASES["local"])
    assert done.code == 0
    assert "the coordinator," not in done.out
    assert "anyone: the public" in done.out


def test_without_privacy_there_is_one_sentence(ask: Callable[..., Done], facts: Path) -> None:
    done = ask("privacy=none", "--plot", str(facts / "plan.svg"))
    assert (done.code, done.err) == (0, "")
    assert "no bound on what a person loses" in done.out
    assert not (facts / "plan.svg").exists()
    assert json.loads(ask("privacy=none", "--json").out)["cost"] is None


@pytest.mark.parametrize("name", ["local", "shared", "a multiplier"])
def test_a_picture_has_titles_and_axes(ask: Callable[..., Done], facts: Path, name: str) -> None:
    assert ask(*CASES[name], "--plot", "plan.svg").code == 0
    picture = (facts / "plan.svg").read_text()
    for text in (
        "rounds",
        "ε (of one person at one agency)",
        "ε of the training, to the coordinator",
        "this plan",
    ):
        assert f">{text}<" in picture
    assert (">target<" in picture) == (name != "a multiplier")


def test_nothing_is_written_or_read_where_runs_are(ask: Callable[..., Done], facts: Path) -> None:
    before = files_under(facts)
    assert ask(*CASES["shared"]).code == 0
    assert files_under(facts) == before
    (facts / "outputs").write_text("a folder that cannot be")
    assert ask(*CASES["local"]).code == 0


def test_without_arguments_it_plans_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = fedrisk("plan")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("demo: ")
    assert list(tmp_path.iterdir()) == []


def test_help_has_an_example() -> None:
    done = fedrisk("plan", "--help")
    assert done.code == 0
    assert "fedrisk plan strategy=dp_fedsgd privacy=shared" in done.out
