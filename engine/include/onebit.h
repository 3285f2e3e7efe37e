/* onebit: run 1-bit and 1.58-bit language models. C11, no dependency.
 *
 * With an operating system (host part, load.c and threads.c):
 *
 *     ob_error error;
 *     ob_model *model;
 *     ob_session *session;
 *     if (ob_load("model.1bit", NULL, &model, &error)) { puts(error.message); return 1; }
 *     if (ob_session_create(model, NULL, &session, &error)) { ... }
 *     ob_forward(session, tokens, num_tokens, OB_LOGITS_LAST, logits, &error);   // logits [vocab_size]
 *     ob_session_free(session);
 *     ob_unload(model);
 *
 * Without one (core: no malloc, stdio, threads or libm; the caller gives all memory):
 *
 *     ob_model_arena_bytes(image, image_bytes, &bytes, &error);
 *     ob_model_init(image, image_bytes, NULL, arena, bytes, &model, &error);
 *     ob_session_arena_bytes(model, NULL, &bytes, &error);
 *     ob_session_init(model, NULL, arena, bytes, &session, &error);
 *
 * Rules. Functions that can fail return OB_OK (0) or an ob_status and, when `error` is not NULL, fill its message.
 * The weights are read in place: the image must stay mapped and unchanged as long as the model lives. A model is
 * read-only after ob_model_init and may serve many sessions at once; a session belongs to one thread at a time.
 * The same model and tokens give the same bits of logits for every instruction set, number of threads and chunking.
 */
#ifndef ONEBIT_H
#define ONEBIT_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && defined(OB_BUILD_SHARED)
#define OB_API __declspec(dllexport)
#elif defined(__GNUC__)
#define OB_API __attribute__((visibility("default")))
#else
#define OB_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Raised when a struct or a signature below changes. */
#define OB_ABI_VERSION 4u
OB_API uint32_t ob_abi_version(void);

/* ---- errors ---- */

typedef enum ob_status {
    OB_OK = 0,
    OB_ERROR_ARGUMENT = 1,     /* a call that cannot be meant: null pointer, token out of range, unknown option */
    OB_ERROR_FORMAT = 2,       /* the file is not a .1bit file, is damaged, or lies about its contents */
    OB_ERROR_MEMORY = 3,       /* the arena is too small, or the host has no memory left */
    OB_ERROR_FULL = 4,         /* the context is full */
    OB_ERROR_IO = 5,           /* the file cannot be opened or read */
    OB_ERROR_UNSUPPORTED = 6,  /* a valid request that this build or this processor cannot serve */
    OB_ERROR_NUMERIC = 7       /* logits that are not numbers */
} ob_status;

typedef struct ob_error {
    int32_t status; /* an ob_status */
    char message[252];
} ob_error;

OB_API const char *ob_status_name(ob_status status);

/* ---- kinds, layouts and the other numbers of the file (docs/format.md) ---- */

enum { OB_LAYOUT_FLOAT32, OB_LAYOUT_FLOAT16, OB_LAYOUT_INT8, OB_LAYOUT_INT4, OB_LAYOUT_BINARY, OB_LAYOUT_TERNARY,
       OB_LAYOUT_TERNARY5, OB_LAYOUT_BINARY_T16, OB_LAYOUT_TERNARY_T16, OB_LAYOUT_TERNARY5_T16, OB_NUM_LAYOUTS };
enum { OB_GRANULARITY_NONE, OB_GRANULARITY_TENSOR, OB_GRANULARITY_ROW, OB_GRANULARITY_GROUP };
enum { OB_ACTIVATION_NONE, OB_ACTIVATION_INT8, OB_ACTIVATION_SIGN };
enum { OB_SCALE_NONE, OB_SCALE_FLOAT32, OB_SCALE_FLOAT16 };
enum { OB_NORM_LAYER, OB_NORM_RMS };
enum { OB_MLP_GELU, OB_MLP_RELU2, OB_MLP_SWIGLU, OB_MLP_RELU2_GLU };
enum { OB_POSITION_LEARNED, OB_POSITION_ROPE };
enum { OB_FLAG_QK_NORM = 1, OB_FLAG_SUB_NORM = 2, OB_FLAG_TIED_HEAD = 4 };
#define OB_NO_TOKEN 0xffffffffu

