"""The Trainer of a run: transformers' loop with our loss, order of data, learning rate, evaluation and log lines.

What shaped it: no wait for the device between log steps, and nothing per step that costs more than the step's own
arithmetic on a small model on two cores (the Trainer's count of floating-point operations alone walks every parameter).
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from onebit.data import BlockStream, PackedBlocks, RunSampler, TextTokenizer, collate
from onebit.errors import OnebitError
from onebit.optim import LearningRate, Muon, decaying_parameter_names, muon_groups
from onebit.train.checkpoints import AtomicCheckpoints
from onebit.train.code_metrics import CodeMetrics

__all__ = ["OneBitTrainer", "next_token_loss"]


def next_token_loss(
    logits_BLV: Tensor, labels_BL: Tensor, *, label_smoothing: float = 0.0, total: bool = False
) -> Tensor:
    """Return the cross-entropy of each token given those before it, in nats: mean over the labels, or their sum.

    Labels of -100 are ignored; the first token of a block is not predicted.
    """
    # The labels move, not the logits: a shifted view of the logits would have to be copied.
    targets_BL = F.pad(labels_BL[:, 1:], (0, 1), value=-100)
    return F.cross_entropy(
        logits_BLV.flatten(0, 1).float(),
        targets_BL.flatten(),
        label_smoothing=label_smoothing,
        reduction="sum" if total else "mean",
    )


class OneBitTrainer(AtomicCheckpoints):
    """Trains on packed blocks; `validation` is evaluated exactly, each token once, whatever the number of processes.

    optimizer: of this model; None makes Muon or AdamW.
    """

    def __init__(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        *,
        train_blocks: PackedBlocks | BlockStream,
        validation: PackedBlocks | None,
        tokenizer: TextTokenizer,
        learning_rate: LearningRate,
        optimizer: torch.optim.Optimizer | None = None,
        muon: bool = False,
        label_smoothing: float = 0.0,
        tokens_per_byte: float | None = None,
        callbacks: list[Any] | None = None,
    ) -> None:
        self.learning_rate = learning_rate
        self.muon = muon
        self.label_smoothing = label_smoothing
        self.train_blocks = train_blocks
        self.validation = validation
        self.text_tokenizer = tokenizer
        self.tokens_per_byte = tokens_per_byte
        self.code_metrics = CodeMetrics()
        self._clock = (0, time.monotonic())
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=train_blocks,
            eval_dataset=validation,
            data_collator=collate,
            callbacks=[self.code_metrics, *(callbacks or [])],
            optimizers=(optimizer, None),
        )
        self.add_callback(_StartClock(self))
        self.model_accepts_loss_kwargs = False  # the loss is a mean per batch; the Trainer divides by the accumulation

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step reads, over all processes."""
        args = self.args
        rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return int(rows * self.train_blocks.block_size)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor | tuple[Tensor, Any]:
        """Mean cross-entropy in nats, with label smoothing."""
        outputs = model(input_ids=inputs["input_ids"], use_cache=False)
        loss = next_token_loss(outputs.logits, inputs["labels"], label_smoothing=self.label_smoothing)
        return (loss, outputs) if return_outputs else loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the count would walk all parameters at each step."""
        return 0

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices of layers decay; norms, biases and embeddings do not."""
        return decaying_parameter_names(model)

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW by transformers, or our Muon."""
        if not self.muon or self.optimizer is not None:
            return super().create_optimizer(model) if model is not None else super().create_optimizer()
        trained: Any = self.model if model is None else model
        args = self.args
        self.optimizer = Muon(
            muon_groups(trained, decaying_parameter_names(trained), args.weight_decay),
            args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
        )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The learning rate as our function of the step."""
        if self.lr_scheduler is None:
            target: Any = optimizer if optimizer is not None else self.optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(target, self.learning_rate.as_factor())
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Any = None) -> RunSampler | None:
        args = self.args
        if isinstance(self.train_blocks, BlockStream):
            return None
        rows = args.max_steps * args.gradient_accumulation_steps * args.train_batch_size * args.world_size
        return RunSampler(len(self.train_blocks), rows, seed=args.seed)

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean loss in nats per token, perplexity and bits per byte over all validation blocks, fully quantised."""
        blocks: PackedBlocks | None = eval_dataset if eval_dataset is not None else self.validation
        if blocks is None:
            raise OnebitError("there is no validation text: give --val-data or a --val-fraction above 0")
        began = time.monotonic()
        model: Any = self.model
        model.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        mine = range(self.args.process_index, len(blocks), self.args.world_size)
        for start in range(0, len(mine), self.args.eval_batch_size):
            batch = collate(blocks.__getitems__(list(mine[start : start + self.args.eval_batch_size])))
            ids_BL, labels_BL = (batch[key].to(self.args.device) for key in ("input_ids", "labels"))
            with self.accelerator.autocast():
                logits_BLV = model(input_ids=ids_BL, use_cache=False).logits
            total[0] += next_token_loss(logits_BLV, labels_BL, total=True)
            total[1] += (labels_BL[:, 1:] != -100).sum()
        if self.args.world_size > 1:
            dist.all_reduce(total)
        model.train()
        loss = (total[0] / total[1]).item()
        self._refuse_divergence(loss, "validation loss")
        metrics = {
            f"{metric_key_prefix}_{name}": value
            for name, value in loss_metrics(loss, blocks.counts.tokens_per_byte).items()
        }
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._stop_clock(time.monotonic() - began)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add bits per byte, perplexity, the codes' figures and the speed to a line of training losses.

        Raises:
            OnebitError: the loss is no number any more.
        """
        step = self.state.global_step
        if "loss" in logs:
            self._refuse_divergence(logs["loss"], "loss")
            logs.update(loss_metrics(logs["loss"], self.tokens_per_byte))
            logs.update(self.code_metrics.values)
            logs["tokens"] = step * self.tokens_per_step
            logs["tokens_per_second"] = self._speed(step)
        super().log(logs, start_time)

    def _refuse_divergence(self, loss: float, what: str) -> None:
        if not math.isfinite(loss):
            step = self.state.global_step
            raise OnebitError(f"the {what} became {loss} before step {step}; lower --lr, or raise --lr-warmup-steps")

    def start_clock(self) -> None:
        """Begin counting tokens per second here."""
        self._clock = (self.state.global_step, time.monotonic())

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        began = time.monotonic()
        super()._save_checkpoint(model, trial)
        self._stop_clock(time.monotonic() - began)

    def _stop_clock(self, seconds: float) -> None:
        """Leave a span out of the measured speed: evaluations and checkpoints are not training."""
        step, since = self._clock
        self._clock = (step, since + seconds)

    def _speed(self, step: int) -> float:
        since_step, since = self._clock
        now = time.monotonic()
        self._clock = (step, now)
        return (step - since_step) * self.tokens_per_step / max(now - since, 1e-9)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(str(output_dir if output_dir is not None else self.args.output_dir))
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing here reads
            self.text_tokenizer.save(folder)


class _StartClock(TrainerCallback):
    """Begins the measurement of speed with the first step, after all preparation."""

    def __init__(self, trainer: OneBitTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        self.trainer.start_clock()


def loss_metrics(loss: float, tokens_per_byte: float | None) -> dict[str, float]:
    """Return a loss in nats per token as itself, as perplexity and, if the text's ratio is known, as bits per byte."""
    metrics = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
    if tokens_per_byte is not None:
        metrics["bits_per_byte"] = loss / math.log(2.0) * tokens_per_byte
    return metrics
