"""The Trainer of a student: TRL's rows, the teacher's kept answers to them, and a loss that mixes the two.

Shape suffixes: B batch, L length, V vocabulary, N predicted tokens, K largest of the teacher's probabilities.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebit.errors import ConfigError
from onebit.train.attention_taps import AttentionTap, states_up_to
from onebit.train.distill_losses import kl_top_k, relation_loss, token_weights
from onebit.train.distill_settings import DistillSettings
from onebit.train.sft_trainer import TernarySftTrainer
from onebit.train.teacher_cache import TeacherAnswers, TeacherCache

__all__ = ["DistillTrainer"]

_ROW = "row"  # which prepared row an example is, for the teacher's answers


class DistillTrainer(TernarySftTrainer):
    """Trains on what the teacher said; evaluates with the plain cross-entropy, as fine-tuning does."""

    def __init__(self, *, settings: DistillSettings, **rest: Any) -> None:
        self.settings = settings
        self.answers: TeacherCache | None = None
        self.shared_vocabulary: int | None = None
        self._relations: _Relations | None = None
        super().__init__(**rest)
        rows: Any = self.train_dataset
        self.train_dataset = rows.add_column(_ROW, np.arange(len(rows)))
        self.data_collator = _WithRows(self.data_collator)

    def listen_to(self, teacher: nn.Module) -> None:
        """Compare the attention of the chosen layer with this teacher's at every step."""
        self._relations = _Relations(self.model, teacher, self.settings)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mixed loss in training; fine-tuning's in evaluation."""
        rows = inputs.pop("rows", None)
        trained: Any = self.model
        if not trained.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels_BL = inputs["labels"]
        outputs = self.forward_logits(model, inputs)
        targets_BL = F.pad(labels_BL[:, 1:], (0, 1), value=-100)
        is_predicted_BL = targets_BL != -100
        student_NV, targets_N = outputs.logits[is_predicted_BL], targets_BL[is_predicted_BL]
        weight = self.settings.hard_label_weight
        hard_N = F.cross_entropy(student_NV.float(), targets_N, reduction="none")
        mixed_N = weight * hard_N
        self._note("hard_loss", hard_N)
        sequence_BL = sequences(inputs)
        if weight < 1.0:
            soft_N = self._soft_loss(student_NV, rows, is_predicted_BL, sequence_BL)
            mixed_N = mixed_N + (1.0 - weight) * soft_N
        loss = self.over_items(mixed_N.sum(), labels_BL, num_items_in_batch)
        if self._relations is not None:
            between = self._relations.loss(inputs, sequence_BL)
            self._note("relation_loss", between)
            steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            loss = loss + self.settings.relation_weight * between / steps
        return (loss, outputs) if return_outputs else loss

    def _soft_loss(self, student_NV: Tensor, rows: list[int], is_predicted_BL: Tensor, sequence_BL: Tensor) -> Tensor:
        assert self.answers is not None
        told = _at(self.answers.read(rows), is_predicted_BL, self._lengths(rows))
        device = student_NV.device
        told = TeacherAnswers(**{name: value.to(device) for name, value in vars(told).items()})
        kl_N = kl_top_k(
            student_NV[:, : self.shared_vocabulary], told.log_p_NK, told.token_NK, self.settings.temperature
        )
        self._note("kl", kl_N)
        if self.settings.token_scaled:
            sequence_N = torch.unique(sequence_BL[is_predicted_BL], return_inverse=True)[1]
            kl_N = kl_N * token_weights(told.loss_N, sequence_N)
        return kl_N

    def _lengths(self, rows: list[int]) -> list[int]:
        assert self.answers is not None
        offsets = self.answers.offsets
        return [int(offsets[row + 1] - offsets[row]) for row in rows]

    def _note(self, name: str, values: Tensor) -> None:
        """Log the mean over the values of all processes; one of them may have none."""
        own = torch.stack([values.detach().float().sum(), values.new_tensor(values.numel(), dtype=torch.float32)])
        total, count = self.accelerator.reduce(own, reduction="sum").tolist()
        if count:
            self._metrics["train"][name].append(total / count)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[no-untyped-call]
        columns: Any = self._signature_columns
        if _ROW not in columns:
            columns.append(_ROW)


class _Relations:
    """Taps in student and teacher, and the loss between what they hear."""

    def __init__(self, student: Any, teacher: nn.Module, settings: DistillSettings) -> None:
        self.teacher = teacher
        self.student_tap = AttentionTap(student, settings.relation_layer)
        self.teacher_tap = AttentionTap(teacher, settings.relation_layer)
        config = student.config
        default = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self.heads = settings.relation_heads or default
        for width in (*self.student_tap.sizes, *self.teacher_tap.sizes):
            if width % self.heads:
                raise ConfigError(
                    f"--relation-heads is {self.heads}, which does not divide a width of {width} in student or teacher"
                )

    def loss(self, inputs: dict[str, Any], sequence_BL: Tensor) -> Tensor:
        """The mean over queries, keys and values, after the student was called with the inputs."""
        student = self.student_tap.take()
        told = {name: value for name, value in inputs.items() if name != "labels"}
        teacher = states_up_to(self.teacher_tap, self.teacher, told)
        pairs = zip(student, teacher, strict=True)
        return torch.stack([relation_loss(s, t, sequence_BL, self.heads) for s, t in pairs]).mean()


class _WithRows:
    """A collator that also says which rows are in the batch, as a list, which no device needs."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = self.inner(examples)
        if _ROW in examples[0]:
            batch["rows"] = [example[_ROW] for example in examples]
        return batch


def sequences(inputs: dict[str, Any]) -> Tensor:
    """Which sequence each token of a batch belongs to, int64 [B, L]; -1 is padding."""
    mask_BL, position_BL = inputs.get("attention_mask"), inputs.get("position_ids")
    if mask_BL is None and position_BL is not None:
        packed_BL: Tensor = (position_BL == 0).long().cumsum(-1) - 1
        return packed_BL
    ids_BL = inputs["input_ids"]
    number_BL = torch.arange(ids_BL.shape[0], device=ids_BL.device)[:, None].expand_as(ids_BL)
    return number_BL if mask_BL is None else number_BL.masked_fill(mask_BL == 0, -1)


def _at(told: TeacherAnswers, is_predicted_BL: Tensor, lengths: list[int]) -> TeacherAnswers:
    """The answers at predicted tokens alone: the rows' tokens lie one after the other, or padded on the right."""
    is_predicted_BL = is_predicted_BL.cpu()
    if is_predicted_BL.shape[0] == len(lengths):
        is_predicted_N = torch.cat([row[:length] for row, length in zip(is_predicted_BL, lengths, strict=True)])
    else:
        is_predicted_N = is_predicted_BL[0]
    return TeacherAnswers(**{name: value[is_predicted_N] for name, value in vars(told).items()})
