"""Packed attention on the host is the attention of each document alone, with its gradients; norms are tagged."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_vlm.models.context_row import ContextRow, cut_row
from megatron_vlm.models.host_layers import (
    DocumentGroups,
    HostAttention,
    HostGainLayerNorm,
    HostLayerNorm,
    HostRMSNorm,
    document_groups,
)
from megatron_vlm.models.language import packed_row

HEADS, GROUPS, SIZE = 8, 2, 8
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def _config(**fields: object) -> TransformerConfig:
    shape = {"num_layers": 1, "hidden_size": HEADS * SIZE, "num_attention_heads": HEADS, "num_query_groups": GROUPS}
    return TransformerConfig(**shape, attention_dropout=0.0, use_cpu_initialization=True, **fields)


def _attention(causal: bool) -> HostAttention:
    return HostAttention(_config(), 1, AttnMaskType.causal if causal else AttnMaskType.no_mask, "self")


def _row(lengths: list[int], seed: int = 5, size: int = SIZE) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(sum(lengths), n, size, generator=generator).requires_grad_() for n in (HEADS, GROUPS, GROUPS)]


def _borders(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def _document_by_document(tensors: list[Tensor], lengths: list[int], causal: bool) -> Tensor:
    """`[t, heads * size]`, keys and values repeated for the query heads that share them."""
    outputs = []
    for query, key, value in zip(*(t.split(lengths) for t in tensors), strict=True):
        key, value = (t.repeat_interleave(HEADS // GROUPS, dim=1) for t in (key, value))
        q, k, v = (t.transpose(0, 1).unsqueeze(0) for t in (query, key, value))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        outputs.append(out[0].transpose(0, 1).flatten(1))
    return torch.cat(outputs)


@pytest.mark.parametrize("causal", [True, False])
@settings(max_examples=40)
@given(lengths=LENGTHS)
def test_packed_is_each_document_alone(causal: bool, lengths: list[int]) -> None:
    ours, theirs = _row(lengths), _row(lengths)
    packed = _attention(causal)(*ours, None, packed_seq_params=packed_row(_borders(lengths), max(lengths)))
    alone = _document_by_document(theirs, lengths, causal)
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-6)
    weight = torch.randn(packed.shape, generator=torch.Generator().manual_seed(1))
    (packed * weight).sum().backward()
    (alone * weight).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-5)


def test_indices_lie_where_the_rows_do() -> None:
    """On a GPU an index on the CPU would be refused."""
    lengths, meta = [5, 9, 2], torch.device("meta")
    pieces = cut_row(lengths, 4)
    row = ContextRow(pieces=(pieces[1], pieces[2]))
    query, key, value = (t.to(meta) for t in _row([8 + 16]))
    out = _attention(True)._attend_pieces(query[:8], key[:16], value[:16], row)
    assert (out.device, out.shape) == (meta, (8, HEADS * SIZE))
    made = [document_groups(packed_row(_borders(lengths), max(lengths)), True, meta)]
    made += [piece.__dict__["_groups"] for piece in row.pieces if "_groups" in piece.__dict__]
    assert len(made) == 2
    for groups in made:
        assert {groups.inverse.device, *(index.device for index, _, _ in groups.groups)} == {meta}


@settings(max_examples=60)
@given(lengths=LENGTHS, causal=st.booleans())
def test_every_position_has_its_place_in_one_group(lengths: list[int], causal: bool) -> None:
    plan = DocumentGroups(_borders(lengths), causal)
    gathered = torch.cat([index for index, _, _ in plan.groups])
    assert torch.equal(gathered[plan.inverse], torch.arange(sum(lengths)))
    for index, width, count in plan.groups:
        assert index.numel() == width * count
    wasted = gathered.numel() - sum(lengths)
    assert wasted == 0 if not causal else wasted < sum(lengths) / 2


def test_a_border_of_an_empty_document_changes_nothing() -> None:
    plain = DocumentGroups(torch.tensor([0, 3, 7]), causal=True)
    with_empty = DocumentGroups(torch.tensor([0, 3, 3, 7, 7]), causal=True)
    assert torch.equal(plain.inverse, with_empty.inverse)


@pytest.mark.parametrize("causal", [True, False])
def test_unpacked_rows(causal: bool) -> None:
    """`[s, b, heads, size]`, each of the batch alone."""
    rows = [_row([9], seed) for seed in (1, 2)]
    query, key, value = (torch.stack(parts, dim=1) for parts in zip(*rows, strict=True))
    out = _attention(causal)(query, key, value, None)
    assert out.shape == (9, 2, HEADS * SIZE)
    for number, row in enumerate(rows):
        torch.testing.assert_close(out[:, number], _document_by_document(row, [9], causal), rtol=1e-5, atol=1e-6)


def test_a_mask_hides_what_it_marks() -> None:
    query, key, value = (t.unsqueeze(1) for t in _row([6]))
    hidden = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    hidden[..., 4:] = True
    out = _attention(causal=False)(query, key, value, hidden)
    key, value = key.detach().clone(), value.detach().clone()
    key[4:], value[4:] = 50.0, -50.0
    torch.testing.assert_close(out, _attention(causal=False)(query, key, value, hidden), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [HostRMSNorm, HostLayerNorm, HostGainLayerNorm])
@pytest.mark.parametrize("parallel", [True, False])
def test_norms_carry_the_sequence_parallel_tag_and_the_parameters_dtype(kind: type, parallel: bool) -> None:
    split = {"sequence_parallel": True, "tensor_model_parallel_size": 2} if parallel else {}
    norm = kind(_config(params_dtype=torch.bfloat16, bf16=True, **split), 16, eps=1e-3)
    assert norm.eps == 1e-3
    assert [p.sequence_parallel for p in norm.parameters()] == [parallel] * len(list(norm.parameters()))
    assert {p.dtype for p in norm.parameters()} == {torch.bfloat16}
    assert len(list(norm.parameters())) == (2 if kind is HostLayerNorm else 1)
