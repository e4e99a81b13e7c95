"""A stage that reads features decodes no picture: its micro-batches have the features of their pictures, in order."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_vlm.config.loader import LoaderConfig
from megatron_vlm.config.picture_rows import PictureRows
from megatron_vlm.config.pictures import PicturesConfig
from megatron_vlm.data.broken_pictures import BrokenPicture
from megatron_vlm.data.kept_features.feature_facts import FeatureFacts
from megatron_vlm.data.kept_features.feature_writer import FeatureWriter
from megatron_vlm.data.kept_features.picture_blocks import picture_blocks
from megatron_vlm.data.loader.batch_loader import BatchLoader
from megatron_vlm.data.loader.messages import MakerSpec
from megatron_vlm.data.loader.opening import maker_spec
from megatron_vlm.data.loader.slots import SlotLayout
from megatron_vlm.data.micro_batch import MicroBatch
from megatron_vlm.data.without_pictures import without_pictures
from megatron_vlm.errors import DataError
from tests.data.loader.cases import EARLY, TOKENS, Case, everything, expected, make_case

WIDTH = 5
#: three patches of a picture, one a row
NUMBERS = WIDTH


def reading(folder: Path, broken: bool = False) -> tuple[Case, MakerSpec, Path]:
    """A case whose first stage, of three rows a picture, reads features; each patch holds the number of its picture."""
    case = make_case(folder)
    plans = [
        dataclasses.replace(plan, shape=dataclasses.replace(plan.shape, features=NUMBERS)) if plan.shape == EARLY else plan
        for plan in case.plans
    ]
    reader = case.sources["captions"].reader
    blocks = picture_blocks(reader, PictureRows(3), 1, 1, 3 * WIDTH)  # three patches side by side
    writer = FeatureWriter(folder / "f", FeatureFacts("", {}, WIDTH, reader.fingerprint), blocks)
    writer.begin()
    for block in range(len(blocks.first)):
        writer.write_block(block, features(int(blocks.first[block])))
    writer.end_part(0, {str(blocks.first[1]): "cut short"} if broken else {})
    writer.close()
    writer.finish(reader)
    spec = maker_spec(case.sources, TOKENS, True, PicturesConfig(), features={"captions": str(folder / "f")})
    return Case(case.sources, plans), spec, folder / "f"


def features(sequence: int) -> np.ndarray:
    """bf16 bits."""
    values = sequence + torch.arange(3 * WIDTH).reshape(3, WIDTH) / 16
    return values.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


@pytest.mark.parametrize("workers", [0, 2])
def test_features_stand_where_pixels_would(tmp_path: Path, workers: int) -> None:
    case, spec, _ = reading(tmp_path)
    sources = list(case.sources.values())
    seen = 0
    with BatchLoader(spec, iter(case.plans), everything, LoaderConfig(workers=workers), case.shapes) as steps:
        for step, plan in zip(steps, case.plans, strict=True):
            for number, batch in enumerate(step.batches):
                if not plan.shape.features:
                    assert batch.features is None
                    assert torch.equal(batch.pixels, torch.from_numpy(expected(case, plan)[number]["pixels"]))
                    continue
                assert batch.pixels is None
                assert batch.features.dtype == torch.bfloat16
                packs = plan.packs[number * plan.shape.micro_batch_size :][: plan.shape.micro_batch_size]
                shown = [
                    sequence
                    for pack in packs
                    for span in pack
                    for sequence in sources[span.source].segment(span.document, span.start, span.length, 3)[1]
                ]
                wanted = np.concatenate([features(sequence) for sequence in shown])
                assert np.array_equal(batch.features.view(torch.int16).numpy().view(np.uint16), wanted)
                seen += len(shown)
    assert seen > 20


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_did_not_decode_when_it_was_encoded_is_broken(tmp_path: Path, workers: int) -> None:
    case, spec, _ = reading(tmp_path, broken=True)
    with BatchLoader(spec, iter(case.plans), everything, LoaderConfig(workers=workers), case.shapes) as steps:
        found = [
            _without(batch, broken)
            for step in steps
            for batch in step.batches
            if batch.features is not None
            for broken in batch.broken
        ]
    assert found
    assert all(found)


def _without(batch: MicroBatch, broken: BrokenPicture) -> bool:
    """Its features alone are gone."""
    assert broken.reason == "cut short"
    left = without_pictures(batch, [broken.picture], 3, "text")
    assert batch.features is not None
    assert left.features is not None
    others = [row for row in range(len(batch.features)) if row // 3 != broken.picture]
    return left.pictures == batch.pictures - 1 and torch.equal(left.features, batch.features[others])


def test_ranks_without_an_encoder_read_none(tmp_path: Path) -> None:
    case, spec, prefix = reading(tmp_path)
    for suffix in (".bin", ".idx", ".json"):
        prefix.with_suffix(suffix).unlink()
    blind = dataclasses.replace(spec, decode_pictures=False)
    with BatchLoader(blind, iter(case.plans), everything, LoaderConfig(workers=0), case.shapes) as steps:
        assert all(batch.features is None and batch.pixels is None for step in steps for batch in step.batches)


def test_a_file_that_is_gone_is_named_by_a_worker(tmp_path: Path) -> None:
    case, spec, prefix = reading(tmp_path)
    prefix.with_suffix(".idx").unlink()
    with (
        BatchLoader(spec, iter(case.plans), everything, LoaderConfig(workers=1), case.shapes) as steps,
        pytest.raises(DataError, match=r"f.idx does not exist"),
    ):
        next(steps)


def test_a_source_without_features_is_named(tmp_path: Path) -> None:
    case, _, _ = reading(tmp_path)
    plain = maker_spec(case.sources, TOKENS, True, PicturesConfig())
    with (
        BatchLoader(plain, iter(case.plans), everything, LoaderConfig(workers=0), case.shapes) as steps,
        pytest.raises(DataError, match="captions has pictures and no features, in a stage that reads data.features"),
    ):
        next(steps)


def test_a_slot_has_room_for_features_of_every_row() -> None:
    plain, large = SlotLayout(2, EARLY), SlotLayout(2, dataclasses.replace(EARLY, features=4096))
    assert large.size > 2 * 4096 * large.positions > plain.size
    slot = memoryview(bytearray(large.size))
    assert large.features(slot, large.positions).shape == (large.positions, 4096)
    with pytest.raises(ValueError, match="in a micro-batch that has room for"):
        large.features(slot, large.positions + 1)
