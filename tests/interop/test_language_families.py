"""Each family's tiny random model comes in with its own logits, goes out with ours, and comes back to the bit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from megatron_vlm.interop.exporting import plan_export, run_export
from megatron_vlm.interop.importing import plan_import, run_import
from megatron_vlm.interop.sources import open_source
from tests.distributed.ranks import run_ranks
from tests.interop.language_models import CASES, build
from tests.interop.oracles import ROWS, base_config, our_logits, randomized, word_ids

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@dataclass
class Outcome:
    theirs: np.ndarray
    exported: np.ndarray
    model_type: str
    wrong_keys: list[str]
    changed: list[str]
    ours: np.ndarray | None = None


@torch.no_grad()
def _converted(case: str, folder: Path) -> Outcome:
    from transformers import AutoModelForCausalLM

    model = randomized(build(case))
    model.save_pretrained(folder / "hf")
    theirs = model(input_ids=word_ids()).logits[0]
    run_import(plan_import([open_source(folder / "hf")], base_config()), folder / "run")
    run_export(plan_export(folder / "run", "language", family=model.config.model_type), folder / "out")
    again, info = AutoModelForCausalLM.from_pretrained(folder / "out", output_loading_info=True)
    exported = again.eval()(input_ids=word_ids()).logits[0]
    before, after = (load_file(folder / name / "model.safetensors") for name in ("hf", "out"))
    names = before.keys() | after.keys()
    changed = sorted(n for n in names if n not in before or n not in after or not torch.equal(before[n], after[n]))
    wrong = sorted([*info["missing_keys"], *info["unexpected_keys"]])
    return Outcome(theirs.numpy(), exported.numpy(), again.config.model_type, wrong, changed)


def _all_converted(folder: Path) -> dict[str, Outcome]:
    return {case: _converted(case, folder / case) for case in CASES}


def _ours(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for case in CASES:
        logits = our_logits(folder / case / "run" / "checkpoints" / "step-00000000", word_ids())
        assert logits is not None
        found[case] = logits[:, :ROWS].numpy()
    return found


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """All cases of a kind in one process: importing transformers takes longer than everything else, and our host platform
    is not put under its feet."""
    folder = tmp_path_factory.mktemp("families")
    found: dict[str, Any] = run_ranks(1, _all_converted, folder)[0]
    for case, ours in run_ranks(1, _ours, folder)[0].items():
        found[case].ours = ours
    return found


@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_originals(outcomes: dict[str, Outcome], case: str) -> None:
    found = outcomes[case]
    assert found.ours is not None
    assert np.abs(found.theirs).max() > 1  # a model that does something
    np.testing.assert_allclose(found.ours, found.theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_transformers_opens_what_goes_out_and_gives_our_logits(outcomes: dict[str, Outcome], case: str) -> None:
    found = outcomes[case]
    assert found.ours is not None
    assert found.wrong_keys == []
    assert case.startswith(found.model_type)
    np.testing.assert_allclose(found.exported, found.ours, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_in_and_out_again_is_the_same_to_the_bit(outcomes: dict[str, Outcome], case: str) -> None:
    assert outcomes[case].changed == []
