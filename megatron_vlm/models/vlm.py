"""The vision-language model of one pipeline stage: encoder and projector on the first, or on all, language blocks on all."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import ModelType
from torch import Tensor

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.run import RunConfig
from megatron_vlm.data.picture_input import PictureInput
from megatron_vlm.models.block_options import language_options
from megatron_vlm.models.checkpoint_names import left_out
from megatron_vlm.models.context_row import ContextRow
from megatron_vlm.models.encoder_building import build_encoder
from megatron_vlm.models.language import LanguageModel, padded_vocab_size
from megatron_vlm.models.lora import add_lora
from megatron_vlm.models.picture_encoding import PictureEncoding
from megatron_vlm.models.projector import Projector
from megatron_vlm.models.specs import choose_layer_spec, language_block_spec
from megatron_vlm.models.transformer_configs import language_config, projector_config
from megatron_vlm.models.vision import VisionEncoder
from megatron_vlm.models.whole_encoder import groups_of_one, language_groups, mark_replicated, replicated_state


class VisionLanguageModel(PictureEncoding):
    """One model chunk. `pre_process` chunks hold the encoder, the projector and the embedding; `post_process` the head.
    Under `parallel.vision: data_all_stages` the first chunk of every stage has encoder and projector.

    A picture's rows take the place of its placeholders (already expanded in the token ids by the data path), so every
    shape is known before the model sees a batch. Rows of text and pictures alike attend causally.

    Nothing in it is of one stage's shape: length of rows, size of pictures and rows a picture come with each call.
    """

    def __init__(
        self,
        config: RunConfig,
        tokens: TokenCounts,
        device_type: str,
        pre_process: bool = True,
        post_process: bool = True,
        vp_stage: int | None = None,
    ) -> None:
        model, parallel = config.model, config.parallel
        spec = choose_layer_spec(config, device_type)
        options = language_options(config, spec, device_type)
        transformer = language_config(model, parallel, device_type, options)
        super().__init__(config=transformer)
        self.model_type = ModelType.encoder_or_decoder
        self.pre_process, self.post_process, self.vp_stage = pre_process, post_process, vp_stage
        self.share_embeddings_and_output_weights = not model.language.untie_embeddings
        self._language = model.language
        self.language_model = LanguageModel(
            config=transformer,
            transformer_layer_spec=language_block_spec(
                model.language, transformer, spec, vp_stage, parallel.context_parallel_size > 1
            ),
            vocab_size=padded_vocab_size(tokens.vocab_size, model.language.vocab_pad_multiple),
            max_sequence_length=max(s.sequence_length or config.data.sequence_length for s in config.curriculum.stages),
            pre_process=pre_process,
            post_process=post_process,
            share_embeddings_and_output_weights=self.share_embeddings_and_output_weights,
            position_embedding_type="rope",
            rotary_base=model.language.rotary_base,
            rotary_percent=model.language.rotary_percent,
            rope_scaling=model.language.rope_scaling_factor is not None,
            rope_scaling_factor=model.language.rope_scaling_factor or 1.0,
            embedding_scale=model.language.embedding_scale,
            # the fused embedding reduces and scatters by itself
            scatter_embedding_sequence_parallel=False,
            vp_stage=vp_stage,
            pg_collection=language_groups(),
            z_loss=config.optimizer.z_loss,
        )
        if model.lora.rank:
            add_lora(self.language_model.decoder, model.lora, gated=transformer.gated_linear_unit)
        self.vision: VisionEncoder | None = None
        self.projector: Projector | None = None
        self._placement, self._vision_width = parallel.vision, model.vision_width
        self._row_width = model.language.hidden_size
        if pre_process or (parallel.vision == "data_all_stages" and not vp_stage):
            groups = None if parallel.vision == "tensor" else groups_of_one()
            self.vision = build_encoder(config, device_type, groups, options)
            self.projector = Projector(
                model.projector,
                projector_config(model, parallel, device_type, options["gradient_accumulation_fusion"]),
                input_size=model.vision_width,
                output_size=model.language.hidden_size,
                groups=groups,
            )
            if groups is not None:
                mark_replicated(self.vision)
                mark_replicated(self.projector)

    @property
    def decoder(self) -> torch.nn.Module:
        """The language layers, where megatron-core's schedules and graphs look for them."""
        return self.language_model.decoder

    def leaves_out(self, name: str) -> bool:
        """Whether checkpoints are without this entry of `state_dict`, so that they are the same under every layer spec."""
        return left_out(name, self._language)

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """As megatron-core's, without what `leaves_out` names."""
        state: dict[str, Any] = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        if self._placement != "tensor":
            replicated_state(state, (f"{prefix}vision.", f"{prefix}projector."))
        return {name: value for name, value in state.items() if not self.leaves_out(name.removeprefix(prefix))}

    def set_input_tensor(self, input_tensor: Tensor) -> None:
        """Hidden states from the stage before, as megatron-core's schedules hand them over."""
        self.language_model.set_input_tensor(input_tensor)

    def shared_embedding_or_output_weight(self) -> Tensor:
        return self.language_model.shared_embedding_or_output_weight()

    def _decoder_input(
        self,
        tokens: Tensor,
        row_index: Tensor,
        pictures: PictureInput | None,
        rows: Tensor | None,
        context: dist.ProcessGroup | None,
    ) -> Tensor:
        if rows is None and pictures is not None:
            rows = self.encode_pictures(pictures, context)
        if rows is not None:
            rows = rows.to(self.language_model.embedding.word_embeddings.weight.dtype)
        x: Tensor = self.language_model.embed(tokens, rows, row_index)
        if self.config.recompute_granularity == "full" and self.training and not x.requires_grad and torch.is_grad_enabled():
            # what is computed again gets gradients only where its input asks for them, and words of a frozen embedding do
            # not (low-rank updates of its layers are trained all the same)
            x.requires_grad_(any(p.requires_grad for p in self.language_model.decoder.parameters()))
        return x

    def forward(
        self,
        tokens: Tensor,
        position_ids: Tensor,
        packed_seq_params: PackedSeqParams,
        labels: Tensor | None = None,
        row_index: Tensor | None = None,
        pictures: PictureInput | None = None,
        picture_rows: Tensor | None = None,
    ) -> Tensor:
        """One micro-batch: a row of packed documents, or this context-parallel rank's part of one.

        Args:
            tokens: int64 `[1, t]`, placeholders expanded.
            position_ids: int64 `[1, t]`, restarted a document.
            packed_seq_params: document borders (`packed_row`), or those of a part (`ContextRow`): t is then of the part, and
                pictures are those of the whole row, which its ranks share.
            labels: int64 `[1, t]`, or None for logits.
            row_index: int32 `[1, t]`, which row of the pictures stands at a position, -1 for words; needed on the first
                stage.
            pictures: those of the row, in reading order; used on the first stage only. Where they have fewer placeholders
                than the projector gives rows, means of squares of neighbouring ones are taken.
            picture_rows: `[image rows, h]`, of pictures that were encoded before; `pictures` are then not looked at.

        Returns:
            On the last stage the loss of each position `[1, t]`, or logits `[1, t, vocab / tp]` without labels; before it
            hidden states `[t, 1, h]` (`t / tp` under sequence parallelism).

        Raises:
            IndexError: on the CPU, a placeholder without a row or a word outside the vocabulary (`ops.fuse`).
            ValueError: pictures or placeholders that do not fit the encoder, as `encode_pictures`.
        """
        decoder_input = None
        if self.pre_process:
            assert row_index is not None
            context = packed_seq_params.group if isinstance(packed_seq_params, ContextRow) else None
            decoder_input = self._decoder_input(tokens, row_index, pictures, picture_rows, context)
        return self.language_model(
            input_ids=tokens,
            position_ids=position_ids,
            attention_mask=None,
            decoder_input=decoder_input,
            labels=labels,
            packed_seq_params=packed_seq_params,
        )
