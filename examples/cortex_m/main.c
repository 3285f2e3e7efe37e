/* A onebit model on a microcontroller: greedy text from a prompt, over a serial port. No operating system, no heap, no C
 * library. Everything the model needs of memory is in three arrays, whose sizes model_image.h states. */
#include "model_image.h"
#include "onebit.h"

void put_text(const char *text, size_t bytes); /* board.c */

enum { CONTEXT = 64, PROMPT_BYTES = 32, NEW_TOKENS = 24 };
#ifndef PROMPT
#define PROMPT "def fib(n):"
#endif

_Alignas(64) static unsigned char model_arena[MODEL_ARENA_BYTES], session_arena[MODEL_SESSION_ARENA_BYTES(CONTEXT)];
_Alignas(64) static unsigned char text_arena[100 * PROMPT_BYTES + 4096];
static float logits[MODEL_VOCAB_SIZE];

static size_t length(const char *text) {
    size_t n = 0;
    while (text[n]) n++;
    return n;
}

static void put(const char *text) { put_text(text, length(text)); }

static void put_number(uint32_t value) {
    char digits[11];
    size_t at = sizeof digits;
    do digits[--at] = (char)('0' + value % 10);
    while (value /= 10);
    put_text(digits + at, sizeof digits - at);
}

static uint32_t most_likely(void) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < MODEL_VOCAB_SIZE; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

static ob_status talk(ob_error *error) {
    ob_model *model;
    ob_session *session;
    ob_tokenizer tokenizer;
    ob_description about;
    uint64_t section_bytes;
    size_t count;
    uint32_t tokens[PROMPT_BYTES + 1], ids[NEW_TOKENS];
    const ob_session_options options = {.max_positions = CONTEXT, .max_batch = MODEL_MAX_BATCH};
    ob_status status = ob_model_init(model_image, MODEL_IMAGE_BYTES, NULL, model_arena, sizeof model_arena, &model, error);
    if (status) return status;
    if ((status = ob_session_init(model, &options, session_arena, sizeof session_arena, &session, error))) return status;
    const void *section = ob_model_section(model, "TOKBIN", &section_bytes);
    if ((status = ob_tokenizer_open(&tokenizer, section, (size_t)section_bytes, error))) return status;
    status = ob_tokenizer_encode(&tokenizer, PROMPT, length(PROMPT), 0, tokens + 1, PROMPT_BYTES, &count, text_arena,
                                 sizeof text_arena, error);
    if (status) return status;
    ob_model_describe(model, &about);
    tokens[0] = about.bos_token;
    const uint32_t skip = about.bos_token == OB_NO_TOKEN;
    status = ob_forward(session, tokens + skip, (uint32_t)count + 1 - skip, OB_LOGITS_LAST, logits, error);
    put("text: " PROMPT);
    uint32_t n = 0;
    while (!status && n < NEW_TOKENS) {
        const uint32_t id = ids[n++] = most_likely();
        size_t bytes;
        if (id == about.eos_token) break;
        const char *text = ob_tokenizer_token(&tokenizer, id, 0, &bytes);
        put_text(text, bytes);
        if (n < NEW_TOKENS) status = ob_forward(session, &id, 1, OB_LOGITS_LAST, logits, error);
    }
    put("\nids:");
    for (uint32_t i = 0; i < n; i++) put(" "), put_number(ids[i]);
    put("\nstatic arenas: ");
    put_number(sizeof model_arena + sizeof session_arena + sizeof text_arena + sizeof logits);
    put(" bytes\n");
    return status;
}

int main(void) {
    ob_error error;
    const ob_status status = talk(&error);
    if (status) put("error: "), put(error.message), put("\n");
    return (int)status;
}
