"""The engine's shared library: where it is looked for, the C structs and signatures of engine/include/onebit.h, and
its errors as exceptions.

No state but the loaded library itself; ``library()`` loads it at first use, so that importing onebit stays cheap and
works where the engine has not been built.
"""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import POINTER, c_char, c_char_p, c_double, c_float, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path

from onebit.errors import EngineError, FormatError, OnebitError

__all__ = [
    "KERNEL_LINE",
    "LOGITS_ALL",
    "LOGITS_LAST",
    "LOGITS_NONE",
    "STATUS_UNSUPPORTED",
    "TRACE",
    "CDescription",
    "CModelOptions",
    "CSampler",
    "CSamplerOptions",
    "CSessionOptions",
    "CSpeculationCounts",
    "CSpeculationOptions",
    "CTensorInfo",
    "Error",
    "check",
    "library",
    "library_path",
]

ABI_VERSION = 4
KERNEL_LINE = 96
LOGITS_NONE, LOGITS_LAST, LOGITS_ALL = 0, 1, 2
_STATUS_FORMAT, _STATUS_IO, STATUS_UNSUPPORTED = 2, 5, 6
_ENVIRONMENT = "ONEBIT_ENGINE_LIBRARY"


class Error(ctypes.Structure):
    """ob_error."""

    _fields_ = [("status", c_int32), ("message", c_char * 252)]


class CDescription(ctypes.Structure):
    """ob_description: the MODEL section."""

    _fields_ = [
        *[
            (name, c_uint32)
            for name in (
                "vocab_size",
                "hidden_size",
                "num_layers",
                "num_heads",
                "num_key_value_heads",
                "head_dim",
                "intermediate_size",
                "max_seq_len",
                "norm",
                "mlp",
                "position",
                "flags",
            )
        ],
        *[(name, c_float) for name in ("norm_eps", "rope_theta", "residual_scale", "attention_scale")],
        *[(name, c_uint32) for name in ("bos_token", "eos_token", "pad_token", "zero1")],
        ("zeros", c_uint32 * 12),
    ]


class CTensorInfo(ctypes.Structure):
    """ob_tensor_info."""

    _fields_ = [
        ("name", c_char * 68),
        *[(name, c_uint32) for name in ("kind", "layer", "layout", "granularity", "activation", "scale_type")],
        *[(name, c_uint32) for name in ("rows", "cols", "group_size", "crc32c")],
        ("data_bytes", c_uint64),
        ("scale_bytes", c_uint64),
    ]


class CModelOptions(ctypes.Structure):
    """ob_model_options."""

    _fields_ = [(name, c_uint32) for name in ("isa", "skip_tensor_check", "num_threads", "copy")]


class CSessionOptions(ctypes.Structure):
    """ob_session_options."""

    _fields_ = [
        *[
            (name, c_uint32)
            for name in ("max_positions", "max_batch", "num_threads", "kv_type", "num_sequences", "zero")
        ],
        ("parallel", c_void_p),
    ]


class CSamplerOptions(ctypes.Structure):
    """ob_sampler_options."""

    _fields_ = [
        *[(name, c_float) for name in ("temperature", "top_p", "min_p", "repetition_penalty")],
        ("top_k", c_uint32),
        ("zero", c_uint32),
        ("seed", c_uint64),
    ]


class CSampler(ctypes.Structure):
    """ob_sampler."""

    _fields_ = [("options", CSamplerOptions), ("state", c_uint64)]


class CSpeculationOptions(ctypes.Structure):
    """ob_speculation_options."""

    _fields_ = [
        *[(name, c_uint32) for name in ("max_proposed", "lookup", "fixed", "repetition_window")],
        ("clock", c_void_p),
        ("sampling", CSamplerOptions),
    ]


class CSpeculationCounts(ctypes.Structure):
    """ob_speculation_counts."""

    _fields_ = [
        *[(name, c_uint64) for name in ("steps", "proposed", "accepted", "drafted")],
        *[(name, c_double) for name in ("draft_seconds", "seconds")],
    ]


# void (void *user, uint32 point, uint32 position, const float *hidden, uint32 num_tokens, uint32 hidden_size)
TRACE = ctypes.CFUNCTYPE(None, c_void_p, c_uint32, c_uint32, POINTER(c_float), c_uint32, c_uint32)

