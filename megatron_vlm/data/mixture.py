"""What a stage owes to each source: shares of tokens, of visual tokens or of samples, exact in integers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_vlm.config.curriculum import CurriculumConfig, Measure
from megatron_vlm.config.picture_rows import PictureRows
from megatron_vlm.data.documents import DocumentSource
from megatron_vlm.errors import ConfigError
from megatron_vlm.ops.pack_order import WHOLE_SHARE

Integers = npt.NDArray[np.int64]

#: a source without a share is never away from it
_NO_PACK = 1e30
_STEPS_OF_A_RAMP = 32


def _whole(parts: Mapping[str, float], total: int = WHOLE_SHARE) -> dict[str, int]:
    """Parts of `total` in proportion, whole numbers that sum to it: the greatest takes what rounding leaves."""
    weight = sum(parts.values())
    if weight <= 0:
        return dict.fromkeys(parts, 0)
    shares = {name: int(part / weight * total) for name, part in parts.items()}
    shares[max(parts, key=lambda name: parts[name])] += total - sum(shares.values())
    return shares


@dataclass(frozen=True)
class Amounts:
    """What m packs give to the s sources of the run, in their order: int64[m, s] each."""

    positions: Integers
    visual: Integers
    documents: Integers


class Mixture:
    """The shares of one stage over the sources of the run, in the order in which the run names them.

    Where shares are of tokens, a source gets its share of the positions that packs fill; of samples, of the documents that
    begin in them; of visual tokens, a source with pictures gets such a number of positions that its pictures take their
    share of all that is filled, and the sources without share what is left by their weights.

    Args:
        curriculum, stage: the stage by number.
        sources: of the run.
        image_tokens: positions of a picture in this stage, one number or by its shape.
        exhausted: sources that give nothing more: the others take their shares in proportion.

    Raises:
        ConfigError: a share of visual tokens that the sources' captions make unreachable, at any point of a ramp.
    """

    def __init__(
        self,
        curriculum: CurriculumConfig,
        stage: int,
        sources: Mapping[str, DocumentSource],
        image_tokens: int | PictureRows,
        exhausted: Collection[str] = (),
    ) -> None:
        self.curriculum, self.stage, self.sources, self.image_tokens = curriculum, stage, sources, image_tokens
        self.config = curriculum.stages[stage]
        self.measure: Measure = self.config.measure
        self.exhausted = frozenset(exhausted)
        self.names = list(sources)
        weights = [curriculum.weights(stage, at / _STEPS_OF_A_RAMP) for at in range(_STEPS_OF_A_RAMP + 1)]
        active = {name for chosen in weights for name, weight in chosen.items() if weight > 0} - self.exhausted
        #: sources that the stage takes anything from, in the order of the run
        self.active = [name for name in self.names if name in active]
        self.visual = [name for name in self.active if self.measure == "visual_tokens" and sources[name].has_pictures]
        self.mean_positions = {name: sources[name].mean_positions(image_tokens) for name in self.active}
        self.visual_share = {name: sources[name].visual_share(image_tokens) for name in self.active}
        for chosen in weights if self.config.ramp != "constant" else weights[-1:]:
            self._check_reachable(chosen)

    # -- shares ----------------------------------------------------------------------------------------------------

    def _weights(self, progress: float) -> dict[str, float]:
        weights = self.curriculum.weights(self.stage, progress)
        return {name: max(0.0, weights.get(name, 0.0)) for name in self.active}

    def _visual_weights(self, weights: Mapping[str, float], progress: float) -> dict[str, float]:
        """Shares of visual tokens; those of exhausted sources go to the others with pictures, as far as they reach."""
        shares = {name: weights[name] for name in self.visual}
        lost = [n for n in self.exhausted if n in self.sources and self.sources[n].has_pictures]
        planned = self.curriculum.weights(self.stage, progress)
        owed = sum(planned.get(name, 0.0) for name in lost)
        total = sum(shares.values())
        if owed and total:
            most = total / sum(share / self.visual_share[name] for name, share in shares.items())
            factor = min(total + owed, most) / total
            shares = {name: share * factor for name, share in shares.items()}
        return shares

    def shares(self, progress: float) -> dict[str, int]:
        """Shares in parts of WHOLE_SHARE where `progress` (0 to 1) of the stage is done."""
        weights = self._weights(progress)
        if self.measure != "visual_tokens":
            return _whole(weights)
        visual = {n: round(share * WHOLE_SHARE) for n, share in self._visual_weights(weights, progress).items()}
        rest = {name: weights[name] for name in self.active if name not in self.visual}
        return {**visual, **_whole(rest)}

    def shares_at(self, progress: npt.NDArray[np.float64]) -> Integers:
        """int64[m, s]: shares at m places of the stage."""
        table = np.zeros((len(progress), len(self.names)), np.int64)
        if self.config.ramp == "constant":
            progress = progress[:1]
        rows = [[shares.get(name, 0) for name in self.names] for shares in map(self.shares, progress.tolist())]
        if rows:
            table[:] = np.array(rows, np.int64)
        return table

    # -- accounts --------------------------------------------------------------------------------------------------

    def amounts(self, packs: Amounts) -> Integers:
        """int64[m, s]: what each pack gives, in the measure of each source."""
        if self.measure == "samples":
            return packs.documents
        given = packs.positions.copy()
        for name in self.visual:
            place = self.names.index(name)
            given[:, place] = packs.visual[:, place]
        return given

    def bases(self, packs: Amounts) -> Integers:
        """int64[m, s]: that of which each source has its share."""
        if self.measure == "samples":
            return np.repeat(packs.documents.sum(axis=1)[:, None], len(self.names), axis=1)
        filled = packs.positions.sum(axis=1)
        bases = np.repeat(filled[:, None], len(self.names), axis=1)
        if self.visual:
            places = [self.names.index(name) for name in self.visual]
            rest = filled - packs.positions[:, places].sum(axis=1)
            for place in range(len(self.names)):
                if place not in places:
                    bases[:, place] = rest
        return bases

    def positions_of_one(self, name: str) -> float:
        """Positions that one unit of the source's measure stands for, on average."""
        if self.measure == "samples":
            return self.mean_positions[name]
        return 1 / self.visual_share[name] if name in self.visual else 1.0

    def pack_of(self, capacity: int) -> npt.NDArray[np.float64]:
        """float64[s]: a pack of each source in its measure; for samples the documents of a pack on average, at least one."""
        if self.measure == "samples":
            weights = self._weights(1.0)
            mean = sum(w * self.mean_positions[n] for n, w in weights.items()) / max(1e-300, sum(weights.values()))
            each = max(1.0, capacity / mean) if mean else 1.0
            return np.array([each if name in self.active else _NO_PACK for name in self.names])
        return np.array([capacity / self.positions_of_one(name) if name in self.active else _NO_PACK for name in self.names])

    # -- visual tokens ---------------------------------------------------------------------------------------------

    def planned_visual_share(self, progress: float) -> float:
        """The share of filled positions that pictures take, there."""
        weights = self._weights(progress)
        if self.measure == "visual_tokens":
            return sum(self._visual_weights(weights, progress).values())
        if self.measure == "samples":
            weights = {name: weight * self.mean_positions[name] for name, weight in weights.items()}
        total = sum(weights.values())
        return sum(w * self.visual_share[name] for name, w in weights.items()) / total if total else 0.0

    def _check_reachable(self, weights: Mapping[str, float]) -> None:
        shares = {name: weights.get(name, 0.0) for name in self.visual}
        rest = any(weights.get(name, 0.0) > 0 for name in self.active if name not in self.visual)
        needed = sum(share / self.visual_share[name] for name, share in shares.items())
        if self.exhausted or not sum(shares.values()):
            return
        if needed > 1 + 1e-9 or (not rest and needed < 1 - 1e-9):
            most = sum(shares.values()) / needed
            how = "at most" if needed > 1 else "exactly, with no other source to fill the rest,"
            raise ConfigError(
                f"curriculum stage {self.config.name!r}: a visual-token share of {sum(shares.values()):g} cannot be "
                f"reached, since only part of these documents is pictures; {how} {most:.3f} can"
            )
