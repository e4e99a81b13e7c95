"""What a run says of pictures that do not decode."""

from __future__ import annotations

import json

from megatron_vlm.data.broken_pictures import BrokenPicture, log_line, metrics_record, refuse

PREFIXES = ["data/text", "data/captions"]
BROKEN = BrokenPicture(source=1, document=30, sequence=61, picture=2, reason="cut short")


def test_the_line_names_dataset_document_reason_and_consequence() -> None:
    assert log_line(BROKEN, PREFIXES, 7, "text").split("; ") == [
        "step 7: data/captions, document 30: the picture does not decode (cut short)",
        "the text around it is learnt without it",
    ]
    assert log_line(BROKEN, PREFIXES, 7, "skip").endswith("; its document is not learnt")


def test_the_record_is_the_same_in_every_layout() -> None:
    record = metrics_record([BROKEN], PREFIXES, 7, "skip")
    picture = {"source": "data/captions", "document": 30, "sequence": 61, "reason": "cut short"}
    assert record == {"kind": "broken_pictures", "step": 7, "count": 1, "policy": "skip", "pictures": [picture]}
    assert json.loads(json.dumps(record)) == record
    elsewhere = BrokenPicture(source=1, document=30, sequence=61, picture=0, reason="cut short")
    assert metrics_record([elsewhere], PREFIXES, 7, "skip") == record


def test_the_refusal_names_the_remedy() -> None:
    assert str(refuse(BROKEN, PREFIXES)).startswith("data/captions, document 30: the picture does not decode (cut short)")
    assert "data.pictures.broken" in str(refuse(BROKEN, PREFIXES))
