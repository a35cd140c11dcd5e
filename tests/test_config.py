"""Configuration is read strictly, and every error names the file, the line, what was found and what was expected."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from heed.config import Document, as_mapping, load_config, parse_yaml, read_yaml
from heed.errors import UserError, require


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    rank: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    lr: float
    name: str = "x"
    schedule: Literal["linear", "constant"] = "linear"
    sizes: tuple[int, ...] = ()
    until: dict[str, float | str] = field(default_factory=dict)
    folder: Path | None = None
    inner: Inner | None = None
    verbose: bool = False

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", self.lr, "a learning rate above 0")


def load(text: str) -> Config:
    document = parse_yaml(text, "recipe.yaml")
    return load_config(Config, document.values, document)


def test_values_keep_their_types_and_round_trip() -> None:
    config = load("lr: 1e-5\nsizes: [1, 2]\nfolder: a/b\ninner: {rank: 4}\nuntil: {acc: 0.5, kl: '<= 3'}\n")
    assert config == Config(lr=1e-5, sizes=(1, 2), folder=Path("a/b"), inner=Inner(rank=4), until={"acc": 0.5, "kl": "<= 3"})
    assert load_config(Config, as_mapping(config), "again") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 1.0\nscedule: linear", "recipe.yaml:2: there is no key 'scedule'; expected schedule"),
        ("lr: 1.0\ninner:\n  rnk: 3", "recipe.yaml:3: there is no key 'inner.rnk'; expected rank"),
        ("name: y", "recipe.yaml:1: lr is missing; expected a number"),
        ("lr: -1.0", "recipe.yaml:1: lr is -1.0; expected a learning rate above 0"),
        ("lr: '0.1'", "recipe.yaml:1: lr is '0.1'; expected a number"),
        ("lr: true", "recipe.yaml:1: lr is True; expected a number"),
        ("lr: 1\nsizes: [1, 2.5]", "recipe.yaml:2: sizes is [1, 2.5]; expected a list, each entry a whole number"),
        ("lr: 1\nschedule: cosine", "recipe.yaml:2: schedule is 'cosine'; expected one of linear, constant"),
        ("lr: 1\ninner: 4", "recipe.yaml:2: inner is 4; expected a mapping of keys to values"),
        ("lr: 1\nname: 2026-01-01\nlr: 2", "recipe.yaml:3: 'lr' is given twice"),
        ("- 1", "recipe.yaml:1: the document is [1]; expected a mapping of keys to values"),
    ],
)
def test_errors_name_file_line_found_and_expected(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load(text)
    assert str(error.value) == message


def test_malformed_yaml_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: 1\nb: [1, 2\nc: 3\n")
    with pytest.raises(UserError, match=r"bad\.yaml:3: not valid YAML"):
        read_yaml(tmp_path / "bad.yaml")
    with pytest.raises(UserError, match="there is no such file"):
        read_yaml(tmp_path / "absent.yaml")


def test_an_override_reaches_into_lists_by_the_name_of_an_entry() -> None:
    document = parse_yaml("seed: 1\nstages:\n- sft: {lr: 0.1}\n- ppo:\n", "recipe.yaml")
    changed = document.with_value(("stages", "ppo", "kl_coef"), 0.2).with_value(("stages", "0", "sft", "lr"), 0.5)
    assert changed.values == {"seed": 1, "stages": [{"sft": {"lr": 0.5}}, {"ppo": {"kl_coef": 0.2}}]}
    assert document.values["stages"][0] == {"sft": {"lr": 0.1}}
    bare = parse_yaml("stages: [sft, ppo]\n", "recipe.yaml")
    assert bare.with_value(("stages", "ppo", "lr"), 0.5).values == {"stages": ["sft", {"ppo": {"lr": 0.5}}]}
    assert bare.with_value(("stages", "0", "sft", "lr"), 0.5).values == {"stages": [{"sft": {"lr": 0.5}}, "ppo"]}
    with pytest.raises(UserError, match="there is no '²' to set"):
        bare.with_value(("stages", "²"), 1)
    with pytest.raises(UserError, match="expected one of sft, ppo"):
        document.with_value(("stages", "dpo", "beta"), 0.2)


def test_a_part_of_a_document_keeps_its_lines() -> None:
    document = parse_yaml("seed: 1\nstages:\n- sft:\n    lr: -1.0\n", "recipe.yaml")
    part = document.at("stages", 0, "sft")
    assert isinstance(part, Document)
    with pytest.raises(UserError, match=r"recipe\.yaml:4: lr is -1\.0"):
        load_config(Config, part.values, part)