/* The MODEL section as it lies in the file. */
typedef struct ob_description {
    uint32_t vocab_size, hidden_size, num_layers, num_heads, num_key_value_heads, head_dim, intermediate_size, max_seq_len;
    uint32_t norm, mlp, position, flags;
    float norm_eps, rope_theta, residual_scale, attention_scale; /* of scores; 0: 1 / sqrt(head_dim) */
    uint32_t bos_token, eos_token, pad_token, zero1;
    uint32_t zeros[12];
} ob_description;

/* One tensor of the file; name is zero terminated. */
typedef struct ob_tensor_info {
    char name[68];
    uint32_t kind, layer, layout, granularity, activation, scale_type; /* layer 0xffff: none */
    uint32_t rows, cols, group_size, crc32c;
    uint64_t data_bytes, scale_bytes;
} ob_tensor_info;

/* ---- model ---- */

typedef struct ob_model ob_model;

enum { OB_ISA_AUTO, OB_ISA_SCALAR, OB_ISA_AVX2, OB_ISA_AVXVNNI, OB_ISA_AVX512, OB_ISA_AMX, OB_ISA_NEON, OB_ISA_I8MM,
       OB_ISA_WASM, OB_NUM_ISAS };

typedef struct ob_model_options {
    uint32_t isa;               /* OB_ISA_*; AUTO takes the best this processor has */
    uint32_t skip_tensor_check; /* 1: do not check the tensors' CRC-32C (the header's is always checked) */
    uint32_t num_threads;       /* host only: threads for the check; 0: 1 */
    uint32_t copy;              /* host only: 1: copy the file into large pages, which reads faster where mapped files have
                                 * small ones, and takes the file's size in memory of this process */
} ob_model_options;

/* image: the whole file, [image_bytes], 64-byte aligned. `options` may be NULL. */
OB_API ob_status ob_model_arena_bytes(const void *image, uint64_t image_bytes, size_t *bytes, ob_error *error);
OB_API ob_status ob_model_init(const void *image, uint64_t image_bytes, const ob_model_options *options, void *arena,
                               size_t arena_bytes, ob_model **model, ob_error *error);
OB_API void ob_model_describe(const ob_model *model, ob_description *description);
OB_API uint32_t ob_model_num_tensors(const ob_model *model);
OB_API ob_status ob_model_tensor(const ob_model *model, uint32_t index, ob_tensor_info *info, ob_error *error);
/* CRC-32C of one tensor's data and scales; ob_model_init does it for all unless told to skip. */
OB_API ob_status ob_model_check_tensor(const ob_model *model, uint32_t index, ob_error *error);
/* A section's payload, `*bytes` long, inside the image; NULL and 0 when the file has none with this id ("TOKBIN"...). */
OB_API const void *ob_model_section(const ob_model *model, const char *id, uint64_t *bytes);
/* What the dispatch chose, one line an operation ("linear ternary_t16 int8: avx512 (...)"), index from 0. Writes it
 * into line [OB_KERNEL_LINE], zero terminated; returns 0 after the last. */
enum { OB_KERNEL_LINE = 96 };
OB_API int ob_model_kernel(const ob_model *model, uint32_t index, char *line);
/* The OB_ISA_* of a name ("scalar", "avx2", "avxvnni", ..., "auto"), or OB_NUM_ISAS for an unknown one. */
OB_API uint32_t ob_isa_from_name(const char *name);
OB_API const char *ob_isa_name(uint32_t isa);
/* 1 when this build and processor can run it. */
OB_API int ob_isa_available(uint32_t isa);

/* ---- session: one or more sequences, their KV cache and work memory ---- */

typedef struct ob_session ob_session;

/* run calls task(argument, item, num_items, thread) once for every item < num_items, on any thread < num_threads (one
 * item at a time on each), and returns when all are done. The core splits work by output rows, heads or tokens only, so
 * neither the number of threads nor who takes what changes any bit. */
typedef void (*ob_task)(void *argument, uint32_t item, uint32_t num_items, uint32_t thread);
typedef struct ob_parallel {
    void *context;
    void (*run)(void *context, ob_task task, void *argument, uint32_t num_items);
    uint32_t num_threads;
    uint32_t zero;
} ob_parallel;

/* How keys and values are kept. DEFAULT is float16; INT8 has a scale for every 32 numbers. */
enum { OB_KV_DEFAULT, OB_KV_FLOAT32, OB_KV_FLOAT16, OB_KV_INT8, OB_NUM_KV_TYPES };

