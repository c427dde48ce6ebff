"""Losses of a batch: the true labels, and a teacher's soft ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from supernets.recipe import Recipe

__all__ = ["alpha_divergence", "batch_loss"]

SoftLoss = Callable[[Tensor, Tensor], Tensor]


def batch_loss(recipe: Recipe, logits: Tensor, labels: Tensor, soft: Tensor | None) -> Tensor:
    """Mean loss of a batch in float32: the true labels, and the teacher's beside or instead of them.

    Args:
        logits: (B, classes).
        labels: (B,) int64.
        soft: (B, classes) probabilities of the teacher; None has no teacher.
    """
    logits = logits.float()
    if soft is None:
        return F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    taught = recipe.distill * _SOFT_LOSSES[recipe.distill_loss](logits, soft)
    if recipe.labels == 0:
        return taught
    loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    return (loss if recipe.labels == 1 else recipe.labels * loss) + taught


def alpha_divergence(logits: Tensor, soft: Tensor, *, alphas: tuple[float, float] = (-1.0, 1.0), clip: float = 5.0) -> Tensor:
    """Adaptive alpha-divergence between a teacher's and a student's probabilities (AlphaNet, Wang et al., ICML 2021).

    A negative alpha punishes a student for being sure where its teacher is not, a positive one for missing what its teacher
    is sure of; each example counts the larger of the two. The value is the divergence's, and so is the gradient; it comes from
    a surrogate in which only the student's log-probabilities are differentiated.

    Args:
        logits: (B, classes) of the student.
        soft: (B, classes) probabilities of the teacher.
        alphas: the smaller and the larger; not 0.
        clip: largest ratio of probabilities (to the power of alpha) that counts, where alpha is not 1.
    """
    log_student = F.log_softmax(logits, dim=1)
    with torch.no_grad():
        log_ratio = torch.log(soft) - log_student  # (B, classes); -inf where the teacher excludes a class
        student = log_student.exp()
    both = [_divergence(student, soft, log_ratio, log_student, alpha, clip) for alpha in alphas]
    (low, low_loss), (high, high_loss) = both
    value, loss = torch.maximum(low, high), torch.where(low > high, low_loss, high_loss)
    return (loss + (value - loss).detach()).mean()


def _divergence(
    student: Tensor, soft: Tensor, log_ratio: Tensor, log_student: Tensor, alpha: float, clip: float
) -> tuple[Tensor, Tensor]:
    """(B,) divergence, without a gradient, and (B,) loss with its gradient."""
    with torch.no_grad():
        if alpha == 1:  # the Kullback-Leibler divergence; its surrogate is the cross-entropy
            terms, factor = torch.where(soft > 0, soft * log_ratio, 0.0), soft
        else:
            power = torch.exp(alpha * log_ratio).clamp(0, clip)  # (teacher / student) ** alpha
            scale = 1 / (alpha * (alpha - 1))
            terms, factor = student * (power * scale - scale), student * (power / alpha + scale)
    return terms.sum(dim=1), -(factor * log_student).sum(dim=1)


_SOFT_LOSSES: dict[str, SoftLoss] = {
    "cross-entropy": F.cross_entropy,
    "alpha-divergence": alpha_divergence,
}
