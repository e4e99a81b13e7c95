"""Pictures that keep their aspect, from the file to the loss: alike in every layout, workers or none, broken or whole."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from megatron_vlm.cli.main import main
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.opening import open_sources
from megatron_vlm.data.sequence_facts import open_sequence_facts
from megatron_vlm.errors import DataError
from megatron_vlm.evaluation.generation import Generator
from megatron_vlm.evaluation.held_out import HeldOut, exchange_pictures, measure_held_out
from megatron_vlm.evaluation.sampling import Sampling
from megatron_vlm.evaluation.scorer import Scorer, layout_for
from megatron_vlm.training.checkpoint import checkpoint_config, find_checkpoint
from megatron_vlm.training.loop import Run
from megatron_vlm.training.scoring import rows_of
from megatron_vlm.training.validation import held_out_documents
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import PP2, SAMPLE, TP2, configuration

pytestmark = pytest.mark.distributed

STEPS = 3
#: heights and widths in pixels; the model shows at most 64 patches of 8 pixels, in groups of 2 x 2
SHAPES = ((64, 64), (16, 96), (120, 40), (200, 300), (30, 30))
LAYOUTS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "tp2 + sp": (2, {**TP2, "sequence_parallel": True}, {}),
    "pp2": (2, PP2, {}),
    "dp2, workers": (2, {}, {"loader.workers": 1}),
    "tp2 x pp2": (4, {**TP2, **PP2}, {}),
}


@pytest.fixture(scope="module")
def shaped(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled pictures scaled to sides of many shapes, one of five broken in the middle; and the prose."""
    folder = tmp_path_factory.mktemp("shaped")
    tars = [folder / "pictures-00000.tar", folder / "heldout-00000.tar"]
    with tarfile.open(SAMPLE / "images" / "train-00000.tar") as source:
        members = [(member.name, source.extractfile(member)) for member in source]
        files = {name: file.read() for name, file in members if file is not None}
    keys = sorted({name.split(".")[0] for name in files})
    for tar, chosen in zip(tars, (keys[:-20], keys[-20:]), strict=True):
        with tarfile.open(tar, "w") as target:
            for number, key in enumerate(chosen):
                height, width = SHAPES[number % len(SHAPES)]
                stream = io.BytesIO()
                picture = Image.open(io.BytesIO(files[f"{key}.png"])).convert("RGB").resize((width, height))
                picture.save(stream, "JPEG" if number % 2 else "PNG")
                for name, content in (
                    (f"{key}.{'jpg' if number % 2 else 'png'}", stream.getvalue()),
                    (f"{key}.txt", files[f"{key}.txt"]),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    target.addfile(member, io.BytesIO(content))
    for name, tar in zip(("captions", "heldout"), tars, strict=True):
        command = [sys.executable, "-m", "megatron_vlm.cli.main", "preprocess", "image-text", "--input", str(tar)]
        command += ["--tokenizer", str(SAMPLE / "tokenizer"), "--output", str(folder / name)]
        subprocess.run(command, check=True, capture_output=True)
    for file in data.glob("text.*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def _configuration(data: Path, folder: Path, parallel: dict[str, Any], **fields: Any) -> Any:
    given = {
        "data.pictures.resize": "native",
        "model.vision": "{num_layers: 2, hidden_size: 64, patch_size: 8}",
        "data.validation": f"{{heldout: '{data / 'heldout'}'}}",
        "logging.eval_interval": STEPS,
        "logging.directory": folder,
        "schedule.train_steps": STEPS,
        "curriculum.stages": "[{name: both, sources: {text: 0.5, captions: 0.5}, measure: tokens}]",
        **fields,
    }
    return configuration(data, parallel, **given)


def _records(config: Any) -> list[dict[str, Any]]:
    """The metrics of a whole run."""
    assert Run(config).train().exit_code == 0
    path = Path(config.logging.directory) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _train(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record["kind"] == "train"]


@pytest.fixture(scope="module")
def alone(shaped: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("alone")
    return folder, run_ranks(1, _records, _configuration(shaped, folder, {}))[0]


def test_rows_are_those_of_the_sizes_in_the_dataset(shaped: Path, alone: tuple[Path, list[dict[str, Any]]]) -> None:
    """What the run says of its visual tokens, against rows counted from the sizes that the dataset keeps."""
    config = _configuration(shaped, shaped / "unused", {})
    picture = config.shape_of(0).picture
    assert picture.native
    reader = IndexedReader(shaped / "captions")
    facts = open_sequence_facts(shaped / "captions", reader.sequence_count)
    assert facts is not None
    rows = {size: picture.of(*size) for size in map(tuple, facts[reader.modes == 1].tolist())}
    # the third and the fourth are larger than the budget, the last is between one and two groups
    assert rows == {(64, 64): 16, (16, 96): 6, (120, 40): 12, (200, 300): 15, (30, 30): 4}
    last = _train(alone[1])[-1]
    assert 0 < last["source_visual"]["captions"] < last["source_tokens"]["captions"]


@pytest.mark.parametrize("name", [n if n == "tp2 + sp" else pytest.param(n, marks=pytest.mark.slow) for n in LAYOUTS])
def test_losses_are_the_same_in_every_layout(
    name: str, shaped: Path, alone: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    ranks, parallel, fields = LAYOUTS[name]
    found = run_ranks(ranks, _records, _configuration(shaped, tmp_path, parallel, **fields))[0]
    for ours, theirs in zip(_train(found), _train(alone[1]), strict=True):
        assert ours["documents"] == theirs["documents"]
        assert ours["flops"] == theirs["flops"] if "flops" in ours else True
        assert abs(ours["loss"] - theirs["loss"]) < 5e-6
    held = [[r for r in records if r["kind"] not in ("train",)] for records in (found, alone[1])]
    for ours, theirs in zip(*held, strict=True):
        for key, value in theirs.items():
            if isinstance(value, float) and "loss" in key:
                assert abs(ours[key] - value) < 5e-6, key


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["text", "skip"])
def test_broken_pictures_are_taken_out_of_native_batches_too(policy: str, shaped: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in shaped.iterdir():
        if file.is_file():
            (damaged / file.name).write_bytes(file.read_bytes())
    reader = IndexedReader(damaged / "captions")
    with (damaged / "captions.bin").open("r+b") as stream:
        for document in range(0, reader.document_count, 3):
            sequence = reader.document_sequences(document)[0]
            stream.seek(int(reader.sequence_pointers[sequence]) + 4)
            stream.write(b"no picture at all")
    found = []
    for name, ranks, parallel in (("one", 1, {}), ("pp2", 2, PP2)):
        config = _configuration(damaged, tmp_path / name, parallel, **{"data.pictures.broken": policy})
        found.append(run_ranks(ranks, _records, config)[0])
    assert sum(record["count"] for record in found[0] if record["kind"] == "broken_pictures") > STEPS
    for ours, theirs in zip(_train(found[1]), _train(found[0]), strict=True):
        assert ours["trained_tokens"] == theirs["trained_tokens"]
        assert abs(ours["loss"] - theirs["loss"]) < 5e-6


def _generated(folder: Path, data: Path, ranks: int, parallel: dict[str, Any]) -> list[tuple[int, ...]]:
    checkpoint = find_checkpoint(folder)
    scorer = Scorer.open(checkpoint, layout_for(checkpoint_config(checkpoint), ranks, parallel, generates=True))
    generator = Generator(scorer)
    rng = np.random.default_rng(0)
    prompts = [
        generator.prompt("a", [rng.integers(0, 256, (*size, 3), dtype=np.uint8)]) for size in ((64, 64), (16, 96), (32, 16))
    ]
    assert [int((prompt.ids == scorer.tokens.image_token_id).sum()) for prompt in prompts] == [16, 6, 2]
    together = generator.generate(prompts, Sampling(4))
    alone = [generator.generate([prompt], Sampling(4))[0] for prompt in prompts]
    assert [answer.ids for answer in together] == [answer.ids for answer in alone]
    return [answer.ids for answer in together]


@pytest.mark.slow
def test_generation_with_pictures_of_any_shape(
    shaped: Path, alone: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    one = run_ranks(1, _generated, alone[0], shaped, 1, {})[0]
    assert run_ranks(2, _generated, alone[0], shaped, 2, PP2)[0] == one


def _held_out(folder: Path, ranks: int, parallel: dict[str, Any]) -> tuple[HeldOut, float]:
    """The blind control, and its loss where each document is scored by itself under its exchanged pictures."""
    checkpoint = find_checkpoint(folder)
    scorer = Scorer.open(checkpoint, layout_for(checkpoint_config(checkpoint), ranks, parallel))
    source = open_sources(scorer.config.data.validation, scorer.tokenizer, scorer.shape.image_tokens)["heldout"]
    documents = held_out_documents(source, scorer.config, scorer.shape, 0, scorer.decodes)
    exchanged = exchange_pictures(documents, scorer.shape, scorer.tokens.image_token_id)
    for before, after in zip(documents, exchanged, strict=True):
        assert after.pictures is not before.pictures
        placeholders = int((after.segment.ids == scorer.tokens.image_token_id).sum())
        assert placeholders == rows_of(scorer.shape, after.pictures, 1)
    by_themselves = np.concatenate([scorer.score([document]) for document in exchanged])
    return measure_held_out(scorer, source, 0), float(by_themselves[:, 0].sum() / by_themselves[:, 1].sum())


def test_the_blind_control_exchanges_pictures_of_unlike_shapes(alone: tuple[Path, list[dict[str, Any]]]) -> None:
    ((one, by_themselves),) = run_ranks(1, _held_out, alone[0], 1, {})
    assert one.documents == 20
    assert one.blind_loss == pytest.approx(by_themselves, abs=1e-5)
    for other, _ in run_ranks(2, _held_out, alone[0], 2, PP2):
        assert (other.loss, other.blind_loss) == pytest.approx((one.loss, one.blind_loss), abs=1e-5)


def _refusal(config: Any) -> str:
    try:
        Run(config).data.planner.plan_step()
    except DataError as error:
        return str(error)
    return ""


def test_a_dataset_that_does_not_know_its_sizes_is_refused(shaped: Path, tmp_path: Path) -> None:
    for file in shaped.iterdir():
        if file.is_file() and not file.name.endswith("sequences.npy"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (refusal,) = run_ranks(1, _refusal, _configuration(tmp_path, tmp_path / "run", {}))
    assert "does not say how large its pictures are" in refusal


def test_the_curriculum_is_shown_with_them(shaped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--preset", "tiny", "--data.pictures.resize", "native", "--data.tokenizer", str(SAMPLE / "tokenizer")]
    sources = f"{{text: '{shaped / 'text'}', captions: '{shaped / 'captions'}'}}"
    stages = "[{sources: {text: 0.5, captions: 0.5}}]"
    shown = [
        "curriculum",
        "show",
        *config,
        "--data.sources",
        sources,
        "--curriculum.stages",
        stages,
        "--schedule.train_steps",
        "40",
    ]
    assert main(shown) == 0
    assert "own aspect, up to 64 x 64 px, 4 tokens" in capsys.readouterr().out
