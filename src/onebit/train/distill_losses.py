"""What a student is told by its teacher, as pure functions: distributions of tokens, and relations inside attention.

Shape suffixes: N predicted tokens, V vocabulary, K largest of a teacher's probabilities, B batch, L length, D width,
H relation heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["kl_top_k", "relation_loss", "token_weights", "top_k_log_probs"]

_SMALLEST = 1e-9  # of the mass outside the K; below it, float32's own error is larger than the mass


def top_k_log_probs(logits_NV: Tensor, k: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The K largest log-probabilities (nats, float32 [N, K]) of softmax(logits / temperature) and their tokens."""
    log_p_NV = torch.log_softmax(logits_NV.float() / temperature, dim=-1)
    log_p_NK, token_NK = log_p_NV.topk(min(k, logits_NV.shape[-1]), dim=-1)
    return log_p_NK, token_NK


def kl_top_k(student_logits_NV: Tensor, log_p_NK: Tensor, token_NK: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of each token in nats, float32 [N], times temperature^2 (Hinton et al., 1503.02531).

    log_p_NK and token_NK are what `top_k_log_probs` gives at the same temperature. All other tokens count as one, in
    teacher and student alike: a lower bound of the divergence, exact when K is V, that still tells the student how
    much to leave for the rest. Gradients keep the strength they have at temperature 1.
    """
    log_q_NV = torch.log_softmax(student_logits_NV.float() / temperature, dim=-1)
    log_q_NK = log_q_NV.gather(-1, token_NK)
    p_NK = log_p_NK.float().exp()
    kl_N = (p_NK * (log_p_NK.float() - log_q_NK)).sum(-1)
    if token_NK.shape[-1] < student_logits_NV.shape[-1]:
        p_rest_N = (1.0 - p_NK.sum(-1)).clamp_min(0.0)
        q_rest_N = (-torch.expm1(torch.logsumexp(log_q_NK, dim=-1))).clamp_min(_SMALLEST)
        kl_N = kl_N + torch.xlogy(p_rest_N, p_rest_N) - p_rest_N * q_rest_N.log()
    return kl_N * temperature**2


def token_weights(teacher_loss_N: Tensor, sequence_N: Tensor, temperature: float = 10.0) -> Tensor:
    """How much each token counts in token-scaled distillation (TSLD, 2308.06744), [N], of mean 1 in each sequence.

    teacher_loss_N: the teacher's own cross-entropy at the token, in nats: where it is unsure, there is more to learn
    than the token itself. Weights are softmax(loss / temperature) over a sequence, times its number of tokens.
    sequence_N: int64, which sequence a token belongs to, from 0.
    """
    if teacher_loss_N.numel() == 0:
        return teacher_loss_N
    # Losses are at least 0 and rarely above 20, so exp(loss / 10) needs no maximum taken out.
    e_N = (teacher_loss_N.float() / temperature).clamp_max(80.0).exp()
    count = int(sequence_N.max().item()) + 1
    sums = torch.zeros(count, device=e_N.device).index_add_(0, sequence_N, e_N)
    sizes = torch.bincount(sequence_N, minlength=count).to(e_N.dtype)
    return e_N / sums[sequence_N] * sizes[sequence_N]


def relation_loss(student_BLD: Tensor, teacher_BLD: Tensor, sequence_BL: Tensor, heads: int) -> Tensor:
    """KL between the self-relations of one of queries, keys or values in teacher and student, a 0-dim tensor.

    A relation is softmax(x x^T / sqrt(d)) for each of `heads` parts of width d (MiniLMv2, 2012.15828), so teacher and
    student may differ in width. sequence_BL: int64, the sequence of each token, -1 for padding; a token is related to
    those of its own sequence alone. The mean over heads and tokens, in nats.
    """
    is_token_BL = sequence_BL >= 0
    same_BLL = (sequence_BL[:, :, None] == sequence_BL[:, None, :]) & is_token_BL[:, None, :]
    # Padding relates to itself, or its softmax would be over nothing.
    same_BLL = same_BLL | torch.eye(sequence_BL.shape[1], dtype=torch.bool, device=sequence_BL.device)
    log_s_BHLL, log_t_BHLL = (_log_relations(x_BLD, same_BLL, heads) for x_BLD in (student_BLD, teacher_BLD))
    kl_BHL = F.kl_div(log_s_BHLL, log_t_BHLL, reduction="none", log_target=True)
    kl_BHL = kl_BHL.masked_fill(~same_BLL[:, None], 0.0).sum(-1)
    tokens = is_token_BL.sum().clamp_min(1)
    return (kl_BHL * is_token_BL[:, None]).sum() / (tokens * heads)


def _log_relations(x_BLD: Tensor, same_BLL: Tensor, heads: int) -> Tensor:
    batch, length, width = x_BLD.shape
    x_BHLd = x_BLD.float().reshape(batch, length, heads, width // heads).transpose(1, 2)
    scores_BHLL = x_BHLd @ x_BHLd.transpose(-1, -2) * (width // heads) ** -0.5
    # Not -inf: 0 * (-inf - -inf) is no number, and these places are left out of the sum anyway.
    return torch.log_softmax(scores_BHLL.masked_fill(~same_BLL[:, None], -1e9), dim=-1)
