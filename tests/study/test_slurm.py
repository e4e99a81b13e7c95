"""Arrays for Slurm, with a stand-in for sbatch that keeps what it is told: no cluster is here."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from megatron_vlm.errors import UserError
from megatron_vlm.study.folder import StudyFolder
from megatron_vlm.study.slurm import by_depth, submit
from tests.study.cases import graph

SBATCH = """#!/usr/bin/env bash
echo "$@" >> "{log}"
echo $((100 + $(wc -l < "{log}")));cluster
"""


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    log, program = tmp_path / "queue", tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text(SBATCH.format(log=log).replace(";cluster", ""))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return log


def test_an_array_a_depth_each_after_the_one_before(tmp_path: Path, queue: Path) -> None:
    found, folder = graph(tmp_path), StudyFolder(tmp_path / "out")
    said = list(submit(found, folder, tmp_path / "study.yaml", "--gpus-per-node 8 --time=1:00:00", 8))
    depths = by_depth(list(found.segments))
    assert sum(map(len, depths)) == len(found.segments)
    assert len(said) == len(depths)
    calls = queue.read_text().splitlines()
    assert "--dependency" not in calls[0]
    for number, call in enumerate(calls[1:]):
        assert f"--dependency=afterany:{101 + number}" in call
    keys: list[str] = []
    for depth, segments in enumerate(depths):
        script = folder.root / "slurm" / f"depth-{depth}.sbatch"
        text = script.read_text()
        assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
        assert f"#SBATCH --array=0-{len(segments) - 1}\n" in text
        assert "#SBATCH --gpus-per-node 8\n#SBATCH --time=1:00:00\n" in text
        keys += re.search(r"segments=\((.*)\)", text).group(1).split()  # type: ignore[union-attr]
    assert sorted(keys) == sorted(segment.key for segment in found.segments)
    position = {key: number for number, key in enumerate(keys)}
    for segment in found.segments:
        assert segment.parent is None or position[segment.parent.key] < position[segment.key]


def test_what_is_done_is_not_queued(tmp_path: Path, queue: Path) -> None:
    found, folder = graph(tmp_path), StudyFolder(tmp_path / "out")
    for segment in found.segments:
        folder.of(segment).mkdir(parents=True)
        folder.finish(segment, 0.0)
    assert list(submit(found, folder, tmp_path / "study.yaml", "", 1)) == ["everything is done"]
    assert not queue.exists()


def test_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch cannot be run"):
        list(submit(graph(tmp_path), StudyFolder(tmp_path / "out"), tmp_path / "study.yaml", "", 1))
