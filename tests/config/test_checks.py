"""What cannot run is refused with the field, the reason and a value that works: each test applies that value."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from megatron_vlm.config.checks import check, layout_problems, plan_problems, problems
from megatron_vlm.config.loading import load_config
from megatron_vlm.config.run import RunConfig
from megatron_vlm.errors import ConfigError

BASE = ["--data.tokenizer", "t", "--data.sources", "{text: a, captions: b}", "--schedule.train_steps", "100"]
LANGUAGE, VISION, PARALLEL, SCHEDULE = "--model.language.", "--model.vision.", "--parallel.", "--schedule."
FIRST, SECOND = "--curriculum.stages.0.", "--curriculum.stages.1."
RAMP = [
    *(SCHEDULE + "global_batch_size", "16", SCHEDULE + "rampup_batch_start", "4"),
    *(SCHEDULE + "rampup_batch_increment", "4", SCHEDULE + "rampup_packs", "100"),
]


def tiny(*overrides: str) -> RunConfig:
    return load_config(preset="tiny", overrides=[*BASE, *overrides])


def refused(overrides: Sequence[str], ranks: int, field: str, reason: str) -> str:
    """The one line about `field`, which gives `reason`."""
    lines = [line for line in problems(tiny(*overrides), ranks) if line.startswith(field)]
    assert lines, f"nothing about {field} in {problems(tiny(*overrides), ranks)}"
    assert reason in lines[0]
    return lines[0]


def test_a_good_run_has_no_problem() -> None:
    assert problems(tiny(), 2) == []
    check(tiny(), 2)


# overrides, ranks, field, reason, how the message gives a value, the option that takes it
WITH_A_NUMBER = [
    ([LANGUAGE + "num_attention_heads", "3"], 1, "model.language.num_attention_heads", "128", "does: (\\d+)", None),
    # 128 / 128 = 1 has no halves to turn; 96 divides neither
    ([LANGUAGE + "num_attention_heads", "128"], 1, "model.language.num_attention_heads", "rotary", "does: (\\d+)", None),
    ([LANGUAGE + "hidden_size", "127"], 1, "model.language.hidden_size", "odd", "nearest: (\\d+)", None),
    ([LANGUAGE + "num_query_groups", "3"], 1, "model.language.num_query_groups", "4 attention heads", "does: (\\d+)", None),
    ([VISION + "num_attention_heads", "5"], 1, "model.vision.num_attention_heads", "hidden_size 128", "does: (\\d+)", None),
    ([VISION + "patch_size", "65"], 1, "model.vision.patch_size", "larger than image_size 64", "at most (\\d+)", None),
    (["--model.projector.pixel_shuffle", "3"], 1, "model.projector.pixel_shuffle", "4 x 4 patches", "does: (\\d+)", None),
    ([VISION + "register_tokens", "4"], 1, "model.vision.register_tokens", "only dinov2", "set it to (\\d+)", None),
    ([VISION + "skip_last_layers", "3"], 1, "model.vision.skip_last_layers", "with 3 layers", "to (\\d+) with", None),
    (
        [PARALLEL + "tensor_model_parallel_size", "3"],
        3,
        "parallel.tensor_model_parallel_size",
        "num_attention_heads 4",
        "does: (\\d+)",
        None,
    ),
    # 4 divides the 4 heads, but not the 2 groups: the value named must suit both
    (
        [PARALLEL + "tensor_model_parallel_size", "8"],
        8,
        "parallel.tensor_model_parallel_size",
        "num_attention_heads 4",
        "does: (\\d+)",
        None,
    ),
    (
        [PARALLEL + "pipeline_model_parallel_size", "3"],
        3,
        "parallel.pipeline_model_parallel_size",
        "num_layers 4",
        "chunks that does: (\\d+)",
        None,
    ),
    (
        [PARALLEL + "pipeline_model_parallel_size", "3"],
        3,
        "parallel.pipeline_model_parallel_size",
        "num_layers 4",
        "or (\\d+) layers",
        LANGUAGE + "num_layers",
    ),
    (
        [PARALLEL + "pipeline_model_parallel_size", "2", PARALLEL + "num_layers_in_last_pipeline_stage", "4"],
        2,
        "parallel.num_layers_in_last_pipeline_stage",
        "4 leaves 0 of model.language.num_layers 4 to the 1 other stages",
        "nearest that does: (\\d+)",
        None,
    ),
    (
        [
            *(PARALLEL + "pipeline_model_parallel_size", "2", PARALLEL + "num_layers_in_first_pipeline_stage", "3"),
            *(PARALLEL + "num_layers_in_last_pipeline_stage", "2"),
        ],
        2,
        "parallel.num_layers_in_first_pipeline_stage",
        "3 leaves -1 of model.language.num_layers 4 to the 0 other stages",
        "nearest that does: (\\d+)",
        None,
    ),
    (
        [PARALLEL + "virtual_pipeline_model_parallel_size", "2"],
        1,
        "parallel.virtual_pipeline_model_parallel_size",
        "at least 2",
        "set it to (\\d+)",
        None,
    ),
    (
        [
            *(PARALLEL + "tensor_model_parallel_size", "2", PARALLEL + "sequence_parallel", "true"),
            *(SCHEDULE + "micro_batch_size", "1", "--data.sequence_length", "255"),
        ],
        2,
        "data.sequence_length",
        "= 255 must be a multiple",
        "nearest sequence_length: (\\d+)",
        None,
    ),
    # two pieces of the row on each of two ranks
    (
        [PARALLEL + "context_parallel_size", "2", SCHEDULE + "micro_batch_size", "1", "--data.sequence_length", "258"],
        2,
        "data.sequence_length",
        "with context_parallel_size 2, micro_batch_size * sequence_length = 258 must be a multiple of 4",
        "nearest sequence_length: (\\d+)",
        None,
    ),
    (
        [
            *(PARALLEL + "context_parallel_size", "2", PARALLEL + "tensor_model_parallel_size", "2"),
            *(PARALLEL + "sequence_parallel", "true", SCHEDULE + "micro_batch_size", "1", "--data.sequence_length", "250"),
        ],
        4,
        "data.sequence_length",
        "with context_parallel_size 2 and tensor_model_parallel_size 2, micro_batch_size",
        "nearest sequence_length: (\\d+)",
        None,
    ),
    ([SCHEDULE + "global_batch_size", "7"], 1, "schedule.global_batch_size", "4 x 1 = 4", "nearest that is: (\\d+)", None),
    (
        [
            *(PARALLEL + "pipeline_model_parallel_size", "2", PARALLEL + "virtual_pipeline_model_parallel_size", "2"),
            *(SCHEDULE + "micro_batch_size", "1", SCHEDULE + "global_batch_size", "7"),
        ],
        2,
        "schedule.global_batch_size",
        "interleaved schedule",
        "nearest batch: (\\d+)",
        None,
    ),
    # not a multiple of micro x data-parallel size, and the nearest that is (6) would break the interleaved schedule
    (
        [
            *(PARALLEL + "pipeline_model_parallel_size", "2", PARALLEL + "virtual_pipeline_model_parallel_size", "2"),
            *(SCHEDULE + "global_batch_size", "5"),
        ],
        2,
        "schedule.global_batch_size",
        "not a multiple",
        "nearest that is: (\\d+)",
        None,
    ),
    (["--data.sequence_length", "4"], 1, "data.sequence_length", "4 tokens of one picture", "at least (\\d+)", None),
    ([SCHEDULE + "warmup_steps", "100"], 1, "schedule.warmup_steps", "a run of 100", "at most (\\d+)", None),
    ([SCHEDULE + "warmup_steps", "-1"], 1, "schedule.warmup_steps", "-1", "at least (\\d+)", None),
    ([SCHEDULE + "min_lr", "1"], 1, "schedule.min_lr", "from 0", "schedule.lr ([\\d.e-]+)", None),
    ([SECOND + "until", "0.6"], 1, "curriculum.stages.1 (images)", "not after", "at least ([\\d.]+)", SECOND + "until"),
    ([SECOND + "until", "0.9"], 1, "curriculum.stages.1 (images)", "step 90 of 100", "to ([\\d.]+)$", SECOND + "until"),
    (
        [SECOND + "until_tokens", "1000"],
        1,
        "curriculum.stages.1 (images)",
        "not after",
        "at least (\\d+)",
        SECOND + "until_tokens",
    ),
    (
        [SECOND + "lr_policy", "rewarm"],
        1,
        "curriculum.stages.1 (images).rewarm_steps",
        "rewarm",
        "at least (\\d+)",
        SECOND + "rewarm_steps",
    ),
    (
        [SECOND + "until_steps", "30"],
        1,
        "curriculum.stages.1 (images)",
        "not after",
        r"at least (\d+)",
        SECOND + "until_steps",
    ),
    (
        [FIRST + "until", "null", FIRST + "until_steps", "0"],
        1,
        "curriculum.stages.0 (text).until_steps",
        "before it begins",
        r"at least (\d+)",
        FIRST + "until_steps",
    ),
    (
        [FIRST + "until", "null", FIRST + "until_tokens", "0"],
        1,
        "curriculum.stages.0 (text).until_tokens",
        "before it begins",
        r"at least (\d+)",
        FIRST + "until_tokens",
    ),
    (
        [SECOND + "lr_policy", "rewarm", SECOND + "rewarm_steps", "41"],
        1,
        "curriculum.stages.1 (images).rewarm_steps",
        "more than the run has left",
        r"at most (\d+)",
        SECOND + "rewarm_steps",
    ),
    (
        [FIRST + "lr_policy", "restart", FIRST + "rewarm_steps", "61"],
        1,
        "curriculum.stages.0 (text).rewarm_steps",
        "more than the stage has",
        r"at most (\d+)",
        FIRST + "rewarm_steps",
    ),
    (
        [SECOND + "lr_policy", "cooldown", SECOND + "min_lr", "1"],
        1,
        "curriculum.stages.1 (images).min_lr",
        "from 0",
        r"to the peak ([\d.e-]+)",
        SECOND + "min_lr",
    ),
    (
        [SECOND + "lr_policy", "restart", SECOND + "rewarm_lr", "1e-5"],
        1,
        "curriculum.stages.1 (images).rewarm_lr",
        "below schedule.min_lr",
        r"at least ([\d.e-]+)",
        SECOND + "rewarm_lr",
    ),
    (
        [SECOND + "ramp", "linear", SECOND + "ramp_share", "1.5"],
        1,
        "curriculum.stages.1 (images).ramp_share",
        "share of the stage",
        r"at most ([\d.]+)",
        SECOND + "ramp_share",
    ),
    (
        [SECOND + "loss_weights", "{text: -1}"],
        1,
        "curriculum.stages.1 (images).loss_weights.text",
        "finite",
        r"at least (\d+)",
        SECOND + "loss_weights.text",
    ),
    (
        [SECOND + "sources_from", "{text: -1, captions: 1}", SECOND + "ramp", "linear"],
        1,
        "curriculum.stages.1 (images).sources_from.text",
        "-1 must be",
        r"at least (\d+)",
        SECOND + "sources_from.text",
    ),
    (["--curriculum.max_epochs", "{text: 0}"], 1, "curriculum.max_epochs.text", "above 0", r"such as (\d+)", None),
    # 4 x 4 patches at 64 px, folded 2 x 2: rows of 2 x 2, which 3 does not divide
    (
        [SECOND + "image_pool", "3"],
        1,
        "curriculum.stages.1 (images).image_pool",
        "2 x 2 rows",
        r"does: (\d+)",
        SECOND + "image_pool",
    ),
    (
        [SECOND + "image_size", "80"],
        1,
        "curriculum.stages.1 (images).image_size",
        "5 x 5 patches",
        r"does: (\d+)",
        SECOND + "image_size",
    ),
    (
        [SECOND + "image_size", "8", SECOND + "image_pool", "2"],
        1,
        "curriculum.stages.1 (images).image_size",
        "0 x 0 patches",
        r"does: (\d+)",
        SECOND + "image_size",
    ),
    # 576 patches, folded 2 x 2: 144 rows of a picture
    (
        [SECOND + "image_size", "384", SECOND + "sequence_length", "144"],
        1,
        "curriculum.stages.1 (images).sequence_length",
        "the 144 tokens of one picture",
        r"at least (\d+)",
        SECOND + "sequence_length",
    ),
    (
        [SECOND + "global_batch_size", "6"],
        1,
        "curriculum.stages.1 (images).global_batch_size",
        "4 x 1 = 4",
        r"nearest that is: (\d+)",
        SECOND + "global_batch_size",
    ),
    (
        [SECOND + "micro_batch_size", "3"],
        2,
        "curriculum.stages.1 (images).micro_batch_size",
        "3 x 2 = 6",
        r"micro_batch_size that works: (\d+)",
        SECOND + "micro_batch_size",
    ),
    # the run's batch is shared by stages of 4 and of 6 at once: only 12 suits both
    (
        [SECOND + "micro_batch_size", "6", SCHEDULE + "global_batch_size", "13"],
        1,
        "schedule.global_batch_size",
        "not a multiple",
        r"nearest that is: (\d+)",
        None,
    ),
    (
        [
            *(PARALLEL + "tensor_model_parallel_size", "2", PARALLEL + "sequence_parallel", "true"),
            *(SECOND + "micro_batch_size", "1", SECOND + "sequence_length", "101"),
        ],
        2,
        "curriculum.stages.1 (images).sequence_length",
        "= 101 must be a multiple",
        r"nearest sequence_length: (\d+)",
        SECOND + "sequence_length",
    ),
    (
        [
            *(PARALLEL + "pipeline_model_parallel_size", "2", PARALLEL + "virtual_pipeline_model_parallel_size", "2"),
            *(SECOND + "global_batch_size", "12"),
        ],
        2,
        "curriculum.stages.1 (images).global_batch_size",
        "interleaved schedule needs the 3 micro-batches",
        r"nearest batch: (\d+)",
        SECOND + "global_batch_size",
    ),
    ([*RAMP, SCHEDULE + "rampup_batch_start", "3"], 1, "schedule.rampup_batch_start", "of 3", r"works: (\d+)", None),
    # 15 is nearer to 16 than to 12, and 16 is no ramp
    ([*RAMP, SCHEDULE + "rampup_batch_start", "15"], 1, "schedule.rampup_batch_start", "of 15", r"works: (\d+)", None),
    ([*RAMP, SCHEDULE + "rampup_batch_increment", "3"], 1, "schedule.rampup_batch_increment", "of 7", r"works: (\d+)", None),
    ([*RAMP, SCHEDULE + "rampup_batch_start", "20"], 1, "schedule.rampup_batch_start", "not below", r"at most (\d+)", None),
    ([*RAMP, SCHEDULE + "rampup_packs", "0"], 1, "schedule.rampup_packs", "no ramp", r"at least (\d+)", None),
    (
        [SECOND + "sources.captions", "-0.5"],
        1,
        "curriculum.stages.1 (images).sources.captions",
        "-0.5 must be",
        "at least (\\d+)",
        SECOND + "sources.captions",
    ),
]


@pytest.mark.parametrize(("overrides", "ranks", "field", "reason", "value", "option"), WITH_A_NUMBER)
def test_the_value_in_the_message_removes_the_problem(
    overrides: list[str], ranks: int, field: str, reason: str, value: str, option: str | None
) -> None:
    line = refused(overrides, ranks, field, reason)
    found = re.search(value, line)
    assert found, line
    mended = tiny(*overrides, option or f"--{field}", found.group(1))
    left = [other for other in problems(mended, ranks) if other.startswith(field)]
    # a stage whose end was mended may still not be the last step's; anything else must be gone
    assert [other for other in left if reason in other] == []
    if not field.startswith("curriculum"):
        assert left == []


@pytest.mark.parametrize(
    ("overrides", "field", "reason", "mended"),
    [
        ([PARALLEL + "sequence_parallel", "true"], "parallel.sequence_parallel", "set it to false", "false"),
        ([SCHEDULE + "lr", "0"], "schedule.lr", "above 0 and finite", "1e-3"),
        ([SCHEDULE + "lr", ".nan"], "schedule.lr", "above 0 and finite", "1e-3"),
        ([SCHEDULE + "wsd_decay_share", "0"], "schedule.wsd_decay_share", "above 0 and at most 1", "1"),
        (["--data.tokenizer", "''"], "data.tokenizer", "--data.tokenizer PATH", "x"),
        ([SCHEDULE + "train_tokens", "1e6"], "schedule.train_tokens", "one of the three", "null"),
        ([SCHEDULE + "train_steps", "null"], "schedule.train_tokens", "one of the three", "1e6"),
        ([SCHEDULE + "train_steps", "0"], "schedule.train_steps", "at least 1", "100"),
    ],
)
def test_refused_with_a_remedy_in_words(overrides: list[str], field: str, reason: str, mended: str | None) -> None:
    refused(overrides, 1, field, reason)
    if mended is not None:
        assert problems(tiny(*overrides, f"--{field}", mended), 1) == []


@pytest.mark.parametrize(
    ("overrides", "field", "reason", "remedy"),
    [
        (
            [PARALLEL + "overlap_param_gather", "true", PARALLEL + "overlap_grad_reduce", "true"],
            "parallel.overlap_param_gather",
            "use_distributed_optimizer: true",
            [PARALLEL + "use_distributed_optimizer", "true"],
        ),
        (
            [PARALLEL + "overlap_param_gather", "true"],
            "parallel.overlap_param_gather",
            "overlap_grad_reduce: true",
            [PARALLEL + "overlap_grad_reduce", "true"],
        ),
        ([FIRST + "until", "1.5"], "curriculum.stages.0 (text).until", "at most 1", [FIRST + "until", "0.5"]),
        (
            [FIRST + "until", "1.0", SECOND + "until", "1.0"],
            "curriculum.stages.1 (images)",
            "let stage 0 end before",
            [FIRST + "until", "0.5"],
        ),
        (
            [FIRST + "until_tokens", "1000"],
            "curriculum.stages.0 (text)",
            "one of until, until_tokens and until_steps, not until and until_tokens",
            [FIRST + "until", "null"],
        ),
        (
            [SECOND + "until_tokens", "150000"],
            "curriculum.stages.1 (images)",
            "leave its until_tokens out",
            [SECOND + "until_tokens", "null"],
        ),
        (
            [SECOND + "sources.video", "0.1", SECOND + "measure", "tokens"],
            "curriculum.stages.1 (images).sources.video",
            "--data.sources.video PREFIX",
            ["--data.sources.video", "v"],
        ),
        (
            [FIRST + "sources.text", "0"],
            "curriculum.stages.0 (text).sources",
            "give one above 0",
            [FIRST + "sources.text", "1"],
        ),
        (
            [SECOND + "sources.captions", "0.5"],
            "curriculum.stages.1 (images).sources",
            "sum to 1.25",
            [SECOND + "sources.text", "0.5"],
        ),
        (
            [FIRST + "until_steps", "50"],
            "curriculum.stages.0 (text)",
            "not until and until_steps",
            [FIRST + "until", "null"],
        ),
        (
            [SECOND + "until_steps", "90"],
            "curriculum.stages.1 (images)",
            "leave its until_steps out",
            [SECOND + "until_steps", "null"],
        ),
        (
            [FIRST + "ramp", "linear"],
            "curriculum.stages.0 (text).ramp",
            "Give sources_from, such as {text: 1.0}",
            [FIRST + "sources_from", "{text: 1.0}"],
        ),
        (
            [SECOND + "sources_from", "{text: 1.0}"],
            "curriculum.stages.1 (images).sources_from",
            "set ramp to linear",
            [SECOND + "ramp", "linear"],
        ),
        (
            [SECOND + "sources_from", "{video: 1.0}", SECOND + "ramp", "cosine"],
            "curriculum.stages.1 (images).sources_from.video",
            "--data.sources.video PREFIX",
            ["--data.sources.video", "v"],
        ),
        (
            [SECOND + "sources_from", "{text: 0}", SECOND + "ramp", "cosine"],
            "curriculum.stages.1 (images).sources_from",
            "give one above 0",
            [SECOND + "sources_from.text", "1"],
        ),
        (
            [SECOND + "sources_from", "{text: 0.9, captions: 0.2}", SECOND + "ramp", "linear"],
            "curriculum.stages.1 (images).sources_from",
            "sum to 1.1",
            [SECOND + "sources_from.text", "0.8"],
        ),
        (
            [FIRST + "sources", "{text: 3, captions: 1}", SECOND + "ramp", "linear"],
            "curriculum.stages.1 (images).sources_from",
            "give sources_from in visual_tokens",
            [SECOND + "sources_from", "{text: 0.9, captions: 0.1}"],
        ),
        (
            [FIRST + "sources", "{text: 3}", SECOND + "ramp", "linear"],
            "curriculum.stages.1 (images).sources_from",
            "sum to 3",
            [SECOND + "sources_from", "{text: 1.0}"],
        ),
        (
            [SECOND + "rewarm_lr", "1e-3"],
            "curriculum.stages.1 (images).rewarm_lr",
            "set lr_policy to rewarm or restart",
            [SECOND + "lr_policy", "restart"],
        ),
        (
            [SECOND + "min_lr", "1e-4"],
            "curriculum.stages.1 (images).min_lr",
            "restart or cooldown",
            [SECOND + "lr_policy", "cooldown"],
        ),
        (
            [SECOND + "lr_policy", "cooldown", SECOND + "lr_decay", "constant"],
            "curriculum.stages.1 (images).lr_decay",
            "set it to linear",
            [SECOND + "lr_decay", "linear"],
        ),
        (
            [SECOND + "loss_weights", "{captions: 1}"],
            "curriculum.stages.1 (images).loss_weights.captions",
            "text and caption",
            None,
        ),
        (
            [SECOND + "loss_weights", "{text: 0, caption: 0}"],
            "curriculum.stages.1 (images).loss_weights",
            "one above 0",
            [SECOND + "loss_weights.text", "1"],
        ),
        (
            ["--curriculum.max_epochs", "{video: 1}"],
            "curriculum.max_epochs.video",
            "--data.sources.video PREFIX",
            ["--data.sources.video", "v"],
        ),
        (
            [SECOND + "image_size", "512", SECOND + "freeze", "[vision]"],
            "curriculum.stages.1 (images).sequence_length",
            "give image_pool",
            [SECOND + "image_pool", "2"],
        ),
        ([SECOND + "name", "text"], "curriculum.stages", "'text'; names must differ", [SECOND + "name", "other"]),
        (["--optimizer.lr_mult", "{visoin: 2}"], "optimizer.lr_mult.visoin", "language, vision and projector", None),
    ],
)
def test_the_remedy_in_words_removes_the_problem(
    overrides: list[str], field: str, reason: str, remedy: list[str] | None
) -> None:
    overrides = ["--parallel.use_distributed_optimizer", "false", *overrides] if reason.startswith("use_d") else overrides
    refused(overrides, 1, field, reason)
    if remedy is not None:
        assert problems(tiny(*overrides, *remedy), 1) == []


@pytest.mark.parametrize(
    "field",
    [
        "model.language.num_layers",
        "model.language.num_query_groups",
        "model.language.ffn_hidden_size",
        "model.vision.patch_size",
        "model.vision.ffn_hidden_size",
        "model.projector.hidden_size",
        "model.projector.pixel_shuffle",
        "data.sequence_length",
        "data.window_packs",
        "parallel.tensor_model_parallel_size",
        "schedule.micro_batch_size",
        "schedule.rampup_batch_start",
        "schedule.rampup_batch_increment",
        "curriculum.stages.1.sequence_length",
        "curriculum.stages.1.image_pool",
        "curriculum.stages.0.global_batch_size",
    ],
)
def test_sizes_below_one_are_named_before_anything_is_divided_by_them(field: str) -> None:
    where = field.replace("stages.0", "stages.0 (text)").replace("stages.1", "stages.1 (images)")
    for value in ("0", "-2"):
        assert problems(tiny(f"--{field}", value), 1) == [f"{where}: {value} must be at least 1"]


def test_no_stage_and_no_source() -> None:
    assert any(line.startswith("curriculum.stages: at least one") for line in problems(tiny("--curriculum.stages", "[]"), 1))
    without = problems(tiny("--curriculum.stages", "[{name: a}]"), 1)
    assert without == ["curriculum.stages.0 (a).sources: name at least one of data.sources: text, captions"]


def test_too_few_ranks_say_how_many() -> None:
    layout = [PARALLEL + "tensor_model_parallel_size", "2", PARALLEL + "pipeline_model_parallel_size", "2"]
    line = refused(layout, 3, "parallel:", "does not divide the 3 ranks")
    assert "multiple of 4" in line
    assert problems(tiny(*layout), 4) == []


def test_everything_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as refusal:
        check(tiny("--data.tokenizer", "''", SCHEDULE + "warmup_steps", "100", LANGUAGE + "num_query_groups", "3"), 1)
    lines = str(refusal.value).splitlines()
    assert lines[0] == "this run cannot start:"
    assert len(lines) == 4
    assert all(line.startswith("  - ") for line in lines[1:])


def test_evaluation_asks_only_for_the_layout() -> None:
    bad_batch = tiny(SCHEDULE + "global_batch_size", "7", "--data.tokenizer", "''")
    assert layout_problems(bad_batch, 1) == []
    assert len(layout_problems(tiny(PARALLEL + "pipeline_model_parallel_size", "3"), 3)) == 1


def test_a_short_stage_without_pictures_is_no_problem() -> None:
    """Where nothing of the pictures' path is trained, a pack may be shorter than a picture."""
    short = [FIRST + "sequence_length", "4"]
    assert problems(tiny(*short), 1) == []
    refused([*short, FIRST + "freeze", "[vision]"], 1, "curriculum.stages.0 (text).sequence_length", "freeze: [vision, proj")


