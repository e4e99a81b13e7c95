"""Published throughputs whose layouts are not told, against the fastest layout that the planner finds for them.

A run may have been laid out less well than the best, so that it is no faster than predicted if the prediction is right.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_vlm.config.curriculum import CurriculumConfig, StageConfig
from megatron_vlm.config.model import LanguageConfig, ModelConfig
from megatron_vlm.config.run import RunConfig
from megatron_vlm.config.steps import StepShape
from megatron_vlm.planning.estimate import Estimate
from megatron_vlm.planning.hardware import HARDWARE
from megatron_vlm.planning.layout_search import search
from megatron_vlm.planning.run_stretches import Stretch


@dataclass(frozen=True)
class Fastest:
    """A run as published, `seconds` a step, and the fastest layout found for it."""

    source: str
    name: str
    seconds: float
    found: Estimate

    @property
    def error(self) -> float:
        """Predicted over published seconds, less 1."""
        return self.found.step_seconds / self.seconds - 1


#: AXLearn, arXiv 2507.05411, table 3, rows of Megatron-LM on H100 in bf16: layers, hidden, heads, key/value groups,
#: feed-forward width, GPUs, seconds. Batches of 1024 x 4096 tokens follow from the tokens a second that stand beside them
_AXLEARN = {
    "llama2 7B": (32, 4096, 32, 32, 11008, 256, 1.7),
    "llama2 70B": (80, 8192, 64, 8, 28672, 512, 7.8),
}


def compare_fastest() -> list[Fastest]:
    found = []
    for name, (layers, hidden, heads, groups, ffn, gpus, seconds) in _AXLEARN.items():
        language = LanguageConfig(
            num_layers=layers,
            hidden_size=hidden,
            num_attention_heads=heads,
            num_query_groups=groups,
            ffn_hidden_size=ffn,
            qk_layernorm=False,
        )
        frozen = ("vision", "projector")
        curriculum = CurriculumConfig(stages=(StageConfig(freeze=frozen),))
        config = RunConfig(model=ModelConfig(language=language), curriculum=curriculum)
        text = Stretch("text", StepShape(0, 4096, 1, 1024, 64, 1, 64), 1, frozen=frozen)
        result = search(config, HARDWARE["h100"], gpus, [text], 32000, visions=("tensor",), keep=1)
        found.append(Fastest("AXLearn 2025, table 3: Megatron-LM", name, seconds, result.best[0]))
    return found
