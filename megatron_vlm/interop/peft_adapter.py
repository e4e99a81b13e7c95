"""Low-rank updates of a checkpoint as an adapter in the format of the `peft` library (adapter_config.json and safetensors).

Fused QKV and the fused gate and up matrices have one A for their parts; in the adapter each part has that A, and its rows of
B. So the adapter is exactly what was trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from megatron_vlm.data import atomic_file
from megatron_vlm.errors import DataError, UserError
from megatron_vlm.interop.exporting import ExportPlan
from megatron_vlm.interop.layouts import GroupedQKV, Layout, Same, Stacked
from megatron_vlm.interop.mapping import Unexpressed

_PREFIX = "base_model.model."


def adapter_tensors(plan: ExportPlan) -> Iterator[tuple[str, Tensor]]:
    """(name in the adapter, value) of every update, from a plan of the language model (`plan_export(part="language")`).

    Raises:
        Unexpressed: a matrix whose parts the family does not keep row by row.
    """
    for entry in plan.mapping.entries:
        update = plan.tensors.read_update(entry.ours)
        if update is None:
            continue
        a, b = (matrix.to(plan.dtype or matrix.dtype) for matrix in update)
        rows = rows_of(entry.layout, int(b.shape[1]))
        if rows is None:
            raise Unexpressed(f"{plan.architecture}: {entry.ours}: its update has no form in an adapter of this class")
        for name, part in zip(entry.theirs, rows.split(b), strict=True):
            module = _PREFIX + name.removesuffix(".weight")
            yield f"{module}.lora_A.weight", a.contiguous().clone()
            yield f"{module}.lora_B.weight", part.contiguous().clone()


def rows_of(layout: Layout, rank: int) -> Layout | None:
    """The layout of `rank` columns that has the rows of `layout`; None where there is none."""
    if isinstance(layout, GroupedQKV) and layout.width is not None:
        return replace(layout, width=rank)
    if isinstance(layout, Stacked):
        return Stacked(tuple((shape[0], rank) for shape in layout.parts))
    if isinstance(layout, Same) and layout.other is None:
        return Same((layout.shape[0], rank))
    return None


def write_adapter(plan: ExportPlan, folder: Path, base: str = "") -> list[str]:
    """Write the adapter into a new folder; the modules that it is for.

    Args:
        base: name or folder of the model that it is laid on (`convert export --part language --without-updates`).

    Raises:
        DataError: the plan has problems, or the checkpoint no updates.
        UserError: the folder holds something, or cannot be written.
        Unexpressed: as `adapter_tensors`.
    """
    if plan.problems:
        raise DataError("not exported:\n" + "\n".join(f"  - {line}" for line in plan.problems))
    lora = plan.config.model.lora
    tensors = dict(adapter_tensors(plan))
    if not tensors:
        raise DataError(f"{plan.checkpoint}: has no low-rank updates (model.lora.rank is {lora.rank})")
    modules = sorted({name.split(".lora_")[0].rsplit(".", 1)[1] for name in tensors})
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder}: there is something in it; give a new folder")
        partial = atomic_file.partial_path(folder / "adapter_model.safetensors")
        save_file(tensors, partial, metadata={"format": "pt"})
        atomic_file.commit(folder / "adapter_model.safetensors")
        atomic_file.write_text(folder / "adapter_config.json", json.dumps(described, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error}") from None
    return modules
