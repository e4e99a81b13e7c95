"""A document's loss is its own: packed as alone (2e-6 nats a token), whatever its neighbours hold (to the bit)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_vlm.ops.assemble import Segment
from megatron_vlm.training.loop import Run
from megatron_vlm.training.scoring import Scored, score_documents
from megatron_vlm.training.validation import held_out_documents
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import configuration, steps

pytestmark = pytest.mark.distributed


def _score(config: Any) -> tuple[Any, Any, Any, int]:
    run, shape = Run(config), config.shape_of(0)
    captions = held_out_documents(run.data.sources["captions"], config, shape, 12, pictures=True)
    documents = [*captions, *held_out_documents(run.data.sources["text"], config, shape, 1, pictures=True)[:3]]

    def score(wanted: list[Scored]) -> Any:
        return score_documents(run.engine, shape, run.topology, run.tokens, wanted)

    packed = score(documents)
    alone = np.concatenate([score([document]) for document in documents])
    changed = 5
    ids = documents[changed].segment.ids.copy()
    ids[-2] = 100 if ids[-2] != 100 else 101
    neighbour = Scored(Segment(ids, documents[changed].segment.modality), documents[changed].pictures)
    return packed, alone, score([*documents[:changed], neighbour, *documents[changed + 1 :]]), changed


def test_packed_as_alone_and_no_leak(data: Path) -> None:
    packed, alone, altered, changed = run_ranks(1, _score, configuration(data))[0]
    assert (packed[:, 1] == alone[:, 1]).all()
    assert np.abs(packed[:, 0] - alone[:, 0]).max() / packed[:, 1].max() < 2e-6
    others = np.arange(len(packed)) != changed
    assert np.array_equal(packed[others], altered[others])
    assert packed[changed, 0] != altered[changed, 0]


@pytest.mark.parametrize("vision", ["{kind: clip, activation: quick_gelu, skip_last_layers: 1, final_norm: false}",
                                    "{kind: dinov2, register_tokens: 2}"])  # fmt: skip
@pytest.mark.parametrize("projector", ["{kind: linear}", "{kind: mlp3}"])
def test_encoder_and_projector_variants_train_alike_under_tp(vision: str, projector: str, data: Path) -> None:
    base = configuration(data)
    fields = {
        "model.vision": vision[:-1] + f", num_layers: 2, hidden_size: {base.model.vision.hidden_size}}}",
        "model.projector": projector,
    }
    alone = run_ranks(1, steps, configuration(data, **fields), 4)[0]
    split = run_ranks(2, steps, configuration(data, {"tensor_model_parallel_size": 2}, **fields), 4)[0]
    for ours, theirs in zip(split, alone, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)  # fp32 has 1.2e-7
    assert "caption" in alone[-1]
