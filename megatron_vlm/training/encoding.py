"""Pictures of a whole step encoded by all ranks of the model-parallel group, before its first micro-batch.

Each rank has encoder and projector whole and takes a share of the pictures of all micro-batches; rows are gathered, and the
ranks of the first pipeline stage put them in their places. After the last micro-batch the gradients of the rows go back the
same way, and the ranks' gradients of the parameters are added up. So no stage carries the encoder alone.

Context-parallel ranks have the same micro-batches: their model-parallel groups share the pictures first, and the ranks of
each group its part. Each of them puts some of the rows into its part of the sequence, so gradients of a row are summed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core import parallel_state
from torch import Tensor

from megatron_vlm.data.micro_batch import MicroBatch
from megatron_vlm.data.picture_input import PictureInput
from megatron_vlm.models.vlm import VisionLanguageModel
from megatron_vlm.parallel.picture_shares import gather_rows, picture_shares, scatter_rows, sum_gradients, sum_rows


class StepEncoding:
    """One step's pictures: encoded when made, learnt from when `backward` is called, by every rank of the group alike.

    Attributes:
        rows: of each micro-batch, whole, on the first stage: a leaf `[image rows, h]`, or None without pictures.
    """

    def __init__(self, model: VisionLanguageModel, batches: Sequence[MicroBatch], first_stage: bool) -> None:
        self._model = model
        self._group = parallel_state.get_model_parallel_group()
        self._context = parallel_state.get_context_parallel_group()
        self.rows: list[Tensor | None] = [None] * len(batches)
        self._own: Tensor | None = None
        #: rows that each rank of the model-parallel group made, and each of the groups that share the pictures
        self._counts: list[int] = []
        self._context_counts: list[int] = []
        shown = [number for number, batch in enumerate(batches) if batch.pictures]
        if not shown:
            return
        self._learns = torch.is_grad_enabled() and bool(model.picture_parameters())
        for number in shown:
            batches[number].arrive()
        inputs = [batches[number].picture_input for number in shown]
        self._own = self._encode(PictureInput.joined([pictures for pictures in inputs if pictures is not None]))
        whole = gather_rows(self._own.detach(), self._counts, self._group)
        if not first_stage:
            return
        if self._context.size() > 1:
            whole = gather_rows(whole, self._context_counts, self._context)
        sizes = [batches[number].image_rows for number in shown]
        for number, part in zip(shown, whole.split(sizes), strict=True):
            self.rows[number] = part.detach().requires_grad_(self._learns)

    def _encode(self, shown: PictureInput) -> Tensor:
        """This rank's share of them."""
        groups = picture_shares(shown.costs, self._context.size())
        self._context_counts = [shown.rows_of(*share) for share in groups]
        ours = shown.part(*groups[self._context.rank()])
        shares = picture_shares(ours.costs, self._group.size())
        self._counts = [ours.rows_of(*share) for share in shares]
        mine = ours.part(*shares[self._group.rank()])
        if not mine.count:
            like = next(self._model.projector.parameters())  # type: ignore[union-attr]
            return like.new_empty(0, self._model.config.hidden_size)
        return self._model.encode_alone(mine)

    def backward(self) -> None:
        """After the last micro-batch: gradients of the rows to the ranks that made them, and into the parameters."""
        if self._own is None or not self._learns:
            return
        with torch.no_grad():
            whole: Tensor | None = None
            if self._group.rank() == 0:
                leaves = [rows for rows in self.rows if rows is not None]
                whole = torch.cat([torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves])
                if self._context.size() > 1:
                    whole = sum_rows(whole, self._context_counts, self._context)
            own = scatter_rows(whole, self._counts, self._own.detach(), self._group)
        if self._own.requires_grad:
            torch.autograd.backward(self._own, own)
        self._own = None
        self.rows = []

    def sum_gradients(self) -> None:
        """Before data-parallel ranks add up theirs."""
        sum_gradients(self._model.picture_parameters(), self._group)
