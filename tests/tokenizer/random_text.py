"""Random texts that aim at what tokenizers get wrong: white space, contractions, marks, rare planes, near misses."""

from __future__ import annotations

import random

SNIPPETS = [
    "'s", "'S", "'t", "'re", "'RE", "'Ve", "'m", "'ll", "'LL", "'d", "'\u017f", "'l", "'", "\u2019s", " ", "  ",
    "   ", "\t", "\n", "\r\n", "\r", "\n\n", "\u00a0", "\u3000", "\u2028", "\x85", "\u200b", "\u200d", "\ufeff",
    "\x00", "a", "the", "def ", "return", "1", "12", "123", "1234", "\u0663", "\u00bd", "\u2167", "_", "__", ".",
    "...", "(", ")", ":=", "!=", "-", "\u2581", "\u2581\u2581", "e\u0301", "\u0301", "\u0323\u0307", "\u0307\u0323",
    "\u1e9b\u0323", "\u0344", "\uac00", "\u1100\u1161\u11a8", "\u11a8", "\u0958", "\ufb1d", "\u212b", "\u2126",
    "\u1f82", "\U0001d160", "\u0f73\u0f71", "\ud7a3", "<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>",
    "<|im_", "<think>", "<thin", "<thi", "<pad>", "<caf\u00e9>", "<cafe\u0301>", "<unk>", "<0x41>", "\U0001f600",
    "\U0001f469\u200d\U0001f4bb", "\U0001f1e9\U0001f1ea", "\ufe0f", "\ufffd", "\u0915\u094d\u0937",
    "\u0e19\u0e49\u0e33", "\u6771\u4eac", "\u043c\u0438\u0440", "\u0645\u0631\u062d", "\U0010ffff",
]  # fmt: skip
PLANES = [(0x00, 0x7F), (0x80, 0x2FF), (0x300, 0x36F), (0x370, 0x1FFF), (0x2000, 0x2FFF), (0x3000, 0xD7FF),
          (0xE000, 0xFFFF), (0x10000, 0x1FFFF), (0x20000, 0x2FFFF), (0x30000, 0xDFFFF),
          (0xE0000, 0x10FFFF)]  # fmt: skip
NOT_UTF8 = [b"", b"\x80", b"\xff", b"\xe2\x96", b"\xf0\x9f", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90", b"\xc3"]
# numbers to \p{N} but not to the older tables behind the library's Digits step: U+11DE0..9 and U+16FF4..6
DIGITS_DISAGREE = {*range(0x11DE0, 0x11DEA), *range(0x16FF4, 0x16FF7)}


def random_text(rng: random.Random, most: int = 12) -> str:
    """Up to ``most`` parts: a known snippet, a run of one character, or characters of a random plane."""
    parts = []
    for _ in range(rng.randint(1, most)):
        choice = rng.random()
        if choice < 0.6:
            parts.append(rng.choice(SNIPPETS))
        elif choice < 0.7:
            parts.append(rng.choice(SNIPPETS)[0] * rng.randint(1, 9))
        else:
            low, high = rng.choice(PLANES)
            parts.extend(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 4)))
    return "".join(parts)


def random_bytes(rng: random.Random) -> bytes:
    """UTF-8 with bytes lost, doubled or replaced."""
    data = bytearray(random_text(rng).encode("utf-8"))
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        data[place : place + rng.randint(0, 2)] = rng.choice([*NOT_UTF8, bytes([rng.randrange(256)])])
    return bytes(data)
