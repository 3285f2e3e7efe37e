/* What a model is once its file has been checked: pointers into the image, nothing copied. */
#ifndef OB_MODEL_H
#define OB_MODEL_H

#include "kernels/ob_kernels.h"
#include "onebit.h"

/* Limits that keep every product of sizes inside 64 bits and every integer sum of a row inside 32: a row of 131072
 * int8 codes of -128 times inputs of 127 makes 2.13e9, below 2^31. */
enum { OB_MAX_COLS = 131072, OB_MAX_VOCAB = 1 << 24, OB_MAX_POSITIONS = 1 << 24, OB_MAX_BATCH = 256, OB_MAX_THREADS = 256,
       OB_MAX_SEQUENCES = 1024 };

enum { OB_KIND_TOKEN_EMBEDDING = 1, OB_KIND_POSITION_EMBEDDING, OB_KIND_FINAL_NORM, OB_KIND_FINAL_NORM_BIAS, OB_KIND_HEAD,
       OB_KIND_ROPE_FREQUENCIES,
       OB_KIND_ATTENTION_NORM = 16, OB_KIND_ATTENTION_NORM_BIAS, OB_KIND_Q, OB_KIND_K, OB_KIND_V, OB_KIND_O, OB_KIND_Q_NORM,
       OB_KIND_K_NORM, OB_KIND_ATTENTION_SUB_NORM, OB_KIND_MLP_NORM, OB_KIND_MLP_NORM_BIAS, OB_KIND_GATE, OB_KIND_UP,
       OB_KIND_DOWN, OB_KIND_MLP_SUB_NORM, OB_KIND_Q_BIAS = 34, OB_KIND_K_BIAS, OB_KIND_V_BIAS, OB_KIND_O_BIAS,
       OB_KIND_GATE_BIAS = 43, OB_KIND_UP_BIAS, OB_KIND_DOWN_BIAS, OB_NUM_KINDS };

#define OB_NO_LAYER 0xffffu

/* Where inputs are turned: those of width hidden (q, k, v, gate, up, head; rows of the token embedding), of o, of down. */
enum { OB_SITE_HIDDEN, OB_SITE_ATTENTION, OB_SITE_MLP, OB_NUM_SITES };
enum { OB_TURNED = 0x80 }; /* in a record's activation: the inputs are turned first */

/* Section HADAMARD's entry of a site. */
typedef struct ob_rotation {
    uint32_t block, width; /* block 0: none */
    const uint8_t *signs;  /* a bit for each input, in the file */
    float *factors;        /* [width], in the arena */
} ob_rotation;

/* Vectors float32: norms [hidden], q/k norms [head_dim], sub-norms [num_heads * head_dim] and [intermediate]. */
typedef struct ob_layer {
    const float *attention_norm, *attention_norm_bias, *q_norm, *k_norm, *attention_sub_norm;
    const float *mlp_norm, *mlp_norm_bias, *mlp_sub_norm;
    ob_weights q, k, v, o, gate, up, down;
} ob_layer;

struct ob_model {
    const uint8_t *image;
    uint64_t image_bytes;
    uint32_t num_sections, num_tensors;
    const uint8_t *sections, *tensors; /* the file's tables */
    ob_description description;
    ob_kernels kernels;
    const float *final_norm, *final_norm_bias; /* [hidden] */
    const float *rope_frequencies;             /* [head_dim / 2]; NULL: they follow from rope_theta */
    ob_weights token_embedding, position_embedding, head; /* head is a copy of token_embedding when tied */
    ob_rotation rotations[OB_NUM_SITES];
    ob_layer *layers; /* [num_layers], behind this struct in the arena */
};

/* A tensor record as it lies in the file. */
typedef struct ob_record {
    char name[64];
    uint16_t kind, layer;
    uint8_t layout, granularity, activation, scale_type;
    uint32_t rows, cols, group_size, crc32c;
    uint64_t data_offset, data_bytes, scale_offset, scale_bytes, row_stride;
} ob_record;

/* ob_file.c: the header, sections and tables are inside the image and their checksum is right. Fills image, tables and
 * description of `model`. */
ob_status ob_read_header(ob_model *model, const void *image, uint64_t image_bytes, ob_error *error);
ob_record ob_read_record(const ob_model *model, uint32_t index);
/* ob_hadamard.c: section HADAMARD, where there is one, fits the description; fills the rotations but for their factors,
 * for which ob_place_factors takes memory, 64-byte aligned. */
ob_status ob_read_hadamard(ob_model *model, ob_error *error);
void ob_place_factors(ob_model *model, uint8_t *memory);
size_t ob_factor_bytes(const ob_model *model);
/* ob_tensors.c: every tensor fits its place, none is missing or twice; fills the layers. */
ob_status ob_read_tensors(ob_model *model, ob_error *error);

static inline int ob_has_gate(const ob_description *d) { return d->mlp >= OB_MLP_SWIGLU; }

#endif
