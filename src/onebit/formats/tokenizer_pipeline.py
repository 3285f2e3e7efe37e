"""Reads the steps of a Hugging Face ``tokenizer.json`` around its model: normaliser, pre-tokenizer, decoder and so on.

Each step is recognised by its exact parameters and becomes a number of TOKBIN (engine/src/ob_tokenizer.h); whatever the
C tokenizer does not do raises a FormatError that names it. Truncation and padding concern batches and are ignored.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from typing import Any

from onebit.errors import FormatError

__all__ = ["METASPACE", "SPLITS", "Pipeline", "read_pipeline"]

METASPACE = "\u2581"
BYTE_LEVEL, SENTENCEPIECE = 0, 1
SPLIT_NONE, SPLIT_GPT2, SPLIT_LLAMA3, SPLIT_QWEN2, SPLIT_METASPACE = range(5)
PREPEND_NEVER, PREPEND_ALWAYS, PREPEND_UNLESS_THERE, PREPEND_FIRST = range(4)
STRIP_NONE, STRIP_ONE, STRIP_ALL = range(3)
FLAG_NAMES = ("nfc", "prefix_space", "digits", "ignore_merges", "byte_fallback", "fuse_unknown")  # bit 0, 1, ...

GPT2_REST = r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_START = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
LLAMA3_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    r"'s|'t|'re|'ve|'m|'ll|'d" + GPT2_REST: SPLIT_GPT2,
    r"'(?:[sdmt]|ll|ve|re)" + GPT2_REST: SPLIT_GPT2,
    LLAMA3_START + r"|\p{N}{1,3}" + LLAMA3_REST: SPLIT_LLAMA3,
    LLAMA3_START + r"|\p{N}" + LLAMA3_REST: SPLIT_QWEN2,
}
ADVICE = "the C engine has no such step; run this model through Python, or export it without a tokenizer"


@dataclass
class Pipeline:
    """What happens to a text before and after merging, in TOKBIN's numbers."""

    model: int = BYTE_LEVEL
    split: int = SPLIT_NONE
    prepend: int = PREPEND_NEVER
    strip: int = STRIP_NONE
    nfc: bool = False
    prefix_space: bool = False
    digits: bool = False
    ignore_merges: bool = False
    byte_fallback: bool = False
    fuse_unknown: bool = False
    decodes_bytes: bool = False  # tokens like <0x0A> stand for a byte when decoding
    replaces_spaces: bool = False  # a normaliser turns " " into U+2581
    prefix: list[int] = field(default_factory=list)
    suffix: list[int] = field(default_factory=list)

    @property
    def flags(self) -> int:
        return sum(1 << bit for bit, name in enumerate(FLAG_NAMES) if getattr(self, name))

    def normalize(self, content: str) -> str:
        """What the normaliser makes of an added token's content."""
        if self.nfc:
            content = unicodedata.normalize("NFC", content)
        if self.prepend == PREPEND_ALWAYS:
            content = METASPACE + content
        return content.replace(" ", METASPACE) if self.replaces_spaces else content


def read_pipeline(description: dict[str, Any]) -> Pipeline:
    """Return the steps of a parsed tokenizer.json.

    Raises:
        FormatError: a step that the C tokenizer does not have, by name.
    """
    pipeline = Pipeline()
    read_model(pipeline, description["model"])
    read_normalizer(pipeline, steps_of(description.get("normalizer"), "normalizers"))
    read_pre_tokenizer(pipeline, steps_of(description.get("pre_tokenizer"), "pretokenizers"))
    if pipeline.model == BYTE_LEVEL and (pipeline.prepend or pipeline.replaces_spaces):
        raise FormatError(f"normaliser with {METASPACE} in a byte-level tokenizer is not supported: {ADVICE}")
    if pipeline.model == SENTENCEPIECE and (pipeline.nfc or pipeline.ignore_merges):
        feature = "NFC normaliser" if pipeline.nfc else "ignore_merges"
        raise FormatError(f"{feature} in a SentencePiece-style tokenizer is not supported: {ADVICE}")
    read_decoder(pipeline, steps_of(description.get("decoder"), "decoders"))
    read_post_processor(pipeline, steps_of(description.get("post_processor"), "processors"))
    return pipeline


