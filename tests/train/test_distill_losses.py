"""Distillation's losses against float64 formulas, written out from their papers."""

from __future__ import annotations

import math

import pytest
import torch

from onebit.train.distill_losses import kl_top_k, relation_loss, token_weights, top_k_log_probs


def exact_kl(teacher: torch.Tensor, student: torch.Tensor, temperature: float) -> torch.Tensor:
    p = torch.softmax(teacher.double() / temperature, -1)
    q = torch.softmax(student.double() / temperature, -1)
    return (p * (p / q).log()).sum(-1) * temperature**2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_with_all_tokens_it_is_the_divergence(temperature: float) -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(7, 50) * 3, torch.randn(7, 50) * 3
    told = top_k_log_probs(teacher, 50, temperature)
    got = kl_top_k(student, *told, temperature)
    assert torch.allclose(got.double(), exact_kl(teacher, student, temperature), rtol=1e-4, atol=1e-5)


def test_with_the_largest_alone_the_rest_counts_as_one_token() -> None:
    torch.manual_seed(1)
    teacher, student = torch.randn(5, 40, dtype=torch.float64) * 3, torch.randn(5, 40, dtype=torch.float64) * 3
    log_p, tokens = top_k_log_probs(teacher, 8)
    got = kl_top_k(student.float(), log_p, tokens)
    for n in range(5):
        p, q = torch.softmax(teacher[n], -1), torch.softmax(student[n], -1)
        inside = torch.zeros(40, dtype=torch.bool)
        inside[teacher[n].topk(8).indices] = True
        expected = sum(p[i] * math.log(p[i] / q[i]) for i in inside.nonzero().flatten())
        rest_p, rest_q = p[~inside].sum(), q[~inside].sum()
        expected += rest_p * math.log(rest_p / rest_q)
        assert float(got[n]) == pytest.approx(float(expected), rel=1e-4)
        assert float(got[n]) <= float(exact_kl(teacher[n], student[n], 1.0)) + 1e-6


def test_the_student_that_says_the_same_is_at_the_minimum_of_0() -> None:
    torch.manual_seed(2)
    teacher = torch.randn(6, 30)
    student = teacher.clone().requires_grad_()
    kl = kl_top_k(student, *top_k_log_probs(teacher, 4)).sum()
    kl.backward()
    assert abs(kl.item()) < 1e-5
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-5


def test_a_teacher_and_student_that_are_sure_give_finite_gradients() -> None:
    teacher = torch.tensor([[200.0, 0.0, -200.0, -300.0]])
    student = torch.tensor([[-200.0, 300.0, 0.0, 0.0]], requires_grad=True)
    kl_top_k(student, *top_k_log_probs(teacher, 2)).sum().backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_token_weights_are_the_softmax_of_the_teachers_loss_in_each_sequence() -> None:
    loss = torch.tensor([0.1, 5.0, 12.0, 3.0, 0.0])
    sequence = torch.tensor([0, 0, 0, 1, 1])
    got = token_weights(loss, sequence, temperature=10.0)
    first = torch.softmax(loss[:3].double() / 10, 0) * 3
    second = torch.softmax(loss[3:].double() / 10, 0) * 2
    assert torch.allclose(got.double(), torch.cat([first, second]), rtol=1e-5)


def test_relations_are_those_of_minilm_without_padding_and_across_widths() -> None:
    torch.manual_seed(3)
    heads, student, teacher = 2, torch.randn(2, 5, 8), torch.randn(2, 5, 12)
    sequence = torch.tensor([[0, 0, 0, 0, 0], [1, 1, 1, -1, -1]])
    got = relation_loss(student, teacher, sequence, heads)
    total, count = 0.0, 0
    for row, length in ((0, 5), (1, 3)):
        for head in range(heads):
            relations = []
            for x in (student, teacher):
                width = x.shape[-1] // heads
                part = x[row, :length, head * width : (head + 1) * width].double()
                relations.append(torch.softmax(part @ part.T / math.sqrt(width), -1))
            s, t = relations
            total += float((t * (t / s).log()).sum())
            count += length
    assert float(got) == pytest.approx(total / count, rel=1e-5)


def test_packed_sequences_relate_to_themselves_alone() -> None:
    torch.manual_seed(4)
    student, teacher = torch.randn(1, 7, 8), torch.randn(1, 7, 8)
    packed = relation_loss(student, teacher, torch.tensor([[0, 0, 0, 1, 1, 1, 1]]), 2)
    parts = [
        (relation_loss(student[:, a:b], teacher[:, a:b], torch.zeros(1, b - a, dtype=torch.long), 2), b - a)
        for a, b in ((0, 3), (3, 7))
    ]
    assert float(packed) == pytest.approx(sum(float(loss) * n for loss, n in parts) / 7, rel=1e-5)
