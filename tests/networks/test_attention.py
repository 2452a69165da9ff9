"""Attention against a loop over heads and queries."""

import math

import pytest
import torch
from torch import Tensor

from dcamt.networks.attention import Attention, CrossAttention


def slow_attention(layer: Attention, tokens: Tensor, context: Tensor, size: int) -> Tensor:
    """One head, one query at a time."""
    out = torch.empty_like(tokens)
    for b in range(len(tokens)):
        q, k, v = layer.query(tokens[b]), layer.key(context[b]), layer.value(context[b])
        for n in range(tokens.shape[1]):
            heads = []
            for h in range(layer.heads):
                part = slice(h * size, (h + 1) * size)
                scores = [float(q[n, part] @ key[part]) / math.sqrt(size) for key in k]
                weights = [math.exp(s) for s in scores]
                mix = sum(w * row[part] for w, row in zip(weights, v, strict=True))
                heads.append(mix / sum(weights))
            out[b, n] = layer.out(torch.cat(heads))
    return out


@pytest.mark.parametrize(("heads", "size"), [(1, 4), (3, 2), (2, 8)])
@torch.no_grad()
def test_attention_equals_the_loop(heads: int, size: int) -> None:
    torch.manual_seed(0)
    layer = Attention(6, heads, size)
    tokens, context = torch.randn(2, 4, 6), torch.randn(2, 5, 6)
    expected = slow_attention(layer, tokens, context, size)
    torch.testing.assert_close(layer(tokens, context), expected, rtol=1e-5, atol=1e-6)


def test_parameters_at_the_papers_sizes() -> None:
    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(Attention(256, 8, 32)) == 263_168
    assert count(Attention(256, 4, 32)) == 131_712
    norms = 2 * 2 * 256
    assert count(CrossAttention(256, 8, 32, shared=True)) == 263_168 + norms
    assert count(CrossAttention(256, 4, 32, shared=False)) == 2 * 131_712 + norms


@pytest.mark.parametrize("shared", [True, False])
@torch.no_grad()
def test_each_branch_adds_what_it_reads_in_the_other(shared: bool) -> None:
    torch.manual_seed(0)
    exchange = CrossAttention(6, 2, 4, shared)
    for norm in (exchange.norm_teacher, exchange.norm_student):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    teacher, student = torch.randn(2, 6, 2, 1, 3), 3 * torch.randn(2, 6, 2, 1, 3)

    def tokens(features: Tensor, norm: torch.nn.Module) -> Tensor:
        voxels = [features[:, :, x, y, z] for x in range(2) for y in range(1) for z in range(3)]
        return norm(torch.stack(voxels, 1))

    def grid(rows: Tensor) -> Tensor:
        out = torch.empty(2, 6, 2, 1, 3)
        for n, (x, z) in enumerate((x, z) for x in range(2) for z in range(3)):
            out[:, :, x, 0, z] = rows[:, n]
        return out

    t, s = tokens(teacher, exchange.norm_teacher), tokens(student, exchange.norm_student)
    to_teacher = grid(slow_attention(exchange.to_teacher, t, s, 4))
    to_student = grid(slow_attention(exchange.to_student, s, t, 4))
    new_teacher, new_student = exchange(teacher, student)
    torch.testing.assert_close(new_teacher, teacher + to_teacher, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(new_student, student + to_student, rtol=1e-5, atol=1e-5)
    assert (exchange.to_teacher is exchange.to_student) == shared


@pytest.mark.parametrize("shared", [True, False])
def test_both_directions_get_a_gradient(shared: bool) -> None:
    torch.manual_seed(0)
    exchange = CrossAttention(6, 2, 4, shared)
    teacher = torch.randn(1, 6, 2, 2, 2, requires_grad=True)
    student = torch.randn(1, 6, 2, 2, 2, requires_grad=True)
    new_teacher, _ = exchange(teacher, student)
    (from_student,) = torch.autograd.grad(new_teacher.square().sum(), student)
    _, new_student = exchange(teacher, student)
    (from_teacher,) = torch.autograd.grad(new_student.square().sum(), teacher)
    assert from_student.abs().max() > 0
    assert from_teacher.abs().max() > 0


def test_channels_last_features_give_the_same() -> None:
    torch.manual_seed(0)
    exchange = CrossAttention(6, 2, 4, shared=False).eval()
    pair = torch.randn(2, 6, 2, 3, 4), torch.randn(2, 6, 2, 3, 4)
    laid_out = [f.to(memory_format=torch.channels_last_3d) for f in pair]
    for plain, last in zip(exchange(*pair), exchange(*laid_out), strict=True):
        torch.testing.assert_close(plain, last)
