from __future__ import annotations

from typing import Any

import pytest

from heed.report import read_results
from heed.report.reading import over_optimisation, percent, percents, signed
from tests.report.conftest import REWARD_MODEL, SHAPE, around, full_policy


def summary(**changes: Any) -> dict[str, Any]:
    """The demo's summary, with some numbers of `ppo` changed."""
    policies = {name: full_policy(name) for name in SHAPE}
    policies["ppo"] |= changes
    return {"policies": policies, "win_rate": {"ppo_vs_sft": around(0.84, 0.03)}, "reward_model": REWARD_MODEL, "reference": "sft"}


def warnings(found: dict[str, Any], curve: list[dict[str, Any]] | None = None) -> list[str]:
    return [finding.text for finding in read_results(found, curve or []) if finding.kind == "warning"]


def test_a_good_run_reads_as_gains_and_their_price() -> None:
    found = read_results(summary())
    texts = {kind: [f.text.replace("\u00a0", " ") for f in found if f.kind == kind] for kind in ("gain", "loss", "cost", "note", "warning")}
    assert "Harmful: 52 % (base) → 31 % (SFT) → 0 % (PPO)." in texts["gain"]
    assert "Helpful: 41 % (base) → 66 % (SFT) → 95 % (PPO)." in texts["gain"]
    assert any("84 % of comparisons with SFT (95 % interval 81–87 %)" in text for text in texts["gain"])
    assert any("8.4 nats" in text for text in texts["cost"])
    assert any("1.12 × as long" in text for text in texts["cost"])
    assert any("No sign of over-optimisation" in text for text in texts["note"])
    assert texts["loss"] == texts["warning"] == []


def test_more_harm_is_a_loss() -> None:
    found = read_results(summary(harmful_rate=0.7))
    (loss,) = [f.text.replace("\u00a0", " ") for f in found if f.kind == "loss"]
    assert loss == "Harmful: 52 % (base) → 31 % (SFT) → 70 % (PPO)."


def test_an_interval_around_a_half_is_no_gain() -> None:
    found = read_results({**summary(), "win_rate": {"ppo_vs_sft": around(0.52, 0.05)}})
    assert [f.kind for f in found if "comparisons" in f.text] == ["note"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gold_reward": around(0.5, 0.1)}, "true preference less"),
        ({"mean_length": 40.0}, "1.66 × as long"),
        ({"mean_length": 12.0}, "0.50 × as long"),
        ({"distinct_2": 0.2}, "repeats itself"),
        ({"eos_rate": 0.8}, "fewer of its responses"),
    ],
)
def test_each_sign_of_over_optimisation_is_named(changes: dict[str, Any], words: str) -> None:
    (warning,) = warnings(summary(**changes))
    assert words in warning


@pytest.mark.parametrize("changes", [{"mean_length": 24.1 * 1.49}, {"mean_length": 24.1 * 0.71}, {"distinct_2": 0.27}, {"eos_rate": 0.9}])
def test_small_shifts_are_no_over_optimisation(changes: dict[str, Any]) -> None:
    assert warnings(summary(**changes)) == []


@pytest.mark.parametrize(
    ("gold", "proxy", "fell"),
    [
        (around(-2.0, 0.1), None, True),
        (around(-2.0, 0.1), around(-3.0, 0.1), True),
        (-2.0, None, True),
        (around(0.6, 0.07), None, True),
        (around(0.6, 0.11), None, False),
        (around(0.68, 0.11), None, False),
        (0.9, None, False),
    ],
)
def test_gold_reward_that_fell_is_said_to_have_fallen(gold: Any, proxy: Any, fell: bool) -> None:
    found = read_results(summary(gold_reward=gold, proxy_reward=proxy))
    told = [f.text for f in found if f.kind == "loss"]
    value = signed(gold["mean"] if isinstance(gold, dict) else gold)
    assert told == ([f"Gold reward fell: +0.68 (SFT) → {value} (PPO)."] if fell else [])
    assert any("gold reward, length, variety and endings all held" in f.text for f in found) != fell


def test_nothing_measured_is_nothing_said() -> None:
    assert read_results({}) == []
    assert over_optimisation({}, {}, "ppo", "sft") == []


def test_a_run_without_a_true_preference_is_warned_of() -> None:
    (warning,) = warnings(summary(gold_reward=None))
    assert "not what people gain" in warning


def test_a_reward_model_no_better_than_length_is_warned_of() -> None:
    (warning,) = warnings({"reward_model": {**REWARD_MODEL, "accuracy": around(0.6, 0.03)}})
    assert "rule about length" in warning


def test_best_of_n_past_its_peak_is_warned_of() -> None:
    falling = [{"n": n, "gold": around(1 - 0.1 * abs(n - 4), 0.05)} for n in range(1, 17)]
    (warning,) = warnings({}, falling)
    assert "n = 4" in warning
    assert warnings({}, falling[:4]) == []


def test_shares_are_said_whole_unless_that_hides_a_rest() -> None:
    said = {0: "0 %", 0.004: "0.4 %", 0.056: "6 %", 0.5: "50 %", 0.996: "99.6 %", 1: "100 %"}
    assert {share: percent(share).replace("\u00a0", " ") for share in said} == said
    assert percents(0.1, 0.2).replace("\u00a0", " ") == "10–20 %"
