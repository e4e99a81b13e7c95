"""Features of a frozen encoder read from a file: the losses of a run that encodes, and refusals of what is not its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from megatron_vlm.config.run import RunConfig
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.kept_features.feature_facts import read_facts
from megatron_vlm.data.kept_features.feature_reader import FeatureReader
from megatron_vlm.models.vision import VisionEncoder
from megatron_vlm.planning.flops import language_forward, step_flops
from megatron_vlm.planning.layout import layout_of
from megatron_vlm.planning.memory import rank_memory
from megatron_vlm.training.engine import unwrap
from megatron_vlm.training.feature_encoding import EncodeRequest, FeatureEncoding
from megatron_vlm.training.loop import Run
from tests.distributed.measured_work import memory, operations
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import (
    PP2,
    TP2,
    configuration,
    steps,
    steps_and_parameters,
    steps_and_save,
)

pytestmark = pytest.mark.distributed

FROZEN = "[{sources: {text: 0.5, captions: 0.5}, freeze: [vision]}]"
#: a stage that trains the encoder follows
THEN_TRAINED = (
    "[{name: kept, until: 0.6, sources: {text: 0.5, captions: 0.5}, freeze: [vision]}, "
    "{name: trained, sources: {text: 0.5, captions: 0.5}}]"
)


def _save(config: RunConfig) -> None:
    run = Run(config)
    run._start()
    run.save()


def _encode(checkpoint: Path, config: RunConfig, dataset: Path, output: Path, options: dict[str, Any]) -> Any:
    return FeatureEncoding(EncodeRequest(checkpoint, config, dataset, output, **options)).run()


class _Rounding:
    """Inside, every encoder's features are rounded to bf16."""

    def __enter__(self) -> None:
        self.forward = VisionEncoder.forward
        forward = self.forward

        def rounded(encoder: VisionEncoder, *args: Any) -> Tensor:
            features = forward(encoder, *args)
            return features.to(torch.bfloat16).to(features.dtype)

        VisionEncoder.forward = rounded  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        VisionEncoder.forward = self.forward  # type: ignore[method-assign]


def _rounded_steps(config: RunConfig, count: int) -> Any:
    with _Rounding():
        return steps_and_parameters(config, count)