_STATUS = c_int32
_ERROR = POINTER(Error)
_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "ob_abi_version": (c_uint32, []),
    "ob_isa_from_name": (c_uint32, [c_char_p]),
    "ob_isa_available": (c_int32, [c_uint32]),
    "ob_load": (_STATUS, [c_char_p, POINTER(CModelOptions), POINTER(c_void_p), _ERROR]),
    "ob_unload": (None, [c_void_p]),
    "ob_model_describe": (None, [c_void_p, POINTER(CDescription)]),
    "ob_model_num_tensors": (c_uint32, [c_void_p]),
    "ob_model_tensor": (_STATUS, [c_void_p, c_uint32, POINTER(CTensorInfo), _ERROR]),
    "ob_model_section": (c_void_p, [c_void_p, c_char_p, POINTER(c_uint64)]),
    "ob_model_kernel": (c_int32, [c_void_p, c_uint32, c_char_p]),
    "ob_measure_bandwidth": (_STATUS, [c_uint32, c_uint64, c_double, POINTER(c_double), _ERROR]),
    "ob_measure_int8_peak": (_STATUS, [c_uint32, c_uint32, c_double, POINTER(c_double), _ERROR]),
    "ob_session_create": (_STATUS, [c_void_p, POINTER(CSessionOptions), POINTER(c_void_p), _ERROR]),
    "ob_session_free": (None, [c_void_p]),
    "ob_model_arena_bytes": (_STATUS, [c_void_p, c_uint64, POINTER(c_size_t), _ERROR]),
    "ob_session_arena_bytes": (_STATUS, [c_void_p, POINTER(CSessionOptions), POINTER(c_size_t), _ERROR]),
    "ob_forward": (_STATUS, [c_void_p, c_void_p, c_uint32, c_uint32, c_void_p, _ERROR]),
    "ob_session_position": (c_uint32, [c_void_p]),
    "ob_session_max_positions": (c_uint32, [c_void_p]),
    "ob_session_truncate": (_STATUS, [c_void_p, c_uint32, _ERROR]),
    "ob_forward_batch": (_STATUS, [c_void_p, c_void_p, c_uint32, c_void_p, _ERROR]),
    "ob_sequence_position": (c_uint32, [c_void_p, c_uint32]),
    "ob_sequence_truncate": (_STATUS, [c_void_p, c_uint32, c_uint32, _ERROR]),
    "ob_sequence_copy": (_STATUS, [c_void_p, c_uint32, c_uint32, c_uint32, _ERROR]),
    "ob_sequence_shift": (_STATUS, [c_void_p, c_uint32, c_uint32, c_uint32, _ERROR]),
    "ob_session_set_trace": (None, [c_void_p, TRACE, c_void_p]),
    "ob_sampler_init": (_STATUS, [POINTER(CSampler), POINTER(CSamplerOptions), _ERROR]),
    "ob_sampler_arena_bytes": (c_size_t, [c_uint32]),
    "ob_sample": (
        _STATUS,
        [
            *[POINTER(CSampler), c_void_p, c_uint32, c_void_p, c_uint32],
            *[c_void_p, c_size_t, POINTER(c_uint32), _ERROR],
        ],
    ),
    "ob_seconds": (c_double, []),
    "ob_lookup": (c_uint32, [c_void_p, c_uint32, c_uint32, c_void_p, POINTER(c_uint32)]),
    "ob_verify": (
        _STATUS,
        [
            *[POINTER(CSampler), c_void_p, c_uint32, c_void_p, c_uint32, c_uint32, c_uint32, c_void_p],
            *[c_void_p, c_size_t, c_void_p, POINTER(c_uint32), _ERROR],
        ],
    ),
    "ob_speculation_arena_bytes": (
        _STATUS,
        [POINTER(CSpeculationOptions), c_void_p, c_void_p, POINTER(c_size_t), _ERROR],
    ),
    "ob_speculation_init": (
        _STATUS,
        [POINTER(CSpeculationOptions), c_void_p, c_void_p, c_void_p, c_size_t, POINTER(c_void_p), _ERROR],
    ),
    "ob_speculation_step": (
        _STATUS,
        [
            *[c_void_p, POINTER(CSampler), c_void_p, c_uint32, c_uint32],
            *[c_void_p, POINTER(c_uint32), _ERROR],
        ],
    ),
    "ob_speculation_count": (None, [c_void_p, POINTER(CSpeculationCounts)]),
}


def _file_name() -> str:
    if sys.platform == "win32":
        return "onebit.dll"
    return "libonebit.dylib" if sys.platform == "darwin" else "libonebit.so"


def _candidates() -> list[Path]:
    """Places to look, best first: the one named in the environment, the wheel's, the build folder of a checkout.

    Installed in place, the package has two folders: the sources and, with the library, the environment's.
    """
    from onebit import engine

    here = Path(__file__).resolve().parent
    folders = list(dict.fromkeys([here, *(Path(folder) for folder in engine.__path__)]))
    places = [folder / "lib" / _file_name() for folder in folders]
    places.append(here.parents[2] / "build" / "engine" / _file_name())
    named = os.environ.get(_ENVIRONMENT)
    return [Path(named)] if named else places


def library_path() -> Path:
    """Where the shared library is. EngineError, with the command that builds it, when it is nowhere."""
    for path in _candidates():
        if path.is_file():
            return path
    looked = ", ".join(str(path) for path in _candidates())
    raise EngineError(
        f"the onebit engine is not built (looked for {looked}); build it with"
        " 'cmake -S engine -B build/engine && cmake --build build/engine' or set"
        f" {_ENVIRONMENT} to its file"
    )


@cache
def library() -> ctypes.CDLL:
    """Load the engine once and declare its functions."""
    path = library_path()
    try:
        loaded = ctypes.CDLL(str(path))
        version = int(loaded.ob_abi_version())
    except (OSError, AttributeError) as error:
        raise EngineError(f"cannot load the onebit engine from {path}: {error}; build it again") from error
    if version != ABI_VERSION:
        raise EngineError(f"{path} is engine ABI {version}, this package needs {ABI_VERSION}: build the engine again")
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


def check(status: int, error: Error, context: str = "") -> None:
    """Turn a status into an exception: FormatError for what is wrong with a file, EngineError for the rest."""
    if status == 0:
        return
    message = error.message.decode("utf-8", "replace")
    kind: type[OnebitError] = FormatError if status in (_STATUS_FORMAT, _STATUS_IO) else EngineError
    raise kind(f"{context}: {message}" if context else message)
