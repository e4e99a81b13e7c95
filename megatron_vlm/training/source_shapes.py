"""The shapes of a run's sources, read from their datasets or assumed, for plans. Nothing here imports torch."""

from __future__ import annotations

from pathlib import Path

from megatron_vlm.config.picture_rows import PictureRows
from megatron_vlm.config.run import RunConfig
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.sequence_facts import open_sequence_facts
from megatron_vlm.data.source_totals import count_dataset, source_totals
from megatron_vlm.errors import DataError
from megatron_vlm.planning.source_shares import SourceShape


def read_shapes(
    config: RunConfig, assumed: dict[str, tuple[float, float]]
) -> tuple[dict[PictureRows, dict[str, SourceShape]], list[str]]:
    """For every size of picture in the run, the shape of each source that a stage reads; and what could not be read."""
    rows = list(dict.fromkeys(segment.shape.picture for segment in config.segments))
    shapes: dict[PictureRows, dict[str, SourceShape]] = {picture: {} for picture in rows}
    notes = []
    for name, prefix in config.data.sources.items():
        if name in assumed:
            words, pictures = assumed[name]
            for picture in rows:  # one whose aspect is kept is taken for the largest
                positions = max(1.0, words + pictures * picture.most - 1)
                shapes[picture][name] = SourceShape(positions, min(1.0, pictures * picture.most / positions))
            notes.append(
                f"{name}: assumed to have {words:g} tokens and {pictures:g} pictures a document; repeats are unknown"
            )
            continue
        try:
            if not prefix:
                raise DataError(f"no dataset is given (--data.sources.{name} PREFIX)")
            reader = IndexedReader(Path(prefix))
            counted, facts = count_dataset(reader), open_sequence_facts(prefix, reader.sequence_count)
            for picture in rows:
                totals = source_totals(counted, reader, facts, picture)
                if totals.positions:
                    visual = totals.visual / totals.positions
                    shapes[picture][name] = SourceShape(totals.positions / totals.documents, visual, totals.positions)
        except DataError as error:
            notes.append(f"{name} is planned without repeats and pictures: {error}")
            continue
        if name not in shapes[rows[0]]:
            notes.append(f"{name} is planned without repeats: {prefix} holds no document of two or more tokens")
    return shapes, notes
