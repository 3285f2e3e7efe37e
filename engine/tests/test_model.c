/* A small model made in memory, run without any host part: arenas, errors, and every damaged header refused or harmless. */
#include "ob_crc32c.h"
#include "ob_host.h"
#include "ob_model.h"
#include "ob_test.h"

#include <math.h>
#include <string.h>

enum { HIDDEN = 32, VOCAB = 40, LAYERS = 2, INNER = 48, HEADS = 2, HEAD_DIM = 16, CONTEXT = 24, MAX_TENSORS = 32 };
enum { META_BYTES = (128 + 32 + 128 + MAX_TENSORS * 128 + 63) / 64 * 64 };

typedef struct writer {
    uint8_t *image;
    uint64_t end;
    uint32_t count;
    uint64_t state;
} writer;

static void put(uint8_t *at, uint64_t value, size_t bytes) { memcpy(at, &value, bytes); }

/* float32 for vectors and the embedding, ternary_t16 with one scale and int8 activations for the rest */
static void add(writer *w, uint32_t kind, uint32_t layer, uint32_t rows, uint32_t cols, int ternary) {
    ob_record r = {.kind = (uint16_t)kind, .layer = (uint16_t)layer, .rows = rows, .cols = cols, .data_offset = w->end};
    snprintf(r.name, sizeof r.name, "tensor.%u.%u", layer, kind);
    uint8_t *data = w->image + w->end;
    if (ternary) {
        r.layout = OB_LAYOUT_TERNARY_T16, r.granularity = OB_GRANULARITY_TENSOR, r.activation = OB_ACTIVATION_INT8;
        r.scale_type = OB_SCALE_FLOAT32, r.scale_bytes = 4;
        r.data_bytes = (uint64_t)(rows / 16) * (cols / 16) * 64;
        for (uint64_t i = 0; i < r.data_bytes; i++)
            for (int j = 0; j < 8; j += 2) data[i] |= (uint8_t)(test_random(&w->state) % 3 << j);
        r.scale_offset = (w->end + r.data_bytes + 63) / 64 * 64;
        float scale = 0.2f;
        memcpy(w->image + r.scale_offset, &scale, 4);
        w->end = r.scale_offset + 64;
    } else {
        r.row_stride = ((uint64_t)cols * 4 + 63) / 64 * 64;
        r.data_bytes = rows * r.row_stride;
        for (uint32_t row = 0; row < rows; row++)
            for (uint32_t k = 0; k < cols; k++) {
                float value = rows == 1 ? 1.0f : test_normal(&w->state);
                memcpy(data + row * r.row_stride + 4 * k, &value, 4);
            }
        w->end += r.data_bytes;
    }
    r.crc32c = ob_crc32c(0, w->image + r.data_offset, r.data_bytes);
    if (r.scale_bytes) r.crc32c = ob_crc32c(r.crc32c, w->image + r.scale_offset, r.scale_bytes);
    memcpy(w->image + 128 + 32 + 128 + w->count++ * 128, &r, 128);
}

static void seal(uint8_t *image, uint64_t image_bytes) {
    uint64_t meta_bytes;
    memcpy(&meta_bytes, image + 24, 8);
    if (meta_bytes > image_bytes) meta_bytes = image_bytes;
    put(image + 12, 0, 4);
    put(image + 12, ob_crc32c(0, image, meta_bytes), 4);
}

static uint64_t make_image(uint8_t *image) {
    writer w = {image, META_BYTES, 0, 3};
    add(&w, OB_KIND_TOKEN_EMBEDDING, OB_NO_LAYER, VOCAB, HIDDEN, 0);
    add(&w, OB_KIND_FINAL_NORM, OB_NO_LAYER, 1, HIDDEN, 0);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        add(&w, OB_KIND_ATTENTION_NORM, layer, 1, HIDDEN, 0);
        add(&w, OB_KIND_MLP_NORM, layer, 1, HIDDEN, 0);
        for (uint32_t kind = OB_KIND_Q; kind <= OB_KIND_O; kind++) add(&w, kind, layer, HIDDEN, HIDDEN, 1);
        add(&w, OB_KIND_GATE, layer, INNER, HIDDEN, 1);
        add(&w, OB_KIND_UP, layer, INNER, HIDDEN, 1);
        add(&w, OB_KIND_DOWN, layer, HIDDEN, INNER, 1);
    }
    memcpy(image, "1BIT\r\n\x1a\n", 8);
    put(image + 8, 1, 4), put(image + 16, w.end, 8), put(image + 24, META_BYTES, 8);
    put(image + 32, 1, 4), put(image + 36, w.count, 4), put(image + 40, 128, 8), put(image + 48, 128 + 32 + 128, 8);
    memcpy(image + 128, "MODEL", 5);
    put(image + 136, 1, 4), put(image + 144, 160, 8), put(image + 152, 128, 8);
    ob_description d = {VOCAB, HIDDEN, LAYERS, HEADS, HEADS, HEAD_DIM, INNER, CONTEXT, OB_NORM_RMS, OB_MLP_SWIGLU,
                        OB_POSITION_ROPE, OB_FLAG_TIED_HEAD, 1e-5f, 1e4f, 1.0f, 0, OB_NO_TOKEN, OB_NO_TOKEN, OB_NO_TOKEN, 0, {0}};
    memcpy(image + 160, &d, sizeof d);
    seal(image, w.end);
    return w.end;
}

