/* Text to tokens: clean the UTF-8, cut added tokens out, normalise, cut added tokens out again, split, merge: the order
 * of the `tokenizers` library, which the result must equal. */
#include "ob_tokenizer.h"
#include "ob_error.h"

#define MAX_TEXT_BYTES ((size_t)1 << 28)
#define LEAD 8 /* free bytes before the normalised text, for a space or U+2581 put before a piece */

typedef struct encoder {
    const ob_tokenizer *t;
    uint32_t *tokens;
    size_t capacity, count;
    uint8_t *clean;  /* [3 n] the text with U+FFFD for what is not UTF-8 */
    uint8_t *normal; /* [LEAD + 3 n + 3] one segment, normalised */
    ob_tok_symbol *symbols; /* [3 n + 6], the same memory as NFC's work */
    uint32_t *heap;         /* [3 n + 6] */
} encoder;

typedef struct { size_t start, end, searched; uint32_t token; } added_match;

/* Every byte of text gives at most 3 bytes and 3 symbols: U+FFFD, U+2581 for a space, or an NFC expansion. */
static size_t max_symbols(size_t text_bytes) { return 3 * text_bytes + 6; }

static void emit(encoder *e, uint32_t token) {
    if (e->count < e->capacity) e->tokens[e->count] = token;
    e->count++;
}

static int starts_with_metaspace(const uint8_t *text, size_t n) {
    return n >= 3 && text[0] == 0xE2 && text[1] == 0x96 && text[2] == 0x81;
}

/* The token of a piece as a whole, by its bytes, or NO_TOKEN. */
static uint32_t find_sorted(const ob_tokenizer *t, const uint8_t *text, size_t n) {
    uint32_t low = 0, high = t->header[OB_TOK_NUM_SORTED];
    while (low < high) {
        uint32_t middle = low + (high - low) / 2, token = ob_tok_entry(t, OB_TOK_SORTED, middle);
        size_t length, i = 0;
        const uint8_t *known = (const uint8_t *)ob_tokenizer_token(t, token, 0, &length);
        while (i < n && i < length && known[i] == text[i]) i++;
        if (i == n && i == length) return token;
        if (i < n && (i == length || known[i] < text[i])) low = middle + 1; else high = middle;
    }
    return OB_NO_TOKEN;
}

static uint32_t find_char(const ob_tokenizer *t, uint32_t code_point) {
    uint32_t low = 0, high = t->header[OB_TOK_NUM_CHARS];
    while (low < high) {
        uint32_t middle = low + (high - low) / 2, known = ob_tok_entry(t, OB_TOK_CHARS, 2 * middle);
        if (known == code_point) return ob_tok_entry(t, OB_TOK_CHARS, 2 * middle + 1);
        if (known < code_point) low = middle + 1; else high = middle;
    }
    return OB_NO_TOKEN;
}

/* First symbols of a piece; what has no token is unknown, or dropped when there is no unknown token. */
static uint32_t fill_symbols(encoder *e, const uint8_t *text, size_t n) {
    const uint32_t *h = e->t->header;
    uint32_t count = 0, after_unknown = 0;
    for (size_t at = 0; at < n;) {
        uint32_t id, code_point;
        size_t length = 1;
        if (h[OB_TOK_MODEL] == OB_TOK_BYTE_LEVEL) {
            id = ob_tok_entry(e->t, OB_TOK_BYTE_IDS, text[at]);
        } else {
            length = ob_utf8_decode(text + at, n - at, &code_point, NULL);
            id = find_char(e->t, code_point);
        }
        if (id != OB_NO_TOKEN) {
            e->symbols[count++].id = id;
            after_unknown = 0;
        } else if (h[OB_TOK_FLAGS] & OB_TOK_BYTE_FALLBACK) {
            for (size_t k = 0; k < length; k++)
                e->symbols[count++].id = ob_tok_entry(e->t, OB_TOK_BYTE_IDS, text[at + k]);
        } else if (h[OB_TOK_UNKNOWN] != OB_NO_TOKEN) {
            if (!(after_unknown && h[OB_TOK_FLAGS] & OB_TOK_FUSE_UNKNOWN)) e->symbols[count++].id = h[OB_TOK_UNKNOWN];
            after_unknown = 1;
        }
        at += length;
    }
    return count;
}

static void encode_piece(encoder *e, const uint8_t *text, size_t n) {
    if (e->t->header[OB_TOK_FLAGS] & OB_TOK_IGNORE_MERGES) {
        uint32_t whole = find_sorted(e->t, text, n);
        if (whole != OB_NO_TOKEN) { emit(e, whole); return; }
    }
    uint32_t count = fill_symbols(e, text, n);
    if (count == 0) return;
    ob_tok_merge(e->t, e->symbols, e->heap, count);
    for (uint32_t i = 0; i != OB_NO_TOKEN; i = e->symbols[i].next) emit(e, e->symbols[i].id);
}

