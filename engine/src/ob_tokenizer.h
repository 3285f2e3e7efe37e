/* TOKBIN: a Hugging Face tokenizer.json compiled into tables that C reads in place.
 *
 * Two families: byte-level BPE (GPT-2, Llama-3, Qwen) and SentencePiece-style BPE (Llama-2, Mistral, Gemma). Written by
 * src/onebit/formats/tokenizer_binary.py. Little-endian; offsets count from the start of the section; the file header's
 * CRC covers it. The header is 32 u32, here by index (byte offset = 4 * index); the rest of this page names them.
 *
 * Tables, each 4-byte aligned (sizes in entries):
 *   TOKEN_START  u32[vocab_size + 1]  token t decodes to blob[start[t] .. start[t + 1])
 *   TOKEN_FLAGS  u8[vocab_size]       bit 0 special (not shown), bit 1 exists
 *   MERGE_START  u32[vocab_size + 1]  merges whose left part is t are merges[start[t] .. start[t + 1])
 *   MERGES       {u32 right, rank, result}[num_merges], sorted by right within one left part
 *   BYTE_IDS     u32[256]             token of a byte; NO_TOKEN where there is none
 *   CHARS        {u32 code_point, id}[num_chars], sorted; SentencePiece only
 *   SORTED       u32[num_sorted]      tokens sorted by their bytes; only with IGNORE_MERGES
 *   ADDED        {u32 id, content, bytes, flags}[num_added]: content is an offset in the blob, at most 255 bytes; the
 *                first num_added_raw are looked for in the text as given, the others in the normalised text; each of the
 *                two parts sorted by content. flags: bit 0 eats white space before, bit 1 behind
 *   PREFIX, SUFFIX  u32[]             tokens that OB_ENCODE_SPECIAL puts around a text
 *   BLOB         u8[blob_bytes]
 */
#ifndef OB_TOKENIZER_H
#define OB_TOKENIZER_H

#include "onebit.h"
#include "ob_unicode.h"

#define OB_TOKBIN_MAGIC 0x424b4f54u /* "TOKB" */
#define OB_TOKBIN_VERSION 1u
#define OB_TOKBIN_HEADER_BYTES 128u

enum {
    OB_TOK_MAGIC, OB_TOK_VERSION, OB_TOK_BYTES, OB_TOK_MODEL, OB_TOK_SPLIT, OB_TOK_FLAGS, OB_TOK_PREPEND, OB_TOK_STRIP,
    OB_TOK_UNKNOWN, OB_TOK_VOCAB_SIZE, OB_TOK_NUM_MERGES, OB_TOK_NUM_CHARS, OB_TOK_NUM_SORTED, OB_TOK_NUM_ADDED,
    OB_TOK_NUM_ADDED_RAW, OB_TOK_NUM_PREFIX, OB_TOK_NUM_SUFFIX, OB_TOK_BLOB_BYTES,
    OB_TOK_TOKEN_START, OB_TOK_TOKEN_FLAGS, OB_TOK_MERGE_START, OB_TOK_MERGES, OB_TOK_BYTE_IDS, OB_TOK_CHARS,
    OB_TOK_SORTED, OB_TOK_ADDED, OB_TOK_PREFIX, OB_TOK_SUFFIX, OB_TOK_BLOB /* 28; 29 to 31 are zero */
};

enum { OB_TOK_BYTE_LEVEL, OB_TOK_SENTENCEPIECE };
/* How a text is cut before merging: not at all; the three regexes; before each U+2581. */
enum { OB_SPLIT_NONE, OB_SPLIT_GPT2, OB_SPLIT_LLAMA3, OB_SPLIT_QWEN2, OB_SPLIT_METASPACE, OB_NUM_SPLITS };
enum {
    OB_TOK_NFC = 1,            /* normalise to NFC first */
    OB_TOK_PREFIX_SPACE = 2,   /* byte-level: a piece of text starts with a space */
    OB_TOK_DIGITS = 4,         /* each number character is cut out before the split */
    OB_TOK_IGNORE_MERGES = 8,  /* a piece that is a token is that token, whatever the merges say */
    OB_TOK_BYTE_FALLBACK = 16, /* SentencePiece: unknown characters become byte tokens */
    OB_TOK_FUSE_UNKNOWN = 32,  /* neighbouring unknown characters are one unknown token */
    OB_TOK_ALL_FLAGS = 63
};
/* SentencePiece: when U+2581 is put before a piece of text: never; always; unless it starts with one; unless it starts
 * with one, and only where the text begins. */
enum { OB_PREPEND_NEVER, OB_PREPEND_ALWAYS, OB_PREPEND_UNLESS_THERE, OB_PREPEND_FIRST, OB_NUM_PREPENDS };
/* What the first token of a decoded text loses: nothing, one space, all leading spaces. */
enum { OB_STRIP_NONE, OB_STRIP_ONE, OB_STRIP_ALL, OB_NUM_STRIPS };
enum { OB_ADDED_STRIP_LEFT = 1, OB_ADDED_STRIP_RIGHT = 2 };
enum { OB_TOKEN_SPECIAL = 1, OB_TOKEN_EXISTS = 2 };

static inline uint32_t ob_tok_u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Entry `index` of the u32 table whose offset is header[table]. */
static inline uint32_t ob_tok_entry(const ob_tokenizer *t, int table, uint32_t index) {
    return ob_tok_u32(t->image + t->header[table] + 4 * (size_t)index);
}

/* Where the next piece of text[0..n) ends under a split rule; n >= 1, the result is in 1..n. Valid UTF-8 only. */
size_t ob_tok_next_piece(uint32_t split, const uint8_t *text, size_t n);

/* One symbol of a piece while it is merged: a doubly linked list with an indexed heap of the merges that are possible. */
typedef struct ob_tok_symbol {
    uint32_t id, previous, next; /* neighbours by index, NO_TOKEN at the ends */
    uint32_t rank, result;       /* of the merge with the next symbol; NO_TOKEN when there is none */
    uint32_t heap_place;
} ob_tok_symbol;

/* Bytes of work memory for one symbol: itself and its entry in the heap. */
#define OB_TOK_BYTES_PER_SYMBOL (sizeof(ob_tok_symbol) + sizeof(uint32_t))

/* Merges the symbols [n], whose ids are set, best rank first and leftmost among equals; the tokens that remain are the
 * list from symbol 0 on (follow next). heap [n]. */
void ob_tok_merge(const ob_tokenizer *t, ob_tok_symbol *symbols, uint32_t *heap, uint32_t n);

#endif
