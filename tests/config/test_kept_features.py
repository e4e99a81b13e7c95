"""Which stages read features, and what those are compared by."""

from __future__ import annotations

import pytest

from megatron_vlm.config.checks import problems
from megatron_vlm.config.kept_features import feature_settings, stages_that_decode, stages_with_features
from megatron_vlm.config.loading import load_config
from megatron_vlm.config.run import RunConfig

SOURCES = "{text: a, captions: b}"


def config(*freezes: str, **fields: str) -> RunConfig:
    stages = ", ".join(
        f"{{name: s{n}, until: {(n + 1) / len(freezes)}, sources: {{text: 1, captions: 1}}, freeze: {freeze}}}"
        for n, freeze in enumerate(freezes)
    )
    given = {"curriculum.stages": f"[{stages}]", "data.sources": SOURCES, "data.features": "{captions: f}"}
    given |= {"schedule.train_steps": "60", "data.tokenizer": "t", **{k.replace("__", "."): v for k, v in fields.items()}}
    return load_config(preset="tiny", overrides=[f"--{name}={value}" for name, value in given.items()])


@pytest.mark.parametrize(
    ("freezes", "reads"),
    [
        (["[vision]"], [True]),
        (["[]"], [False]),
        (["[vision, projector]", "[vision]", "[]", "[vision]"], [True, True, False, False]),
        (["[vision.]", "[projector]"], [True, False]),
        (["[vision.decoder]"], [False]),
        (["[language, projector]"], [False]),
    ],
)
def test_stages_read_until_the_encoder_is_trained(freezes: list[str], reads: list[bool]) -> None:
    made = config(*freezes)
    assert list(stages_with_features(made)) == reads
    assert [bool(segment.shape.features) for segment in made.segments] == reads
    assert stages_that_decode(made) == [f"s{n}" for n, read in enumerate(reads) if not read]
    assert not any(stages_with_features(config(*freezes, data__features="{}")))


def test_numbers_of_a_row_are_those_of_all_patches_that_become_one() -> None:
    assert config("[vision]").shape_of(0).features == 2 * 2 * 128
    assert config("[vision]", model__projector__pixel_shuffle="1").shape_of(0).features == 128
    two = "{kind: siglip, patch_size: 16, num_layers: 1, hidden_size: 32}"
    assert config("[vision]", model__vision_second=two).shape_of(0).features == 4 * 160


def test_settings_that_change_no_feature_are_not_compared() -> None:
    base = feature_settings(config("[vision]"), 64, 2)
    assert feature_settings(config("[vision]", model__vision__ffn_hidden_size="512"), 64, 2) == base
    assert feature_settings(config("[vision]", data__pictures__padding="grey"), 64, 4) == base
    assert feature_settings(config("[vision]", model__language__hidden_size="256"), 64, 2) == base
    for field, value in (
        ("model__vision__pixel_mean", "[0.4, 0.5, 0.5]"),
        ("model__vision__skip_last_layers", "1"),
        ("model__projector__pixel_shuffle", "1"),
        ("data__pictures__resize", "letterbox"),
        ("model__vision_second", "{patch_size: 16}"),
    ):
        assert feature_settings(config("[vision]", **{field: value}), 64, 2) != base, field
    assert feature_settings(config("[vision]"), 32, 2) != base
    native = config("[vision]", data__pictures__resize="native")
    assert feature_settings(native, 64, 2) != feature_settings(native, 64, 4)


def test_features_of_no_source_are_refused() -> None:
    wrong = config("[vision]", data__features="{caption: f}")
    assert "data.features.caption: not one of data.sources (text, captions); leave it out" in list(problems(wrong, 1))
