"""Decoding JPEGs by NVIDIA DALI, many at a time, on a GPU or the CPU; all else by Pillow.

The path through a GPU was written by DALI's documentation and run by nobody yet; on the CPU it was compared with the other
decoders. DALI has no decoding at a fraction of a JPEG's size, so large ones differ from what the others make of them by more
than rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_vlm.config.pictures import Resize
from megatron_vlm.data.decoding.canvas import GREY, Canvas, Canvases, Colour, lay_scaled
from megatron_vlm.data.decoding.pillow_decoder import PillowDecoder
from megatron_vlm.data.decoding.placement import Placement, place
from megatron_vlm.data.encoded_pictures.jpeg_segments import colour_components
from megatron_vlm.data.encoded_pictures.picture_header import MAX_PIXELS, PictureHeader, inspect

#: pictures of one run of the pipeline; more are decoded in turn
BATCH = 64


class DaliDecoder:
    """See `megatron_vlm.data.decoding.decoder.Decoder`.

    Pictures that are no JPEG, of print's colours, or not whole by their structure go to Pillow at once. Where DALI raises,
    which it does for a batch, each of its pictures is tried alone and those that fail are Pillow's: what a picture looks
    like does not depend on its neighbours.

    Raises:
        ImportError: DALI is not installed.
    """

    name = "dali"

    def __init__(self, resize: Resize, padding: Colour = GREY, *, threads: int = 1, gpu: int | None = None) -> None:
        self.resize, self.padding = resize, padding
        self._threads, self._gpu = threads, gpu
        self._others = PillowDecoder(resize, padding)
        self._pipeline: Any = self._build()

    def decode(self, encoded: Sequence[bytes], out: Canvases) -> dict[int, str]:
        placements = {
            number: placement
            for number, (data, canvas) in enumerate(zip(encoded, out, strict=True))
            if (placement := self._placement(data, canvas)) is not None
        }
        left = set(range(len(encoded))) - placements.keys()
        numbers = list(placements)
        for first in range(0, len(numbers), BATCH):
            left |= self._decode(numbers[first : first + BATCH], encoded, placements, out)
        found = ((number, self._others.decode_one(encoded[number], out[number])) for number in sorted(left))
        return {number: reason for number, reason in found if reason is not None}

    def _placement(self, encoded: bytes, out: Canvas) -> Placement | None:
        header = inspect(encoded, MAX_PIXELS)
        if not isinstance(header, PictureHeader) or header.format != "jpeg" or colour_components(encoded) == 4:
            return None
        return place(self.resize, header.shown_size, out.shape[:2])

    def _decode(
        self, numbers: list[int], encoded: Sequence[bytes], placements: dict[int, Placement], out: Canvases
    ) -> set[int]:
        """Pictures by number into their canvases; those that DALI does not decode."""
        try:
            decoded = self._run([encoded[n] for n in numbers], [placements[n] for n in numbers])
        except RuntimeError:  # the pipeline is of no more use after it
            self._pipeline = self._build()
            if len(numbers) == 1:
                return set(numbers)
            return set().union(*(self._decode([number], encoded, placements, out) for number in numbers))
        for number, pixels in zip(numbers, decoded, strict=True):
            lay_scaled(pixels, placements[number], self.padding, out[number])
        return set()

    def _run(self, encoded: list[bytes], placements: list[Placement]) -> list[npt.NDArray[np.uint8]]:
        """uint8 `[height, width, 3]` each, of the size that its placement says."""
        boxes = np.array([p.box for p in placements], np.float32)
        self._pipeline.feed_input("encoded", [np.frombuffer(data, np.uint8) for data in encoded])
        self._pipeline.feed_input("begin", list(boxes[:, [1, 0]]))  # DALI counts rows first
        self._pipeline.feed_input("end", list(boxes[:, [3, 2]]))
        self._pipeline.feed_input("size", [np.array(p.scaled, np.float32) for p in placements])
        (made,) = self._pipeline.run()
        if self._gpu is not None:
            made = made.as_cpu()
        return [np.asarray(made.at(number)) for number in range(len(encoded))]

    def _build(self) -> Any:
        from nvidia.dali import Pipeline, fn, types

        # one batch in, the same batch out: nothing runs ahead of what was fed
        pipeline = Pipeline(
            batch_size=BATCH,
            num_threads=self._threads,
            device_id=self._gpu,
            prefetch_queue_depth=1,
            exec_pipelined=False,
            exec_async=False,
        )
        with pipeline:
            data = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
            begin, end, size = (
                fn.external_source(name=name, dtype=types.FLOAT, ndim=1) for name in ("begin", "end", "size")
            )
            # EXIF's orientation is applied by the decoder; "mixed" takes bytes of the host and gives pixels on the GPU
            pictures = fn.decoders.image(
                data,
                device="cpu" if self._gpu is None else "mixed",
                output_type=types.RGB,
                adjust_orientation=True,
                jpeg_fancy_upsampling=True,
            )
            pipeline.set_outputs(
                fn.resize(
                    pictures,
                    size=size,
                    roi_start=begin,
                    roi_end=end,
                    interp_type=types.INTERP_CUBIC,
                    antialias=True,
                )
            )
        pipeline.build()
        return pipeline
