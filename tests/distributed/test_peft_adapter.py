"""Low-rank updates as an adapter: `peft` lays it on the model beneath, and gets our logits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_vlm.cli.main import main
from tests.distributed.ranks import run_ranks
from tests.distributed.test_export import LARGE, _ours, _train
from tests.distributed.tiny_run import TP2, configuration

pytestmark = pytest.mark.distributed
peft = pytest.importorskip("peft", reason="pip install peft")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    fields = {**LARGE, "model.lora": "{rank: 4, alpha: 64}", "schedule.lr": 1e-2, "logging.directory": folder}
    run_ranks(2, _train, configuration(data, TP2, **fields))
    return folder


def test_peft_lays_it_on_the_model_beneath(trained: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base, adapter, merged = (tmp_path / name for name in ("base", "adapter", "merged"))
    assert main(["convert", "export", str(trained), "--to", str(base), "--part", "language", "--without-updates"]) == 0
    assert main(["convert", "export", str(trained), "--to", str(adapter), "--part", "adapter"]) == 0
    assert main(["convert", "export", str(trained), "--to", str(merged), "--part", "language"]) == 0
    ((ours, _, ids),) = run_ranks(1, _ours, trained)

    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    with torch.no_grad():
        beneath = plain(torch.tensor([ids])).logits[0].numpy()
        model = peft.PeftModel.from_pretrained(plain, adapter).eval()
        theirs = model(torch.tensor([ids])).logits[0].numpy()
        whole = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()(torch.tensor([ids])).logits[0]
    bound = 1e-4 * max(1.0, np.abs(ours).max())
    assert np.abs(theirs - ours).max() < bound
    assert np.abs(whole.numpy() - ours).max() < bound
    assert np.abs(beneath - ours).max() > 100 * bound, "the updates do something"
    told = json.loads((adapter / "adapter_config.json").read_text())
    assert (told["r"], told["lora_alpha"]) == (4, 64)
    assert set(told["target_modules"]) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_what_it_would_hold(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "export", str(trained), "--to", "nowhere", "--part", "adapter", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "base_model.model.model.layers.0.self_attn.k_proj.lora_B.weight [32, 4]" in said
    assert "base_model.model.model.layers.3.mlp.up_proj.lora_A.weight [4, 64]" in said


def test_a_checkpoint_without_updates_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_ranks(1, _train, configuration(data, **{"logging.directory": tmp_path / "run", "schedule.train_steps": 3}))
    assert main(["convert", "export", str(tmp_path / "run"), "--to", str(tmp_path / "a"), "--part", "adapter"]) == 2
    assert "has no low-rank updates" in capsys.readouterr().err
