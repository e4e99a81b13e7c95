"""README.md of an exported folder: what the model is, told from the checkpoint alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_vlm.config.loading import to_yaml
from megatron_vlm.config.run import RunConfig


@dataclass(frozen=True)
class Opening:
    """What a folder is opened with.

    Attributes:
        tag: what the model does, in the hub's words.
        model: the class of transformers that opens it.
        beside: the class that opens what makes its inputs; empty where the folder holds no such files.
        speaks: whether it reads and says text.
    """

    tag: str
    model: str
    beside: str = ""
    speaks: bool = True

    def lines(self) -> list[str]:
        found = {"model": self.model, **({_VARIABLES[self.beside]: self.beside} if self.beside else {})}
        calls = [f'{variable} = {name}.from_pretrained("FOLDER")' for variable, name in found.items()]
        return [f"from transformers import {', '.join(found.values())}", *calls]


_SAID = "Nothing is put before a text, and documents end with the end-of-document token, as in training."
_VARIABLES = {"AutoProcessor": "processor", "AutoTokenizer": "tokenizer", "AutoImageProcessor": "processor"}


def model_card(config: RunConfig, run: dict[str, Any], architecture: str, opening: Opening, notes: list[str]) -> str:
    """Front matter and text, in the hub's form. Claims nothing that the checkpoint does not hold: no scores, no licence."""
    step, total = int(run["step"]), config.total_steps
    origin = run.get("imported", {}).get("from", {})
    trained = (
        f"Step {step:,} of {total:,}, {config.tokens_before(step):,} positions of training."
        if step
        else "Weights as they were imported" + "".join(f" from a {kind}" for kind in origin.values()) + "; not trained here."
    )
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {opening.tag}",
        "tags: [megatron-vlm]",
        "---",
        "",
        f"# {architecture}",
        "",
        f"Exported by megatron-vlm {run['version']}. {trained}",
        "",
        "```python",
        *opening.lines(),
        "```",
        "",
        *([_SAID, ""] if opening.speaks else []),
        *[line for note in notes for line in (note, "")],
        "<details><summary>Configuration of the run</summary>",
        "",
        "```yaml",
        to_yaml(config).rstrip(),
        "```",
        "",
        "</details>",
        "",
    ]
    return "\n".join(lines)