typedef struct ob_session_options {
    uint32_t max_positions; /* of each sequence; 0: the model's max_seq_len, which is also the most allowed */
    uint32_t max_batch;     /* tokens computed together in prefill, 1 to 256; 0: 128, which takes 13 MB for a model of 2B */
    uint32_t num_threads;   /* host only (ob_session_create): 0: 1 */
    uint32_t kv_type;       /* OB_KV_* */
    uint32_t num_sequences; /* 1 to 1024; 0: 1 */
    uint32_t zero;
    const ob_parallel *parallel; /* core only: NULL: everything on the calling thread. Copied. */
} ob_session_options;

OB_API ob_status ob_session_arena_bytes(const ob_model *model, const ob_session_options *options, size_t *bytes,
                                        ob_error *error);
/* arena: [arena_bytes], 64-byte aligned. */
OB_API ob_status ob_session_init(const ob_model *model, const ob_session_options *options, void *arena,
                                 size_t arena_bytes, ob_session **session, ob_error *error);

enum { OB_LOGITS_NONE, OB_LOGITS_LAST, OB_LOGITS_ALL };
/* Appends tokens [num_tokens] to sequence 0 and writes logits: nothing, [vocab_size] of the last token, or [num_tokens, vocab_size].
 * Nothing is changed when it fails. */
OB_API ob_status ob_forward(ob_session *session, const uint32_t *tokens, uint32_t num_tokens, uint32_t which, float *logits,
                            ob_error *error);
OB_API uint32_t ob_session_position(const ob_session *session); /* of sequence 0 */
OB_API uint32_t ob_session_max_positions(const ob_session *session);
/* Sequence 0 forgets what came after `position` (0: everything), which must not be beyond the present one. */
OB_API ob_status ob_session_truncate(ob_session *session, uint32_t position, ob_error *error);

/* Several sequences in one session share the reading of the weights. Each token gets the bits it gets alone. */
typedef struct ob_batch_item {
    uint32_t token, sequence, wants_logits;
} ob_batch_item;
/* Appends each item's token to its sequence, the items of one sequence in order; logits [items that want them,
 * vocab_size], NULL when none does. Nothing is changed when it fails. */
OB_API ob_status ob_forward_batch(ob_session *session, const ob_batch_item *items, uint32_t num_items, float *logits,
                                  ob_error *error);
/* Tokens that a sequence holds; 0 for one that there is not. */
OB_API uint32_t ob_sequence_position(const ob_session *session, uint32_t sequence);
OB_API ob_status ob_sequence_truncate(ob_session *session, uint32_t sequence, uint32_t position, ob_error *error);
/* `to` becomes the first num_positions tokens of `from`, another sequence: a shared beginning is computed once. */
OB_API ob_status ob_sequence_copy(ob_session *session, uint32_t from, uint32_t to, uint32_t num_positions, ob_error *error);
/* Context shift: drops `discard` tokens after the first `keep`, so that a full sequence can go on. What is computed
 * later sees the rest at the distances they now have; what was computed before has seen what is dropped, which is where
 * it differs from running the shorter text. The keys of the kept tokens are turned and rounded again, the others stay
 * as they are. OB_ERROR_UNSUPPORTED with learned positions (run the text again). */
OB_API ob_status ob_sequence_shift(ob_session *session, uint32_t sequence, uint32_t keep, uint32_t discard, ob_error *error);
/* Called after the embedding (point 0) and after layer i (point i + 1) with the residual stream of the batch that
 * starts at `position` (of its first token): hidden [num_tokens, hidden_size]. NULL switches it off. */
typedef void (*ob_trace)(void *user, uint32_t point, uint32_t position, const float *hidden, uint32_t num_tokens,
                         uint32_t hidden_size);
OB_API void ob_session_set_trace(ob_session *session, ob_trace trace, void *user);

/* ---- sampling ---- */

typedef struct ob_sampler_options {
    float temperature;        /* 0: greedy */
    float top_p;              /* keep the most likely tokens up to this mass; 1: off */
    float min_p;              /* drop tokens below min_p times the best one's probability; 0: off */
    float repetition_penalty; /* > 1: tokens of the recent window are less likely; 1: off */
    uint32_t top_k;           /* keep the k most likely; 0: off */
    uint32_t zero;
    uint64_t seed;
} ob_sampler_options;

/* Deterministic: the n-th sample of a seed is the same everywhere. The generator is splitmix64. */
typedef struct ob_sampler {
    ob_sampler_options options;
    uint64_t state;
} ob_sampler;