/* Opens and runs an image in exactly the memory it asks for. */
static ob_status run(const uint8_t *image, uint64_t bytes, const ob_model_options *options, float *logits, ob_error *error) {
    size_t needed;
    ob_model *model;
    ob_session *session;
    static const uint32_t tokens[] = {1, 7, 39, 0, 7};
    ob_status status = ob_model_arena_bytes(image, bytes, &needed, error);
    if (status) return status;
    void *arena = test_aligned(needed), *work = NULL;
    status = ob_model_init(image, bytes, options, arena, needed, &model, error);
    ob_description d = {0};
        if (status == OB_OK) ob_model_describe(model, &d);
    ob_session_options small = {.max_positions = 5, .max_batch = 3};
    if (status == OB_OK && d.max_seq_len < 5) status = OB_ERROR_FULL;
    if (status == OB_OK) status = ob_session_arena_bytes(model, &small, &needed, error);
    if (status == OB_OK && needed > 1u << 28) status = OB_ERROR_MEMORY; /* a lie that is legal but large */
    if (status == OB_OK) {
        work = test_aligned(needed);
        status = ob_session_init(model, &small, work, needed, &session, error);
    }
    float *out = status == OB_OK ? test_aligned((size_t)d.vocab_size * 4) : NULL;
    if (status == OB_OK) status = ob_forward(session, tokens, 5, OB_LOGITS_LAST, out, error);
    if (status == OB_OK && logits) memcpy(logits, out, VOCAB * 4);
    free(out);
    free(work);
    free(arena);
    return status;
}

static void test_arenas(const uint8_t *image, uint64_t bytes) {
    size_t needed;
    ob_error error;
    ob_model *model;
    ob_session *session;
    CHECK(ob_model_arena_bytes(image, bytes, &needed, &error) == OB_OK, "%s", error.message);
    uint8_t *arena = test_aligned(needed);
    CHECK(ob_model_init(image, bytes, NULL, arena, needed - 64, &model, &error) == OB_ERROR_MEMORY, "a small arena");
    CHECK(ob_model_init(image, bytes, NULL, arena + 1, needed, &model, &error) == OB_ERROR_ARGUMENT, "a crooked arena");
    CHECK(ob_model_init(image, bytes, NULL, arena, needed, &model, &error) == OB_OK, "%s", error.message);
    ob_session_options options = {.max_positions = CONTEXT + 1};
    CHECK(ob_session_arena_bytes(model, &options, &needed, &error) == OB_ERROR_ARGUMENT, "a context beyond the model's");
    CHECK(ob_session_arena_bytes(model, NULL, &needed, &error) == OB_OK, "%s", error.message);
    void *work = test_aligned(needed);
    CHECK(ob_session_init(model, NULL, work, needed - 64, &session, &error) == OB_ERROR_MEMORY, "a small arena");
    CHECK(ob_session_init(model, NULL, work, needed, &session, &error) == OB_OK, "%s", error.message);
    uint32_t tokens[CONTEXT + 1] = {0};
    CHECK(ob_forward(session, tokens, CONTEXT + 1, OB_LOGITS_NONE, NULL, &error) == OB_ERROR_FULL, "too long a text");
    CHECK(ob_forward(session, tokens, 1, OB_LOGITS_LAST, NULL, &error) == OB_ERROR_ARGUMENT, "nowhere to put logits");
    CHECK(ob_forward(session, tokens, CONTEXT, OB_LOGITS_NONE, NULL, &error) == OB_OK, "%s", error.message);
    CHECK(ob_forward(session, tokens, 1, OB_LOGITS_NONE, NULL, &error) == OB_ERROR_FULL, "a full context");
    CHECK(ob_session_truncate(session, 3, &error) == OB_OK && ob_session_position(session) == 3, "truncation");
    uint64_t section_bytes;
    CHECK(ob_model_section(model, "MODEL", &section_bytes) == image + 160 && section_bytes == 128, "section MODEL");
    CHECK(!ob_model_section(model, "MODELS", &section_bytes) && !ob_model_section(model, "MOD", NULL), "no such section");
    free(work);
    free(arena);
}

