/* Unicode for the tokenizer: UTF-8, the character classes its split rules name, and normalisation form C.
 *
 * Freestanding: no allocation, no locale. The tables (ob_unicode_tables.c) are read out of the `tokenizers` library by
 * engine/tools/make_unicode_tables.py, because the split must be the same as there, whatever Unicode version it holds.
 */
#ifndef OB_UNICODE_H
#define OB_UNICODE_H

#include <stddef.h>
#include <stdint.h>

enum { OB_CLASS_OTHER = 0, OB_CLASS_LETTER = 1, OB_CLASS_NUMBER = 2, OB_CLASS_SPACE = 3 };

typedef struct { uint32_t code_point; uint16_t index; uint16_t count; } ob_decomposition;
typedef struct { uint32_t first, second, composed; } ob_composition;
typedef struct { uint32_t first; uint16_t count; uint16_t combining_class; } ob_combining_range;

extern const uint32_t ob_unicode_num_class_ranges, ob_unicode_class_ranges[];
extern const uint32_t ob_unicode_num_decompositions, ob_unicode_decomposition_pool[];
extern const ob_decomposition ob_unicode_decompositions[];
extern const uint32_t ob_unicode_num_compositions;
extern const ob_composition ob_unicode_compositions[];
extern const uint32_t ob_unicode_num_combining_ranges;
extern const ob_combining_range ob_unicode_combining_ranges[];

/* Reads one code point from text[0..n), n >= 1; returns the bytes consumed (at least 1). An invalid sequence gives
 * U+FFFD for its longest valid prefix, as Python's errors="replace" does. *valid (may be NULL) says which it was. */
size_t ob_utf8_decode(const uint8_t *text, size_t n, uint32_t *code_point, int *valid);

/* Writes code_point (a scalar value) as UTF-8; returns the bytes written, 1 to 4. */
size_t ob_utf8_encode(uint32_t code_point, uint8_t out[4]);

/* One of OB_CLASS_*. */
int ob_unicode_class(uint32_t code_point);

/* Canonical combining class, 0 for a starter. */
uint32_t ob_unicode_combining_class(uint32_t code_point);

/* Code points that the NFC form of any n bytes of valid UTF-8 may need while it is decomposed (each decomposes to at
 * most 1.5 code points per byte: U+0390 is 2 bytes and 3 code points). */
#define OB_NFC_CODE_POINTS(n) ((n) + (n) / 2 + 4)

/* Normalises the valid UTF-8 text[0..n) to NFC; writes at most 3 * n bytes to out and returns how many. code_points and
 * spare each hold OB_NFC_CODE_POINTS(n) entries. O(n log n) for any input. */
size_t ob_nfc(const uint8_t *text, size_t n, uint8_t *out, uint32_t *code_points, uint32_t *spare);

/* True when NFC leaves this text alone for sure: no code point from U+0300 on. */
int ob_nfc_is_trivial(const uint8_t *text, size_t n);

#endif