@pytest.fixture(scope="module")
def begun(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a checkpoint before its first step, and `features` of its pictures."""
    folder = tmp_path_factory.mktemp("begun")
    config = configuration(data, **{"logging.directory": folder, "curriculum.stages": FROZEN})
    run_ranks(1, _save, config)
    known = run_ranks(1, _encode, _checkpoint(folder), config, data / "captions", folder / "features", {"pictures": 7})[0]
    assert known["pictures"] > known["encoded"] > 10, "captions of one picture are documents of their own"
    return folder


def _checkpoint(folder: Path) -> Path:
    return folder / "checkpoints" / "step-00000000"


def _reading(data: Path, begun: Path, parallel: dict[str, Any] | None = None, **fields: Any) -> RunConfig:
    kept = {"data.features": f"{{captions: '{begun / 'features'}'}}", "curriculum.stages": FROZEN}
    return configuration(data, parallel, **{**kept, **fields})


def test_what_is_read_is_what_the_encoder_gives_rounded(data: Path, begun: Path) -> None:
    """To the bit: the losses, and the parameters after five steps."""
    wanted, weights = run_ranks(1, _rounded_steps, configuration(data, **{"curriculum.stages": FROZEN}), 5)[0]
    found, ours = run_ranks(1, steps_and_parameters, _reading(data, begun), 5)[0]
    assert found == wanted
    assert all("caption" in step for step in found)
    assert all(np.array_equal(ours[name], value) for name, value in weights.items())


def test_losses_are_those_without_a_file_but_for_rounding(data: Path, begun: Path) -> None:
    """fp32: features are rounded to 8 bits of mantissa, which moves a loss by less than a thousandth."""
    wanted = run_ranks(1, steps, configuration(data, **{"curriculum.stages": FROZEN}), 5)[0]
    found = run_ranks(1, steps, _reading(data, begun), 5)[0]
    assert found != wanted
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-3)
        assert ours["caption"] == pytest.approx(theirs["caption"], abs=2e-3)


def test_a_bf16_run_has_the_same_bits(data: Path, tmp_path: Path) -> None:
    """Nothing is rounded that was not bf16 already."""
    bf16 = {"parallel.precision": "bf16", "curriculum.stages": FROZEN}
    config = configuration(data, **bf16, **{"logging.directory": tmp_path})
    run_ranks(1, _save, config)
    run_ranks(1, _encode, _checkpoint(tmp_path), config, data / "captions", tmp_path / "features", {"pictures": 64})
    wanted = run_ranks(1, steps, configuration(data, **bf16), 2)[0]
    assert run_ranks(1, steps, _reading(data, tmp_path, **bf16), 2)[0] == wanted


LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "tp2 + sp": (2, {**TP2, "sequence_parallel": True}),
    "all stages, pp2": (2, {**PP2, "vision": "data_all_stages"}),
    "first stage, tp2, overlapped": (2, {**TP2, "vision": "data_first_stage", "overlap_grad_reduce": True}),
    "cp2": (2, {"context_parallel_size": 2}),
}
MORE: dict[str, tuple[int, dict[str, Any]]] = {
    "tp2 x pp2": (4, {**TP2, **PP2}),
    "dp2": (2, {}),
    "pp2 x vp2": (2, {**PP2, "virtual_pipeline_model_parallel_size": 2}),
    "all stages, cp2 x pp2": (4, {**PP2, "context_parallel_size": 2, "vision": "data_all_stages"}),
}


@pytest.mark.parametrize("name", [*LAYOUTS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_losses_are_the_same_in_every_layout(name: str, data: Path, begun: Path) -> None:
    """One file for all: the digest of the weights does not depend on how they are split."""
    ranks, parallel = (LAYOUTS | MORE)[name]
    wanted = run_ranks(1, steps, _reading(data, begun), 3)[0]
    results = run_ranks(ranks, steps, _reading(data, begun, parallel), 3)
    for result in results:
        for ours, theirs in zip(result, wanted, strict=True):
            for key, value in theirs.items():
                assert abs(ours[key] - value) <= (3e-5 * value if key == "grad_norm" else 2e-6), (key, ours[key], value)


@pytest.mark.parametrize("name", ["one rank", "tp2 + sp", "all stages, pp2"])
def test_a_step_is_the_planned_one(name: str, data: Path, begun: Path) -> None:
    """Matrix products to the operation, by PyTorch's counter; what graphs keep on each rank to 5 %."""
    ranks, parallel = {**LAYOUTS, "one rank": (1, {})}[name]
    config = _reading(data, begun, parallel)
    layout, frozen, shape = layout_of(config, ranks, "fp32"), ("vision",), config.shape_of(2)
    assert shape.features
    if ranks == 1:
        [(counted, batch, vocab)] = run_ranks(1, operations, config, 2)
        unseen = 3 * language_forward(config.model, 0, batch.positions, batch.document_lengths).attention
        # megatron-core's linear makes the gradient of its input, here of the features, whether it is wanted or not
        rows, projector = batch.pictures * shape.image_tokens, config.model.projector
        unwanted = 2 * rows * shape.features * (projector.hidden_size or config.model.language.hidden_size)
        assert sum(counted.values()) == step_flops(config.model, vocab, batch, frozen) - unseen + unwanted
    for rank in run_ranks(ranks, memory, config, 2):
        pictures = sum(rank["pictures"]) / len(rank["pictures"])
        assert pictures > 0
        planned = rank_memory(config, rank["vocab"], layout, shape, rank["stage"], pictures, frozen, kernels="host")
        kept = planned.activations + planned.encoder + planned.logits
        assert kept == pytest.approx(rank["kept"], rel=0.05), (rank["stage"], kept / rank["kept"])
        assert planned.weights == rank["weights"]


def test_loader_workers_read_the_same(data: Path, begun: Path) -> None:
    here = run_ranks(1, steps, _reading(data, begun), 3)[0]
    assert run_ranks(1, steps_and_parameters, _reading(data, begun, **{"loader.workers": 2}), 3)[0][0] == here


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_pictures_of_their_own_aspect(workers: int, data: Path, tmp_path: Path) -> None:
    fields = {"data.pictures.resize": "native", "curriculum.stages": FROZEN, "loader.workers": workers}
    config = configuration(data, **fields, **{"logging.directory": tmp_path})
    run_ranks(1, _save, config)
    run_ranks(1, _encode, _checkpoint(tmp_path), config, data / "captions", tmp_path / "features", {"pictures": 1})
    wanted, _ = run_ranks(1, _rounded_steps, configuration(data, **fields), 2)[0]
    found = run_ranks(1, steps, _reading(data, tmp_path, **fields), 2)[0]
    for ours, theirs in zip(found, wanted, strict=True):  # encoded alone, and in a row with others
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


def test_ranks_share_the_pictures_and_write_the_same_file(data: Path, begun: Path, tmp_path: Path) -> None:
    config = configuration(data, **{"curriculum.stages": FROZEN})
    request = (_checkpoint(begun), config, data / "captions", tmp_path / "features", {"pictures": 7})
    known = run_ranks(2, _encode, *request)
    assert known[1] is None
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"features{suffix}").read_bytes() == (begun / f"features{suffix}").read_bytes()
    assert run_ranks(2, _encode, *request) == [None, None], "the second time there is nothing to do"


def test_a_run_goes_on_to_the_bit_into_a_stage_that_encodes(data: Path, begun: Path, tmp_path: Path) -> None:
    """Features in the first three steps, pictures in the last two, where the encoder is trained."""
    fields = {"curriculum.stages": THEN_TRAINED}
    whole, weights = run_ranks(1, steps_and_parameters, _reading(data, begun, **fields), 5)[0]
    folder = {**fields, "logging.directory": tmp_path}
    first, _ = run_ranks(1, steps_and_save, _reading(data, begun, **folder), 2)[0]
    rest, ours = run_ranks(1, steps_and_save, _reading(data, begun, **folder, **{"checkpoint.resume": "auto"}), 3)[0]
    assert [*first, *rest] == whole
    assert all(np.array_equal(ours[name], value) for name, value in weights.items())