OB_API ob_status ob_sampler_init(ob_sampler *sampler, const ob_sampler_options *options, ob_error *error);
OB_API size_t ob_sampler_arena_bytes(uint32_t vocab_size);
/* Chooses a token from logits [vocab_size] (left as they are) with the recent tokens recent [num_recent] penalised.
 * arena: ob_sampler_arena_bytes(vocab_size), 8-byte aligned. */
OB_API ob_status ob_sample(ob_sampler *sampler, const float *logits, uint32_t vocab_size, const uint32_t *recent,
                           uint32_t num_recent, void *arena, size_t arena_bytes, uint32_t *token, ob_error *error);

/* ---- speculation: several tokens a step, and the same text ---- */

/* Proposed tokens go through the model together and are kept as far as it would have said them itself. They come from
 * the text so far (what followed its longest piece that ends like the present) or from a draft, a smaller model of the
 * same vocabulary. Exact: greedy text is unchanged, and so is text sampled with look-up, token for token; with a
 * draft, sampled tokens are accepted with probability min(1, p / q), else drawn from (p - q)+, which leaves the
 * distribution as it is. How many are proposed follows from how often proposals like these were right and what passes
 * cost, so that speculation costs little where it does not help. */
typedef struct ob_speculation ob_speculation;

enum { OB_MAX_PROPOSED = 31 };
typedef struct ob_speculation_options {
    uint32_t max_proposed;      /* tokens proposed in a step, 1 to OB_MAX_PROPOSED; 0: 15 */
    uint32_t lookup;            /* 1: propose what followed in the text */
    uint32_t fixed;             /* 1: always propose as many as there are (for measuring) */
    uint32_t repetition_window; /* how many tokens fall under the repetition penalty */
    double (*clock)(void);      /* seconds, to learn what passes cost; NULL: estimates. Where a draft proposes for sampled
                                 * text it only counts: time must not decide what a seed gives. */
    ob_sampler_options sampling; /* as the sampler's; its seed gives the draft's own numbers */
} ob_speculation_options;

typedef struct ob_speculation_counts {
    uint64_t steps, proposed, accepted; /* passes of the model, tokens that it was asked about, and kept */
    uint64_t drafted;                   /* passes of the draft */
    double draft_seconds, seconds;      /* in the draft, and in all steps, if there is a clock */
} ob_speculation_counts;

/* draft may be NULL (look-up only). */
OB_API ob_status ob_speculation_arena_bytes(const ob_speculation_options *options, const ob_session *target,
                                            const ob_session *draft, size_t *bytes, ob_error *error);
/* Both sessions are used, not owned. arena: [arena_bytes], 8-byte aligned. */
OB_API ob_status ob_speculation_init(const ob_speculation_options *options, ob_session *target, ob_session *draft, void *arena,
                                     size_t arena_bytes, ob_speculation **speculation, ob_error *error);
/* One pass: the text is tokens [num_tokens], of which the target holds all but the last, and the draft any part from the
 * start. Writes 1 to min(most, max_proposed + 1) new tokens; the target then holds all but the last of those. */
OB_API ob_status ob_speculation_step(ob_speculation *speculation, ob_sampler *sampler, const uint32_t *tokens,
                                     uint32_t num_tokens, uint32_t most, uint32_t *new_tokens, uint32_t *num_new,
                                     ob_error *error);
OB_API void ob_speculation_count(const ob_speculation *speculation, ob_speculation_counts *counts);
/* What followed the longest earlier piece of tokens [num_tokens] that ends like the text does: proposed [most]. Returns how
 * many, 0 when the last token is new; *match: the length of the piece. */
OB_API uint32_t ob_lookup(const uint32_t *tokens, uint32_t num_tokens, uint32_t most, uint32_t *proposed, uint32_t *match);
/* The acceptance alone: logits [num_proposed + 1, vocab_size] of the model before each proposed token and after the last,
 * q [num_proposed, vocab_size] the distributions they were drawn from (NULL: they were chosen, not drawn). recent
 * [num_recent + num_proposed]: what the repetition penalty sees before each, `window` tokens at most, the proposed at the
 * end. Writes the accepted tokens and one more. Numbers that are no numbers end the tokens early; an error when none is left. */
OB_API ob_status ob_verify(ob_sampler *sampler, const float *logits, uint32_t vocab_size, const uint32_t *recent,
                           uint32_t num_recent, uint32_t window, uint32_t num_proposed, const float *q, void *arena,
                           size_t arena_bytes, uint32_t *new_tokens, uint32_t *num_new, ob_error *error);

