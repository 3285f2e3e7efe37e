"""Write engine/src/ob_unicode_tables.c: character classes and NFC data for the C tokenizer.

The C tokenizer must split text exactly as the `tokenizers` library does, and that library carries its own Unicode
versions (a recent one in its regex engine, an old one in its normaliser). So the tables are read out of the library by
asking it about every code point; `unicodedata` only supplies candidates (which ones combine, which pairs compose).

    python engine/tools/make_unicode_tables.py
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

CODE_POINTS = [cp for cp in range(0x110000) if not 0xD800 <= cp < 0xE000]
HANGUL_SYLLABLES = range(0xAC00, 0xAC00 + 11172)  # composed by arithmetic in ob_unicode.c
OUTPUT = Path(__file__).resolve().parent.parent / "src" / "ob_unicode_tables.c"


def members(pattern: str) -> set[int]:
    """Code points that the library's regex engine puts in ``pattern``."""
    splitter = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    found: set[int] = set()
    for start in range(0, len(CODE_POINTS), 4096):
        text = "".join(map(chr, CODE_POINTS[start : start + 4096]))
        for piece, _ in splitter.pre_tokenize_str(text):
            found.update(map(ord, piece))
    return found


def class_ranges() -> list[int]:
    """Sorted ``start * 4 + class``; a range lasts until the next entry. 0 other, 1 letter, 2 number, 3 white space."""
    letters, numbers, spaces = members(r"\p{L}+"), members(r"\p{N}+"), members(r"\s+")
    entries: list[int] = []
    previous = -1
    for cp in range(0x110000):
        kind = 1 if cp in letters else 2 if cp in numbers else 3 if cp in spaces else 0
        if kind != previous:
            entries.append(cp * 4 + kind)
            previous = kind
    return entries


def decompositions(nfd: normalizers.NFD) -> list[tuple[int, list[int]]]:
    """Code points with their full canonical decomposition, Hangul syllables left out."""
    pairs = ((cp, nfd.normalize_str(chr(cp))) for cp in CODE_POINTS if cp not in HANGUL_SYLLABLES)
    return [(cp, list(map(ord, text))) for cp, text in pairs if text != chr(cp)]


def compositions(nfc: normalizers.NFC) -> list[tuple[int, int, int]]:
    """Sorted (first, second, composed) for every pair that the library composes, Hangul left out."""
    found = []
    for cp in CODE_POINTS:
        parts = unicodedata.decomposition(chr(cp)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            first, second = (int(part, 16) for part in parts)
            if nfc.normalize_str(chr(first) + chr(second)) == chr(cp):
                found.append((first, second, cp))
    return sorted(found)


def combining_ranges(nfd: normalizers.NFD) -> list[tuple[int, int, int]]:
    """Sorted (first, count, combining class) of the code points whose class is not 0, classes found by reordering."""
    marks = [cp for cp in CODE_POINTS if unicodedata.combining(chr(cp))]

    def swaps(first: int, second: int) -> bool:
        given = chr(first) + chr(second)
        return unicodedata.is_normalized("NFD", chr(first)) and nfd.normalize_str(given) == given[::-1] != given

    references: dict[int, int] = {}
    for cp in marks:  # one known member a class; U+0334 has class 1, U+0345 the highest, 240
        if swaps(cp, 0x334) or swaps(0x345, cp) or cp in (0x334, 0x345):
            references.setdefault(unicodedata.combining(chr(cp)), cp)
    ordered = sorted(references.items())
    ranges: list[tuple[int, int, int]] = []
    for cp in marks:
        lower = [value for value, reference in ordered if swaps(cp, reference)]
        higher = [value for value, reference in ordered if swaps(reference, cp)]
        between = [value for value, _ in ordered if value not in lower and value not in higher]
        if len(between) != 1:  # reorders with nothing: the library knows it as a starter
            continue
        if ranges and ranges[-1][0] + ranges[-1][1] == cp and ranges[-1][2] == between[0]:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + 1, between[0])
        else:
            ranges.append((cp, 1, between[0]))
    return ranges


def c_array(declaration: str, values: Iterable[str], per_line: int) -> list[str]:
    """One C array definition, ``per_line`` values a line."""
    listed = list(values)
    rows = [f"    {', '.join(listed[i : i + per_line])}," for i in range(0, len(listed), per_line)]
    return [f"const {declaration}[{len(listed)}] = {{", *rows, "};", ""]


def main() -> None:
    nfc, nfd = normalizers.NFC(), normalizers.NFD()
    classes, decomposed = class_ranges(), decompositions(nfd)
    composed, combining = compositions(nfc), combining_ranges(nfd)
    pool: list[int] = []
    index: list[str] = []
    for cp, parts in decomposed:
        index.append(f"{{{cp:#x}, {len(pool)}, {len(parts)}}}")
        pool.extend(parts)
    lines = [
        f"/* Made by engine/tools/make_unicode_tables.py from tokenizers {tokenizers.__version__}; do not edit. */",
        '#include "ob_unicode.h"',
        "",
        f"const uint32_t ob_unicode_num_class_ranges = {len(classes)};",
        *c_array("uint32_t ob_unicode_class_ranges", (f"{entry:#x}" for entry in classes), 12),
        f"const uint32_t ob_unicode_num_decompositions = {len(decomposed)};",
        *c_array("ob_decomposition ob_unicode_decompositions", index, 6),
        *c_array("uint32_t ob_unicode_decomposition_pool", (f"{cp:#x}" for cp in pool), 12),
        f"const uint32_t ob_unicode_num_compositions = {len(composed)};",
        *c_array("ob_composition ob_unicode_compositions", (f"{{{a:#x}, {b:#x}, {c:#x}}}" for a, b, c in composed), 4),
        f"const uint32_t ob_unicode_num_combining_ranges = {len(combining)};",
        *c_array("ob_combining_range ob_unicode_combining_ranges",
                 (f"{{{first:#x}, {count}, {value}}}" for first, count, value in combining), 6),
    ]  # fmt: skip
    OUTPUT.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    print(f"{OUTPUT.name}: {len(classes)} class ranges, {len(decomposed)} decompositions,", end=" ")
    print(f"{len(composed)} compositions, {len(combining)} combining ranges")


if __name__ == "__main__":
    main()
