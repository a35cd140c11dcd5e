from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, CodeGenConfig, Gemma3Config
from transformers.models.llama.modeling_llama import LlamaMLP

from heed.errors import UserError
from heed.models import LoRAConfig, load_policy, load_reward_model
from tests.models.conftest import GROUPED, word_tokenizer


@pytest.fixture
def copied(make_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """A model folder to spoil."""
    return Path(shutil.copytree(make_folder("llama"), tmp_path / "model"))


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


@pytest.mark.parametrize("load", [load_policy, load_reward_model])
@pytest.mark.parametrize("path", [Path("nowhere"), "./nowhere", "/no/where", "a/b/c"])
def test_unknown_folder(load: Callable[..., object], path: str | Path) -> None:
    with pytest.raises(UserError, match="no such folder") as error:
        load(path)
    assert str(path) in one_line(error)


def test_a_misspelt_name_in_a_folder_that_is_here_is_not_looked_for_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        load_policy("runs/pppo")


@pytest.mark.parametrize("load", [load_policy, load_reward_model])
def test_hub_id_that_is_not_cached_while_offline(load: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="nobody/nothing") as error:
        load("nobody/nothing")
    assert "hf download" in one_line(error)


def test_folder_without_config(copied: Path) -> None:
    (copied / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json") as error:
        load_policy(copied)
    one_line(error)


def test_folder_without_weights_or_with_pickled_ones(copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no \*\.safetensors") as error:
        load_policy(copied)
    assert "pickled" in one_line(error)


def test_spoilt_weights(copied: Path) -> None:
    (copied / "model.safetensors").write_bytes(b"spoilt")
    with pytest.raises(UserError, match="does not load") as error:
        load_policy(copied)
    one_line(error)


def test_config_that_is_no_models(copied: Path, rewrite_config: Callable[..., None]) -> None:
    rewrite_config(copied, model_type="unheard-of")
    with pytest.raises(UserError, match="does not load") as error:
        load_policy(copied)
    one_line(error)


def test_folder_without_tokenizer(copied: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copied / name).unlink()
    with pytest.raises(UserError, match="tokenizer") as error:
        load_policy(copied)
    one_line(error)


def test_reward_model_with_more_labels(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    shutil.copytree(make_folder("llama"), tmp_path / "model")
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=3).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="has 3 labels") as error:
        load_reward_model(tmp_path / "model")
    assert "1" in one_line(error)


def test_language_model_is_no_reward_model_and_the_other_way_round(make_folder: Callable[..., Path], bert_folder: Path) -> None:
    with pytest.raises(UserError, match=r"no weights for score\.weight") as error:
        load_reward_model(make_folder("llama"))
    one_line(error)
    with pytest.raises(UserError) as error:
        load_policy(bert_folder)
    one_line(error)


def test_weights_that_are_missing(copied: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copied / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"no weights for model\.layers\.1\.mlp\.up_proj\.weight") as error:
        load_policy(copied)
    one_line(error)


def test_family_that_caps_its_logits(make_folder: Callable[..., Path]) -> None:
    load_policy(make_folder("gemma2", final_logit_softcapping=None))
    with pytest.raises(UserError, match="changes its logits") as error:
        load_policy(make_folder("gemma2", final_logit_softcapping=5.0))
    one_line(error)


def test_family_that_goes_past_its_body(make_folder: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="OPTForCausalLM, which has no head over one transformer body") as error:
        load_policy(make_folder("opt"), device="cpu")
    one_line(error)


def test_model_of_text_and_images(tmp_path: Path) -> None:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(text_config=GROUPED | {"vocab_size": 100}, vision_config=vision, mm_tokens_per_image=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="Gemma3ForConditionalGeneration, which has no head over one transformer body of text") as error:
        load_policy(tmp_path, device="cpu")
    one_line(error)


def test_family_without_padding_in_its_configuration(tmp_path: Path) -> None:
    config = CodeGenConfig(vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=48, rotary_dim=4, bos_token_id=1, eos_token_id=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    assert load_policy(tmp_path, device="cpu").pad_id == 2


def test_family_whose_forwards_differ(make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    forward = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: forward(self, x) * (1 + 1e-4 * torch.rand(())))
    load_policy(make_folder("llama"))


def test_dtype_of_weights(make_folder: Callable[..., Path]) -> None:
    policy = load_policy(make_folder("llama"), dtype="bfloat16", lora=LoRAConfig(rank=2), device="cpu")
    assert policy.head()[0].dtype == torch.bfloat16
    assert {parameter.dtype for parameter in policy.trainable().values()} == {torch.float32}
    with pytest.raises(UserError, match="float32 or bfloat16 or float16"):
        load_policy(make_folder("llama"), dtype="int8")


def test_values_of_lora_out_of_range() -> None:
    with pytest.raises(UserError, match="rank is 0"):
        LoRAConfig(rank=0)
    with pytest.raises(UserError, match="alpha is 0"):
        LoRAConfig(alpha=0)
    with pytest.raises(UserError, match=r"dropout is 1\.0"):
        LoRAConfig(dropout=1.0)
    with pytest.raises(UserError, match=r"target is \(\); expected all-linear"):
        LoRAConfig(target=())


@pytest.mark.gpu
def test_no_plan_is_made_for_every_new_shape_of_attention(make_folder: Callable[..., Path]) -> None:
    load_policy(make_folder("llama"), device="cuda")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
