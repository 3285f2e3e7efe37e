/* The .1bit container: header, section table, MODEL section. Trusts nothing it reads. */
#include "ob_crc32c.h"
#include "ob_error.h"
#include "ob_math.h"
#include "ob_model.h"

enum { HEADER_BYTES = 128, RECORD_BYTES = 128, SECTION_BYTES = 32, SECTION_REQUIRED = 1 };
_Static_assert(sizeof(ob_record) == RECORD_BYTES, "a tensor record is 128 bytes");
_Static_assert(sizeof(ob_description) == 128, "the MODEL section is 128 bytes");

typedef struct header {
    char magic[8];
    uint32_t version, header_crc32c;
    uint64_t file_bytes, meta_bytes;
    uint32_t num_sections, num_tensors;
    uint64_t section_table_offset, tensor_table_offset;
    uint8_t zeros[72];
} header;
_Static_assert(sizeof(header) == HEADER_BYTES, "the header is 128 bytes");

typedef struct section {
    char id[8];
    uint32_t flags, zero;
    uint64_t offset, bytes;
} section;
_Static_assert(sizeof(section) == SECTION_BYTES, "a section record is 32 bytes");

/* [offset, offset + bytes) lies inside [0, limit), without overflow */
static int inside(uint64_t offset, uint64_t bytes, uint64_t limit) { return offset <= limit && bytes <= limit - offset; }

static int same_id(const char id[8], const char *name) {
    size_t i = 0;
    for (; i < 8 && name[i]; i++)
        if (id[i] != name[i]) return 0;
    if (name[i]) return 0;
    for (; i < 8; i++)
        if (id[i]) return 0;
    return 1;
}

static const char *const known[] = {"MODEL", "CONFIG", "TOKJSON", "TOKBIN", "CHATTPL", "CHATSTR", "MANIFEST",
                                   "HADAMARD"};
enum { NUM_KNOWN = sizeof known / sizeof *known };

static int is_known(const char id[8]) {
    for (size_t i = 0; i < NUM_KNOWN; i++)
        if (same_id(id, known[i])) return 1;
    return 0;
}

static const char *printable(const char id[8], char text[9]) {
    for (int i = 0; i < 8 && id[i]; i++) text[i] = id[i] > ' ' && id[i] < 127 ? id[i] : '?';
    return text;
}

static uint32_t header_checksum(const uint8_t *image, uint64_t meta_bytes) {
    static const uint8_t zeros[4] = {0};
    uint32_t crc = ob_crc32c(0, image, 12);
    crc = ob_crc32c(crc, zeros, 4);
    return ob_crc32c(crc, image + 16, meta_bytes - 16);
}

static section read_section(const ob_model *model, uint32_t index) {
    section s;
    memcpy(&s, model->sections + (uint64_t)index * SECTION_BYTES, SECTION_BYTES);
    return s;
}

ob_record ob_read_record(const ob_model *model, uint32_t index) {
    ob_record r;
    memcpy(&r, model->tensors + (uint64_t)index * RECORD_BYTES, RECORD_BYTES);
    return r;
}

static ob_status check_header(const header *h, uint64_t image_bytes, ob_error *error) {
    static const char magic[8] = {'1', 'B', 'I', 'T', '\r', '\n', 0x1a, '\n'};
    for (int i = 0; i < 8; i++)
        if (h->magic[i] != magic[i])
            return ob_fail(error, OB_ERROR_FORMAT, i >= 4 ? "a .1bit file that a text-mode transfer has changed; copy it as binary"
                                                          : "not a .1bit file: it does not begin with \"1BIT\"");
    if (h->version != 1)
        return ob_fail(error, OB_ERROR_FORMAT, ".1bit version %u; this engine reads version 1, a newer onebit may read it",
                       h->version);
    if (h->file_bytes != image_bytes)
        return ob_fail(error, OB_ERROR_FORMAT, "the file has %U bytes but its header says %U: an incomplete copy?", image_bytes,
                       h->file_bytes);
    if (h->meta_bytes < HEADER_BYTES || h->meta_bytes > image_bytes ||
        !inside(h->section_table_offset, (uint64_t)h->num_sections * SECTION_BYTES, h->meta_bytes) ||
        !inside(h->tensor_table_offset, (uint64_t)h->num_tensors * RECORD_BYTES, h->meta_bytes))
        return ob_fail(error, OB_ERROR_FORMAT, "the header's tables lie outside the file");
    return OB_OK;
}

