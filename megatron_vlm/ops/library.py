"""The namespace of this package's operators in torch: `torch.ops.megatron_vlm`."""

from __future__ import annotations

import torch

LIBRARY = torch.library.Library("megatron_vlm", "DEF")
