"""Writes tests/golden/layouts.txt: packed bytes of every layout, one code at a time, straight from docs/format.md.

It shares nothing with ``onebit.packing``: the Python tests compare the package with this file, the C tests compare
the engine with it. Run it only when the format gains a layout: ``python tests/golden/make_layouts.py``.

A case is three lines: ``case <layout> <rows> <cols> <group_size, 0 for none>``, ``codes`` with the codes row by row,
``bytes`` in hex (row layouts without the alignment of rows to 64 bytes).
"""

from __future__ import annotations

import random
from pathlib import Path

CODES_PER_BYTE = {"binary": 8, "ternary": 4, "ternary5": 5, "int4": 2, "int8": 1}
TILE_WIDTH = {"binary_t16": 32, "ternary_t16": 16, "ternary5_t16": 20}
ZERO = {"binary": -1, "binary_t16": -1}  # the code whose bits are zero

Row = list[int]


def slots(cols: int, width: int, group: int) -> list[int | None]:
    """For each slot of a padded row the input it holds, None for padding."""
    out: list[int | None] = []
    for start in range(0, cols, group or cols):
        inputs: list[int | None] = list(range(start, min(start + (group or cols), cols)))
        out += inputs + [None] * (-len(inputs) % width)
    return out


def base3(digits: Row) -> int:
    """Five codes, most significant first, to the scaled byte."""
    v = sum((code + 1) * 3 ** (4 - i) for i, code in enumerate(digits))
    return (v * 256 + 242) // 243


def one_byte(layout: str, codes: Row) -> int:
    """The byte that holds these codes, in the order of their position in the byte."""
    match layout:
        case "binary" | "binary_t16":
            return sum((code == 1) << i for i, code in enumerate(codes))
        case "ternary":
            return sum({0: 0b00, 1: 0b01, -1: 0b11}[code] << 2 * i for i, code in enumerate(codes))
        case "ternary_t16":
            return sum((code + 1) << 2 * i for i, code in enumerate(codes))
        case "ternary5" | "ternary5_t16":
            return base3(codes)
        case "int4":
            return (codes[0] + 8) | (codes[1] + 8) << 4
        case _:
            return codes[0] % 256


def pack(layout: str, rows: list[Row], group: int) -> bytes:
    """Bytes of a matrix of codes, row by row or tile by tile."""
    cols, pad = len(rows[0]), ZERO.get(layout, 0)
    if layout in CODES_PER_BYTE:
        width = CODES_PER_BYTE[layout]
        padded = [[pad if k is None else row[k] for k in slots(cols, width, group)] for row in rows]
        return bytes(one_byte(layout, row[i : i + width]) for row in padded for i in range(0, len(row), width))
    width = TILE_WIDTH[layout]
    places = slots(cols, width, group)
    out = bytearray()
    for block in range(0, len(rows), 16):
        for tile in range(0, len(places), width):
            for lane in range(16):
                row = rows[block + lane] if block + lane < len(rows) else None
                for b in range(4):
                    inputs = [places[tile + 4 * j + b] for j in range(width // 4)]
                    out.append(one_byte(layout, [pad if row is None or k is None else row[k] for k in inputs]))
    return bytes(out)


def cases() -> list[tuple[str, int, int, int]]:
    """Shapes with short last rows, groups and tiles."""
    found = [(layout, 3, cols, 0) for layout in CODES_PER_BYTE for cols in (1, 8, 19)]
    found += [("ternary5", 2, 64, 64), ("ternary5", 2, 130, 128), ("ternary5", 1, 300, 256)]
    for layout in TILE_WIDTH:
        found += [(layout, 1, 1, 0), (layout, 16, TILE_WIDTH[layout], 0), (layout, 17, 37, 0)]
    return [
        *found,
        ("ternary5_t16", 2, 64, 64),
        ("ternary5_t16", 3, 70, 64),
        ("ternary_t16", 2, 70, 64),
        ("binary_t16", 2, 70, 64),
    ]


def main() -> None:
    """Write layouts.txt beside this file."""
    rng = random.Random(2026)
    lines = ["# packed bytes of every layout; made by make_layouts.py, described in docs/format.md"]
    for layout, rows, cols, group in cases():
        largest = {"int4": 7, "int8": 127}.get(layout, 1)
        choices = [-1, 1] if layout.startswith("binary") else list(range(-largest, largest + 1))
        codes = [[rng.choice(choices) for _ in range(cols)] for _ in range(rows)]
        lines.append(f"case {layout} {rows} {cols} {group}")
        lines.append("codes " + " ".join(str(code) for row in codes for code in row))
        lines.append("bytes " + pack(layout, codes, group).hex())
    Path(__file__).with_name("layouts.txt").write_text("\n".join(lines) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
