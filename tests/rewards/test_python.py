from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from heed.errors import Interrupted, UserError
from heed.records import Message, Prompt, Rollout
from heed.rewards import load_reward

ROLLOUTS = [
    Rollout(Prompt("How many?"), (1,), (2,), (0.0,), "three", "stop"),
    Rollout(Prompt((Message("user", "Why?"),)), (1,), (2, 3), (0.0, 0.0), "because of that", "length"),
]


def written(folder: Path, body: str) -> str:
    (folder / "mine.py").write_text(body)
    return f"{folder / 'mine.py'}:score"


def test_a_function_of_prompt_and_response(tmp_path: Path):
    spec = written(tmp_path, "def score(prompt, response, scale=100):\n    return len(prompt) * scale + len(response)")
    scores = load_reward(spec)(ROLLOUTS)
    assert scores.tolist() == [905, 1015]  # "user: Why?" is how the conversation reads
    assert scores.dtype == torch.float32
    assert load_reward(spec)([]).shape == (0,)


@pytest.mark.parametrize(
    "result",
    [
        "[len(r.response_ids) for r in rollouts]",
        "(float(len(r.response_ids)) for r in rollouts)",
        "torch.tensor([len(r.response_ids) for r in rollouts])",
        "torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)",
        "[torch.tensor(1.0), True + 1]",
        "numpy.array([1.0, 2.0], dtype='float32')",
    ],
)
def test_a_function_of_all_rollouts(tmp_path: Path, result: str):
    scores = load_reward(written(tmp_path, f"import numpy, torch\ndef score(rollouts):\n    return {result}"))(ROLLOUTS)
    assert torch.equal(scores, torch.tensor([1.0, 2.0]))
    assert not scores.requires_grad


def test_rules_and_weighted_sums_are_rewards_of_a_file(tmp_path: Path):
    body = "from heed.rewards import length_target, regex, weighted_sum\nscore = weighted_sum([(2, regex('th')), (1, length_target(2))])"
    assert load_reward(written(tmp_path, body))(ROLLOUTS).tolist() == pytest.approx([2.5, 2 + 2 / 3])


def test_a_function_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_rewards").mkdir()
    (tmp_path / "my_rewards" / "short.py").write_text("class Short:\n    def __call__(self, p, r): return -len(r)\nscore = Short()")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_reward("my_rewards.short:score")(ROLLOUTS).tolist() == [-5, -15]


def test_a_file_may_use_dataclasses_and_two_files_may_share_a_name(tmp_path: Path):
    body = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Score:\n    value: float = {0}\n"
    body += "def score(prompt, response): return Score().value"
    specs = []
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        specs.append(written(tmp_path / str(number), body.format(number)))
    first, second = map(load_reward, specs)
    assert first(ROLLOUTS).tolist() == [1, 1]
    assert second(ROLLOUTS).tolist() == [2, 2]
    assert "mine" not in sys.modules


def test_a_file_is_read_as_python_reads_it(tmp_path: Path):
    # Annotations are strings only where the file itself asks for that.
    spec = written(tmp_path, "def score(prompt: str, response: str): return float(score.__annotations__['prompt'] is str)")
    assert load_reward(spec)(ROLLOUTS).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "expected module:function"),
        ("json", "expected module:function"),
        ("json:", "expected module:function"),
        (":dumps", "expected module:function"),
        ("nowhere_to_be_found:score", "no module 'nowhere_to_be_found'"),
        ("json.nowhere:score", r"no module 'json\.nowhere'"),
        ("missing/file.py:score", r"no file missing/file\.py"),
        ("json:nothing", "no function 'nothing' in json"),
        ("json:__name__", "no function '__name__' in json"),
    ],
)
def test_what_is_not_found_is_told(spec: str, says: str):
    with pytest.raises(UserError, match=says):
        load_reward(spec)


@pytest.mark.parametrize("signature", ["()", "(a, b, c)", "(*texts)", "(prompt, response, *, key)"])
def test_a_function_that_cannot_be_called_is_refused_at_once(tmp_path: Path, signature: str):
    with pytest.raises(UserError, match=r"expected \(prompt, response\) or \(rollouts\)"):
        load_reward(written(tmp_path, f"def score{signature}: return 0.0"))


