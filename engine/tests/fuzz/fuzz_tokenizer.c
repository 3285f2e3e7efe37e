/* Opens hostile bytes as a TOKBIN section and encodes and decodes hostile text with it.
 *
 * Input: u32 length of the section, the section, then the text. The mutator changes either part and keeps the length and
 * the section's own size field right most of the time.
 */
#define _POSIX_C_SOURCE 200809L
#include "fuzz.h"
#include "ob_tokenizer.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_TEXT = 4096 };

static void *exactly(const uint8_t *data, size_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, 8, bytes ? bytes : 1)) return NULL;
    if (data && bytes) memcpy(memory, data, bytes);
    return memory;
}

static void encode(const ob_tokenizer *t, const uint8_t *text, size_t bytes) {
    size_t most = ob_tokenizer_max_tokens(t, bytes), arena_bytes = ob_tokenizer_arena_bytes(t, bytes), count = 0, length;
    uint32_t *tokens = exactly(NULL, most * sizeof *tokens);
    void *arena = exactly(NULL, arena_bytes);
    char *copy = exactly(text, bytes);
    volatile uint8_t sum = 0;
    if (tokens && arena && copy) {
        if (ob_tokenizer_encode(t, copy, bytes, OB_ENCODE_SPECIAL, tokens, most, &count, arena, arena_bytes, NULL)) abort();
        if (count > most) abort();
        for (size_t i = 0; i < count; i++) {
            if (tokens[i] >= ob_tokenizer_vocab_size(t)) abort();
            const char *piece = ob_tokenizer_token(t, tokens[i], i == 0, &length);
            for (size_t k = 0; k < length; k++) sum ^= (uint8_t)piece[k];
            sum ^= (uint8_t)ob_tokenizer_is_special(t, tokens[i]);
        }
        sum ^= (uint8_t)ob_tokenizer_find(t, copy, bytes < 255 ? bytes : 255);
        (void)sum;
        if (bytes - ob_utf8_complete(copy, bytes) > 3) abort();
        size_t fewer = count / 2, again = 0; /* a short buffer is an error that says how much is needed */
        if (count && ob_tokenizer_encode(t, copy, bytes, OB_ENCODE_SPECIAL, tokens, fewer, &again, arena, arena_bytes, NULL)
                         != OB_ERROR_FULL)
            abort();
        if (count && again != count) abort();
    }
    free(tokens);
    free(arena);
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ob_tokenizer t;
    ob_error error;
    if (size < 4) return 0;
    size_t bytes = (size_t)fuzz_get(data, 4), left = size - 4;
    if (bytes > left) bytes = left;
    uint8_t *section = exactly(data + 4, bytes);
    if (section && !ob_tokenizer_open(&t, section, bytes, &error))
        encode(&t, data + 4 + bytes, left - bytes < MAX_TEXT ? left - bytes : MAX_TEXT);
    free(section);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed) {
    static const char *const words[] = {" ", "\n", "'s", "'LL", "\xe2\x96\x81", "\xcc\x81", "\xcc\xa3", "e\xcc\x81", "<s>", "<|im_",
                                        "\xed\x9e\xa3", "\xe1\x84\x80\xe1\x85\xa1", "\xf0\x9f\x98\x80", "\xff", "\xe2\x96", "12345",
                                        "\xc5\xbf", "\xf0\x9d\x85\xa0", "<pad>", "\r\n", "\xef\xac\x9d", "the"};
    uint64_t random = seed;
    if (size < 4) return LLVMFuzzerMutate(data, size, max_size);
    size_t section = (size_t)fuzz_get(data, 4);
    if (section > size - 4) section = size - 4;
    for (uint32_t n = 1 + fuzz_random(&random) % 4; n > 0; n--) {
        uint32_t choice = fuzz_random(&random) % 8;
        uint8_t *text = data + 4 + section;
        size_t bytes = size - 4 - section;
        if (choice < 2 && section >= 128) { /* a header field */
            fuzz_put(data + 4 + 4 * (fuzz_random(&random) % 32), fuzz_number(&random, section), 4);
        } else if (choice < 4 && section >= 132) { /* any entry of any table */
            fuzz_put(data + 4 + 4 * (fuzz_random(&random) % (section / 4)), fuzz_number(&random, section), 4);
        } else if (choice < 5) {
            bytes = LLVMFuzzerMutate(text, bytes, max_size - 4 - section);
        } else { /* a word somewhere in the text, now and then many times */
            const char *word = words[fuzz_random(&random) % (sizeof words / sizeof *words)];
            size_t length = strlen(word), times = fuzz_random(&random) % 8 ? 1 : fuzz_random(&random) % 100;
            for (; times > 0 && size + length <= max_size && bytes + length <= MAX_TEXT; times--) {
                size_t at = fuzz_random(&random) % (bytes + 1);
                memmove(text + at + length, text + at, bytes - at);
                memcpy(text + at, word, length);
                bytes += length;
                size += length;
            }
        }
        size = 4 + section + bytes;
    }
    fuzz_put(data, section, 4);
    if (section >= 12 && fuzz_random(&random) % 16) fuzz_put(data + 4 + 8, section, 4);
    return size;
}
