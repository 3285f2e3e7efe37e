/* Opening a TOKBIN section (everything is checked here, once) and turning tokens back into bytes. */
#include "ob_tokenizer.h"
#include "ob_error.h"

#define MAX_VOCAB (1u << 24)
#define MAX_AROUND 16u /* tokens put before or after a text; real models have at most two */

static int table_fits(const ob_tokenizer *t, int table, uint64_t entries, uint64_t entry_bytes) {
    uint64_t offset = t->header[table];
    return offset >= OB_TOKBIN_HEADER_BYTES && offset % 4 == 0 && offset + entries * entry_bytes <= t->header[OB_TOK_BYTES];
}

static const char *check_header(const ob_tokenizer *t, size_t bytes) {
    const uint32_t *h = t->header;
    if (h[OB_TOK_MAGIC] != OB_TOKBIN_MAGIC) return "tokenizer: not a TOKBIN section";
    if (h[OB_TOK_VERSION] != OB_TOKBIN_VERSION) return "tokenizer: TOKBIN version is not 1; export the model again";
    if (h[OB_TOK_BYTES] > bytes) return "tokenizer: section is truncated";
    if (h[OB_TOK_MODEL] > OB_TOK_SENTENCEPIECE || h[OB_TOK_SPLIT] >= OB_NUM_SPLITS || h[OB_TOK_FLAGS] > OB_TOK_ALL_FLAGS
        || h[OB_TOK_PREPEND] >= OB_NUM_PREPENDS || h[OB_TOK_STRIP] >= OB_NUM_STRIPS)
        return "tokenizer: unknown kind of tokenizer; this engine is older than the file";
    if (h[OB_TOK_MODEL] == OB_TOK_SENTENCEPIECE && h[OB_TOK_FLAGS] & (OB_TOK_NFC | OB_TOK_PREFIX_SPACE | OB_TOK_DIGITS))
        return "tokenizer: flags contradict each other";
    if (h[OB_TOK_VOCAB_SIZE] == 0 || h[OB_TOK_VOCAB_SIZE] > MAX_VOCAB) return "tokenizer: vocabulary size out of range";
    if (h[OB_TOK_NUM_PREFIX] > MAX_AROUND || h[OB_TOK_NUM_SUFFIX] > MAX_AROUND
        || h[OB_TOK_NUM_ADDED_RAW] > h[OB_TOK_NUM_ADDED])
        return "tokenizer: table sizes out of range";
    return NULL;
}

static const char *check_tables(const ob_tokenizer *t) {
    const uint32_t *h = t->header;
    uint64_t vocab = h[OB_TOK_VOCAB_SIZE];
    if (!table_fits(t, OB_TOK_TOKEN_START, vocab + 1, 4) || !table_fits(t, OB_TOK_TOKEN_FLAGS, vocab, 1)
        || !table_fits(t, OB_TOK_MERGE_START, vocab + 1, 4) || !table_fits(t, OB_TOK_MERGES, h[OB_TOK_NUM_MERGES], 12)
        || !table_fits(t, OB_TOK_BYTE_IDS, 256, 4) || !table_fits(t, OB_TOK_CHARS, h[OB_TOK_NUM_CHARS], 8)
        || !table_fits(t, OB_TOK_SORTED, h[OB_TOK_NUM_SORTED], 4) || !table_fits(t, OB_TOK_ADDED, h[OB_TOK_NUM_ADDED], 16)
        || !table_fits(t, OB_TOK_PREFIX, h[OB_TOK_NUM_PREFIX], 4) || !table_fits(t, OB_TOK_SUFFIX, h[OB_TOK_NUM_SUFFIX], 4)
        || !table_fits(t, OB_TOK_BLOB, h[OB_TOK_BLOB_BYTES], 1))
        return "tokenizer: a table lies outside the section";
    return NULL;
}

/* start[0..n] must not decrease and must end within limit. */
static int starts_are_sound(const ob_tokenizer *t, int table, uint32_t n, uint32_t limit) {
    uint32_t previous = 0;
    for (uint32_t i = 0; i <= n; i++) {
        uint32_t start = ob_tok_entry(t, table, i);
        if (start < previous || start > limit) return 0;
        previous = start;
    }
    return 1;
}

/* Every `step`-th entry from `from` on, n of them, is a token; with or_none also NO_TOKEN. */
static int tokens_are_sound(const ob_tokenizer *t, int table, uint32_t from, uint32_t step, uint32_t n, int or_none) {
    for (uint32_t i = 0; i < n; i++) {
        uint32_t id = ob_tok_u32(t->image + t->header[table] + 4 * (from + (size_t)step * i));
        if (id >= t->header[OB_TOK_VOCAB_SIZE] && !(or_none && id == OB_NO_TOKEN)) return 0;
    }
    return 1;
}