def test_a_function_that_does_not_say_what_it_takes_is_refused():
    with pytest.raises(UserError, match=r"builtins:max does not say what it takes; expected \(prompt, response\) or \(rollouts\)"):
        load_reward("builtins:max")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("def score(p, r): return 'good'", "returned 'good'; expected a number"),
        ("def score(p, r): pass", "returned None; expected a number"),
        ("def score(p, r): return 1.0 if r == 'three' else float('nan')", "gave nan to response 1 of 2, 'because of that'"),
        ("def score(p, r): return 1e300", "gave inf to response 0 of 2, 'three'"),
        ("def score(p, r): return 10**400", "gave inf to response 0 of 2, 'three'"),
        ("def score(rollouts): return 1.0", "returned 1.0; expected a list or tensor of 2 numbers"),
        ("def score(rollouts): return [1.0]", r"scores of shape \(1,\); expected one for each of 2 responses"),
        ("def score(rollouts): return 'ab'", "returned 'a'; expected a number"),
        ("import torch\ndef score(rollouts): return torch.zeros(2, 1)", r"scores of shape \(2, 1\)"),
        ("import torch\ndef score(rollouts): return torch.tensor([0.0, float('-inf')])", "gave -inf to response 1"),
    ],
)
def test_a_wrong_result_is_told(tmp_path: Path, body: str, says: str):
    with pytest.raises(UserError, match=says):
        load_reward(written(tmp_path, body))(ROLLOUTS)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("x = 1\ndef score(p, r) return 1", "2: SyntaxError: expected ':'"),
        ("x = 1\nimport nowhere_to_be_found", "2: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("def limit():\n    return 1 / 0\nbound = limit()", "2: ZeroDivisionError: division by zero"),
        ("def score(p, r):\n    return 1 / 0", "2: ZeroDivisionError: division by zero"),
        ("def score(rollouts):\n    yield 1.0\n    assert False", "3: AssertionError"),
        # In a library the line that called it is the user's to mend.
        ("import ast\ndef score(p, r):\n    return ast.parse('1 +')", "3: SyntaxError: "),
        ("import json\ndef score(p, r):\n    return json.loads(r)", "3: JSONDecodeError: "),
        ("import os.path\nscore = lambda rollouts: os.path.join(1)", "2: TypeError: "),
    ],
)
def test_what_the_users_code_raises_is_told_with_its_line(tmp_path: Path, body: str, says: str):
    with pytest.raises(UserError) as caught:
        load_reward(written(tmp_path, body))(ROLLOUTS)
    assert str(caught.value).startswith(f"{tmp_path}/mine.py:{says}")
    assert type(caught.value.__cause__).__name__ == says.split(": ")[1]


def test_a_fault_in_a_helper_of_the_user_is_told_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_broken_helper.py").write_text("x = 1\ndef broken(p, r) return 1")
    with pytest.raises(UserError, match=r"my_broken_helper\.py:2: SyntaxError"):
        load_reward(written(tmp_path, "from my_broken_helper import broken"))
    (tmp_path / "my_raising_helper.py").write_text("def score(p, r):\n    return 1 / 0")
    with pytest.raises(UserError, match=r"my_raising_helper\.py:2: ZeroDivisionError"):
        load_reward(written(tmp_path, "from my_raising_helper import score"))(ROLLOUTS)


def test_a_stop_and_errors_that_are_told_already_pass_through(tmp_path: Path):
    for raised in ("Interrupted(15)", "UserError('mend this')"):
        body = f"from heed.errors import Interrupted, UserError\ndef score(p, r):\n    raise {raised}"
        with pytest.raises((Interrupted, UserError), match=r"^(stopped by signal 15|mend this)$"):
            load_reward(written(tmp_path, body))(ROLLOUTS)


def test_a_module_that_misses_an_import_of_its_own_is_not_taken_for_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "needs_another.py").write_text("import nowhere_to_be_found")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"needs_another\.py:1: ModuleNotFoundError: No module named 'nowhere_to_be_found'"):
        load_reward("needs_another:score")
