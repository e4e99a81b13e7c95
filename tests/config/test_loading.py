"""YAML and overrides into the configuration and back, and errors that name the key, the file and the nearest name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_vlm.config.loading import (
    apply_overrides,
    from_map,
    load_config,
    parse_overrides,
    parse_yaml,
    preset_names,
    read_config_file,
    to_map,
    to_yaml,
)
from megatron_vlm.config.run import RunConfig
from megatron_vlm.errors import ConfigError


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# -- there and back ------------------------------------------------------------------------------------------------------


def test_there_are_presets_and_parts_of_them_are_not_listed() -> None:
    assert preset_names() == ["tiny", "vlm_1b", "vlm_79m", "vlm_7b"]


@pytest.mark.parametrize("name", preset_names())
def test_presets_round_trip(name: str, tmp_path: Path) -> None:
    config = load_config(preset=name)
    assert from_map(to_map(config)) == config
    assert from_map(json.loads(json.dumps(to_map(config)))) == config
    assert load_config(file=write(tmp_path / "c.yaml", to_yaml(config))) == config
    assert config != RunConfig()


#: one line of text; PyYAML itself does not bring every control character back
LINES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]), max_size=20)


@settings(max_examples=40)
@given(
    folder=st.one_of(st.sampled_from(["1e5", "3e-3", "2024", "null", "yes", "~", "0x1f", "1_0e2", "a: b", ""]), LINES),
    rate=st.floats(allow_nan=False),
    steps=st.none() | st.integers(0, 10**12),
    freeze=st.lists(st.text("abc.1e", min_size=1), max_size=2),
)
def test_any_value_comes_back_from_yaml(folder: str, rate: float, steps: int | None, freeze: list[str]) -> None:
    raw = {
        "logging": {"directory": folder},
        "schedule": {"lr": rate, "train_steps": steps},
        "curriculum": {"stages": [{"name": folder, "sources": {"text": rate}, "freeze": freeze}]},
    }
    config = from_map(raw)
    assert config.logging.directory == folder
    assert from_map(parse_yaml(to_yaml(config), "here")) == config


def test_standard_yaml_readers_see_the_same_numbers() -> None:
    config = load_config(preset="vlm_1b")
    assert from_map(yaml.safe_load(to_yaml(config))) == config


# -- values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-3", 3e-3),
        ("1E9", 1e9),
        ("-2.5e+4", -2.5e4),
        ("1e9 # comment", 1e9),
        ("'3e-3'", "3e-3"),
        ("e3", "e3"),
        ("12", 12),
    ],
)
def test_numbers_are_read_as_yaml_1_2_does(text: str, value: object) -> None:
    read = parse_yaml(text, "here")
    assert read == value
    assert type(read) is type(value)


def test_whole_floats_are_counts_and_others_are_not() -> None:
    assert load_config(overrides=["--schedule.train_tokens", "28e9"]).schedule.train_tokens == 28_000_000_000
    with pytest.raises(ConfigError, match=r"schedule\.train_tokens: 1\.5 is not a whole number"):
        load_config(overrides=["--schedule.train_tokens", "1.5"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--schedule.lr=fast", r"schedule\.lr: 'fast' is not a number"),
        ("--schedule.lr=true", r"schedule\.lr: True is not a number"),
        ("--schedule.global_batch_size=false", r"schedule\.global_batch_size: False is not a whole number"),
        ("--parallel.sequence_parallel=1", r"parallel\.sequence_parallel: 1 is not true or false"),
        ("--data.tokenizer=[a]", r"data\.tokenizer: \['a'\] is not a text"),
        ("--data.sources=[a]", r"data\.sources: expected a map of names to values"),
        ("--model.vision.pixel_mean=[0.5, 0.5]", r"model\.vision\.pixel_mean: expected 3 values, got 2"),
        ("--model.vision.pixel_mean=[0, 1, x]", r"model\.vision\.pixel_mean\[2\]: 'x' is not a number"),
        ("--curriculum.stages=text", r"curriculum\.stages: expected a list"),
        ("--curriculum.stages=[text]", r"curriculum\.stages\[0\]: expected a map of fields, got 'text'"),
        ("--curriculum.stages=[{sources: {text: a}}]", r"curriculum\.stages\[0\]\.sources\.text: 'a' is not a number"),
        ("--model.language.activation=swigul", r"'swigul' is not one of 'swiglu', .*; did you mean 'swiglu'"),
        ("--model.language.dropout=null", r"model\.language\.dropout: None is not a number"),
        ("--schedule.lr=[1", r"--schedule\.lr: not valid YAML"),
    ],
)
def test_values_of_the_wrong_kind_are_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(overrides=[override])


def test_only_nullable_fields_take_null() -> None:
    assert load_config(overrides=["--model.language.num_query_groups", "null"]).model.language.num_query_groups is None


# -- names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--schedule.global_batchsize=8", r"schedule\.global_batchsize: unknown key; did you mean 'global_batch_size'"),
        ("--shedule.lr=1", r"shedule: unknown key; did you mean 'schedule'"),
        ("--model.vision.qqq=1", r"model\.vision\.qqq: unknown key; known: activation, ffn_hidden_size, "),
        ("--curriculum.stages=[{unitl: 1}]", r"curriculum\.stages\[0\]\.unitl: unknown key; did you mean 'until'"),
    ],
)
def test_an_unknown_key_names_the_nearest(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(overrides=[override])


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="preset 'vlm_1B' is not known; did you mean 'vlm_1b'"):
        load_config(preset="vlm_1B")


# -- overrides -----------------------------------------------------------------------------------------------------------


def test_overrides_reach_list_items_and_map_entries() -> None:
    config = load_config(
        preset="tiny",
        overrides=[
            *("--curriculum.stages.0.until", "0.3", "--curriculum.stages.1.sources.captions=0.1"),
            *("--data.sources", "{text: a}", "--data.sources.captions", "b"),
        ],
    )
    text, images = config.curriculum.stages
    assert (text.name, text.until, text.sources) == ("text", 0.3, {"text": 1.0})
    assert images.sources == {"text": 0.75, "captions": 0.1}
    assert config.data.sources == {"text": "a", "captions": "b"}


def test_the_order_of_a_map_and_its_entry_does_not_matter() -> None:
    entry, whole = ["--data.sources.captions", "b"], ["--data.sources", "{text: a}"]
    assert parse_overrides(entry + whole) == parse_overrides(whole + entry)
    assert parse_overrides(["--data.tokenizer=a", "--data.tokenizer=b"]) == {"data": {"tokenizer": "b"}}


def test_a_list_item_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"stages\.2: there are only 2 entries, numbered from 0"):
        load_config(preset="tiny", overrides=["--curriculum.stages.2.until", "0.3"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lr", "3"], "argument 'lr' is not understood; an override is --section.field VALUE"),
        (["--lr", "3"], "argument '--lr' is not understood"),
        (["--schedule.lr"], "--schedule.lr: a value is missing"),
        (["--schedule=3", "--schedule.lr", "3"], "argument '--schedule=3' is not understood"),
        (["--schedule.lr", "3", "--schedule.lr.x", "3"], "--schedule.lr.x: 'lr' was already given a value"),
    ],
)
def test_arguments_that_are_no_overrides(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_overrides(arguments)


def test_overrides_on_a_finished_configuration() -> None:
    before = load_config(preset="tiny")
    after, given_map = apply_overrides(before, ["--curriculum.stages.1.measure", "samples", "--schedule.lr=1e-2"])
    assert given_map == {"curriculum": {"stages": {"1": {"measure": "samples"}}}, "schedule": {"lr": 1e-2}}
    assert after.curriculum.stages[1].measure == "samples"
    assert after.curriculum.stages[0] == before.curriculum.stages[0]
    assert before == load_config(preset="tiny")


# -- files ---------------------------------------------------------------------------------------------------------------


def test_a_file_is_laid_over_its_base_and_overrides_over_both(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "base.yaml", "preset: tiny\nschedule: {lr: 1e-2, warmup_steps: 3}\ndata: {sources: {a: x, b: y}}\n")
    file = write(tmp_path / "sub" / "run.yaml", "base: ../base.yaml\nschedule: {lr: 2e-2}\ndata: {sources: {c: z}}\n")
    config = load_config(file=file, overrides=["--schedule.seed", "7"])
    assert (config.schedule.lr, config.schedule.warmup_steps, config.schedule.seed) == (2e-2, 3, 7)
    assert config.model == load_config(preset="tiny").model
    assert config.data.sources == {"c": "z"}, "a map of sources replaces the one before"
    over_preset = load_config(preset="vlm_1b", file=write(tmp_path / "only.yaml", "schedule: {lr: 1}"))
    assert over_preset.schedule.lr == 1.0
    assert over_preset.model == load_config(preset="vlm_1b").model


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load_config(file=write(tmp_path / "empty.yaml", "")) == RunConfig()


def test_bases_that_go_round_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "base: b.yaml")
    write(tmp_path / "b.yaml", "base: a.yaml")
    with pytest.raises(ConfigError, match=r"a\.yaml: `base` goes round in a circle through .*a\.yaml -> .*b\.yaml"):
        read_config_file(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: gone.yaml", r"gone\.yaml: cannot be read: No such file"),
        ("preset: tiny\nbase: x.yaml", r"run\.yaml: give `preset` or `base`, not both"),
        ("- a", r"run\.yaml: expected a map of sections at the top"),
        ("a: [", r"run\.yaml: not valid YAML"),
        ("preset: tinny", "preset 'tinny' is not known; did you mean 'tiny'"),
        ("schedule: 3", "schedule: expected a map of fields, got 3"),
    ],
)
def test_files_that_cannot_be_used_are_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(file=write(tmp_path / "run.yaml", text))
