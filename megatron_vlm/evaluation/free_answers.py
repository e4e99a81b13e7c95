"""Tasks that are answered by generation: the prompt with its picture is continued greedily, and the text is scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron_vlm.errors import DataError
from megatron_vlm.evaluation.generation import Generator, Prompt, cut
from megatron_vlm.evaluation.prompts import Shots, preface, prompt_of
from megatron_vlm.evaluation.questions import Question
from megatron_vlm.evaluation.sampling import Sampling
from megatron_vlm.evaluation.task import Task
from megatron_vlm.evaluation.task_pictures import TaskPictures

#: questions whose pictures are held, and prompts put together, at once
_BLOCK = 256


def free_answers(
    task: Task, generator: Generator, questions: Sequence[Question], pictures: TaskPictures, shown: Sequence[Question]
) -> Iterator[str]:
    """The text that follows each question, cut at the task's stops, without white space around it; in order.

    Args:
        questions: of the task, all of them: examples are drawn from them.
        shown: those to answer, with the pictures that a control gives them.

    Raises:
        DataError: a prompt that leaves no room for an answer, and as `TaskPictures`.
    """
    shots, tokenizer = Shots(task, questions), generator.scorer.tokenizer
    sampling = Sampling(max_new_tokens=task.max_new_tokens)

    def ends(_: int, ids: Sequence[int]) -> bool:
        text = tokenizer.decode(ids).lstrip()
        return cut(text, task.stop) != text

    for start in range(0, len(shown), _BLOCK):
        block = shown[start : start + _BLOCK]
        prompts: list[Prompt] = []
        for question, seen in zip(block, pictures.of(block), strict=True):
            text = prompt_of(task, question, preface(task, shots.of(question)))
            prompts.append(generator.prompt(text, seen, int(bool(question.picture))))
            if len(prompts[-1].ids) >= generator.scorer.shape.sequence_length:
                room = generator.scorer.shape.sequence_length
                raise DataError(
                    f"task {task.name}, question {question.key}: {len(prompts[-1].ids)} tokens leave no room for an answer "
                    f"in {room} positions; take fewer examples (few_shot)"
                )
        for answer in generator.generate(prompts, sampling, ends=ends):
            # the white space that a delimiter ends with is the answer's own
            yield cut(tokenizer.decode(answer.ids).lstrip(), task.stop).rstrip()
