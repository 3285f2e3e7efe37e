/* Opens hostile bytes as a .1bit file and, when the reader lets them in, runs tokens through the model.
 *
 * The mutator knows the file: it changes single fields of the header, the section table, the tensor table and the MODEL
 * section, and repairs the header's CRC and size, so that the deep checks are reached and not only the first one.
 */
#define _POSIX_C_SOURCE 200809L
#include "fuzz.h"
#include "ob_crc32c.h"
#include "onebit.h"

#include <stdlib.h>
#include <string.h>

enum { HEADER_BYTES = 128, RECORD_BYTES = 128, SECTION_BYTES = 32, MAX_ARENA = 64 << 20, NUM_TOKENS = 6 };

/* Exactly this many bytes, so that AddressSanitizer sees the first byte outside. */
static void *allocate(size_t bytes) {
    void *memory = NULL;
    return posix_memalign(&memory, 64, bytes ? bytes : 1) ? NULL : memory;
}

static void try_tokenizer(const ob_model *model) {
    static const char text[] = "Hello  world's 123 <|im_end|>\n\xf0\x9f\x98\x80 \xff";
    uint64_t bytes;
    const void *section = ob_model_section(model, "TOKBIN", &bytes);
    ob_tokenizer t;
    if (!section || ob_tokenizer_open(&t, section, (size_t)bytes, NULL)) return;
    size_t most = ob_tokenizer_max_tokens(&t, sizeof text), arena_bytes = ob_tokenizer_arena_bytes(&t, sizeof text), count;
    uint32_t *tokens = allocate(most * sizeof *tokens);
    void *arena = allocate(arena_bytes);
    if (tokens && arena) ob_tokenizer_encode(&t, text, sizeof text, 1, tokens, most, &count, arena, arena_bytes, NULL);
    free(tokens);
    free(arena);
}

static void run_tokens(const ob_model *model, uint64_t choice) {
    ob_description d;
    ob_model_describe(model, &d);
    ob_session_options options = {.max_positions = d.max_seq_len < 8 ? d.max_seq_len : 8, .max_batch = (uint32_t)(1 + choice % 4)};
    uint32_t tokens[NUM_TOKENS], room = options.max_positions < NUM_TOKENS ? options.max_positions : NUM_TOKENS;
    size_t bytes;
    ob_session *session;
    if (ob_session_arena_bytes(model, &options, &bytes, NULL) || bytes > MAX_ARENA || d.vocab_size > 1 << 20) return;
    void *arena = allocate(bytes);
    float *logits = allocate(sizeof(float) * d.vocab_size * NUM_TOKENS);
    if (arena && logits && !ob_session_init(model, &options, arena, bytes, &session, NULL)) {
        for (uint32_t i = 0; i < NUM_TOKENS; i++) tokens[i] = fuzz_random(&choice) % d.vocab_size;
        uint32_t prompt = 1 + (uint32_t)(choice % room), next;
        if (!ob_forward(session, tokens, prompt, OB_LOGITS_ALL, logits, NULL)) {
            ob_sampler sampler;
            ob_sampler_options sampling = {0.8f, 0.9f, 0.01f, 1.1f, 20, 0, 1};
            size_t sampler_bytes = ob_sampler_arena_bytes(d.vocab_size);
            void *sampler_arena = allocate(sampler_bytes);
            if (sampler_arena && !ob_sampler_init(&sampler, &sampling, NULL))
                ob_sample(&sampler, logits, d.vocab_size, tokens, prompt, sampler_arena, sampler_bytes, &next, NULL);
            free(sampler_arena);
            if (prompt < room) ob_forward(session, tokens, room - prompt, OB_LOGITS_LAST, logits, NULL);
            ob_sequence_shift(session, 0, prompt / 2, prompt - prompt / 2, NULL);
            ob_session_truncate(session, 0, NULL);
        }
    }
    free(arena);
    free(logits);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ob_error error;
    ob_model *model;
    ob_tensor_info info;
    size_t bytes;
    uint64_t choice = size ? data[size - 1] : 0;
    static const uint32_t isas[] = {OB_ISA_AUTO, OB_ISA_SCALAR, OB_ISA_AVX2};
    ob_model_options options = {isas[choice % 3], choice % 8 != 7, 0, 0};
    if (!ob_isa_available(options.isa)) options.isa = OB_ISA_AUTO;
    uint8_t *image = allocate(size);
    if (!image) return 0;
    if (size) memcpy(image, data, size);
    if (!ob_model_arena_bytes(image, size, &bytes, &error) && bytes <= MAX_ARENA) {
        void *arena = allocate(bytes);
        if (arena && !ob_model_init(image, size, &options, arena, bytes, &model, &error)) {
            for (uint32_t i = 0; i < ob_model_num_tensors(model); i++)
                if (!ob_model_tensor(model, i, &info, &error)) ob_model_check_tensor(model, i, &error);
            char line[OB_KERNEL_LINE];
            for (uint32_t i = 0; ob_model_kernel(model, i, line); i++) choice += (uint8_t)line[0];
            try_tokenizer(model);
            run_tokens(model, choice);
        }
        free(arena);
    }
    free(image);
    return 0;
}

