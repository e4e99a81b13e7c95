"""What this machine has for training, what a run makes of it, and what is missing: one page for a bug report.

  megatron-vlm doctor
  megatron-vlm doctor --json
  megatron-vlm doctor --gpu       and try the GPU: kernels against references, speed, a few steps in bf16 and in FP8

Without --gpu nothing is trained. No network is asked. As a container's health check it says whether a run could start. With
--gpu it takes a few GB of the first GPU's memory and starts no other process; tests/gpu is the long form.

exit codes: 0 a run can start here, and every check was passed; 1 something is missing without which none can, or a check of
--gpu failed; 3 --gpu, and there is no GPU that can be used
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_vlm.training.device_check.outcome import Outcome
    from megatron_vlm.training.surroundings import Finding

NO_GPU = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the findings as json")
    parser.add_argument("--gpu", action="store_true", help="try the GPU: kernels, speed, a few steps")


def run(args: argparse.Namespace) -> int:
    import json
    import warnings
    from dataclasses import asdict

    from megatron_vlm import __version__
    from megatron_vlm.training.surroundings import as_table, survey

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a warning would say is in the table
        findings = survey()
    if args.gpu:
        return _try_gpu(args.json, findings)
    if args.json:
        print(json.dumps({"version": __version__, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        print(f"megatron-vlm {__version__}\n{as_table(findings)}")
    return int(any(finding.problem for finding in findings))


def _try_gpu(as_json: bool, findings: list[Finding]) -> int:
    import torch

    from megatron_vlm import __version__
    from megatron_vlm.training.device_check.libraries import why_no_gpu
    from megatron_vlm.training.device_check.page import examine, line
    from megatron_vlm.training.surroundings import as_table

    if not as_json:
        print(f"megatron-vlm {__version__}\n{as_table(findings)}\n", flush=True)
    if torch.cuda.is_available():
        say = (lambda outcome: None) if as_json else (lambda outcome: print(line(outcome), flush=True))
        return report(findings, examine(torch.device("cuda", 0), say), as_json)
    reason = why_no_gpu()
    if as_json:
        _print_json(findings, None, reason)
    else:
        print(f"No GPU was tried: {reason}. What needs none is in the table above; runs go on CPU ranks meanwhile.")
    return NO_GPU


def report(findings: list[Finding], outcomes: list[Outcome], as_json: bool) -> int:
    """What was not printed while the checks were made: their end, or all of it as json. Returns the exit code."""
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if as_json:
        _print_json(findings, outcomes, None)
    else:
        for outcome in failed:
            print(f"\n{outcome.check}:\n{outcome.trace}")
        left = sum(outcome.state == "left out" for outcome in outcomes)
        print(f"\n{len(outcomes)} checks: {len(failed)} failed, {left} left out")
    return int(bool(failed) or any(finding.problem for finding in findings))


def _print_json(findings: list[Finding], outcomes: list[Outcome] | None, no_gpu: str | None) -> None:
    import json
    from dataclasses import asdict

    from megatron_vlm import __version__

    checks = None if outcomes is None else [asdict(outcome) for outcome in outcomes]
    values = {"version": __version__, "findings": [asdict(finding) for finding in findings]}
    print(json.dumps({**values, "checks": checks, "no_gpu": no_gpu}, indent=2))