def test_the_lengths_of_stages_are_judged_and_not_one_that_no_stage_has() -> None:
    """No pack of a run is of data.sequence_length where its stages have lengths of their own, or of pictures where these
    are in stages of their own."""
    text_alone = ["--data.sequence_length", "3", SECOND + "sequence_length", "128"]
    assert problems(tiny(*text_alone), 1) == []
    refused([*text_alone, FIRST + "freeze", "[vision]"], 1, "data.sequence_length", "4 tokens of one picture")
    odd = ["--data.sequence_length", "255", SCHEDULE + "micro_batch_size", "1", PARALLEL + "context_parallel_size", "2"]
    assert problems(tiny(*odd, FIRST + "sequence_length", "256", SECOND + "sequence_length", "256"), 2) == []
    refused([*odd, SECOND + "sequence_length", "256"], 2, "data.sequence_length", "= 255 must be a multiple")


def test_a_ramp_is_checked_against_the_stages_that_it_goes_through() -> None:
    """Sixteen packs at once in the second stage, four in the first: a ramp over in the first need not suit the second."""
    wide = [*RAMP, SECOND + "micro_batch_size", "16", FIRST + "until", "null", FIRST + "until_steps"]
    assert problems(tiny(*wide, "20"), 1) == []
    refused([*wide, "2"], 1, "schedule.rampup_batch_start", "stage 'images' deals out at once")


