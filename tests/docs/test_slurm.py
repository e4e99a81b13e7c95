"""The Slurm script: its syntax, its options, and its flow with stand-ins for Slurm's commands and torchrun."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_vlm.config.loading import load_config

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "slurm" / "pretrain_vlm.sbatch"

#: stands for torchrun: one rank that saves and ends with 75 on SIGUSR1, or by itself with EXIT; torchrun then ends with 1
TORCHRUN = """\
#!/usr/bin/env python3
import os, subprocess, sys
rank = '''
import os, signal, sys, time
def save(*_):
    if os.environ["SAVES"] == "1":
        folder = os.path.join(os.environ["RUN"], "checkpoints")
        os.makedirs(folder, exist_ok=True)
        open(os.path.join(folder, "latest"), "w").close()
    sys.exit(75)
signal.signal(signal.SIGUSR1, save)
open(os.path.join(os.environ["RUN"], "started"), "w").write(" ".join(sys.argv[1:]))
time.sleep(float(os.environ["SECONDS_TO_RUN"]))
sys.exit(int(os.environ["EXIT"]))
'''
sys.exit(1 if subprocess.call([sys.executable, "-c", rank, *sys.argv[1:]]) else 0)
"""
SRUN = """\
#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
"$@" & task=$!
trap 'kill -USR1 "$task"' USR1
while wait "$task"; code=$?; kill -0 "$task" 2>/dev/null; do :; done
exit "$code"
"""
SCONTROL = '#!/usr/bin/env bash\nif [ "$1" = show ]; then echo node1; else echo "$*" >> "$RUN/scontrol"; fi\n'


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    commands = tmp_path / "bin"
    commands.mkdir()
    torchrun = TORCHRUN.replace("#!/usr/bin/env python3", f"#!{sys.executable}")
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "torchrun": torchrun}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "12345",
        "SLURM_JOB_NAME": "job",
        "SLURM_JOB_NODELIST": "node1",
        "SLURM_JOB_NUM_NODES": "1",
        "RUN": str(tmp_path / "run"),
        "SECONDS_TO_RUN": "30",
        "SAVES": "1",
        "EXIT": "0",
    }


def finish(environment: dict[str, str], send: signal.Signals | None) -> tuple[int, bool]:
    """Run the script; returns its exit code and whether the job was queued again."""
    run = Path(environment["RUN"])
    process = subprocess.Popen(["bash", str(SCRIPT), "--schedule.lr", "1e-4"], env=environment)
    try:
        if send is not None:
            deadline = time.monotonic() + 20
            while not (run / "started").exists():
                assert time.monotonic() < deadline, "no rank started"
                time.sleep(0.02)
            process.send_signal(send)
        code = process.wait(timeout=20)
    finally:
        process.kill()
    queued = run / "scontrol"
    return code, queued.exists() and queued.read_text() == "requeue 12345\n"


@pytest.mark.parametrize("asked", [signal.SIGUSR1, signal.SIGTERM])
def test_asked_to_stop_it_saves_and_is_queued_again(asked: signal.Signals, environment: dict[str, str]) -> None:
    assert finish(environment, asked) == (75, True)


def test_a_run_that_did_not_save_is_not_queued_again(environment: dict[str, str]) -> None:
    assert finish({**environment, "SAVES": "0"}, signal.SIGUSR1) == (1, False)


@pytest.mark.parametrize(("rank", "job"), [("0", 0), ("2", 1)])
def test_a_run_that_ends_by_itself_is_not_queued_again(rank: str, job: int, environment: dict[str, str]) -> None:
    assert finish({**environment, "EXIT": rank, "SECONDS_TO_RUN": "0"}, None) == (job, False)


def test_options_exist(environment: dict[str, str]) -> None:
    """torchrun's own parser takes what it is given, and so does the configuration what is left for the script."""
    from torch.distributed.run import get_args_parser

    assert finish({**environment, "SECONDS_TO_RUN": "0"}, None) == (0, False)
    given = shlex.split((Path(environment["RUN"]) / "started").read_text())
    args = get_args_parser().parse_args(given)
    assert args.training_script == "examples/pretrain_vlm_1b.sh"
    assert (SCRIPT.parents[2] / args.training_script).is_file()
    assert (args.nnodes, args.rdzv_endpoint, args.rdzv_id) == ("1", "node1:22345", "12345-0")
    rest = args.training_script_args
    at = rest.index("--resume")
    assert rest[at + 1] == "auto"
    config = load_config(preset="vlm_1b", overrides=rest[:at] + rest[at + 2 :])
    assert (config.logging.directory, config.schedule.lr) == (environment["RUN"], 1e-4)


def test_syntax_and_the_signal_before_the_limit() -> None:
    assert subprocess.call(["bash", "-n", str(SCRIPT)]) == 0
    text = SCRIPT.read_text(encoding="utf-8")
    assert re.search(r"^#SBATCH --signal=B:USR1@120\b", text, re.MULTILINE)
    assert re.search(r"^#SBATCH --requeue\b", text, re.MULTILINE)
    assert re.search(r"^#SBATCH --ntasks-per-node=1\b", text, re.MULTILINE)
