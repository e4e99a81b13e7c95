"""Shared pieces: trained once, named by what they come to, alike in all runs that they are part of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.errors import ConfigError
from megatron_vlm.study.cost import segment_costs, totals
from megatron_vlm.study.points import study_points
from megatron_vlm.study.segments import Graph, run_config, separately
from megatron_vlm.training.learning_rate import learning_rate_law
from tests.study.cases import STUDY, graph, study

ROOT = Path(__file__).resolve().parents[2]


def _keys(found: Graph, kind: str) -> set[str]:
    return {segment.key for segment in found.segments if segment.kind == kind}


def test_the_graph_of_the_case(tmp_path: Path) -> None:
    found = graph(tmp_path)
    trunk = [s for s in found.segments if s.kind == "trunk" and s.points[0].value("seed") == "1"]
    assert sorted((s.first_step, s.end_step, len(s.points)) for s in trunk) == [(0, 20, 3), (20, 80, 2), (80, 100, 1)]
    assert len(_keys(found, "branch")) == 8
    assert len(_keys(found, "evaluate")) == 8
    first = next(leaf for leaf in found.leaves if leaf.point.value("introduction") == "0.8")
    assert [s.end_step for s in first.end.ancestors] == [20, 80]
    seen: set[str] = set()
    for segment in found.segments:  # each after what it begins with
        assert segment.parent is None or segment.parent.key in seen
        seen.add(segment.key)
    assert {s.name for s in trunk} == {"text to 20 % (seed 1)", "text to 80 % (seed 1)", "text to 100 % (seed 1)"}


def test_the_trunk_is_the_same_in_every_run(tmp_path: Path) -> None:
    """Rates of the shared steps are those of each run that goes through them."""
    for point in study_points(study(tmp_path)):
        trunk, whole = learning_rate_law(point.trunk), learning_rate_law(point.config)
        assert [trunk(step) for step in range(point.introduction)] == [whole(step) for step in range(point.introduction)]
        assert point.trunk.schedule.seed == point.config.schedule.seed


def test_adding_points_keeps_what_is_there(tmp_path: Path) -> None:
    before = graph(tmp_path)
    axes = {**STUDY["axes"], "introduction": [0.8, 0, 0.2, 0.5, 1.0]}
    after = graph(tmp_path, axes=axes)
    for kind in ("trunk", "branch", "evaluate"):
        assert _keys(before, kind) < _keys(after, kind)
    cut = {s.end_step: s.parent for s in after.segments if s.kind == "trunk"}
    assert cut[80] is not None
    assert cut[80].end_step == 50, "what is not done begins with the nearest piece"


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"logging": {"log_interval": 7}, "parallel": {"overlap_grad_reduce": False}}, {"trunk", "branch"}),
        ({"data": {**STUDY["base"]["data"], "validation": {"held": "nowhere/held"}}}, {"trunk", "branch"}),
        ({"data": {**STUDY["base"]["data"], "pictures": {"resize": "letterbox"}}}, {"trunk"}),
        ({"optimizer": {"lr_mult": {"vision": 0.1}}}, {"trunk"}),
        ({"optimizer": {"weight_decay": 0.5}}, set()),
        ({"data": {**STUDY["base"]["data"], "sources": {"text": "else/text", "captions": "nowhere/captions"}}}, set()),
    ],
)
def test_what_changes_a_key(changes: dict[str, Any], kept: set[str], tmp_path: Path) -> None:
    before, after = graph(tmp_path), graph(tmp_path, base={**STUDY["base"], **changes})
    for kind in ("trunk", "branch"):
        same = _keys(before, kind) & _keys(after, kind)
        assert same == (_keys(before, kind) if kind in kept else set())


def _asking(folder: Path) -> dict[str, Any]:
    """Files of one task, with its pictures, and of a naming."""
    (folder / "pictures").mkdir()
    for name, text in {
        "task.yaml": "{form: vqa, data: asked.json, annotations: told.json, pictures: pictures}",
        "asked.json": "{}",
        "told.json": "{}",
        "pictures/a.png": "a",
        "style-0.tar": "tar",
    }.items():
        (folder / name).write_text(text)
    return {"tasks": [str(folder / "task.yaml")], "naming": {"style": str(folder / "style-*.tar")}}


@pytest.mark.parametrize("file", ["task.yaml", "asked.json", "told.json", "pictures/a.png", "style-0.tar"])
def test_an_evaluation_is_its_questions(file: str, tmp_path: Path) -> None:
    evaluate = _asking(tmp_path)
    before = graph(tmp_path, evaluate=evaluate)
    assert _keys(before, "evaluate") == _keys(graph(tmp_path, evaluate=evaluate), "evaluate")
    changed = tmp_path / file
    changed.write_text(changed.read_text() + " ")
    after = graph(tmp_path, evaluate=evaluate)
    assert not _keys(before, "evaluate") & _keys(after, "evaluate")
    assert _keys(before, "branch") == _keys(after, "branch")


def test_an_evaluation_asks_what_comes_to_be_there(tmp_path: Path) -> None:
    """Studies are planned before their data is there: a new tar, or questions where there were none, are other questions."""
    evaluate = _asking(tmp_path)
    (tmp_path / "asked.json").unlink()
    keys = [_keys(graph(tmp_path, evaluate=evaluate), "evaluate")]
    for name in ("asked.json", "style-1.tar", "pictures/b.png"):
        (tmp_path / name).write_text("{}")
        keys.append(_keys(graph(tmp_path, evaluate=evaluate), "evaluate"))
    assert len(set().union(*keys)) == 4 * len(keys[0])


def test_an_evaluation_is_its_held_out_documents(tmp_path: Path) -> None:
    held = tmp_path / "held"
    base = {**STUDY["base"], "data": {**STUDY["base"]["data"], "validation": {"held": str(held)}}}
    keys = [_keys(graph(tmp_path, base=base), "evaluate")]
    for tokens in ([1, 2], [1, 2, 3]):
        with IndexedWriter(held, np.uint16) as writer:
            writer.add_text(tokens)
            writer.end_document()
            writer.finalize({"tool_version": "0", "kind": "text"})
        keys.append(_keys(graph(tmp_path, base=base), "evaluate"))
    assert len(set().union(*keys)) == 3 * len(keys[0])


def test_tasks_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        graph(tmp_path, evaluate={"tasks": [str(tmp_path / "nowhere.yaml")]})


def test_what_the_trainer_is_given(tmp_path: Path) -> None:
    base = {**STUDY["base"], "checkpoint": {"start_from": "runs/encoder", "save_interval": 5}}
    tuned = {"source": "captions", "stage": {"sources": {"captions": 1.0}}, "pass_positions": 10_000}
    found = graph(tmp_path, base=base, finetune=tuned)
    by_kind = {s.kind: s for s in found.segments if s.parent is not None}
    root = found.segments[0]
    assert run_config(root, tmp_path, None).checkpoint.start_from == "runs/encoder"
    branch = run_config(by_kind["branch"], tmp_path / "b", None)
    assert branch.checkpoint.start_from is None
    assert branch.end_step == by_kind["branch"].end_step
    instruct = run_config(by_kind["finetune"], tmp_path / "f", tmp_path / "b")
    assert (instruct.checkpoint.start_from, instruct.checkpoint.start_with) == (str(tmp_path / "b"), "weights")
    assert instruct.schedule.train_tokens == 10_000
    assert instruct.schedule.exit_step is None


def test_costs_add_up_and_sharing_saves(tmp_path: Path) -> None:
    found = graph(tmp_path)
    costs, notes = segment_costs(found, "h100", 8)
    shared, separate = totals(found, costs)
    steps = sum(s.end_step - s.first_step for s in found.segments)
    assert shared.steps == steps == 2 * (100 + 4 * 30)
    assert separate.steps == 2 * (80 + 20 + 100 + 4 * 30)
    assert shared.flops < separate.flops
    assert len(list(separately(found.leaves))) > len(found.leaves)
    assert any("no dataset" in note for note in notes)


# -- files that are ready -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_ready_study_has_a_plan(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from megatron_vlm.cli.main import main

    monkeypatch.chdir(ROOT)
    assert main(["study", "plan", str(path), "--gpus", "8"]) == 0
    assert "sharing saves" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "model", "text_tokens", "lr", "warmup"),
    [("paper_grid_1b", (24, 2048, 16), 4.3e12, 1e-2, 5000), ("paper_grid_79m", (8, 512, 4), 237e9, 3e-3, 400)],
)
def test_the_papers_grid(file: str, model: tuple[int, int, int], text_tokens: float, lr: float, warmup: int) -> None:
    """Line by line what the paper's tables and text say of its runs (arXiv 2503.07603)."""
    from megatron_vlm.study.study_file import read_study

    path = ROOT / "examples" / "studies" / f"{file}.yaml"
    points = study_points(read_study(path))
    by_grid: dict[str, list[Any]] = {}
    for point in points:
        for name in point.grids:
            by_grid.setdefault(name, []).append(point)
    point = by_grid["introduction"][0]
    language = point.config.model.language
    assert (language.num_layers, language.hidden_size, language.num_attention_heads) == model
    assert abs(point.trunk.total_tokens / text_tokens - 1) < 0.01
    assert (point.config.schedule.lr, point.config.schedule.warmup_steps) == (lr, warmup)
    assert point.config.optimizer.adam_beta2 == 0.95
    # image-text: 20 tokens a parameter in packs of 1024, one picture of 729 tokens a sample, the encoder frozen
    images = point.config.curriculum.stages[-1]
    tokens = point.config.total_tokens - point.config.tokens_before(point.introduction)
    assert tokens == pytest.approx(28e9 if file.endswith("1b") else 1.6e9, rel=1e-3)
    assert images.sequence_length == 1024
    assert point.config.model.image_tokens == 729
    assert "vision" in images.freeze
    # checkpoints of the text run at 0, 20, 40, 60, 80, 100 %
    shares = {p.value("introduction") for name in ("introduction", "introduction_ends") for p in by_grid[name]}
    assert shares == {"0", "0.2", "0.4", "0.6", "0.8", "1"}
    # 0 and 100 %: warm-up and cosine from 3e-3; the others go on from where the rate stands
    for p in by_grid["introduction_ends"]:
        stage = p.config.curriculum.stages[-1]
        assert (stage.lr_policy, stage.rewarm_lr, stage.lr_decay) == ("restart", 3e-3, "cosine")
    for p in by_grid["introduction"]:
        law = learning_rate_law(p.config)
        assert law(p.introduction) == pytest.approx(law(p.introduction - 1), rel=0.01)
    # caption ratios 1, 5, 10, 20 % and more, two seeds at 20 % introduction; 1 to 4 passes of fine-tuning; instruction data
    assert {p.value("visual_share") for p in by_grid["share"]} >= {"0.01", "0.05", "0.1", "0.2"}
    assert {(p.value("introduction"), p.value("seed")) for p in by_grid["share_seeds"]} == {("0.2", "1234"), ("0.2", "1235")}
    assert sorted(p.finetune.epochs for p in by_grid["epochs"]) == [1, 2, 3, 4]
    assert {p.value("instruction_mix") for p in by_grid["instruction"]} == {"none", "mixed"}
    # and the control that it lacks
    control = {(p.value("introduction"), p.value("lr_policy")) for p in by_grid["policy_control"]}
    assert control == {(share, policy) for share in ("0.2", "0.4", "0.6", "0.8", "1") for policy in ("continue", "restart")}
    assert yaml.safe_load(path.read_text())["finetune"]["source"] == "llava"
