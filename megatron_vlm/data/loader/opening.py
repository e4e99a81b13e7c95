"""What a spec says, opened in this process."""

from __future__ import annotations

from collections.abc import Mapping

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.pictures import PicturesConfig
from megatron_vlm.data.decoding.decoder import open_decoder, resolve_decoder
from megatron_vlm.data.documents import DocumentSource
from megatron_vlm.data.loader.messages import MakerSpec
from megatron_vlm.data.loader.span_source import SourcePlace, SpanReader
from megatron_vlm.data.micro_batch_arrays import ArrayMaker


def maker_spec(
    sources: Mapping[str, DocumentSource],
    tokens: TokenCounts,
    decode_pictures: bool,
    pictures: PicturesConfig,
    pixel_mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
) -> MakerSpec:
    """Of the sources that a run has opened, by name, in the order of the spans' numbers."""
    # another process may have another working folder
    places = tuple(SourcePlace(name, str(source.reader.prefix.absolute())) for name, source in sources.items())
    return MakerSpec(places, tokens, decode_pictures, resolve_decoder(pictures), pixel_mean)


def open_maker(spec: MakerSpec) -> ArrayMaker:
    """Raises DataError where a dataset is gone or damaged."""
    sources = [SpanReader(place, spec.tokens) for place in spec.sources]
    decoder = open_decoder(spec.pictures, spec.pixel_mean) if spec.decode_pictures else None
    return ArrayMaker(sources, spec.tokens, decoder)