/* ---- host: files, memory and threads of an operating system ---- */

/* Seconds of a clock that only goes forward: the `clock` of ob_speculation_options. */
OB_API double ob_seconds(void);
/* Maps and checks a file; `options` may be NULL. A file that is cut short while it is mapped ends the process (SIGBUS),
 * as with any mapped file: replace a model by renaming a new file over it, or load it with `copy`. */
OB_API ob_status ob_load(const char *path, const ob_model_options *options, ob_model **model, ob_error *error);
OB_API void ob_unload(ob_model *model);
OB_API ob_status ob_session_create(const ob_model *model, const ob_session_options *options, ob_session **session,
                                   ob_error *error);
OB_API void ob_session_free(ob_session *session);

/* What bounds the engine on this machine, measured for about `seconds` (0.001 to 60) by `num_threads` threads that share
 * the work as the engine's do; what comes back is the fastest of many short turns, because a limit is what can be reached.
 * Bandwidth: 10^9 bytes a second of a pure read, again and again, of `bytes` of memory (a model's size: part of it may
 * stay in a cache, as the model's would). Int8 peak: 10^9 operations a second (a multiplication and an addition are two)
 * of the set's int8 dot product, from registers; OB_ERROR_UNSUPPORTED where this build knows none for the set. */
OB_API ob_status ob_measure_bandwidth(uint32_t num_threads, uint64_t bytes, double seconds, double *gb_per_second,
                                      ob_error *error);
OB_API ob_status ob_measure_int8_peak(uint32_t isa, uint32_t num_threads, double seconds, double *gops, ob_error *error);

/* ---- tokenizer: text <-> tokens, from the TOKBIN section (its layout is in src/ob_tokenizer.h) ---- */

/* Reads its section in place, which must stay mapped; copyable; nothing to free. The fields are private. */
typedef struct ob_tokenizer {
    const unsigned char *image;
    uint32_t header[32];
} ob_tokenizer;

/* Checks every offset and token number of section [bytes], so that nothing later can leave it. */
OB_API ob_status ob_tokenizer_open(ob_tokenizer *tokenizer, const void *section, size_t bytes, ob_error *error);
OB_API uint32_t ob_tokenizer_vocab_size(const ob_tokenizer *tokenizer);

enum { OB_ENCODE_SPECIAL = 1 }; /* add the tokens that the model wants around a text (often one at the start) */

/* Work memory for a text of text_bytes (about 90 times as much), 8-byte aligned; and the most tokens it can become. */
OB_API size_t ob_tokenizer_arena_bytes(const ob_tokenizer *tokenizer, size_t text_bytes);
OB_API size_t ob_tokenizer_max_tokens(const ob_tokenizer *tokenizer, size_t text_bytes);
/* UTF-8 text [text_bytes] -> tokens [capacity], *num_tokens of them. Added tokens ("<|im_end|>") in the text become
 * their token. Bytes that are not UTF-8 are read as U+FFFD, as Python's errors="replace" does. When the tokens do not
 * fit, OB_ERROR_FULL, with the number needed in *num_tokens. O(n log n) in the worst case. */
OB_API ob_status ob_tokenizer_encode(const ob_tokenizer *tokenizer, const char *text, size_t text_bytes, uint32_t flags,
                                     uint32_t *tokens, size_t capacity, size_t *num_tokens, void *arena,
                                     size_t arena_bytes, ob_error *error);

/* The bytes of one token, [*bytes], inside the section; 0 bytes for an unknown token. They may end within a character:
 * see ob_utf8_complete. first: 1 for the first token of a text, where SentencePiece models drop the leading space. */
OB_API const char *ob_tokenizer_token(const ob_tokenizer *tokenizer, uint32_t token, int first, size_t *bytes);
/* 1 for control tokens, which are not shown to a reader. */
OB_API int ob_tokenizer_is_special(const ob_tokenizer *tokenizer, uint32_t token);
/* The added token with this content, or OB_NO_TOKEN. */
OB_API uint32_t ob_tokenizer_find(const ob_tokenizer *tokenizer, const char *content, size_t bytes);
/* How many of these bytes are whole characters: all but an unfinished UTF-8 sequence at the end (0 to 3 bytes). */
OB_API size_t ob_utf8_complete(const char *text, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
