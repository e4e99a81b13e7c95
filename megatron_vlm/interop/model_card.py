"""README.md of an exported folder: what the model is, told from the checkpoint alone."""

from __future__ import annotations

from typing import Any

from megatron_vlm.config.loading import to_yaml
from megatron_vlm.config.run import RunConfig


def model_card(config: RunConfig, run: dict[str, Any], architecture: str, pictures: bool, notes: list[str]) -> str:
    """Front matter and text, in the hub's form. Claims nothing that the checkpoint does not hold: no scores, no licence."""
    tag = "image-text-to-text" if pictures else "text-generation"
    auto = "AutoModelForImageTextToText" if pictures else "AutoModelForCausalLM"
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
        f"pipeline_tag: {tag}",
        "tags: [megatron-vlm]",
        "---",
        "",
        f"# {architecture}",
        "",
        f"Exported by megatron-vlm {run['version']}. {trained}",
        "",
        "```python",
        f"from transformers import {auto}, {'AutoProcessor' if pictures else 'AutoTokenizer'}",
        f'model = {auto}.from_pretrained("FOLDER")',
        f"{'processor' if pictures else 'tokenizer'} = "
        f'{"AutoProcessor" if pictures else "AutoTokenizer"}.from_pretrained("FOLDER")',
        "```",
        "",
        "Nothing is put before a text, and documents end with the end-of-document token, as in training.",
        *[f"\n{note}" for note in notes],
        "",
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
