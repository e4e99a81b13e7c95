"""The commands that the documentation gives, and which of them a test cannot run, with the reason."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: in the order in which a reader comes to them, and in which they are run: later ones use what earlier ones made
PAGES = (
    "README.md",
    "docs/index.md",
    "docs/quickstart.md",
    "docs/data.md",
    "docs/configuration.md",
    "docs/curriculum.md",
    "docs/parallelism.md",
    "docs/checkpoints.md",
    "docs/faults.md",
    "docs/evaluation.md",
    "docs/finetuning.md",
    "docs/interop.md",
    "docs/planner.md",
    "docs/recipes.md",
    "docs/tuning.md",
    "docs/concepts.md",
    "docs/migration.md",
    "docs/study.md",
    "docs/mini-study/index.md",
    "docs/pictures.md",
    "docs/gpu.md",
    "docs/deployment.md",
    "docs/troubleshooting.md",
    "docs/architecture.md",
    "examples/sample_data/README.md",
    "examples/mini_study/README.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
)
_PROGRAMS = "megatron-vlm|torchrun|bash|make|python|python3.11|pip|docker|sbatch|kubectl|export|OMP_NUM_THREADS=1"
_COMMAND = re.compile(rf"(?:{_PROGRAMS}) ")

#: why a command is not run -> patterns of such commands. What is of `megatron-vlm` among them is parsed (test_commands)
NOT_RUN: dict[str, tuple[str, ...]] = {
    "continuous integration runs it": (r"make( |$)",),
    "installs packages": (r"pip install", r"python3\.11 -m venv", r"export "),
    "wants GPUs": (
        r"torchrun (--standalone )?--nproc-per-node 8 ",
        r"torchrun --nnodes 2 ",
        r"torchrun .*--precision\.fp8",
        r"bash examples/finetune_llava\.sh runs/",
        r"megatron-vlm doctor --gpu",
    ),
    "wants Transformer Engine": (r"python -c .*transformer_engine", r"python -m pytest -q -m te"),
    "wants Docker": (r"docker ",),
    "wants Slurm or Kubernetes": (r"sbatch ", r"kubectl "),
    "wants the weights of a published model": (r"megatron-vlm convert import", r"megatron-vlm train --config runs/start"),
    "fetches data sets": (r"megatron-vlm evaluate .*--harness",),
    "takes minutes to hours; make study-demo and the slow tests of tests/study do the same": (
        r"megatron-vlm study (run|report|status)",
        r"bash examples/mini_study/run\.sh",
        r"megatron-vlm train --preset vlm_1b",
    ),
    "measures: minutes": (r"OMP_NUM_THREADS=1 .*benchmarks/",),
    "reads a finished study": (r"python examples/mini_study/summarise\.py",),
    "runs tests": (r"python -m pytest tests/",),
}


@dataclass(frozen=True)
class Command:
    """A line of a fenced block."""

    page: str
    line: str

    @property
    def reasons(self) -> list[str]:
        """Why it is not run; none for what is run."""
        return [why for why, patterns in NOT_RUN.items() if any(re.match(pattern, self.line) for pattern in patterns)]


def commands() -> list[Command]:
    """Of fenced blocks without a language or of a shell, continued lines joined and comments cut off."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for language, block in re.findall(r"^```([a-z]*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            if language in ("", "bash", "sh"):
                lines = (re.sub(r"\s+#\s.*", "", line).strip() for line in block.replace("\\\n", " ").splitlines())
                found += [Command(page, " ".join(line.split())) for line in lines if _COMMAND.match(line + " ")]
    return found
