/* The tokenizer without Python: TOKBIN sections written here by hand from the page in ob_tokenizer.h, and literal results.
 * The comparison with the `tokenizers` library is tests/tokenizer. */
#include "ob_tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures;

#define CHECK(condition)                                                            \
    do {                                                                            \
        if (!(condition)) {                                                         \
            printf("%s:%d: %s\n", __FILE__, __LINE__, #condition);                  \
            failures++;                                                             \
        }                                                                           \
    } while (0)

/* ---- Unicode ---- */

static void test_utf8(void) {
    static const struct { const char *bytes; size_t n, consumed; uint32_t code_point; int valid; } cases[] = {
        {"a", 1, 1, 'a', 1},
        {"\xc3\xa9", 2, 2, 0xE9, 1},
        {"\xe2\x96\x81", 3, 3, 0x2581, 1},
        {"\xf0\x9f\x98\x80", 4, 4, 0x1F600, 1},
        {"\xf4\x8f\xbf\xbf", 4, 4, 0x10FFFF, 1},
        {"\x80", 1, 1, 0xFFFD, 0},             /* a continuation alone */
        {"\xc0\xaf", 2, 1, 0xFFFD, 0},         /* overlong */
        {"\xe0\x80\x80", 3, 1, 0xFFFD, 0},     /* overlong */
        {"\xed\xa0\x80", 3, 1, 0xFFFD, 0},     /* a surrogate */
        {"\xf4\x90\x80\x80", 4, 1, 0xFFFD, 0}, /* beyond U+10FFFF */
        {"\xe2\x96", 2, 2, 0xFFFD, 0},         /* cut short: one replacement for the whole beginning */
        {"\xf0\x9f\x98x", 4, 3, 0xFFFD, 0},
        {"\xff", 1, 1, 0xFFFD, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t code_point;
        int valid;
        CHECK(ob_utf8_decode((const uint8_t *)cases[i].bytes, cases[i].n, &code_point, &valid) == cases[i].consumed);
        CHECK(code_point == cases[i].code_point && valid == cases[i].valid);
    }
    for (uint32_t c = 0; c < 0x110000; c += 7) {
        uint8_t bytes[4];
        uint32_t back;
        if (c >= 0xD800 && c < 0xE000) continue;
        size_t n = ob_utf8_encode(c, bytes);
        CHECK(ob_utf8_decode(bytes, n, &back, NULL) == n && back == c);
    }
}

static void test_classes(void) {
    CHECK(ob_unicode_class('z') == OB_CLASS_LETTER && ob_unicode_class(0x416) == OB_CLASS_LETTER);
    CHECK(ob_unicode_class('7') == OB_CLASS_NUMBER && ob_unicode_class(0xBD) == OB_CLASS_NUMBER);
    CHECK(ob_unicode_class(' ') == OB_CLASS_SPACE && ob_unicode_class(0x3000) == OB_CLASS_SPACE);
    CHECK(ob_unicode_class('_') == OB_CLASS_OTHER && ob_unicode_class(0x200B) == OB_CLASS_OTHER);
    CHECK(ob_unicode_class(0x10FFFF) == OB_CLASS_OTHER);
}

static void expect_nfc(const char *given, const char *wanted) {
    uint32_t points[256], spare[256];
    uint8_t out[256];
    size_t n = ob_nfc((const uint8_t *)given, strlen(given), out, points, spare);
    CHECK(n == strlen(wanted) && memcmp(out, wanted, n) == 0);
}

static void test_nfc(void) {
    expect_nfc("e\xcc\x81", "\xc3\xa9");                                  /* e + acute */
    expect_nfc("\xe1\xba\x9b\xcc\xa3", "\xe1\xba\x9b\xcc\xa3");           /* Unicode annex 15, figure 6 */
    expect_nfc("q\xcc\x87\xcc\xa3", "q\xcc\xa3\xcc\x87");                 /* marks are put in order */
    expect_nfc("\xe1\x84\x92\xe1\x85\xa1\xe1\x86\xab", "\xed\x95\x9c");   /* Hangul */
    expect_nfc("\xe2\x84\xab", "\xc3\x85");                               /* the Angstrom sign */
    expect_nfc("\xe0\xa5\x98", "\xe0\xa4\x95\xe0\xa4\xbc");               /* excluded from composition */
    expect_nfc("\xcc\x81" "a", "\xcc\x81" "a");                           /* a mark with nothing to stand on */
}

/* ---- splits ---- */

/* Pieces of text joined by '|'. */
static void expect_split(uint32_t split, const char *text, const char *wanted) {
    char joined[256];
    size_t n = strlen(text), at = 0;
    while (n > 0) {
        size_t length = ob_tok_next_piece(split, (const uint8_t *)text, n);
        if (at) joined[at++] = '|';
        memcpy(joined + at, text, length);
        at += length;
        text += length;
        n -= length;
    }
    joined[at] = 0;
    if (strcmp(joined, wanted)) printf("got [%s]\n", joined);
    CHECK(strcmp(joined, wanted) == 0);
}

static void test_splits(void) {
    expect_split(OB_SPLIT_GPT2, "Don't  stop 1234!? \n", "Don|'t| | stop| 1234|!?| \n");
    expect_split(OB_SPLIT_GPT2, "I'LL  x", "I|'|LL| | x");
    expect_split(OB_SPLIT_LLAMA3, "I'LL (go) 1234\n\n  x", "I|'LL| (|go|)| |123|4|\n\n| | x");
    expect_split(OB_SPLIT_LLAMA3, "_a\tb; \r\n", "_a|\tb|;| \r\n");
    expect_split(OB_SPLIT_QWEN2, "it's 12 ok...\n", "it|'s| |1|2| ok|...\n");
    expect_split(OB_SPLIT_METASPACE, "\xe2\x96\x81" "a\xe2\x96\x81\xe2\x96\x81" "b",
                 "\xe2\x96\x81" "a|\xe2\x96\x81|\xe2\x96\x81" "b");
    expect_split(OB_SPLIT_NONE, "all of it", "all of it");
}

/* ---- a section by hand: 256 byte tokens, "th" 256, "the" 257, " the" 258, "<e>" 259 ---- */

enum { VOCAB = 260, SECTION_WORDS = 2048 };
static uint32_t section[SECTION_WORDS];
static size_t section_bytes;

static void build_section(void) {
    static const char *const extra[] = {"th", "the", " the", "<e>"};
    static const uint32_t merges[3][4] = {{' ', 257, 2, 258}, {'t', 'h', 0, 256}, {256, 'e', 1, 257}}; /* left first */
    uint32_t at = 32, *h = section;
    memset(section, 0, sizeof section);
    h[OB_TOK_MAGIC] = OB_TOKBIN_MAGIC;
    h[OB_TOK_VERSION] = OB_TOKBIN_VERSION;
    h[OB_TOK_SPLIT] = OB_SPLIT_GPT2;
    h[OB_TOK_UNKNOWN] = OB_NO_TOKEN;
    h[OB_TOK_VOCAB_SIZE] = VOCAB;
    h[OB_TOK_NUM_MERGES] = 3;
    h[OB_TOK_NUM_ADDED] = h[OB_TOK_NUM_ADDED_RAW] = 1;
    h[OB_TOK_NUM_PREFIX] = 1;
    h[OB_TOK_TOKEN_START] = 4 * at;
    uint8_t *blob = (uint8_t *)(section + 1200);
    uint32_t bytes = 0;
    for (uint32_t t = 0; t < VOCAB; t++) {
        section[at++] = bytes;
        if (t < 256) blob[bytes++] = (uint8_t)t;
        else for (const char *c = extra[t - 256]; *c; c++) blob[bytes++] = (uint8_t)*c;
    }
    section[at++] = bytes;
    h[OB_TOK_TOKEN_FLAGS] = 4 * at;
    memset(section + at, OB_TOKEN_EXISTS, VOCAB);
    ((uint8_t *)(section + at))[259] |= OB_TOKEN_SPECIAL;
    at += VOCAB / 4;
    h[OB_TOK_MERGE_START] = 4 * at;
    for (uint32_t t = 0; t <= VOCAB; t++) section[at++] = (t > ' ') + (t > 't') + (t > 256);
    h[OB_TOK_MERGES] = 4 * at;
    for (int m = 0; m < 3; m++)
        for (int k = 1; k < 4; k++) section[at++] = merges[m][k];
    h[OB_TOK_BYTE_IDS] = 4 * at;
    for (uint32_t b = 0; b < 256; b++) section[at++] = b;
    h[OB_TOK_CHARS] = h[OB_TOK_SORTED] = h[OB_TOK_SUFFIX] = 4 * at;
    h[OB_TOK_ADDED] = 4 * at;
    section[at++] = 259;
    section[at++] = bytes - 3;
    section[at++] = 3;
    section[at++] = 0;
    h[OB_TOK_PREFIX] = 4 * at;
    section[at++] = 259;
    h[OB_TOK_BLOB] = 4 * 1200;
    h[OB_TOK_BLOB_BYTES] = bytes;
    section_bytes = 4 * 1200 + bytes;
    h[OB_TOK_BYTES] = (uint32_t)section_bytes;
    CHECK(at <= 1200);
}

static void expect_tokens(const ob_tokenizer *t, const char *text, uint32_t flags, const uint32_t *wanted, size_t n) {
    size_t bytes = strlen(text), most = ob_tokenizer_max_tokens(t, bytes), count = 0, length;
    size_t arena_bytes = ob_tokenizer_arena_bytes(t, bytes);
    uint32_t *tokens = malloc(most * sizeof *tokens);
    void *arena = malloc(arena_bytes);
    char back[64];
    size_t at = 0;
    CHECK(ob_tokenizer_encode(t, text, bytes, flags, tokens, most, &count, arena, arena_bytes, NULL) == OB_OK);
    CHECK(count == n && memcmp(tokens, wanted, n * sizeof *tokens) == 0);
    for (size_t i = flags & OB_ENCODE_SPECIAL ? 1 : 0; i < count; i++) {
        const char *piece = ob_tokenizer_token(t, tokens[i], i == 0, &length);
        memcpy(back + at, piece, length);
        at += length;
    }
    CHECK(at == bytes && memcmp(back, text, at) == 0);
    free(tokens);
    free(arena);
}

static void test_encode(void) {
    ob_tokenizer t;
    ob_error error;
    build_section();
    CHECK(ob_tokenizer_open(&t, section, section_bytes, &error) == OB_OK);
    CHECK(ob_tokenizer_vocab_size(&t) == VOCAB);
    expect_tokens(&t, "the the", 0, (uint32_t[]){257, 258}, 2);
    expect_tokens(&t, "tthhe", 0, (uint32_t[]){'t', 256, 'h', 'e'}, 4);
    expect_tokens(&t, "th<e> the", OB_ENCODE_SPECIAL, (uint32_t[]){259, 256, 259, 258}, 4);
    expect_tokens(&t, "", OB_ENCODE_SPECIAL, (uint32_t[]){259}, 1);
    CHECK(ob_tokenizer_is_special(&t, 259) && !ob_tokenizer_is_special(&t, 258) && !ob_tokenizer_is_special(&t, 9999));
    CHECK(ob_tokenizer_find(&t, "<e>", 3) == 259 && ob_tokenizer_find(&t, "<f>", 3) == OB_NO_TOKEN);
}

static void test_refusals(void) {
    ob_tokenizer t;
    ob_error error;
    uint32_t tokens[8];
    uint64_t arena[400];
    size_t count, length;
    build_section();
    CHECK(ob_tokenizer_open(&t, section, section_bytes, NULL) == OB_OK);
    CHECK(ob_tokenizer_encode(&t, "abcd", 4, 0, tokens, 2, &count, arena, sizeof arena, &error) == OB_ERROR_FULL);
    CHECK(count == 4 && tokens[1] == 'b');
    CHECK(ob_tokenizer_encode(&t, "abcd", 4, 0, tokens, 8, &count, arena, 10, &error) == OB_ERROR_MEMORY);
    CHECK(ob_tokenizer_encode(&t, NULL, 4, 0, tokens, 8, &count, arena, sizeof arena, &error) == OB_ERROR_ARGUMENT);
    ob_tokenizer_token(&t, 12345, 0, &length);
    CHECK(length == 0);
    CHECK(ob_tokenizer_open(NULL, section, section_bytes, &error) == OB_ERROR_ARGUMENT);
    CHECK(ob_tokenizer_open(&t, section, section_bytes - 1, &error) == OB_ERROR_FORMAT);
    static const int places[] = {OB_TOK_MAGIC, OB_TOK_VERSION, OB_TOK_SPLIT, OB_TOK_VOCAB_SIZE, OB_TOK_NUM_MERGES,
                                 OB_TOK_UNKNOWN, OB_TOK_NUM_PREFIX, OB_TOK_TOKEN_START, OB_TOK_MERGES, OB_TOK_BLOB};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        build_section();
        section[places[i]] = 0x7ffffff1;
        CHECK(ob_tokenizer_open(&t, section, section_bytes, &error) == OB_ERROR_FORMAT);
        CHECK(strncmp(error.message, "tokenizer: ", 11) == 0);
    }
    build_section();
    section[section[OB_TOK_BYTE_IDS] / 4 + 'x'] = VOCAB; /* a token that is not there */
    CHECK(ob_tokenizer_open(&t, section, section_bytes, &error) == OB_ERROR_FORMAT);
}

int main(void) {
    test_utf8();
    test_classes();
    test_nfc();
    test_splits();
    test_encode();
    test_refusals();
    if (failures) printf("%d failures\n", failures);
    return failures != 0;
}