/* Each known id at most once. Quadratic only in the few known ones. */
static ob_status check_unique(const ob_model *model, ob_error *error) {
    for (size_t k = 0; k < NUM_KNOWN; k++) {
        uint32_t count = 0;
        for (uint32_t i = 0; i < model->num_sections; i++) count += (uint32_t)same_id(read_section(model, i).id, known[k]);
        if (count > 1) return ob_fail(error, OB_ERROR_FORMAT, "section %s is there %u times", known[k], count);
    }
    return OB_OK;
}

static ob_status check_sections(const ob_model *model, uint64_t meta_bytes, ob_error *error) {
    for (uint32_t i = 0; i < model->num_sections; i++) {
        section s = read_section(model, i);
        if (!inside(s.offset, s.bytes, meta_bytes) || s.offset % 8)
            return ob_fail(error, OB_ERROR_FORMAT, "section %u lies outside the file or is not aligned", i);
        if ((s.flags & SECTION_REQUIRED) && !is_known(s.id))
            return ob_fail(error, OB_ERROR_FORMAT, "section %s is required and unknown to this engine; it needs a newer onebit",
                           printable(s.id, (char[9]){0}));
    }
    return check_unique(model, error);
}

static ob_status check_size(const char *name, uint32_t value, uint32_t largest, ob_error *error) {
    if (value >= 1 && value <= largest) return OB_OK;
    return ob_fail(error, OB_ERROR_FORMAT, "model description: %s is %u, expected 1 to %u", name, value, largest);
}

static ob_status check_token(const char *name, uint32_t value, uint32_t vocab_size, ob_error *error) {
    if (value == OB_NO_TOKEN || value < vocab_size) return OB_OK;
    return ob_fail(error, OB_ERROR_FORMAT, "model description: the %s token is %u, outside the vocabulary of %u", name, value,
                   vocab_size);
}

static ob_status check_sizes(const ob_description *d, ob_error *error) {
    const struct { const char *name; uint32_t value, largest; } sizes[] = {
        {"vocab_size", d->vocab_size, OB_MAX_VOCAB},
        {"hidden_size", d->hidden_size, OB_MAX_COLS},
        {"num_layers", d->num_layers, OB_NO_LAYER - 1},
        {"num_heads", d->num_heads, OB_MAX_COLS},
        {"num_key_value_heads", d->num_key_value_heads, OB_MAX_COLS},
        {"head_dim", d->head_dim, OB_MAX_COLS},
        {"intermediate_size", d->intermediate_size, OB_MAX_COLS},
        {"max_seq_len", d->max_seq_len, OB_MAX_POSITIONS}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        ob_status status = check_size(sizes[i].name, sizes[i].value, sizes[i].largest, error);
        if (status) return status;
    }
    if (d->num_heads % d->num_key_value_heads)
        return ob_fail(error, OB_ERROR_FORMAT, "model description: num_key_value_heads (%u) does not divide num_heads (%u)",
                       d->num_key_value_heads, d->num_heads);
    if ((uint64_t)d->num_heads * d->head_dim > OB_MAX_COLS)
        return ob_fail(error, OB_ERROR_FORMAT, "model description: num_heads * head_dim is %U, expected at most %u",
                       (uint64_t)d->num_heads * d->head_dim, (uint32_t)OB_MAX_COLS);
    return OB_OK;
}

/* Fields without a meaning yet are zero: anything else is damage or a newer onebit. */
static int has_reserved(const ob_description *d) {
    uint32_t sum = d->zero1;
    for (size_t i = 0; i < sizeof d->zeros / sizeof *d->zeros; i++) sum |= d->zeros[i];
    return sum != 0;
}