static const char *check_contents(const ob_tokenizer *t) {
    const uint32_t *h = t->header;
    if (!starts_are_sound(t, OB_TOK_TOKEN_START, h[OB_TOK_VOCAB_SIZE], h[OB_TOK_BLOB_BYTES])
        || !starts_are_sound(t, OB_TOK_MERGE_START, h[OB_TOK_VOCAB_SIZE], h[OB_TOK_NUM_MERGES]))
        return "tokenizer: a table of starts is damaged";
    if (!tokens_are_sound(t, OB_TOK_MERGES, 0, 3, h[OB_TOK_NUM_MERGES], 0)
        || !tokens_are_sound(t, OB_TOK_MERGES, 2, 3, h[OB_TOK_NUM_MERGES], 0)
        || !tokens_are_sound(t, OB_TOK_BYTE_IDS, 0, 1, 256, !(h[OB_TOK_FLAGS] & OB_TOK_BYTE_FALLBACK))
        || !tokens_are_sound(t, OB_TOK_CHARS, 1, 2, h[OB_TOK_NUM_CHARS], 0)
        || !tokens_are_sound(t, OB_TOK_SORTED, 0, 1, h[OB_TOK_NUM_SORTED], 0)
        || !tokens_are_sound(t, OB_TOK_ADDED, 0, 4, h[OB_TOK_NUM_ADDED], 0)
        || !tokens_are_sound(t, OB_TOK_PREFIX, 0, 1, h[OB_TOK_NUM_PREFIX], 0)
        || !tokens_are_sound(t, OB_TOK_SUFFIX, 0, 1, h[OB_TOK_NUM_SUFFIX], 0)
        || (h[OB_TOK_UNKNOWN] >= h[OB_TOK_VOCAB_SIZE] && h[OB_TOK_UNKNOWN] != OB_NO_TOKEN))
        return "tokenizer: a token number is out of range";
    for (uint32_t i = 0; i < h[OB_TOK_NUM_ADDED]; i++) {
        uint64_t content = ob_tok_entry(t, OB_TOK_ADDED, 4 * i + 1), length = ob_tok_entry(t, OB_TOK_ADDED, 4 * i + 2);
        if (length == 0 || length > 255 || content + length > h[OB_TOK_BLOB_BYTES])
            return "tokenizer: an added token lies outside the section";
    }
    return NULL;
}

ob_status ob_tokenizer_open(ob_tokenizer *t, const void *section, size_t bytes, ob_error *error) {
    const char *problem;
    if (!t || !section) return ob_fail(error, OB_ERROR_ARGUMENT, "tokenizer: null pointer");
    if (bytes < OB_TOKBIN_HEADER_BYTES) return ob_fail(error, OB_ERROR_FORMAT, "tokenizer: section is truncated");
    t->image = section;
    for (int i = 0; i < 32; i++) t->header[i] = ob_tok_u32(t->image + 4 * i);
    if (!(problem = check_header(t, bytes)) && !(problem = check_tables(t))) problem = check_contents(t);
    if (!problem) return OB_OK;
    t->image = NULL;
    for (int i = 0; i < 32; i++) t->header[i] = 0;
    return ob_fail(error, OB_ERROR_FORMAT, "%s", problem);
}

uint32_t ob_tokenizer_vocab_size(const ob_tokenizer *t) { return t->header[OB_TOK_VOCAB_SIZE]; }

const char *ob_tokenizer_token(const ob_tokenizer *t, uint32_t token, int first, size_t *bytes) {
    *bytes = 0;
    if (token >= t->header[OB_TOK_VOCAB_SIZE]) return "";
    uint32_t start = ob_tok_entry(t, OB_TOK_TOKEN_START, token), end = ob_tok_entry(t, OB_TOK_TOKEN_START, token + 1);
    const uint8_t *blob = t->image + t->header[OB_TOK_BLOB];
    if (first && t->header[OB_TOK_STRIP] != OB_STRIP_NONE)
        while (start < end && blob[start] == ' ') {
            start++;
            if (t->header[OB_TOK_STRIP] == OB_STRIP_ONE) break;
        }
    *bytes = end - start;
    return (const char *)blob + start;
}

int ob_tokenizer_is_special(const ob_tokenizer *t, uint32_t token) {
    return token < t->header[OB_TOK_VOCAB_SIZE] && (t->image[t->header[OB_TOK_TOKEN_FLAGS] + token] & OB_TOKEN_SPECIAL);
}

uint32_t ob_tokenizer_find(const ob_tokenizer *t, const char *content, size_t bytes) {
    for (uint32_t i = 0; i < t->header[OB_TOK_NUM_ADDED]; i++) {
        const uint8_t *known = t->image + t->header[OB_TOK_BLOB] + ob_tok_entry(t, OB_TOK_ADDED, 4 * i + 1);
        size_t k = 0;
        if (ob_tok_entry(t, OB_TOK_ADDED, 4 * i + 2) != bytes) continue;
        while (k < bytes && known[k] == (uint8_t)content[k]) k++;
        if (k == bytes) return ob_tok_entry(t, OB_TOK_ADDED, 4 * i);
    }
    return OB_NO_TOKEN;
}

size_t ob_utf8_complete(const char *text, size_t bytes) {
    const uint8_t *p = (const uint8_t *)text;
    for (size_t back = 1; back <= 3 && back <= bytes; back++) {
        uint8_t c = p[bytes - back];
        if (c < 0x80) return bytes;
        if (c >= 0xC0) { /* a lead byte: wait when it asks for more than there is, unless it can never be completed */
            size_t length = c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : 2;
            uint32_t ignored;
            if (back >= length || ob_utf8_decode(p + bytes - back, back, &ignored, NULL) < back) return bytes;
            return c < 0xC2 || c > 0xF4 ? bytes : bytes - back;
        }
    }
    return bytes;
}
