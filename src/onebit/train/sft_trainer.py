"""TRL's SFTTrainer with whole checkpoints, the lambda warm-up and our log line.

What shaped it: killed and resumed, it must log the very lines of a run that nobody disturbed, TRL's own figures
included; it sends nothing over the network; and a head whose weight is quantised is computed with, where TRL multiplies
by the head's stored weight itself.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.trainer.sft_trainer import SFTTrainer

from onebit.errors import ConfigError, OnebitError
from onebit.nn import BitLinear, Schedule
from onebit.optim import LambdaShape, decaying_parameter_names, lambda_mix
from onebit.train.checkpoints import AtomicCheckpoints
from onebit.train.code_metrics import CodeMetrics
from onebit.train.trainer import next_token_loss

__all__ = ["LambdaWarmup", "TernarySftTrainer"]


class LambdaWarmup(TrainerCallback):
    """Turns the lambda dial of a model's schedules with the step; what is handed on is fully quantised."""

    def __init__(self, fraction: float, shape: LambdaShape = "linear") -> None:
        self.fraction = fraction
        self.shape: LambdaShape = shape

    def value(self, step: int, total_steps: int) -> float:
        """The share of the quantised value at a step, counted from 0."""
        return lambda_mix(step, total_steps, self.fraction, self.shape)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        self._set(kw["model"], self.value(state.global_step, state.max_steps))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        self._set(kw["model"], 1.0)

    def _set(self, model: nn.Module, value: float) -> None:
        for module in model.modules():
            if isinstance(module, Schedule):
                module.set(lambda_=value)


class TernarySftTrainer(AtomicCheckpoints, SFTTrainer):
    """SFTTrainer for a model with BitLinears; `warmup` drives its schedule."""

    def __init__(self, model: Any, *, warmup: LambdaWarmup, callbacks: list[Any] | None = None, **rest: Any) -> None:
        self.warmup = warmup
        self.code_metrics = CodeMetrics()
        super().__init__(model=model, callbacks=[warmup, self.code_metrics, *(callbacks or [])], **rest)
        if self.is_fsdp_enabled and hasattr(model, "peft_config"):
            raise ConfigError(
                "--use-peft cannot merge adapters that FSDP has cut over processes; drop FSDP: DDP will do"
            )
        if model.config.model_type != "onebit" and getattr(self.processing_class, "bos_token_id", None) is None:
            # Qwen's configurations name a BOS that its tokenizers never write; export would start every text with it.
            model.config.bos_token_id = None

    @property
    def tokens_seen(self) -> int:
        """Tokens read so far, over all processes."""
        return int(self._total_train_tokens)

    def take_up_finished(self, checkpoint: Path) -> bool:
        """Load a checkpoint of the last step and tell so; False leaves all as it is. The Trainer would add a step."""
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step < state.max_steps:
            return False
        self._load_from_checkpoint(str(checkpoint))
        self.state = state
        self._total_train_tokens = json.loads((checkpoint / "loss_window_0.json").read_text(encoding="utf-8"))["tokens"]
        return True

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss; the plain mean cross-entropy where the head is quantised, which TRL would read past."""
        trained: Any = self.model
        if not isinstance(trained.get_output_embeddings(), BitLinear):
            return self._trl_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = self.forward_logits(model, inputs)
        loss = self.over_items(
            next_token_loss(outputs.logits, inputs["labels"], total=True), inputs["labels"], num_items_in_batch
        )
        return (loss, outputs) if return_outputs else loss

    def _trl_loss(self, *args: Any) -> Any:
        loss: Any = super().compute_loss(*args)  # type: ignore[no-untyped-call]
        return loss

    def forward_logits(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """The model's own outputs, logits of every position included, without a loss."""
        self._count_tokens(inputs)
        return model(**{name: value for name, value in inputs.items() if name != "labels"}, use_cache=False)

    def over_items(self, total: Tensor, labels_BL: Tensor, num_items_in_batch: Any) -> Tensor:
        """A sum over predicted tokens as the mean that the Trainer wants: over the batch's, or over all of a step's."""
        items = (labels_BL[:, 1:] != -100).sum() if num_items_in_batch is None else num_items_in_batch
        mean = total / torch.as_tensor(items).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            mean = mean * self.accelerator.num_processes
        return mean

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add lambda, the share of zeros and of flips to a line of training losses.

        Raises:
            OnebitError: the loss is no number any more.
        """
        for name in ("loss", "eval_loss"):
            if name in logs and not math.isfinite(logs[name]):
                step = self.state.global_step
                raise OnebitError(f"the {name} became {logs[name]} before step {step}; lower --learning-rate")
        if "loss" in logs:
            logs["lambda"] = self.warmup.value(max(self.state.global_step - 1, 0), self.state.max_steps)
            logs.update(self.code_metrics.values)
        super().log(logs, start_time)

    def log_window(self) -> dict[str, Any]:
        """The sums since the last log line, TRL's own among them."""
        own = {"metrics": {name: list(values) for name, values in self._metrics["train"].items()}}
        return {**super().log_window(), **own, "tokens": self._total_train_tokens}

    def set_log_window(self, window: dict[str, Any]) -> None:
        """Take up what `log_window` gave."""
        super().set_log_window(window)
        self._metrics["train"].update(window["metrics"])
        self._total_train_tokens = window["tokens"]

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the count would walk all parameters at each step."""
        return 0

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices of layers decay; norms, biases and embeddings do not."""
        return decaying_parameter_names(model)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: what a run was is in its manifest."""

    def _send_telemetry(self) -> None:
        """Nothing is sent."""

    def _count_tokens(self, inputs: dict[str, Any]) -> None:
        trained: Any = self.model
        if trained.training:
            mask = inputs.get("attention_mask")
            count = torch.tensor(inputs["input_ids"].numel()) if mask is None else mask.sum()
            self._total_train_tokens += int(self.accelerator.gather(count.to(self.args.device)).sum().item())
        self._metrics["train" if trained.training else "eval"]["num_tokens"] = [self._total_train_tokens]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(str(output_dir if output_dir is not None else self.args.output_dir))
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing here reads