static void test_isas(const uint8_t *image, uint64_t bytes) {
    float expected[VOCAB], logits[VOCAB];
    ob_error error;
    ob_model_options options = {.isa = OB_ISA_SCALAR};
    CHECK(run(image, bytes, &options, expected, &error) == OB_OK, "%s", error.message);
    for (int i = 0; i < VOCAB; i++) CHECK(isfinite(expected[i]), "logit %d", i);
    for (options.isa = OB_ISA_AVX2; options.isa < OB_NUM_ISAS; options.isa++) {
        if (!ob_isa_available(options.isa)) continue;
        CHECK(run(image, bytes, &options, logits, &error) == OB_OK, "%s", error.message);
        CHECK(!memcmp(expected, logits, sizeof logits), "isa %u", options.isa);
    }
}

/* Prompts and single tokens of two sequences: the same bits with any number of threads. Rounds, for ThreadSanitizer. */
static void test_threads(const uint8_t *image, uint64_t bytes) {
    static const ob_batch_item items[] = {{1, 0, 0}, {7, 1, 0}, {39, 1, 1}, {0, 0, 1}, {7, 0, 1}, {2, 1, 1}, {3, 1, 1}};
    enum { NUM_ITEMS = sizeof items / sizeof *items, WANTED = 5 };
    static float expected[WANTED * VOCAB], logits[WANTED * VOCAB];
    size_t needed;
    ob_error error;
    ob_model *model;
    ob_session *session;
    CHECK(ob_model_arena_bytes(image, bytes, &needed, &error) == OB_OK, "%s", error.message);
    void *arena = test_aligned(needed);
    CHECK(ob_model_init(image, bytes, NULL, arena, needed, &model, &error) == OB_OK, "%s", error.message);
    for (uint32_t threads = 1; threads <= 5; threads += 2) {
        ob_pool *pool = ob_pool_create(threads);
        ob_parallel parallel = {pool, ob_pool_run, threads, 0};
        ob_session_options options = {.max_batch = 3, .num_sequences = 2, .parallel = &parallel};
        CHECK(ob_session_arena_bytes(model, &options, &needed, &error) == OB_OK, "%s", error.message);
        void *work = test_aligned(needed);
        CHECK(ob_session_init(model, &options, work, needed, &session, &error) == OB_OK, "%s", error.message);
        for (int round = 0; round < 20; round++) {
            CHECK(ob_forward_batch(session, items, NUM_ITEMS, threads == 1 ? expected : logits, &error) == OB_OK, "%s", error.message);
            CHECK(threads == 1 || !memcmp(expected, logits, sizeof logits), "%u threads", threads);
            CHECK(ob_sequence_copy(session, 1, 0, 2, &error) == OB_OK && ob_sequence_position(session, 0) == 2, "copy");
            CHECK(ob_sequence_shift(session, 1, 1, 2, &error) == OB_OK && ob_sequence_position(session, 1) == 2, "shift");
            CHECK(ob_sequence_truncate(session, 0, 0, &error) == OB_OK && ob_sequence_truncate(session, 1, 0, &error) == OB_OK, "reset");
        }
        ob_pool_free(pool);
        free(work);
    }
    free(arena);
}

static void test_truncation(const uint8_t *image, uint64_t bytes) {
    for (uint64_t cut = 0; cut < bytes; cut += cut < META_BYTES ? 7 : 997) {
        uint8_t *part = test_aligned(cut ? cut : 1);
        memcpy(part, image, cut);
        CHECK(run(part, cut, NULL, NULL, NULL) == OB_ERROR_FORMAT, "cut at %u", (unsigned)cut);
        free(part);
    }
}

/* Every byte of the tables changed, the checksum made right again: refused, or run without touching what is not ours
 * (build with -fsanitize=address,undefined to see). */
static void test_damage(const uint8_t *image, uint64_t bytes) {
    static const uint8_t masks[] = {0x01, 0x80, 0xff};
    const ob_model_options options = {.isa = OB_ISA_SCALAR, .skip_tensor_check = 1};
    uint8_t *damaged = test_aligned(bytes);
    unsigned refused = 0, harmless = 0;
    ob_error error;
    for (uint64_t at = 16; at < META_BYTES; at++)
        for (size_t m = 0; m < sizeof masks; m++) {
            memcpy(damaged, image, bytes);
            damaged[at] ^= masks[m];
            seal(damaged, bytes);
            if (run(damaged, bytes, &options, NULL, &error)) refused++;
            else harmless++;
        }
    printf("damaged tables: %u refused, %u harmless\n", refused, harmless);
    CHECK(refused > 1000, "%u", refused);
    memcpy(damaged, image, bytes);
    damaged[META_BYTES + 5] ^= 1;
    CHECK(run(damaged, bytes, NULL, NULL, &error) == OB_ERROR_FORMAT, "a flipped bit of a tensor");
    free(damaged);
}

int main(void) {
    uint8_t *image = test_aligned(1 << 17);
    memset(image, 0, 1 << 17);
    uint64_t bytes = make_image(image);
    test_arenas(image, bytes);
    test_isas(image, bytes);
    test_threads(image, bytes);
    test_truncation(image, bytes);
    test_damage(image, bytes);
    free(image);
    printf("%d failures\n", failures);
    return failures != 0;
}
