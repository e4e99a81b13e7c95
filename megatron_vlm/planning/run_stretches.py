"""A run as stretches of steps that cost the same: one shape, one share of pictures, one set of frozen modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_vlm.config.picture_rows import PictureRows
from megatron_vlm.config.run import RunConfig
from megatron_vlm.config.steps import StepShape
from megatron_vlm.planning.curriculum_plan import CurriculumPlan, Piece
from megatron_vlm.planning.flops import BatchShape
from megatron_vlm.planning.source_shares import SourceShape


@dataclass(frozen=True)
class Stretch:
    """Steps of one shape.

    Attributes:
        name: of its stage.
        visual_share: of its positions, those that are pictures', a mean.
        document_length: positions of a document, a mean weighted by positions; None: packs are one document each.
    """

    name: str
    shape: StepShape
    steps: float
    visual_share: float = 0.0
    document_length: float | None = None
    frozen: tuple[str, ...] = ()

    @property
    def tokens_per_step(self) -> int:
        return self.shape.global_batch_size * self.shape.sequence_length

    def pictures(self, packs: int) -> float:
        """Of so many packs, a mean."""
        return self.visual_share * packs * self.shape.sequence_length / max(1, self.shape.image_tokens)

    def lengths(self, packs: int) -> tuple[int, ...]:
        """Documents of so many packs, all of the mean length and what is left of a pack."""
        length = self.shape.sequence_length
        mean = length if self.document_length is None else max(1, min(length, round(self.document_length)))
        whole, rest = divmod(length, mean)
        return ((mean,) * whole + ((rest,) if rest else ())) * packs

    def batch(self) -> BatchShape:
        """A whole step."""
        shape, packs = self.shape, self.shape.global_batch_size
        positions, pictures = packs * shape.sequence_length, round(self.pictures(packs))
        return BatchShape(positions, self.lengths(packs), pictures, shape.image_size, encoded=bool(shape.features))


def run_stretches(
    config: RunConfig, plan: CurriculumPlan, shapes: Mapping[PictureRows, Mapping[str, SourceShape]]
) -> list[Stretch]:
    """Of a run's plan. Pieces of a stage that are alike in shape become one stretch, with the mean of their shares.

    A share of pictures that the plan does not know is taken for 0.
    """
    groups: dict[StepShape, list[Piece]] = {}
    for piece in plan.pieces:
        groups.setdefault(piece.shape, []).append(piece)
    stretches = []
    for shape, pieces in groups.items():
        stage = config.curriculum.stages[shape.stage]
        tokens = sum(piece.tokens for piece in pieces)
        visual = sum((piece.shares.visual or 0.0) * piece.tokens for piece in pieces) / tokens
        steps = sum(piece.steps for piece in pieces)
        length = _document_length(pieces, shapes.get(shape.picture, {}))
        stretches.append(Stretch(stage.name, shape, steps, visual, length, tuple(stage.freeze)))
    return stretches


def _document_length(pieces: list[Piece], shapes: Mapping[str, SourceShape]) -> float | None:
    """Mean length that a position finds itself in; attention costs it as many keys again."""
    total = weighted = 0.0
    for piece in pieces:
        for source, share in piece.shares.sources.items():
            if source not in shapes:
                return None
            total += share * piece.tokens
            weighted += share * piece.tokens * shapes[source].mean_positions
    return weighted / total if total else None