static ob_status check_description(const ob_description *d, ob_error *error) {
    ob_status status = check_sizes(d, error);
    if (status) return status;
    if (has_reserved(d))
        return ob_fail(error, OB_ERROR_FORMAT,
                       "model description: a reserved field is not zero; the file is damaged or needs a newer onebit");
    if (d->norm > OB_NORM_RMS || d->mlp > OB_MLP_RELU2_GLU || d->position > OB_POSITION_ROPE || d->flags > 7)
        return ob_fail(error, OB_ERROR_FORMAT, "model description: unknown norm %u, mlp %u, position %u or flags %u", d->norm,
                       d->mlp, d->position, d->flags);
    if (d->position == OB_POSITION_ROPE && d->head_dim % 2)
        return ob_fail(error, OB_ERROR_FORMAT, "model description: rope needs an even head_dim, got %u", d->head_dim);
    if (!(d->norm_eps > 0.0f && d->norm_eps <= 1.0f))
        return ob_fail(error, OB_ERROR_FORMAT, "model description: norm_eps is not a positive number up to 1");
    if (!(d->rope_theta >= 1.0f && d->rope_theta <= 1e15f))
        return ob_fail(error, OB_ERROR_FORMAT, "model description: rope_theta is not a number from 1 to 1e15");
    if (!(d->residual_scale > 0.0f && d->residual_scale <= 1e3f))
        return ob_fail(error, OB_ERROR_FORMAT, "model description: residual_scale is not a positive number up to 1000");
    if (ob_bits_from_float(d->attention_scale) && !(d->attention_scale > 0.0f && d->attention_scale <= 1e3f))
        return ob_fail(error, OB_ERROR_FORMAT, "model description: attention_scale is not 0 or a positive number up to 1000");
    if ((status = check_token("bos", d->bos_token, d->vocab_size, error))) return status;
    if ((status = check_token("eos", d->eos_token, d->vocab_size, error))) return status;
    return check_token("pad", d->pad_token, d->vocab_size, error);
}

ob_status ob_read_header(ob_model *model, const void *image, uint64_t image_bytes, ob_error *error) {
    if (!image) return ob_fail(error, OB_ERROR_ARGUMENT, "the image is a null pointer");
    if ((uintptr_t)image % 64)
        return ob_fail(error, OB_ERROR_ARGUMENT, "the image is not 64-byte aligned; map the file or copy it to aligned memory");
    if (image_bytes < HEADER_BYTES)
        return ob_fail(error, OB_ERROR_FORMAT, "not a .1bit file: %U bytes, its header alone has 128", image_bytes);
    header h;
    memcpy(&h, image, HEADER_BYTES);
    ob_status status = check_header(&h, image_bytes, error);
    if (status) return status;
    if (header_checksum(image, h.meta_bytes) != h.header_crc32c)
        return ob_fail(error, OB_ERROR_FORMAT, "the header's checksum is wrong: the file is damaged");
    model->image = image;
    model->image_bytes = image_bytes;
    model->num_sections = h.num_sections;
    model->num_tensors = h.num_tensors;
    model->sections = model->image + h.section_table_offset;
    model->tensors = model->image + h.tensor_table_offset;
    if ((status = check_sections(model, h.meta_bytes, error))) return status;
    uint64_t bytes;
    const void *description = ob_model_section(model, "MODEL", &bytes);
    if (!description || bytes != sizeof model->description)
        return ob_fail(error, OB_ERROR_FORMAT, "section MODEL is missing or has %U bytes instead of 128", bytes);
    memcpy(&model->description, description, sizeof model->description);
    return check_description(&model->description, error);
}

const void *ob_model_section(const ob_model *model, const char *id, uint64_t *bytes) {
    for (uint32_t i = 0; i < model->num_sections; i++) {
        section s = read_section(model, i);
        if (!same_id(s.id, id)) continue;
        if (bytes) *bytes = s.bytes;
        return model->image + s.offset;
    }
    if (bytes) *bytes = 0;
    return NULL;
}