static int has(size_t size, uint64_t at, uint64_t bytes) { return at < size && bytes <= size - at; }

/* One field of one table, by the sizes of the fields. */
static void change_field(uint8_t *data, size_t size, uint64_t *random) {
    static const uint8_t header[] = {8, 12, 16, 24, 32, 36, 40, 48};
    static const uint8_t record[] = {64, 66, 68, 69, 70, 71, 72, 76, 80, 88, 96, 104, 112, 120};
    uint64_t sections = fuzz_get(data + 40, 8), tensors = fuzz_get(data + 48, 8);
    uint64_t num_sections = fuzz_get(data + 32, 4), num_tensors = fuzz_get(data + 36, 4);
    uint64_t at = 0, value = fuzz_number(random, size);
    int bytes = 4;
    switch (fuzz_random(random) % 8) {
    case 0:
        at = header[fuzz_random(random) % sizeof header];
        bytes = at == 8 || at == 12 || at == 32 || at == 36 ? 4 : 8;
        break;
    case 1: case 2:
        if (!num_sections || sections > size) return;
        at = sections + (uint64_t)SECTION_BYTES * (fuzz_random(random) % num_sections);
        if (fuzz_random(random) % 2) { /* a field of the description or of the rotations, often only a little off */
            if (!has(size, at, SECTION_BYTES) || (memcmp(data + at, "MODEL", 6) && memcmp(data + at, "HADAMARD", 8))) return;
            at = fuzz_get(data + at + 16, 8) + 4 * (fuzz_random(random) % 19);
            if (has(size, at, 4) && fuzz_random(random) % 2) value = fuzz_get(data + at, 4) + fuzz_random(random) % 3 - 1;
        } else {
            at += fuzz_random(random) % 2 ? 16 : 24;
            bytes = 8;
        }
        break;
    default:
        if (!num_tensors || tensors > size) return;
        at = record[fuzz_random(random) % sizeof record];
        bytes = at >= 88 ? 8 : at >= 72 ? 4 : at >= 68 ? 1 : 2;
        at += tensors + (uint64_t)RECORD_BYTES * (fuzz_random(random) % num_tensors);
        if (bytes == 1) value = fuzz_random(random) % 12 + (fuzz_random(random) % 4 ? 0 : 128);
        else if (has(size, at, 8) && fuzz_random(random) % 3 == 0)
            value = fuzz_get(data + at, bytes) + (fuzz_random(random) % 3 - 1) * (uint64_t)(1u << fuzz_random(random) % 8);
    }
    if (has(size, at, (uint64_t)bytes)) fuzz_put(data + at, value, bytes);
}

/* Cuts or grows the end, so that offsets point where nothing is. */
static size_t change_size(uint8_t *data, size_t size, size_t max_size, uint64_t *random) {
    size_t most = size + 200 < max_size ? size + 200 : max_size, new_size = fuzz_random(random) % (most + 1);
    if (fuzz_random(random) % 2 && size > 100) new_size = size - fuzz_random(random) % 100;
    if (new_size > size) memset(data + size, 0x5a, new_size - size);
    return new_size;
}

static void repair(uint8_t *data, size_t size) {
    static const uint8_t zeros[4] = {0};
    if (size < HEADER_BYTES) return;
    fuzz_put(data + 16, size, 8);
    uint64_t meta = fuzz_get(data + 24, 8);
    if (meta < 16 || meta > size) return;
    uint32_t crc = ob_crc32c(ob_crc32c(0, data, 12), zeros, 4);
    fuzz_put(data + 12, ob_crc32c(crc, data + 16, meta - 16), 4);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed) {
    uint64_t random = seed;
    if (size < HEADER_BYTES) return LLVMFuzzerMutate(data, size, max_size);
    for (uint32_t n = 1 + fuzz_random(&random) % 3; n > 0; n--) {
        switch (fuzz_random(&random) % 8) {
        case 0: size = LLVMFuzzerMutate(data, size, max_size); break;
        case 1: size = change_size(data, size, max_size, &random); break;
        default: change_field(data, size, &random);
        }
        if (size < HEADER_BYTES) return size;
    }
    if (fuzz_random(&random) % 64) repair(data, size);
    return size;
}