def steps_of(step: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The flat list of steps that a possibly nested Sequence stands for."""
    if step is None:
        return []
    if step.get("type") != "Sequence":
        return [step]
    return [inner for child in step.get(key, []) for inner in steps_of(child, key)]


def unsupported(role: str, step: dict[str, Any]) -> FormatError:
    details = ", ".join(f"{key}={value!r}" for key, value in step.items() if key != "type")
    return FormatError(f"{role} {step.get('type')}({details}) is not supported: {ADVICE}")


def read_model(pipeline: Pipeline, model: dict[str, Any]) -> None:
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        raise FormatError(f"tokenizer model {kind} is not supported, only BPE is: {ADVICE}")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise FormatError(f"BPE option {key}={model[key]!r} is not supported: {ADVICE}")
    pipeline.ignore_merges = bool(model.get("ignore_merges"))
    pipeline.fuse_unknown = bool(model.get("fuse_unk"))
    pipeline.byte_fallback = bool(model.get("byte_fallback"))


def read_normalizer(pipeline: Pipeline, steps: list[dict[str, Any]]) -> None:
    for step in steps:
        if step == {"type": "NFC"}:
            pipeline.nfc = True
        elif step == {"type": "Prepend", "prepend": METASPACE} and not pipeline.replaces_spaces:
            pipeline.prepend = PREPEND_ALWAYS
        elif step == {"type": "Replace", "pattern": {"String": " "}, "content": METASPACE}:
            pipeline.replaces_spaces = True
        else:
            raise unsupported("normaliser", step)
    if pipeline.prepend and not pipeline.replaces_spaces:
        raise FormatError(f"normaliser Prepend without Replace of spaces is not supported: {ADVICE}")


def read_pre_tokenizer(pipeline: Pipeline, steps: list[dict[str, Any]]) -> None:
    if steps and steps[-1].get("type") == "ByteLevel":
        read_byte_level(pipeline, steps)
        return
    pipeline.model = SENTENCEPIECE
    for step in steps:
        if step.get("type") == "Metaspace" and len(steps) == 1 and not pipeline.replaces_spaces:
            read_metaspace(pipeline, step)
        elif not (pipeline.replaces_spaces and step.get("type") == "Split" and step.get("pattern") == {"String": " "}):
            raise unsupported("pre-tokenizer", step)  # the Split on " " above finds none, since they were replaced
    if not steps and not pipeline.replaces_spaces:
        raise FormatError(f"BPE with neither ByteLevel nor Metaspace is not supported: {ADVICE}")


def read_byte_level(pipeline: Pipeline, steps: list[dict[str, Any]]) -> None:
    *before, byte_level = steps
    pipeline.prefix_space = bool(byte_level.get("add_prefix_space", True))
    if before and before[0] == {"type": "Digits", "individual_digits": True} and not pipeline.prefix_space:
        pipeline.digits = True
        before = before[1:]
    if byte_level.get("use_regex", True):
        pipeline.split = SPLIT_GPT2
    elif before and before[0].get("type") == "Split":
        pipeline.split = split_kind(before[0])
        before = before[1:]
        if pipeline.prefix_space:
            raise FormatError(f"ByteLevel(add_prefix_space=True) behind a Split is not supported: {ADVICE}")
    if before:
        raise unsupported("pre-tokenizer", before[0])


def split_kind(step: dict[str, Any]) -> int:
    isolates = (step.get("behavior"), bool(step.get("invert"))) in (("Isolated", False), ("Removed", True))
    kind = SPLITS.get(str(step.get("pattern", {}).get("Regex")))
    if kind is None or not isolates:
        raise unsupported("pre-tokenizer", step)
    return kind


def read_metaspace(pipeline: Pipeline, step: dict[str, Any]) -> None:
    scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
    schemes = {"always": PREPEND_UNLESS_THERE, "first": PREPEND_FIRST, "never": PREPEND_NEVER}
    if step.get("replacement") != METASPACE or scheme not in schemes:
        raise unsupported("pre-tokenizer", step)
    pipeline.prepend = schemes[scheme]
    pipeline.split = SPLIT_METASPACE if step.get("split", True) else SPLIT_NONE


def read_decoder(pipeline: Pipeline, steps: list[dict[str, Any]]) -> None:
    kinds = [str(step.get("type")) for step in steps]
    if pipeline.model == BYTE_LEVEL:
        if kinds != ["ByteLevel"]:
            raise FormatError(f"decoder {kinds or None} in a byte-level tokenizer is not supported: {ADVICE}")
        return
    writes_spaces = False
    for step in steps:
        if step.get("type") == "Metaspace" and step.get("replacement") == METASPACE:
            scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            pipeline.strip = STRIP_NONE if scheme == "never" else STRIP_ALL
            writes_spaces = True
        elif step == {"type": "Replace", "pattern": {"String": METASPACE}, "content": " "}:
            writes_spaces = True
        elif step == {"type": "ByteFallback"}:
            pipeline.decodes_bytes = True
        elif step == {"type": "Strip", "content": " ", "start": 1, "stop": 0}:
            pipeline.strip = STRIP_ONE
        elif step != {"type": "Fuse"}:
            raise unsupported("decoder", step)
    if not writes_spaces:
        raise FormatError(f"decoder {kinds or None} does not turn {METASPACE} into a space: {ADVICE}")


def read_post_processor(pipeline: Pipeline, steps: list[dict[str, Any]]) -> None:
    for step in steps:
        if step.get("type") == "ByteLevel":  # trims offsets, which the C tokenizer does not give
            continue
        if step.get("type") != "TemplateProcessing":
            raise unsupported("post-processor", step)
        around = pipeline.prefix
        for part in step["single"]:
            if "Sequence" in part:
                around = pipeline.suffix
            else:
                around.extend(step["special_tokens"][part["SpecialToken"]["id"]]["ids"])
