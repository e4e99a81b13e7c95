"""`megatron-vlm doctor --gpu` passes where the tests beside it pass."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.gpu.needed import ON_A_GPU

pytestmark = ON_A_GPU


def test_no_check_fails() -> None:
    command = [sys.executable, "-m", "megatron_vlm.cli.main", "doctor", "--gpu", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    _, begin, rest = done.stdout.partition('{\n  "version"')  # what libraries print comes before
    assert begin, done.stdout + done.stderr[-4000:]
    found = json.loads(begin + rest)
    failed = {check["check"]: check["trace"] for check in found["checks"] if check["state"] == "failed"}
    assert not failed, failed
    assert done.returncode == 0, done.stderr[-4000:]
    print("\n".join(f"{check['state']:<9} {check['check']:<24} {check['words']}" for check in found["checks"]))