def test_a_plan_asks_for_no_ranks_and_no_data() -> None:
    bare = tiny("--data.tokenizer", "''", SCHEDULE + "global_batch_size", "7")
    assert plan_problems(bare) == []
    assert plan_problems(tiny(SCHEDULE + "warmup_steps", "100")) != []
    assert plan_problems(tiny(SECOND + "image_pool", "0")) == [
        "curriculum.stages.1 (images).image_pool: 0 must be at least 1"
    ]


CHECKPOINT = "--checkpoint."


@pytest.mark.parametrize(
    ("overrides", "field", "reason"),
    [
        ([CHECKPOINT + "keep_last", "-1"], "checkpoint.keep_last", "must be at least 0"),
        ([CHECKPOINT + "keep_every", "100"], "checkpoint.keep_every", "keep_last 0 keeps all; set keep_last to 1 or more"),
        ([CHECKPOINT + "start_from", "a", CHECKPOINT + "resume", "b"], "checkpoint.start_from", "goes on from b, not both"),
        ([CHECKPOINT + "start_with", "weights_and_optimizer"], "checkpoint.start_with", "give start_from, or leave"),
    ],
)
def test_what_checkpoints_cannot_be_asked_for(overrides: list[str], field: str, reason: str) -> None:
    refused(overrides, 1, field, reason)


def test_a_run_may_begin_with_a_checkpoint_and_go_on_from_its_own() -> None:
    assert problems(tiny(CHECKPOINT + "start_from", "a", CHECKPOINT + "resume", "auto"), 1) == []
