"""How pictures become pixels: the decoder, the way into the encoder's square, and what becomes of broken ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: libraries that decode, and `auto`
DecoderName = Literal["auto", "dali", "simplejpeg", "pillow"]
#: how a picture of any shape comes into the encoder's square, see PicturesConfig.resize
Resize = Literal["squash", "centre_crop", "letterbox", "native"]
#: what a picture that does not decode does to its document, see PicturesConfig.broken
BrokenPolicy = Literal["text", "skip", "stop"]


@dataclass(frozen=True)
class PicturesConfig:
    #: what decodes: NVIDIA DALI, simplejpeg (libjpeg-turbo; others than JPEG go to Pillow) or Pillow. auto: simplejpeg
    #: where it is installed, else Pillow. A run says which it took and keeps its name in checkpoints
    decoder: DecoderName = "auto"
    #: squash: both sides to the encoder's. centre_crop: the short side to it, the middle is kept. letterbox: the long side
    #: to it, the rest is padded. native: aspect kept, as many patches as the picture has pixels for and at most those
    #: of the square of image_size; datasets must say how large their pictures are, as those of `preprocess` do
    resize: Resize = "squash"
    #: colour beside a letterboxed picture: the mean that the encoder subtracts, so that padding is zeros to it, or mid-grey
    padding: Literal["mean", "grey"] = "mean"
    #: a picture that does not decode during training. text: the text around it is learnt without it, what stood on each side
    #: as a document of its own. skip: its document is not learnt. stop: the run ends and names it
    broken: BrokenPolicy = "text"
