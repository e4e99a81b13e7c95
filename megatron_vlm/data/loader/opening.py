"""What a spec says, opened in this process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.pictures import PicturesConfig
from megatron_vlm.data.decoding.decoder import open_decoder, resolve_decoder
from megatron_vlm.data.documents import DocumentSource
from megatron_vlm.data.kept_features.feature_reader import FeatureReader
from megatron_vlm.data.loader.messages import MakerSpec
from megatron_vlm.data.loader.span_source import SourcePlace, SpanReader
from megatron_vlm.data.micro_batch_arrays import ArrayMaker


def maker_spec(
    sources: Mapping[str, DocumentSource],
    tokens: TokenCounts,
    decode_pictures: bool,
    pictures: PicturesConfig,
    pixel_mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
    features: Mapping[str, str] | None = None,
) -> MakerSpec:
    """Of the sources that a run has opened, by name, in the order of the spans' numbers. `features` as `data.features`."""

    def place(name: str, source: DocumentSource) -> SourcePlace:
        # another process may have another working folder
        kept = (features or {}).get(name)
        return SourcePlace(name, str(source.reader.prefix.absolute()), str(Path(kept).absolute()) if kept else "")

    places = tuple(place(name, source) for name, source in sources.items())
    return MakerSpec(places, tokens, decode_pictures, resolve_decoder(pictures), pixel_mean)


def open_maker(spec: MakerSpec) -> ArrayMaker:
    """Raises DataError where a dataset, or a file of features, is gone or damaged."""
    sources = [SpanReader(place, spec.tokens) for place in spec.sources]
    if not spec.decode_pictures:
        return ArrayMaker(sources, spec.tokens, None)
    features = [FeatureReader(s.place.features, s.reader) if s.place.features else None for s in sources]
    return ArrayMaker(sources, spec.tokens, open_decoder(spec.pictures, spec.pixel_mean), features)
