"""Codes to bytes and back, one file per layout; the same functions serve numpy arrays and torch tensors.

Row layouts (``ternary``, ``ternary5``, ``binary``, ``int4``, ``int8``): ``pack(codes_OI) -> uint8 [O, row bytes]`` and
``unpack(bytes_OB, cols) -> int8 [O, cols]``. Tiled layouts (``ternary_t16``, ``ternary5_t16``, ``binary_t16``):
``pack(codes_OI, group_size=None) -> uint8 [row blocks, tiles, 64]`` and ``unpack(tiles, rows, cols, group_size=None)``.
Nothing here imports torch.
"""
