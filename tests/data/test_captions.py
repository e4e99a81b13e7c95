"""Choosing among captions: stable, spread evenly, and deaf to everything but seed and key."""

from __future__ import annotations

from collections import Counter

from megatron_vlm.data.captions import CaptionChoice, choose_captions

CAPTIONS = ("a", "b", "c", "d")


def test_first_and_all() -> None:
    assert choose_captions(CAPTIONS, CaptionChoice.FIRST, 0, "k") == ("a",)
    assert choose_captions(CAPTIONS, CaptionChoice.ALL, 0, "k") == CAPTIONS
    assert choose_captions(("x",), CaptionChoice.SAMPLE, 0, "k") == ("x",)


def test_sample_is_spread_over_keys_and_changes_with_the_seed() -> None:
    def draw(seed: int) -> list[str]:
        return [choose_captions(CAPTIONS, CaptionChoice.SAMPLE, seed, f"{key:09d}")[0] for key in range(4000)]

    counts = Counter(draw(0))
    # 1000 expected each, standard deviation 27
    assert all(850 < counts[caption] < 1150 for caption in CAPTIONS)
    same = sum(a == b for a, b in zip(draw(0), draw(1), strict=True))
    assert 850 < same < 1150


def test_sample_never_changes_between_versions() -> None:
    """A dataset made again must have the captions that it had."""
    drawn = [choose_captions(CAPTIONS, CaptionChoice.SAMPLE, 7, str(key))[0] for key in range(8)]
    assert "".join(drawn) == "caddbbdc"
