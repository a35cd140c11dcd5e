from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from heed.errors import UserError
from heed.report import load_run, write_report
from heed.report.charts import thinned
from heed.report.lineage import arcs, lineage
from heed.report.page import HERE
from tests.report.conftest import responses, write_rows, write_stage

MakeRun = Callable[..., Path]
ATTACK = "document.title='owned'"
HOSTILE = f'</script><script>{ATTACK}</script><img src=x onerror="{ATTACK}">\u2028 \'"{{{{ 7 * 7 }}}} <!-- 🙈 &amp;'


class Page(HTMLParser):
    """The elements and the text of a page, as a browser takes them apart."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def render(folder: Path) -> tuple[str, Page]:
    html = write_report(load_run(folder), folder).read_text(encoding="utf-8")
    return html, Page(html)


def test_a_whole_run_has_every_section(make_run: MakeRun) -> None:
    _, page = render(make_run(rounds=2))
    sections = {attributes.get("id") for attributes in page.all("section")}
    assert sections == {"findings", "policies", "kl", "reward-model", "responses", "training", "lineage", "cost", "terms"}
    for words in ("PPO preferred over SFT", "noise ceiling", "always the longer", "2 rounds", "simulated annotators", "r2-05-ppo"):
        assert words in page.text, words


@pytest.mark.parametrize(("feedback", "told"), [({"simulated": True}, True), ({"simulated": False}, False), (None, False)])
def test_only_simulated_annotators_are_called_so(make_run: MakeRun, feedback: dict[str, bool] | None, told: bool) -> None:
    folder = make_run()
    write_stage(folder, "03-judge", summary={"feedback": feedback} if feedback else {})
    _, page = render(folder)
    assert ("simulated annotators, not by people" in page.text) == told


def test_the_file_loads_nothing(make_run: MakeRun) -> None:
    html, page = render(make_run())
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form"), tag
        for name, value in attributes.items():
            assert name not in ("src", "srcset", "action", "background"), (tag, name)
            assert name != "href" or (value or "").startswith("#")
    styles = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in styles
    assert "@import" not in styles
    assert "sourceMappingURL" not in html


def test_only_the_two_scripts_that_it_came_with_may_run(make_run: MakeRun) -> None:
    _, page = render(make_run())
    policy = next(a["content"] or "" for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    kinds = [attributes.get("type") for attributes in page.all("script")]
    assert kinds == ["application/json", None, None]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in page.scripts[1:]]
    assert re.findall(r"'sha256-([^']+)'", policy) == digests
    assert "default-src 'none'" in policy


def test_hostile_text_stays_text(make_run: MakeRun) -> None:
    folder = make_run()
    rows = [{**row, "response": HOSTILE, "prompt": HOSTILE, "kind": '"><b>kind'} for row in responses()]
    write_rows(folder / "stages/06-evaluate/responses.jsonl", rows)
    (folder / "recipe.yaml").write_text(HOSTILE, encoding="utf-8")
    (folder / "stages/05-ppo").rename(folder / "stages/05-ppo<img src=x>")
    html, page = render(folder)
    assert len(page.scripts) == 3
    assert not page.all("img")
    assert page.text.count(HOSTILE) > 10
    assert "</script><script>" not in html
    json.loads(page.scripts[0])


def test_every_chart_has_data_and_words_for_those_who_cannot_see_it(make_run: MakeRun) -> None:
    _, page = render(make_run(rounds=2))
    data = json.loads(page.scripts[0])
    canvases = page.all("canvas")
    assert {canvas["data-chart"] for canvas in canvases} == set(data)
    assert all(canvas["role"] == "img" and len(canvas["aria-label"] or "") > 20 for canvas in canvases)
    gold = {series["name"]: series["points"] for series in data["gold-kl"]["series"]}
    assert len(gold["PPO"]) == 2, "one point for each round"
    assert len(gold["SFT"]) == 1
    assert [p["x"] for p in gold["best of n"]] == sorted(p["x"] for p in gold["best of n"])
    assert (gold["PPO"][0]["x"], gold["PPO"][0]["y"]) == (8.4, 2.21)


def test_the_worst_regressions_are_shown_and_marked(make_run: MakeRun) -> None:
    folder = make_run()
    rows = responses()
    for row in rows:
        row["utility"] = {"base": 0.0, "sft": 1.0}.get(row["policy"], 2.0)
        if row["policy"] == "ppo" and row["prompt_id"].endswith("1d"):
            row |= {"utility": -5.0, "response": "a far worse answer"}
    write_rows(folder / "stages/06-evaluate/responses.jsonl", rows)
    html, page = render(folder)
    assert "a far worse answer" in page.text
    assert html.count(" data-worse>") == 1


def test_a_reward_model_alone_is_a_report(reward_model_run: Path) -> None:
    _, page = render(reward_model_run)
    sections = {attributes.get("id") for attributes in page.all("section")}
    assert sections == {"findings", "reward-model", "training", "lineage", "cost", "terms"}
    assert "79\u00a0%" in page.text
    assert "noise ceiling" not in page.text


def test_policies_without_gold_or_reward_model_are_a_report(tmp_path: Path) -> None:
    measured = {"gold_reward": None, "proxy_reward": None, "kl_to_reference": 3.0, "mean_length": 20.0, "eos_rate": 1.0, "distinct_2": 0.4}
    summary = {"policies": {"base": {**measured, "kl_to_reference": 0.0}, "dpo": measured}, "win_rate": {}, "reference": "base"}
    folder = tmp_path / "dpo"
    write_stage(folder, "06-evaluate", summary=summary)
    (folder / "summary.json").write_text(json.dumps(summary))
    _, page = render(folder)
    assert "DPO moved 3.0 nats" in page.text


def test_a_run_that_was_cut_off_says_so(make_run: MakeRun) -> None:
    folder = make_run()
    (folder / "stages/06-evaluate/stage.json").unlink()
    with (folder / "stages/05-ppo/metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 61, "sco')
    _, page = render(folder)
    assert "Not finished: 06-evaluate" in page.text


def test_rounds_that_the_summary_does_not_count_are_left_out(make_run: MakeRun) -> None:
    folder = make_run(rounds=2)
    whole = load_run(folder)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"rounds": 1}))
    assert [stage.name for stage in load_run(folder).stages] == [stage.name for stage in whole.stages if stage.round == 1]
    assert len(load_run(folder).evaluations) == 1


def test_metrics_that_are_not_numbers_are_gaps(make_run: MakeRun) -> None:
    folder = make_run()
    (folder / "stages/01-sft/metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "loss": NaN}\n{"step": 3, "loss": 1}\n')
    _, page = render(folder)
    points = json.loads(page.scripts[0])["01-sft-loss"]["series"][0]["points"]
    assert [(p["x"], p["y"]) for p in points] == [(1, 2), (3, 1)]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        load_run(tmp_path / "none")


def test_a_damaged_row_is_named(make_run: MakeRun) -> None:
    folder = make_run()
    path = folder / "stages/06-evaluate/responses.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")
    path.write_text("\n".join([*lines[:2], "{broken", *lines[2:]]), encoding="utf-8")
    with pytest.raises(UserError, match=r"responses\.jsonl:3: is not JSON"):
        load_run(folder)


def test_lineage_leads_from_data_to_model(make_run: MakeRun) -> None:
    nodes = lineage(load_run(make_run()).stages)
    made_from = {node.label: [nodes[parent].label for parent, _ in node.parents] for node in nodes}
    assert made_from["05-ppo"] == ["01-sft", "testbed:prompts", "04-reward_model"]
    assert made_from["03-judge"] == ["02-sample", "testbed"]
    assert made_from["testbed:demonstrations"] == []
    assert [node.label for node in nodes].count("testbed:prompts") == 1
    assert len(arcs(nodes)) == len({(parent, child) for child, node in enumerate(nodes) for parent, _ in node.parents})


def test_thinning_keeps_both_ends() -> None:
    assert thinned(list(range(10)), 4) == [0, 3, 6, 9]
    assert thinned([1, 2], 4) == [1, 2]


def test_text_stands_out_from_its_ground_in_both_themes() -> None:
    """WCAG 2.2 AA asks for a contrast of 4.5 between text and its ground."""
    css = (HERE / "assets/report.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in css.split("@media (prefers-color-scheme: dark)")[:2])

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    texts = {
        "ink": "paper card",
        "soft": "paper card plain-bg",
        "accent": "paper card",
        "good": "good-bg",
        "bad": "bad-bg",
        "warn": "warn-bg",
    }
    for theme in (light, dark):
        for text, grounds in texts.items():
            for ground in grounds.split():
                bright, dim = sorted((luminance(theme[text]), luminance(theme[ground])), reverse=True)
                assert (bright + 0.05) / (dim + 0.05) >= 4.5, (text, ground)


@pytest.mark.browser
def test_a_browser_draws_the_charts_and_runs_nothing_else(make_run: MakeRun, tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    folder = make_run()
    write_rows(folder / "stages/06-evaluate/responses.jsonl", [{**row, "response": HOSTILE} for row in responses()])
    path = write_report(load_run(folder), folder)
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", *quiet, "--virtual-time-budget=3000", "--dump-dom", path.as_uri()]
    dom = Page(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
    drawn = [canvas for canvas in dom.all("canvas") if "width" in canvas]
    assert {canvas["data-chart"] for canvas in drawn} >= {"gold-kl", "proxy-kl", "calibration", "05-ppo-score"}
    assert "demo · heed report" in dom.text
    assert "owned" not in dom.text.replace(ATTACK, "")