static void encode_pieces(encoder *e, const uint8_t *text, size_t n) {
    while (n > 0) {
        size_t length = ob_tok_next_piece(e->t->header[OB_TOK_SPLIT], text, n);
        encode_piece(e, text, length);
        text += length;
        n -= length;
    }
}

/* Text between added tokens, normalised; LEAD bytes before it may be overwritten. first: the whole text begins here. */
static void encode_plain(encoder *e, uint8_t *text, size_t n, int first) {
    const uint32_t *h = e->t->header;
    if (n == 0) return;
    if (h[OB_TOK_FLAGS] & OB_TOK_PREFIX_SPACE && text[0] != ' ') {
        *--text = ' ';
        n++;
    }
    if ((h[OB_TOK_PREPEND] == OB_PREPEND_UNLESS_THERE || (h[OB_TOK_PREPEND] == OB_PREPEND_FIRST && first))
        && !starts_with_metaspace(text, n)) {
        text -= 3;
        n += ob_utf8_encode(0x2581, text);
    }
    if (!(h[OB_TOK_FLAGS] & OB_TOK_DIGITS)) { encode_pieces(e, text, n); return; }
    size_t start = 0;
    for (size_t at = 0; at < n;) {
        uint32_t code_point;
        size_t length = ob_utf8_decode(text + at, n - at, &code_point, NULL);
        if (ob_unicode_class(code_point) == OB_CLASS_NUMBER) {
            encode_pieces(e, text + start, at - start);
            encode_pieces(e, text + at, length);
            start = at + length;
        }
        at += length;
    }
    encode_pieces(e, text + start, n - start);
}

/* The longest of the added tokens [low, high), sorted by content, that text[0..n) starts with; its entry or NO_TOKEN. */
static uint32_t longest_added(const ob_tokenizer *t, uint32_t low, uint32_t high, const uint8_t *text, size_t n) {
    uint32_t best = OB_NO_TOKEN;
    for (size_t depth = 0; low < high && depth <= 255; depth++) { /* no content is longer */
        /* [low, high) share text[0..depth); the shortest sorts first, and is a match when it ends here */
        if (ob_tok_entry(t, OB_TOK_ADDED, 4 * low + 2) == depth) {
            best = low++;
            if (low >= high) break;
        }
        if (depth >= n) break;
        uint32_t bounds[2];
        for (uint32_t side = 0; side < 2; side++) {
            uint32_t a = low, b = high;
            while (a < b) {
                uint32_t middle = a + (b - a) / 2, length = ob_tok_entry(t, OB_TOK_ADDED, 4 * middle + 2);
                uint32_t content = ob_tok_entry(t, OB_TOK_ADDED, 4 * middle + 1);
                uint32_t byte = depth < length ? t->image[t->header[OB_TOK_BLOB] + content + depth] : 0;
                if (byte < text[depth] + side) a = middle + 1; else b = middle;
            }
            bounds[side] = a;
        }
        low = bounds[0];
        high = bounds[1];
    }
    return best;
}

/* The next added token of the part [low, high) at or after m->searched; white space that it eats is part of it, back to
 * m->end, where the previous one ended. */
static int next_added(const ob_tokenizer *t, uint32_t low, uint32_t high, const uint8_t *text, size_t n, added_match *m) {
    if (low >= high) return 0;
    for (size_t at = m->searched; at < n; at++) {
        uint32_t found = longest_added(t, low, high, text + at, n - at), code_point;
        if (found == OB_NO_TOKEN) continue;
        uint32_t flags = ob_tok_entry(t, OB_TOK_ADDED, 4 * found + 3);
        size_t start = at, end = at + ob_tok_entry(t, OB_TOK_ADDED, 4 * found + 2);
        m->searched = end;
        while (flags & OB_ADDED_STRIP_LEFT && start > m->end) {
            size_t before = start - 1;
            while (before > m->end && (text[before] & 0xC0) == 0x80) before--;
            ob_utf8_decode(text + before, start - before, &code_point, NULL);
            if (ob_unicode_class(code_point) != OB_CLASS_SPACE) break;
            start = before;
        }
        while (flags & OB_ADDED_STRIP_RIGHT && end < n) {
            size_t length = ob_utf8_decode(text + end, n - end, &code_point, NULL);
            if (ob_unicode_class(code_point) != OB_CLASS_SPACE) break;
            end += length;
        }
        m->start = start > m->end ? start : m->end;
        m->end = end > m->end ? end : m->end;
        m->token = ob_tok_entry(t, OB_TOK_ADDED, 4 * found);
        return 1;
    }
    return 0;
}

