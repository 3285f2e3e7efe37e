"""One model, many forms: a checkpoint run by torch and a `.1bit` file run by the engine, behind one face.

`eval` and `verify` ask a form only for logits, for the residual stream and for what the model says about itself; which
program answers is not their business. Every form computes in float32 and starts each call from an empty KV cache.

Shapes: T tokens, V vocabulary, L layers, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from onebit.engine.conversation import named_specials, specials_of
from onebit.errors import FormatError
from onebit.eval.stored_tables import StoredTables
from onebit.formats.anatomy import blocks_of, is_own
from onebit.formats.layout import Kind

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from onebit.engine import Model
    from onebit.models import OneBitForCausalLM

__all__ = ["EngineForm", "Form", "TorchForm", "open_checkpoint", "open_form"]

Ids: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float32]

_PROJECTIONS = (Kind.Q, Kind.K, Kind.V, Kind.O, Kind.GATE, Kind.UP, Kind.DOWN)


class Form(Protocol):
    """What eval and verify need to know about a model."""

    name: str
    runtime: str  # "torch" or "engine"
    vocab_size: int
    context: int
    bos: int | None

    @property
    def activations(self) -> frozenset[str]:
        """Activation quantisers of its linear layers and its head: none, int8, sign."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    def logits(self, ids_T: Ids) -> Floats:
        """float32 [T, V]: the prediction after each token."""
        ...

    def hidden(self, ids_T: Ids) -> Floats:
        """float32 [L+1, T, D]: the residual stream after the embedding and after each layer."""
        ...


class EngineForm:
    """A `.1bit` file run by the C engine; needs no torch."""

    runtime = "engine"

    def __init__(self, path: Path, threads: int | None = None, isa: str | None = None) -> None:
        from onebit.engine import Model
        from onebit.formats.onebit_file import read

        self.model: Model = Model(path, threads=threads, isa=isa)
        self.name = str(path)
        self._file = read(path, verify=False)  # the engine has just checked every byte
        description = self._file.description
        self.vocab_size = description.vocab_size
        self.context = description.max_seq_len
        self.bos, self.eos = description.bos, description.eos
        self.num_weights = self._file.num_weights
        self.stored_tables = StoredTables.of(self._file.tensors.values())
        self.activations = frozenset(
            tensor.activation.name.lower() for tensor in self._file.tensors.values() if tensor.kind in _PROJECTIONS
        ) | {self.stored_tables.head_activation}

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.model.tokenizer if self._file.tokenizer_json is not None else None

    @property
    def chat_template(self) -> str | None:
        return self.model.chat_template

    @property
    def specials(self) -> dict[str, str]:
        """What a chat template may name."""
        return specials_of(self.model)

    def logits(self, ids_T: Ids) -> Floats:
        return self.model.logits(ids_T, kv="float32")  # torch keeps them so: what differs is the file's doing

    def hidden(self, ids_T: Ids) -> Floats:
        return self.model.hidden(ids_T, kv="float32")


class TorchForm:
    """A torch model in memory, in evaluation mode and float32, on the device it is on."""

    runtime = "torch"

    def __init__(
        self,
        model: OneBitForCausalLM,
        name: str,
        tokenizer: Tokenizer | None = None,
        chat_template: str | None = None,
    ) -> None:
        config = model.config
        self.model = model
        module: torch.nn.Module = model
        module.float()
        module.train(False)
        self.name = name
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.vocab_size: int = config.vocab_size
        self.context: int = config.max_seq_len if is_own(model) else config.max_position_embeddings
        self.bos: int | None = config.bos_token_id
        self.eos: int | None = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id

    @property
    def activations(self) -> frozenset[str]:
        """As the model computes now: a comparison may have rounded its head's inputs."""
        return frozenset(_activation_quantizers(self.model))

    @property
    def specials(self) -> dict[str, str]:
        """What a chat template may name."""
        if self.tokenizer is None:
            return {}
        return named_specials(self.tokenizer, self.bos, self.eos, self.model.config.pad_token_id)

    def _feed(self, ids_T: Ids) -> Any:
        import torch

        device = next(self.model.parameters()).device
        ids_BT = torch.as_tensor(np.asarray(ids_T, dtype=np.int64), device=device)[None]
        with torch.inference_mode():
            return self.model(input_ids=ids_BT, use_cache=False)

    def logits(self, ids_T: Ids) -> Floats:
        return _array(self._feed(ids_T).logits[0])

    def hidden(self, ids_T: Ids) -> Floats:
        return self._streams(ids_T)[0]

    def stepwise(self, ids_T: Ids, hidden_LTD: Floats) -> tuple[Floats, Floats]:
        """Every layer fed with another form's residual stream: what each makes of the same input.

        hidden_LTD: [L+1, T, D] as `hidden` returns it. Returns the stream after the embedding and after each layer,
        [L+1, T, D], and the logits [T, V] of the last state given. No difference is carried from layer to layer, so
        one that shows up belongs to the layer it shows up in.
        """
        return self._streams(ids_T, hidden_LTD)

    def _streams(self, ids_T: Ids, given_LTD: Floats | None = None) -> tuple[Floats, Floats]:
        """What reaches each layer and the last norm, and the logits; given_LTD goes into them instead."""
        import torch

        layers, norm = blocks_of(self.model)
        outputs: list[Floats] = []
        hooks = []

        def listen(point: int) -> Callable[..., Any]:
            def hook(_module: object, args: tuple[Any, ...]) -> tuple[Any, ...]:
                x_BTD = args[0]
                outputs.append(_array(x_BTD[0]))
                if given_LTD is None:
                    return args
                given_BTD = torch.as_tensor(given_LTD[point], device=x_BTD.device, dtype=x_BTD.dtype)[None]
                return (given_BTD, *args[1:])

            return hook

        try:
            for point, module in enumerate([*layers, norm]):
                hooks.append(module.register_forward_pre_hook(listen(point)))
            logits_TV = self.logits(ids_T)
        finally:
            for registered in hooks:
                registered.remove()
        return np.stack(outputs), logits_TV


def _array(tensor: torch.Tensor) -> Floats:
    values: Floats = tensor.float().cpu().numpy()
    return values


def _activation_quantizers(model: OneBitForCausalLM) -> set[str]:
    found = (getattr(module, "activation_quantizer", None) for module in model.modules())
    return {name for name in found if name is not None}


def open_form(
    source: Form | str | Path | OneBitForCausalLM, *, device: str = "cpu", threads: int | None = None
) -> Form:
    """Open a path (checkpoint folder or `.1bit` file), a torch model in memory, or pass a form through.

    Raises FormatError for a path that is neither, MissingExtraError when a checkpoint is given and torch is missing.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_dir():
            return open_checkpoint(path, device)
        if not path.exists():
            raise FormatError(f"{path}: no such file or folder; expected a .1bit file or a checkpoint folder")
        return EngineForm(path, threads)
    if hasattr(source, "runtime"):
        return cast(Form, source)
    return TorchForm(cast("OneBitForCausalLM", source), type(source).__name__)


def open_checkpoint(folder: Path, device: str = "cpu", bit_width_map: Mapping[str, str] | None = None) -> TorchForm:
    """A checkpoint folder run by torch, with the tokenizer beside it when there is one; `bit_width_map` as of
    `load_model`."""
    from onebit.formats.checkpoint import load_model, texts_of

    model = load_model(folder, device, bit_width_map)
    tokenizer_file = folder / "tokenizer.json"
    tokenizer = None
    if tokenizer_file.is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    return TorchForm(model, str(folder), tokenizer, texts_of(folder)["chat_template"])
