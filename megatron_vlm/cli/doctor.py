"""What this machine has for training, what a run makes of it, and what is missing: one page for a bug report.

  megatron-vlm doctor
  megatron-vlm doctor --json

Nothing is trained and no network is asked. As a container's health check it says whether a run could start.

exit codes: 0 a run can start here; 1 something is missing without which none can
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the findings as json")


def run(args: argparse.Namespace) -> int:
    import json
    import warnings
    from dataclasses import asdict

    from megatron_vlm import __version__
    from megatron_vlm.training.surroundings import as_table, survey

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a warning would say is in the table
        findings = survey()
    if args.json:
        print(json.dumps({"version": __version__, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        print(f"megatron-vlm {__version__}\n{as_table(findings)}")
    return int(any(finding.problem for finding in findings))
