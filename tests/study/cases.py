"""A small study as a file, without a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from megatron_vlm.study.segments import Graph, study_graph
from megatron_vlm.study.study_file import StudyFile, read_study

STUDY: dict[str, Any] = {
    "name": "case",
    "base": {
        "preset": "tiny",
        "data": {"tokenizer": "tok", "sources": {"text": "nowhere/text", "captions": "nowhere/captions"}},
        "schedule": {"warmup_steps": 2, "lr": 1e-3},
    },
    "text": {"sources": {"text": 1.0}, "freeze": ["vision", "projector"]},
    "images": {"measure": "visual_tokens", "sources": {"text": 0.8, "captions": 0.2}, "lr_policy": "cooldown"},
    "length": {"text_steps": 100, "image_steps": 30},
    "axes": {"introduction": [0.8, 0, 0.2, 1.0], "seed": [1, 2]},
    "grids": {"when": {"introduction": "all", "seed": "all"}},
}


def study(folder: Path, **changes: Any) -> StudyFile:
    """The case with other values at its top."""
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "directory": str(folder / "out"), **changes}, sort_keys=False))
    return read_study(path)


def graph(folder: Path, **changes: Any) -> Graph:
    return study_graph(study(folder, **changes))
