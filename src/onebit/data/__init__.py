"""Text to tokens to packed blocks: sources, the byte-level BPE, the memory-mapped cache, streaming."""

from onebit.data.blocks import PADDING, BlockCounts, PackedBlocks, collate
from onebit.data.documents import Piece, TextSource, hold_out, open_source
from onebit.data.prepare import PreparedData, TextSplit, open_split, prepare, tokenizer_for
from onebit.data.sampler import RunSampler
from onebit.data.stream import BlockStream
from onebit.data.tokenizer import END_OF_TEXT, TextTokenizer, load_tokenizer, train_tokenizer

__all__ = [
    "END_OF_TEXT",
    "PADDING",
    "BlockCounts",
    "BlockStream",
    "PackedBlocks",
    "Piece",
    "PreparedData",
    "RunSampler",
    "TextSource",
    "TextSplit",
    "TextTokenizer",
    "collate",
    "hold_out",
    "load_tokenizer",
    "open_source",
    "open_split",
    "prepare",
    "tokenizer_for",
    "train_tokenizer",
]
