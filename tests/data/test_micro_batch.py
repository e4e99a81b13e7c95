"""A micro-batch agrees with itself: rows for every slot, losses by modality, documents apart."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.pictures import PicturesConfig
from megatron_vlm.config.steps import StepShape
from megatron_vlm.data import micro_batch_arrays
from megatron_vlm.data.broken_pictures import refuse
from megatron_vlm.data.decoding.decoder import open_decoder
from megatron_vlm.data.documents import DocumentSource, Span
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.data.micro_batch import MicroBatch, MicroBatchMaker, make_micro_batch
from megatron_vlm.data.micro_batch_arrays import ArrayMaker
from megatron_vlm.data.opening import token_counts
from megatron_vlm.data.preprocess import preprocess_conversations
from megatron_vlm.data.tokenizer_training import train_bpe
from megatron_vlm.errors import DataError
from megatron_vlm.ops.assemble import MODALITY_CAPTION, MODALITY_IMAGE, MODALITY_NONE, MODALITY_TEXT, Segment

EOD, IMAGE, PAD = 0, 1, 2
TOKENS = TokenCounts(vocab_size=100, eod_id=EOD, image_token_id=IMAGE, pad_id=PAD)
IMAGE_TOKENS, LENGTH, SIZE = 3, 12, 4
SHAPE = StepShape(0, LENGTH, 2, 2, SIZE, 1, IMAGE_TOKENS)


def picture(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (shade, 0, 255 - shade)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def sources(tmp_path: Path) -> list[DocumentSource]:
    with IndexedWriter(tmp_path / "text", np.uint16) as writer:
        writer.add_text([10, 11, 12, 13, 14, 15, EOD])
        writer.end_document()
    with IndexedWriter(tmp_path / "captions", np.int32, multimodal=True) as writer:
        for document in ([10, [20, 21, EOD]], [[30], 20, [31], 30], [b"damaged", [5]], [[40, 41, EOD]]):
            for part in document:  # type: ignore[attr-defined]
                if isinstance(part, list):
                    writer.add_text(part)
                else:
                    writer.add_image(part if isinstance(part, bytes) else picture(part))
            writer.end_document()
    return [DocumentSource(n, IndexedReader(tmp_path / n), TOKENS, IMAGE_TOKENS) for n in ("text", "captions")]


#: pack 0: a caption, then a text cut short; pack 1: an interleaved document and the rest of the text
PACKS = [[Span(1, 0, 0, 5), Span(0, 0, 0, 4)], [Span(1, 1, 0, 8), Span(0, 0, 4, 2)]]


def batch(sources: list[DocumentSource], decode: bool = True, packs: list[list[Span]] = PACKS) -> MicroBatch:
    """Broken pictures end it, as under `data.pictures.broken: stop`."""
    decoder = open_decoder(PicturesConfig(decoder="pillow")) if decode else None
    made = MicroBatchMaker(ArrayMaker(sources, TOKENS, decoder))(packs, SHAPE)
    if made.broken:
        raise refuse(made.broken[0], [str(source.reader.prefix) for source in sources])
    return made


def test_every_field(sources: list[DocumentSource]) -> None:
    made = batch(sources)
    i, p, e = IMAGE, PAD, EOD
    first = [i, i, i, 20, 21, 10, 11, 12, 13, p, p, p]
    second = [30, i, i, i, 31, i, i, i, 14, 15, p, p]
    assert made.tokens.tolist() == [first + second]
    labels = [p, p, 20, 21, e, 11, 12, 13, 14, p, p, p] + [p, p, p, 31, p, p, p, e, 15, e, p, p]
    assert made.labels.tolist() == [labels]
    c, t, n = MODALITY_CAPTION, MODALITY_TEXT, MODALITY_NONE
    modality = [n, n, c, c, c, t, t, t, t, n, n, n] + [n, n, n, c, n, n, n, c, t, t, n, n]
    assert made.label_modality.tolist() == [modality]
    assert made.loss_mask.tolist() == [[float(m != n) for m in modality]]
    assert made.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 0, 1]]
    assert made.cu_seqlens.tolist() == [0, 5, 9, 12, 20, 22, 24]
    assert made.document_lengths == (5, 4, 3, 8, 2, 2)
    assert made.max_seqlen == 8
    n = -1
    assert made.row_index.tolist() == [[0, 1, 2] + [n] * 10 + [3, 4, 5, n, 6, 7, 8] + [n] * 4]
    a = MODALITY_IMAGE
    assert made.token_modality.tolist() == [[a, a, a, c, c, t, t, t, t, 0, 0, 0, c, a, a, a, c, a, a, a, t, t, 0, 0]]
    assert made.pictures == 3
    assert made.pixels is not None
    assert made.pixels[:, 0, 0].tolist() == [[10, 0, 245], [20, 0, 235], [30, 0, 225]], "in reading order"


def test_shapes_and_types(sources: list[DocumentSource]) -> None:
    made = batch(sources)
    for name, dtype in {
        "tokens": torch.int64,
        "labels": torch.int64,
        "position_ids": torch.int64,
        "loss_mask": torch.float32,
        "label_modality": torch.uint8,
        "token_modality": torch.uint8,
        "row_index": torch.int32,
    }.items():
        value = getattr(made, name)
        assert (value.shape, value.dtype) == ((1, 2 * LENGTH), dtype), name
    assert made.cu_seqlens.dtype == torch.int32
    assert made.pixels is not None
    assert (made.pixels.shape, made.pixels.dtype) == ((3, SIZE, SIZE, 3), torch.uint8)
    assert int((made.row_index >= 0).sum()) == made.pictures * IMAGE_TOKENS


def test_ranks_without_an_encoder_know_the_slots_and_read_no_picture(sources: list[DocumentSource]) -> None:
    with_pixels, without = batch(sources), batch(sources, decode=False)
    assert without.pixels is None
    assert without.pictures == with_pixels.pictures
    for name in ("tokens", "labels", "loss_mask", "position_ids", "label_modality", "cu_seqlens", "row_index"):
        assert torch.equal(getattr(without, name), getattr(with_pixels, name)), name
    damaged = [[Span(1, 2, 0, 3)]]
    assert batch(sources, decode=False, packs=damaged).pictures == 1
    with pytest.raises(DataError, match=r"captions, document 2: the picture does not decode"):
        batch(sources, packs=damaged)


def test_with_a_decoder_broken_pictures_are_grey_and_named(sources: list[DocumentSource]) -> None:
    decoder = open_decoder(PicturesConfig())
    packs = [[Span(1, 0, 0, 5), Span(1, 2, 0, 3)], [Span(1, 1, 0, 8)]]
    made = MicroBatchMaker(ArrayMaker(sources, TOKENS, decoder))(packs, SHAPE)
    (broken,) = made.broken
    assert (broken.source, broken.document, broken.picture) == (1, 2, 1)
    assert sources[1].reader.image_bytes(broken.sequence) == b"damaged"
    assert broken.reason
    assert made.pixels is not None
    assert made.pixels[:, 0, 0].tolist() == [[10, 0, 245], [128, 128, 128], [20, 0, 235], [30, 0, 225]]
    assert batch(sources, decode=False, packs=packs).broken == ()
    whole = MicroBatchMaker(ArrayMaker(sources, TOKENS, decoder))(PACKS, SHAPE)
    assert whole.broken == ()
    assert torch.equal(whole.pixels, batch(sources).pixels)  # type: ignore[arg-type]


def test_text_beside_captions_is_labelled_text(sources: list[DocumentSource]) -> None:
    """The modality is that of the document, not of its source: losses on blind documents are not caption losses."""
    made = batch(sources, packs=[[Span(1, 3, 0, 2)]])
    assert made.label_modality.tolist() == [[MODALITY_TEXT] * 2 + [MODALITY_NONE] * 10]
    assert made.pictures == 0


def test_a_batch_without_pictures_has_empty_pixels(sources: list[DocumentSource]) -> None:
    made = batch(sources, packs=[[Span(0, 0, 0, 6)]])
    assert made.pixels is not None
    assert made.pixels.shape == (0, SIZE, SIZE, 3)
    assert made.row_index.tolist() == [[-1] * LENGTH]


def test_moving_keeps_what_is_no_tensor(sources: list[DocumentSource]) -> None:
    made = batch(sources)
    assert made.to(torch.device("cpu")) is made
    moved = made.to(torch.device("meta"))
    assert moved.tokens.is_meta
    assert moved.pixels is not None
    assert moved.pixels.is_meta
    assert (moved.document_lengths, moved.pictures, moved.max_seqlen) == (made.document_lengths, 3, 8)


def test_numpy_gives_the_same_where_there_is_no_extension(sources: list[DocumentSource], monkeypatch) -> None:
    native = batch(sources)
    monkeypatch.setattr(micro_batch_arrays, "native_operators", lambda: None)
    plain = batch(sources)
    for name, value in native.__dict__.items():
        other = getattr(plain, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


@pytest.mark.parametrize("native", [True, False], ids=["native", "numpy"])
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([5, 100, EOD], "token id 100 is outside the vocabulary of 100"),
        ([5, -4, EOD], "token id -4 is outside"),
        ([5, IMAGE, EOD], "its text holds the image placeholder's id 1"),
    ],
)
def test_a_dataset_of_another_tokenizer_is_named(tmp_path: Path, monkeypatch, native, ids, message) -> None:
    with IndexedWriter(tmp_path / "wrong", np.int32) as writer:
        for document in ([5, 6, EOD], ids):
            writer.add_text(document)
            writer.end_document()
    if not native:
        monkeypatch.setattr(micro_batch_arrays, "native_operators", lambda: None)
    source = DocumentSource("wrong", IndexedReader(tmp_path / "wrong"), TOKENS, IMAGE_TOKENS)
    maker = MicroBatchMaker(ArrayMaker([source], TOKENS, None))
    assert maker([[Span(0, 0, 0, 2)]], SHAPE).tokens[0, :2].tolist() == [5, 6]
    with pytest.raises(DataError, match=f"wrong, document 1: {message}"):
        maker([[Span(0, 0, 0, 2), Span(0, 1, 0, 2)]], SHAPE)


def test_pictures_that_do_not_match_their_placeholders_are_refused() -> None:
    ids = np.array([IMAGE] * IMAGE_TOKENS + [5, 6], np.int32)
    with pytest.raises(ValueError, match="0 pictures need 0 placeholders, and there are 3"):
        make_micro_batch([[Segment(ids, MODALITY_CAPTION)]], [], TOKENS, SHAPE)


@pytest.mark.parametrize("native", [True, False], ids=["native", "numpy"])
def test_what_is_only_read_is_not_learnt(tmp_path: Path, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(micro_batch_arrays, "native_operators", lambda: None)
    with IndexedWriter(tmp_path / "talk", np.int32, multimodal=True, facts=True) as writer:
        writer.add_text([10], learnt=False)
        writer.add_image(picture(9), (SIZE, SIZE))
        writer.add_text([11, 12], learnt=False)
        writer.add_text([13, 14])
        writer.add_text([15], learnt=False)
        writer.add_text([16, EOD])
        writer.end_document()
    source = DocumentSource("talk", IndexedReader(tmp_path / "talk"), TOKENS, IMAGE_TOKENS)
    whole = batch([source], packs=[[Span(0, 0, 0, 10)]])
    assert whole.tokens[0, :10].tolist() == [10, IMAGE, IMAGE, IMAGE, 11, 12, 13, 14, 15, 16]
    assert whole.loss_mask[0, :10].tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 1, 1]
    cut = batch([source], packs=[[Span(0, 0, 0, 6), Span(0, 0, 6, 4)]])
    assert cut.loss_mask[0, :10].tolist() == whole.loss_mask[0, :10].tolist()


def test_a_users_turn_is_read_and_the_assistants_learnt(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "a red <image> square?"}, {"from": "gpt", "value": "two circles"}]
    Image.new("RGB", (8, 6)).save(tmp_path / "x.png")
    (tmp_path / "talk.json").write_text(json.dumps([{"id": "1", "image": "x.png", "conversations": talk}]))
    tokenizer = train_bpe(iter(["a red square", "two circles", "User: Assistant:"] * 4), 300)
    preprocess_conversations([str(tmp_path / "talk.json")], tmp_path / "d", tokenizer, images=[str(tmp_path)])
    counts = token_counts(tokenizer)
    source = DocumentSource("d", IndexedReader(tmp_path / "d"), counts, IMAGE_TOKENS, tokenizer.fingerprint)
    positions = int(source.lengths(np.arange(1)).positions[0])
    shape = replace(SHAPE, sequence_length=positions)
    made = MicroBatchMaker(ArrayMaker([source], counts, open_decoder(PicturesConfig())))([[Span(0, 0, 0, positions)]], shape)
    learnt = made.labels[0][made.loss_mask[0] == 1].tolist()
    assert tokenizer.decode(learnt).strip() == "two circles\n<|endoftext|>"
    assert made.pictures == 1
