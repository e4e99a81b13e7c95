"""What an exported folder says beside its weights, and what is refused before they are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_vlm.cli.main import main
from megatron_vlm.config.loading import load_config
from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.errors import DataError
from megatron_vlm.interop.checkpoint_writer import write_checkpoint
from megatron_vlm.interop.exporting import plan_export, run_export
from megatron_vlm.interop.mapping import Unexpressed
from megatron_vlm.interop.model_tensors import model_tensors
from megatron_vlm.models.language import padded_vocab_size
from tests.interop.oracles import ROWS, small_tokenizer

FIELDS = {
    "model.language": "{num_layers: 1, hidden_size: 64, num_attention_heads: 4, num_query_groups: 2, ffn_hidden_size: 96}",
    "model.vision": "{num_layers: 1, hidden_size: 32, image_size: 32, patch_size: 8}",
    "schedule.train_steps": "10",
}
LLAVA = {"model.vision.final_norm": "false", "model.projector.pixel_shuffle": "1"}


def checkpoint(folder: Path, step: int = 0, tokenizer: bool = True, **fields: str) -> Path:
    """A run's folder with a checkpoint in it; the tokenizer beside it has ROWS words."""
    given = {**FIELDS, **fields, **({"data.tokenizer": str(small_tokenizer(folder))} if tokenizer else {})}
    config = load_config(preset="tiny", overrides=[text for name, value in given.items() for text in (f"--{name}", value)])
    fingerprint = Tokenizer.load(config.data.tokenizer).fingerprint if tokenizer else None
    shapes = model_tensors(config.model, padded_vocab_size(ROWS, 128))
    tensors = ((name, torch.ones(shape)) for name, shape in shapes.items())
    write_checkpoint(folder / "run", config, tensors, {"tokenizer_fingerprint": fingerprint, "step": step})
    return folder / "run"


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("fields", [{}, LLAVA], ids=["lfm2_vl", "llava"])
def test_ids_and_size_are_the_tokenizers_where_its_files_are_left_out(tmp_path: Path, fields: dict[str, str]) -> None:
    run = checkpoint(tmp_path, **fields)
    folders = [tmp_path / "with", tmp_path / "without"]
    for folder in folders:
        run_export(plan_export(run, with_tokenizer=folder.name == "with"), folder)
    config = _json(folders[1] / "config.json")
    assert config == _json(folders[0] / "config.json")
    assert config.get("image_token_index", config.get("image_token_id")) == ROWS - 2
    assert config["eos_token_id"] == config["text_config"]["eos_token_id"] == ROWS - 3
    assert config["text_config"]["vocab_size"] == ROWS
    assert _json(folders[1] / "generation_config.json")["eos_token_id"] == ROWS - 3
    left_out = {file.name for file in folders[0].iterdir()} - {file.name for file in folders[1].iterdir()}
    assert left_out >= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert "Tokenizer" not in (folders[1] / "README.md").read_text().split("<details>")[0]


def test_without_a_tokenizer_there_is_no_picture_token(tmp_path: Path) -> None:
    run = checkpoint(tmp_path, tokenizer=False)
    for given in (True, False):
        with pytest.raises(DataError, match=r"tells the token of a picture; import it again with --data.tokenizer, or"):
            plan_export(run, with_tokenizer=given)


def test_a_text_part_without_an_end_token_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = checkpoint(tmp_path, tokenizer=False)
    assert main(["convert", "export", str(run), "--to", str(tmp_path / "out"), "--part", "language"]) == 0
    assert "note: The tokenizer is not known, so config.json names no token that ends a document" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    assert "give `eos_token_id` to `generate`" in card
    assert "AutoTokenizer" not in card


def test_a_tokenizer_that_went_away_is_needed_for_pictures_alone(tmp_path: Path) -> None:
    run = checkpoint(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert plan_export(run, "vision").tokenizer is None
    assert "eos_token_id" in plan_export(run, "language", with_tokenizer=False).notes[0]
    for part, given in (("all", False), ("language", True)):
        with pytest.raises(DataError, match=r"tokenizer.json"):
            plan_export(run, part, with_tokenizer=given)  # type: ignore[arg-type]


def test_rows_that_are_averaged_are_refused_with_pictures(tmp_path: Path) -> None:
    run = checkpoint(tmp_path, 10, **{"curriculum.stages.1.image_pool": "2"})
    with pytest.raises(Unexpressed, match="image_pool of the last stage trained is 2, and no class of transformers"):
        plan_export(run)
    assert plan_export(run, "language").problems == plan_export(run, "vision").problems == []


@pytest.mark.parametrize(("step", "size"), [(0, 32), (6, 32), (7, 64)])
def test_pictures_have_the_size_of_the_last_stage_trained(tmp_path: Path, step: int, size: int) -> None:
    run = checkpoint(tmp_path, step, **LLAVA, **{"curriculum.stages.1.image_size": "64"})
    for part in ("all", "vision"):
        plan = plan_export(run, part)  # type: ignore[arg-type]
        run_export(plan, tmp_path / part)
        config = _json(tmp_path / part / "config.json")
        assert config.get("vision_config", config)["image_size"] == size
        assert _json(tmp_path / part / "preprocessor_config.json")["size"] == {"height": size, "width": size}
        assert ("Pictures are 64 pixels a side" in (tmp_path / part / "README.md").read_text()) == (size == 64)
    assert _json(tmp_path / "all" / "config.json")["image_seq_length"] == (size // 8) ** 2


def test_a_template_whose_special_tokens_are_not_there_is_refused(tmp_path: Path) -> None:
    plan = plan_export(checkpoint(tmp_path), "language")
    with pytest.raises(DataError, match=r"no special token '<\|im_start\|>', '<\|im_end\|>'"):
        run_export(plan, tmp_path / "out", chat_template="chatml")
    assert not (tmp_path / "out").exists()


def test_each_card_opens_what_is_in_its_folder(tmp_path: Path) -> None:
    """A processor where there is one: a class over patches has none, and the card says how to cut them."""
    run = checkpoint(tmp_path)
    opened = {"all": "AutoTokenizer", "language": "AutoTokenizer", "vision": "AutoImageProcessor"}
    for part, beside in opened.items():
        run_export(plan_export(run, part), tmp_path / part)  # type: ignore[arg-type]
        assert f"{beside}.from_pretrained" in (tmp_path / part / "README.md").read_text()
    card = (tmp_path / "all" / "README.md").read_text()
    assert "AutoProcessor" not in card
    assert "`pixel_values` [1, 16, 192], `spatial_shapes` [[4, 4]]" in card
    assert "it is `<image>`, 4 times" in card
