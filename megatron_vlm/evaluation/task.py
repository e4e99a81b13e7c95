"""A task: where its questions are, how they are put, and what counts as right. A small YAML file, no code.

  name: hellaswag
  form: multiple_choice
  data: hellaswag.jsonl
  few_shot: 5
  example_delimiter: "\\n\\n"
  normalise: tokens
  chance: 0.25

Paths are relative to the file. Forms are those of `questions.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from megatron_vlm.config.loading import build, parse_yaml
from megatron_vlm.errors import ConfigError

Form = Literal["multiple_choice", "language_modelling", "schema", "pope", "vqa", "open", "grounding", "captions"]
Normalise = Literal["none", "tokens", "bytes", "unconditional"]
Metric = Literal["accuracy", "exact_tokens", "yes_no", "vqa", "exact", "number", "box", "cider"]

#: what a form is measured by where the task does not say
METRICS: dict[Form, Metric] = {
    "multiple_choice": "accuracy",
    "language_modelling": "exact_tokens",
    "schema": "accuracy",
    "pope": "yes_no",
    "vqa": "vqa",
    "open": "exact",
    "grounding": "box",
    "captions": "cider",
}
#: by the likelihood of what is offered; all others are answered by generation
_LIKELIHOOD: frozenset[Metric] = frozenset({"accuracy", "exact_tokens"})


@dataclass(frozen=True)
class Task:
    """See the module. A question is put as `prompt`, with its fields in braces; its answer follows after `delimiter`."""

    name: str
    form: Form
    #: questions: .jsonl, of `vqa` the questions' .json
    data: str
    #: of `vqa`: the annotations' .json
    annotations: str = ""
    #: folder or tar of the pictures that questions name; for `vqa` their names as `COCO_val2014_{image_id:012d}.jpg`
    pictures: str = ""
    picture_name: str = "{image}"
    prompt: str = "{question}"
    #: before the first example
    preamble: str = ""
    #: between a question and its answer; white space at its end goes with the answer
    delimiter: str = " "
    #: after each example
    example_delimiter: str = "\n"
    #: examples before each question, drawn from the other questions by a hash, without pictures of their own
    few_shot: int = 0
    #: null: that of the form
    metric: Metric | None = None
    #: likelihood: answer `yes` or `no`, of `pope`, by likelihood instead of generation
    by: Literal["form", "likelihood"] = "form"
    #: what a choice's log-likelihood is divided by, or (unconditional) what of it is there without the question
    normalise: Normalise = "none"
    #: what guessing gets; null: 1 / choices, of generated answers 0
    chance: float | None = None
    #: of a box: the least overlap that is right, and what coordinates are multiplied by (1: shares of the picture)
    overlap: float = 0.5
    box_scale: float = 1.0
    #: a generated answer ends here at the latest, or before any of these
    max_new_tokens: int = 16
    stop: tuple[str, ...] = ("\n",)
    #: field of a question whose values are also scored apart; of `pope`, `category`
    split_by: str = ""
    #: of which average it is a part: text, vision or a name of one's own
    group: str = ""
    #: said of the task where it is listed: source, licence
    about: str = field(default="", compare=False)

    @property
    def measured_by(self) -> Metric:
        if self.form == "pope" and self.by == "likelihood":
            return self.metric or "yes_no"
        return self.metric or METRICS[self.form]

    @property
    def by_likelihood(self) -> bool:
        return self.by == "likelihood" or self.measured_by in _LIKELIHOOD

    @property
    def shows_pictures(self) -> bool:
        return bool(self.pictures)


def task_files(places: Sequence[Path]) -> list[Path]:
    """Files as they are and folders by their .yaml, sorted; each once.

    Raises:
        ConfigError: a folder without any.
    """
    files: list[Path] = []
    for place in places:
        if not place.is_dir():
            files.append(place)
            continue
        found = sorted(place.glob("*.yaml"))
        if not found:
            raise ConfigError(f"{place}: no task in it (a .yaml)")
        files += found
    return list(dict.fromkeys(files))


def load_task(path: Path) -> Task:
    """A task's file.

    Raises:
        ConfigError: it cannot be read, a key is unknown (with the nearest name), a value is of the wrong kind, or fields
            contradict each other.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    raw = parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a map of a task's fields")
    try:
        task = build(Task, {"name": path.stem, **raw}, str(path))
    except TypeError:
        missing = [name for name in ("form", "data") if name not in raw]
        raise ConfigError(f"{path}: {' and '.join(missing)} must be given") from None
    problems = list(_problems(task))
    if problems:
        raise ConfigError(f"{path}: {'; '.join(problems)}")
    here = path.parent
    return replace(
        task,
        data=str(here / task.data),
        annotations=str(here / task.annotations) if task.annotations else "",
        pictures=str(here / task.pictures) if task.pictures else "",
    )


def _problems(task: Task) -> list[str]:
    problems = []
    if task.form == "vqa" and not task.annotations:
        problems.append("form vqa needs `annotations`, the .json of people's answers")
    if task.form in ("vqa", "pope", "grounding", "captions") and not task.pictures:
        problems.append(f"form {task.form} needs `pictures`, a folder or a tar")
    if task.by == "likelihood" and task.form not in ("multiple_choice", "schema", "language_modelling", "pope"):
        problems.append(f"form {task.form} offers no choices, so it cannot be answered by likelihood")
    allowed = {
        "multiple_choice": {"accuracy"},
        "schema": {"accuracy"},
        "language_modelling": {"exact_tokens"},
        "pope": {"yes_no"},
        "vqa": {"vqa", "exact"},
        "open": {"vqa", "exact", "number", "yes_no"},
        "grounding": {"box"},
        "captions": {"cider"},
    }[task.form]
    if task.metric is not None and task.metric not in allowed:
        problems.append(f"form {task.form} is measured by {' or '.join(sorted(allowed))}, not by {task.metric}")
    if task.chance is not None and not 0 <= task.chance < 1:
        problems.append(f"chance is {task.chance:g}, but must be at least 0 and below 1")
    if task.few_shot < 0:
        problems.append(f"few_shot is {task.few_shot}, but must not be negative")
    if not task.box_scale > 0:
        problems.append(f"box_scale is {task.box_scale:g}, but must be above 0")
    if task.max_new_tokens < 1:
        problems.append("max_new_tokens must be at least 1")
    return problems
