"""Training throughputs that others published, and what the planner says of the same runs.

Left out: rows with experts, which are not offered here, and with context parallelism, whose keys and values go round a ring
there while attention computes, and are gathered before it here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron_vlm.config.curriculum import CurriculumConfig, StageConfig
from megatron_vlm.config.model import LanguageConfig, ModelConfig
from megatron_vlm.config.run import RunConfig
from megatron_vlm.config.steps import StepShape
from megatron_vlm.planning.activations import Kernels
from megatron_vlm.planning.efficiency import Efficiency, efficiency_of
from megatron_vlm.planning.hardware import HARDWARE
from megatron_vlm.planning.layout import Layout
from megatron_vlm.planning.step_time import step_time


@dataclass(frozen=True)
class PublishedRun:
    """A run as published; `seconds` of an iteration."""

    source: str
    name: str
    gpu: str
    language: LanguageConfig
    vocab_size: int
    layout: Layout
    sequence_length: int
    micro_batch_size: int
    global_batch_size: int
    seconds: float
    kernels: Kernels = "fused"


@dataclass(frozen=True)
class Comparison:
    run: PublishedRun
    predicted: float

    @property
    def error(self) -> float:
        """Predicted over published seconds, less 1."""
        return self.predicted / self.run.seconds - 1


def _gpt(layers: int, hidden: int, heads: int) -> LanguageConfig:
    return LanguageConfig(
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        ffn_hidden_size=4 * hidden,
        normalization="layernorm",
        activation="gelu",
        qk_layernorm=False,
        untie_embeddings=False,
    )


def _llama3(layers: int, hidden: int, heads: int, ffn: int) -> LanguageConfig:
    return LanguageConfig(
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_query_groups=8,
        ffn_hidden_size=ffn,
        qk_layernorm=False,
    )


#: Narayanan et al. 2021, arXiv 2104.04473, table 1: layers, hidden, heads, tensor, pipeline, GPUs, batch, TFLOP/s a GPU.
#: A100 80GB, sequences of 2048, vocabulary 51,200, full recomputation, which their count of operations (eq. 3) holds
_MEGATRON_2021 = {
    "1.7B": (24, 2304, 24, 1, 1, 32, 512, 137),
    "3.6B": (30, 3072, 32, 2, 1, 64, 512, 138),
    "7.5B": (36, 4096, 32, 4, 1, 128, 512, 142),
    "18.4B": (40, 6144, 48, 8, 1, 256, 1024, 135),
    "39.1B": (48, 8192, 64, 8, 2, 512, 1536, 138),
    "76.1B": (60, 10240, 80, 8, 4, 1024, 1792, 140),
    "145.6B": (80, 12288, 96, 8, 8, 1536, 2304, 148),
    "310.1B": (96, 16384, 128, 8, 16, 1920, 2160, 155),
    "529.6B": (105, 20480, 128, 8, 35, 2520, 2520, 163),
    "1008.0B": (128, 25600, 160, 8, 64, 3072, 3072, 163),
}

#: Korthikanti et al. 2022, arXiv 2205.05198, tables 3 and 5: layers, hidden, heads, pipeline, interleaving, GPUs, batch,
#: micro-batch, seconds of an iteration with full recomputation and with selective one and sequence parallelism
_KORTHIKANTI = {
    "22B": (48, 6144, 64, 1, 1, 8, 4, 4, 1.42, 1.10),
    "175B": (96, 12288, 96, 8, 3, 64, 64, 1, 18.13, 13.75),
    "530B": (105, 20480, 128, 35, 3, 280, 280, 1, 49.05, 37.83),
    "1T": (128, 25600, 160, 64, 1, 512, 512, 1, 94.42, 71.49),
}

#: Megatron-Bridge, docs/performance-summary.md and its archive (25.09, 25.11 and 26.02 containers): GPU, model, GPUs, batch,
#: micro-batch, tensor, pipeline, virtual, tokens a second and GPU. Sequences of 8192, fp8 with current scaling
_BRIDGE = (
    ("25.11", "h100", "llama3 8B", 8, 128, 1, 1, 1, 1, 14451),
    ("25.09", "h100", "llama3 8B", 8, 128, 1, 1, 1, 1, 14079),
    ("25.11", "h100", "llama3 70B", 64, 128, 1, 4, 8, 5, 1602),
    ("25.09", "h100", "llama3 70B", 64, 128, 1, 4, 8, 5, 1619),
    ("26.02", "h100", "llama3 70B", 64, 256, 1, 4, 8, 5, 1621),
    ("25.11", "b200", "llama3 8B", 8, 128, 2, 1, 1, 1, 30624),
    ("25.09", "b200", "llama3 8B", 8, 128, 2, 1, 1, 1, 29994),
)
_LLAMA3 = {"llama3 8B": _llama3(32, 4096, 32, 14336), "llama3 70B": _llama3(80, 8192, 64, 28672)}


def _a100(gpus: int, tensor: int, pipeline: int, virtual: int, new: bool) -> Layout:
    return Layout(
        gpus,
        tensor,
        pipeline,
        virtual,
        sequence_parallel=new,
        recompute="selective" if new else "full",
        distributed_optimizer=False,
    )


def _interleaving(layers: int, pipeline: int) -> int:
    """Table 1 does not name the chunks of its interleaved schedule; two where layers go into them."""
    return 2 if pipeline > 1 and layers % (2 * pipeline) == 0 else 1


def published_runs() -> list[PublishedRun]:
    runs = []
    for name, (layers, hidden, heads, tensor, pipeline, gpus, batch, rate) in _MEGATRON_2021.items():
        flops = 96 * batch * 2048 * layers * hidden**2 * (1 + 2048 / (6 * hidden) + 51200 / (16 * layers * hidden))
        layout = _a100(gpus, tensor, pipeline, _interleaving(layers, pipeline), new=False)
        micro = 4 if pipeline == 1 else 1
        seconds = flops / (gpus * rate * 1e12)
        source = "Megatron-LM 2021, table 1"
        language = _gpt(layers, hidden, heads)
        runs.append(PublishedRun(source, name, "a100", language, 51200, layout, 2048, micro, batch, seconds, "unfused"))
    for name, (layers, hidden, heads, pipeline, virtual, gpus, batch, micro, full, new) in _KORTHIKANTI.items():
        for title, seconds in (("full", full), ("selective", new)):
            layout = _a100(gpus, 8, pipeline, virtual, new=title == "selective")
            source = f"Megatron-LM 2022, table 5, {title}"
            language = _gpt(layers, hidden, heads)
            runs.append(PublishedRun(source, name, "a100", language, 51200, layout, 2048, micro, batch, seconds, "unfused"))
    for release, gpu, name, gpus, batch, micro, tensor, pipeline, virtual, rate in _BRIDGE:
        layout = Layout(
            gpus,
            tensor,
            pipeline,
            virtual,
            sequence_parallel=tensor > 1,
            overlap_grad_reduce=True,
            overlap_param_gather=True,
            overlap_tensor=tensor > 1,
            precision="fp8",
        )
        seconds = batch * 8192 / (rate * gpus)
        source = f"Megatron-Bridge {release}"
        runs.append(PublishedRun(source, name, gpu, _LLAMA3[name], 128256, layout, 8192, micro, batch, seconds))
    return runs


def predict(run: PublishedRun, efficiency: Efficiency) -> Comparison:
    """Documents fill their sequences, as in runs on mock data."""
    config = RunConfig(
        model=ModelConfig(language=run.language),
        curriculum=CurriculumConfig(stages=(StageConfig(freeze=("vision", "projector")),)),
    )
    shape = StepShape(0, run.sequence_length, run.micro_batch_size, run.global_batch_size, 64, 1, 64)
    lengths = (run.sequence_length,) * run.micro_batch_size
    frozen = ("vision", "projector")
    time = step_time(
        config, run.vocab_size, run.layout, shape, 0, lengths, HARDWARE[run.gpu], efficiency, frozen, run.kernels
    )
    return Comparison(run, time.seconds)


def compare(efficiency: Efficiency | None = None) -> list[Comparison]:
    return [predict(run, efficiency or efficiency_of(run.gpu)) for run in published_runs()]


#: factors among which `left_out` chooses
_FACTORS = tuple(0.4 + 0.04 * step for step in range(12))


def left_out(factors: tuple[float, ...] = _FACTORS) -> list[Comparison]:
    """Each run predicted with the factor that fits the other models on that GPU best: the error on what was not seen.

    Runs of a GPU of which only one model was published are left out.
    """
    runs, found = published_runs(), []
    table = {
        factor: [predict(run, replace(efficiency_of(run.gpu), matrix=factor, matrix_fp8=factor)) for run in runs]
        for factor in factors
    }
    for number, run in enumerate(runs):
        others = [n for n, other in enumerate(runs) if other.gpu == run.gpu and other.name != run.name]
        if others:
            best = min(factors, key=lambda factor: sum(abs(table[factor][n].error) for n in others))
            found.append(table[best][number])
    return found
