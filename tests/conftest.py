"""What is set before any test imports torch: one thread, no compilation, and how hypothesis searches."""

from __future__ import annotations

import os

# Tests share few cores and many start several ranks: more threads would only make them wait for one another.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# megatron-core marks many functions for torch.compile: compiling them takes minutes and tests nothing here.
os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
# Reports are drawn into files; no test may look for a display.
os.environ.setdefault("MPLBACKEND", "Agg")

from hypothesis import HealthCheck, settings  # noqa: E402

# Wall-clock deadlines fail at random on a shared machine; pytest-timeout catches what hangs.
settings.register_profile("default", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("default"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