def _told(config: RunConfig) -> list[str]:
    return list(Run(config).features.lines())


def test_the_log_says_what_is_read_and_where_not(data: Path, begun: Path) -> None:
    told = run_ranks(1, _told, _reading(data, begun, **{"curriculum.stages": THEN_TRAINED}))[0]
    assert told[0] == f"pictures of captions are not encoded: their features are read from {begun / 'features'}"
    assert told[1].startswith("data.features is not read in stage 'trained'")
    trained = "[{name: only, sources: {text: 0.5, captions: 0.5}}]"
    told = run_ranks(1, _told, _reading(data, begun, **{"curriculum.stages": trained}))[0]
    assert told == ["data.features is not read in stage 'only': the encoder is trained there, or was before"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule.seed": 7}, "made by an encoder of other weights"),
        (
            {"curriculum.stages": FROZEN.replace("freeze", "image_size: 32, freeze")},
            r"was made with image_size 64 \(here 32\)",
        ),
        ({"data.pictures.resize": "letterbox"}, r"data.pictures.resize squash \(here letterbox\)"),
        ({"model.vision.norm_epsilon": 1e-5}, r"model.vision.norm_epsilon 1e-06 \(here 1e-05\)"),
        ({"model.vision.hidden_size": 128}, "64 features of a patch, and this model's encoder gives 128"),
    ],
)
def test_features_of_another_encoder_are_refused(fields: dict[str, Any], message: str, data: Path, begun: Path) -> None:
    with pytest.raises(AssertionError, match=message):
        run_ranks(1, steps, _reading(data, begun, **fields), 1)


@pytest.mark.parametrize("parallel", [{**PP2}, {**TP2}])
def test_every_rank_refuses(parallel: dict[str, Any], data: Path, begun: Path) -> None:
    with pytest.raises(AssertionError) as failed:
        run_ranks(2, steps, _reading(data, begun, parallel, **{"schedule.seed": 7}), 1)
    assert str(failed.value).count("DataError: ") == 2


def test_sources_without_features_are_refused(data: Path, begun: Path, tmp_path: Path) -> None:
    more = f"{{text: '{data / 'text'}', captions: '{data / 'captions'}', more: '{data / 'captions'}'}}"
    stages = "[{sources: {text: 0.5, captions: 0.25, more: 0.25}, freeze: [vision]}]"
    with pytest.raises(AssertionError, match="its source more has pictures and none"):
        run_ranks(1, steps, _reading(data, begun, **{"data.sources": more, "curriculum.stages": stages}), 1)
    with pytest.raises(AssertionError, match="holds no features; make them with megatron-vlm encode"):
        run_ranks(1, steps, _reading(data, tmp_path), 1)


def test_pictures_that_repeat_are_there_once(data: Path, begun: Path) -> None:
    dataset = IndexedReader(data / "captions")
    kept = FeatureReader(begun / "features", dataset).reader
    facts = read_facts(begun / "features")
    shown = np.flatnonzero(dataset.modes == 1)
    assert set(np.flatnonzero(kept.sequence_lengths).tolist()) == set(shown.tolist())
    patches = (64 // 16) ** 2
    assert (kept.sequence_lengths[shown] == patches * facts.width).all()
    by_bytes: dict[bytes, set[int]] = {}
    for sequence in shown.tolist():
        by_bytes.setdefault(dataset.image_bytes(sequence), set()).add(int(kept.sequence_pointers[sequence]))
    assert all(len(places) == 1 for places in by_bytes.values())
    assert len({min(places) for places in by_bytes.values()}) == len(by_bytes) < len(shown)


def _digests(config: RunConfig) -> str | None:
    from megatron.core import parallel_state

    from megatron_vlm.models.encoder_digest import encoder_digest

    run = Run(config)
    run._start()
    encoder = unwrap(run.engine.chunks[0]).vision
    return encoder_digest(encoder, parallel_state.get_tensor_model_parallel_group()) if encoder is not None else None


@pytest.mark.parametrize("second", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_digest_is_of_the_weights_and_of_no_layout(second: bool, data: Path) -> None:
    fields: dict[str, Any] = {"curriculum.stages": FROZEN}
    if second:
        fields["model.vision_second"] = "{kind: dinov2, patch_size: 16, num_layers: 1, hidden_size: 32, activation: swiglu}"
    alone = run_ranks(1, _digests, configuration(data, **fields))[0]
    assert alone is not None
    assert run_ranks(2, _digests, configuration(data, TP2, **fields)) == [alone, alone]
    assert run_ranks(2, _digests, configuration(data, {**PP2, "vision": "data_all_stages"}, **fields)) == [alone, alone]
    assert run_ranks(2, _digests, configuration(data, PP2, **fields)) == [alone, None]
    assert run_ranks(1, _digests, configuration(data, **fields, **{"schedule.seed": 7}))[0] != alone
