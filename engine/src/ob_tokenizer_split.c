/* The split rules by hand, no regex engine. Each function follows the alternatives of its expression in order; every
 * character belongs to one of the classes, so the pieces cover the text. */
#include "ob_tokenizer.h"

typedef struct { uint32_t code_point; int class_; size_t bytes; } character;

static character read_at(const uint8_t *text, size_t n, size_t at) {
    character c = {0, -1, 0}; /* class -1: the end of the text, which is in no class */
    if (at < n) {
        c.bytes = ob_utf8_decode(text + at, n - at, &c.code_point, NULL);
        c.class_ = ob_unicode_class(c.code_point);
    }
    return c;
}

static size_t run_of(int class_, const uint8_t *text, size_t n, size_t at) {
    for (character c; (c = read_at(text, n, at)).class_ == class_;) at += c.bytes;
    return at;
}

static int is_newline(uint32_t c) { return c == '\r' || c == '\n'; }

/* 's 't 're 've 'm 'll 'd at the start; returns its bytes or 0. With any_case also U+017F, which folds to s. */
static size_t contraction(const uint8_t *text, size_t n, int any_case) {
    if (n < 2 || text[0] != '\'') return 0;
    if (any_case && n >= 3 && text[1] == 0xC5 && text[2] == 0xBF) return 3;
    uint8_t fold = any_case ? 0x20 : 0, a = text[1] | fold, b = n > 2 ? text[2] | fold : 0;
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* \s+(?!\S)|\s+ on a run of white space that begins the text: all of it at the end of the text, else all but the last
 * character, which starts the next word; a single one stays whole. */
static size_t spaces(const uint8_t *text, size_t n) {
    size_t end = 0, last = 0;
    for (character c; (c = read_at(text, n, end)).class_ == OB_CLASS_SPACE;) { last = end; end += c.bytes; }
    return end == n || last == 0 ? end : last;
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static size_t gpt2_piece(const uint8_t *text, size_t n) {
    size_t found = contraction(text, n, 0), start = text[0] == ' ';
    if (found) return found;
    int class_ = read_at(text, n, start).class_;
    if (class_ >= 0 && class_ != OB_CLASS_SPACE) return run_of(class_, text, n, start);
    return spaces(text, n);
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,max_digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+
 * |\s+(?!\S)|\s+ */
static size_t llama3_piece(const uint8_t *text, size_t n, int max_digits) {
    size_t found = contraction(text, n, 1), end = 0;
    if (found) return found;
    character first = read_at(text, n, 0), second = read_at(text, n, first.bytes);
    if (first.class_ == OB_CLASS_LETTER) return run_of(OB_CLASS_LETTER, text, n, 0);
    if (first.class_ == OB_CLASS_NUMBER) {
        for (character c; max_digits-- > 0 && (c = read_at(text, n, end)).class_ == OB_CLASS_NUMBER;) end += c.bytes;
        return end;
    }
    if (second.class_ == OB_CLASS_LETTER && !is_newline(first.code_point))
        return run_of(OB_CLASS_LETTER, text, n, first.bytes);
    if (first.class_ == OB_CLASS_OTHER || (first.code_point == ' ' && second.class_ == OB_CLASS_OTHER)) {
        end = run_of(OB_CLASS_OTHER, text, n, first.class_ == OB_CLASS_OTHER ? 0 : first.bytes);
        while (end < n && is_newline(text[end])) end++;
        return end;
    }
    for (size_t at = 0;;) { /* \s*[\r\n]+ ends behind the last line break of the run */
        character c = read_at(text, n, at);
        if (c.class_ != OB_CLASS_SPACE) break;
        at += c.bytes;
        if (is_newline(c.code_point)) end = at;
    }
    return end ? end : spaces(text, n);
}

static size_t metaspace_piece(const uint8_t *text, size_t n) {
    for (size_t at = 1; at + 2 < n; at++)
        if (text[at] == 0xE2 && text[at + 1] == 0x96 && text[at + 2] == 0x81) return at;
    return n;
}

size_t ob_tok_next_piece(uint32_t split, const uint8_t *text, size_t n) {
    switch (split) {
    case OB_SPLIT_GPT2: return gpt2_piece(text, n);
    case OB_SPLIT_LLAMA3: return llama3_piece(text, n, 3);
    case OB_SPLIT_QWEN2: return llama3_piece(text, n, 1);
    case OB_SPLIT_METASPACE: return metaspace_piece(text, n);
    default: return n;
    }
}
