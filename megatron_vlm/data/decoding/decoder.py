"""What decodes the pictures of a run: one interface, and the choice of the library behind it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from megatron_vlm.config.pictures import DecoderName, PicturesConfig
from megatron_vlm.config.run import RunConfig
from megatron_vlm.data.decoding.canvas import GREY, Canvases, Colour
from megatron_vlm.errors import ConfigError

#: decoder -> the module that it needs, and how one comes by it
LIBRARIES: dict[DecoderName, tuple[str, str]] = {
    "dali": ("nvidia.dali", "nvidia-dali-cuda120"),
    "simplejpeg": ("simplejpeg", "simplejpeg"),
    "pillow": ("PIL", "pillow"),
}
#: what `auto` takes, the first that is there. DALI has to be asked for: it decodes large JPEGs whole, so a run would see
#: other pixels for no other reason than that a container came with it
AUTOMATIC: tuple[DecoderName, ...] = ("simplejpeg", "pillow")


class Decoder(Protocol):
    """Encoded pictures onto canvases of the encoder's size.

    JPEG, PNG and WebP; turned upright as EXIF says, transparent pixels laid on white, resized as the run says. An instance
    belongs to one thread of one process, and is not to be carried over a fork.
    """

    @property
    def name(self) -> str: ...

    def decode(self, encoded: Sequence[bytes], out: Canvases) -> dict[int, str]:
        """Write each picture into its canvas.

        Args:
            encoded: the files' bytes.
            out: as many uint8 arrays `[height, width, 3]`, or one `[n, size, size, 3]`, in shared memory or not.
                Under `native` the caller gives each the size that `native_grid` says.

        Returns:
            number of a picture -> why it does not decode; its canvas is mid-grey. The same bytes give the same words.
        """
        ...


def resolve_decoder(settings: PicturesConfig) -> PicturesConfig:
    """`settings` with the name of the decoder in place of `auto`: what a run keeps and says.

    Raises:
        ConfigError: the decoder that is asked for is not installed.
    """
    if settings.decoder != "auto":
        module, package = LIBRARIES[settings.decoder]
        if not _installed(module):
            there = next(name for name in AUTOMATIC if _installed(LIBRARIES[name][0]))
            raise ConfigError(
                f"data.pictures.decoder: {settings.decoder} is not installed here; pip install {package}, or take {there}"
            )
        return settings
    chosen = next(name for name in AUTOMATIC if _installed(LIBRARIES[name][0]))
    return dataclasses.replace(settings, decoder=chosen)


def with_resolved_decoder(config: RunConfig) -> RunConfig:
    """The run's configuration with `resolve_decoder` done. Raises ConfigError as that does."""
    pictures = resolve_decoder(config.data.pictures)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, pictures=pictures))


def decoder_change(saved: Mapping[str, Any], settings: PicturesConfig) -> str | None:
    """What to tell of a run that goes on from the configuration `saved` in its checkpoint with another decoder; None where
    it is the same, or not known."""
    before = saved.get("data", {}).get("pictures", {}).get("decoder")
    if before in (None, "auto", settings.decoder):
        return None
    return (
        f"pictures were decoded by {before} and are now by {settings.decoder}, which rounds otherwise; to go on alike, give "
        f"--data.pictures.decoder {before}"
    )


def open_decoder(
    settings: PicturesConfig, pixel_mean: Sequence[float] = (0.5, 0.5, 0.5), *, threads: int = 1, gpu: int | None = None
) -> Decoder:
    """The decoder of a run in this process.

    Args:
        settings: `auto` is resolved, as `resolve_decoder` does.
        pixel_mean: of the encoder, three numbers from 0 to 1 (`model.vision.pixel_mean`).
        threads, gpu: for DALI alone: its threads, and the number of the GPU that decodes; None: the CPU.

    Raises:
        ConfigError: it is not installed.
    """
    settings = resolve_decoder(settings)
    padding = padding_colour(settings, pixel_mean)
    if settings.decoder == "dali":
        from megatron_vlm.data.decoding.dali_decoder import DaliDecoder

        return DaliDecoder(settings.resize, padding, threads=threads, gpu=gpu)
    if settings.decoder == "simplejpeg":
        from megatron_vlm.data.decoding.jpeg_decoder import JpegDecoder

        return JpegDecoder(settings.resize, padding)
    from megatron_vlm.data.decoding.pillow_decoder import PillowDecoder

    return PillowDecoder(settings.resize, padding)


def padding_colour(settings: PicturesConfig, pixel_mean: Sequence[float]) -> Colour:
    """The colour beside a letterboxed picture, in bytes."""
    if settings.padding == "grey":
        return GREY
    red, green, blue = (min(255, max(0, int(255 * mean + 0.5))) for mean in pixel_mean)
    return red, green, blue


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it would be in is not there
        return False