/* One segment into e->normal + LEAD; returns its bytes. */
static size_t normalize(encoder *e, const uint8_t *text, size_t n) {
    uint8_t *out = e->normal + LEAD;
    const uint32_t *h = e->t->header;
    size_t written = 0;
    if (h[OB_TOK_FLAGS] & OB_TOK_NFC && !ob_nfc_is_trivial(text, n)) {
        uint32_t *points = (uint32_t *)(void *)e->symbols;
        return ob_nfc(text, n, out, points, points + OB_NFC_CODE_POINTS(n));
    }
    if (h[OB_TOK_PREPEND] == OB_PREPEND_ALWAYS) written = ob_utf8_encode(0x2581, out);
    for (size_t i = 0; i < n; i++) {
        if (h[OB_TOK_MODEL] == OB_TOK_SENTENCEPIECE && text[i] == ' ') written += ob_utf8_encode(0x2581, out + written);
        else out[written++] = text[i];
    }
    return written;
}

static void encode_segment(encoder *e, const uint8_t *text, size_t n, int first) {
    const uint32_t *h = e->t->header;
    size_t length = normalize(e, text, n), done = 0;
    uint8_t *normal = e->normal + LEAD;
    added_match m = {0, 0, 0, 0};
    while (next_added(e->t, h[OB_TOK_NUM_ADDED_RAW], h[OB_TOK_NUM_ADDED], normal, length, &m)) {
        encode_plain(e, normal + done, m.start - done, first && done == 0);
        emit(e, m.token);
        done = m.end;
    }
    encode_plain(e, normal + done, length - done, first && done == 0);
}

static size_t clean_utf8(uint8_t *out, const uint8_t *text, size_t n) {
    size_t written = 0;
    for (size_t at = 0; at < n;) {
        uint32_t code_point;
        at += ob_utf8_decode(text + at, n - at, &code_point, NULL);
        written += ob_utf8_encode(code_point, out + written);
    }
    return written;
}

size_t ob_tokenizer_max_tokens(const ob_tokenizer *t, size_t text_bytes) {
    return max_symbols(text_bytes) + t->header[OB_TOK_NUM_PREFIX] + t->header[OB_TOK_NUM_SUFFIX];
}

size_t ob_tokenizer_arena_bytes(const ob_tokenizer *t, size_t text_bytes) {
    (void)t;
    if (text_bytes > MAX_TEXT_BYTES) text_bytes = MAX_TEXT_BYTES;
    return max_symbols(text_bytes) * (OB_TOK_BYTES_PER_SYMBOL + 2) + LEAD + 16;
}

ob_status ob_tokenizer_encode(const ob_tokenizer *t, const char *text, size_t text_bytes, uint32_t flags, uint32_t *tokens,
                              size_t capacity, size_t *num_tokens, void *arena, size_t arena_bytes, ob_error *error) {
    if (!t || !t->image || (!text && text_bytes) || (!tokens && capacity) || !num_tokens || !arena)
        return ob_fail(error, OB_ERROR_ARGUMENT, "tokenizer: null pointer");
    if (text_bytes > MAX_TEXT_BYTES) return ob_fail(error, OB_ERROR_ARGUMENT, "tokenizer: text is longer than 256 MiB");
    if (arena_bytes < ob_tokenizer_arena_bytes(t, text_bytes))
        return ob_fail(error, OB_ERROR_MEMORY, "tokenizer: arena is smaller than ob_tokenizer_arena_bytes");
    size_t symbols = max_symbols(text_bytes);
    encoder e = {t, tokens, capacity, 0, NULL, NULL, arena, NULL};
    e.heap = (uint32_t *)(void *)(e.symbols + symbols);
    e.clean = (uint8_t *)(e.heap + symbols);
    e.normal = e.clean + symbols;

    if (flags & OB_ENCODE_SPECIAL)
        for (uint32_t i = 0; i < t->header[OB_TOK_NUM_PREFIX]; i++) emit(&e, ob_tok_entry(t, OB_TOK_PREFIX, i));
    size_t n = clean_utf8(e.clean, (const uint8_t *)text, text_bytes), done = 0;
    added_match m = {0, 0, 0, 0};
    while (next_added(t, 0, t->header[OB_TOK_NUM_ADDED_RAW], e.clean, n, &m)) {
        if (m.start > done) encode_segment(&e, e.clean + done, m.start - done, done == 0);
        emit(&e, m.token);
        done = m.end;
    }
    if (n > done) encode_segment(&e, e.clean + done, n - done, done == 0);
    if (flags & OB_ENCODE_SPECIAL)
        for (uint32_t i = 0; i < t->header[OB_TOK_NUM_SUFFIX]; i++) emit(&e, ob_tok_entry(t, OB_TOK_SUFFIX, i));
    *num_tokens = e.count;
    return e.count <= capacity ? OB_OK : ob_fail(error, OB_ERROR_FULL, "tokenizer: the tokens do not fit the buffer");
}
