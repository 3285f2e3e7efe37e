/* Section HADAMARD: by which signed Walsh-Hadamard rotations inputs are turned. docs/format.md has the layout. */
#include "ob_error.h"
#include "ob_math.h"
#include "ob_model.h"

enum { HEAD_BYTES = 16 };

static uint32_t width_of(const ob_description *d, int site) {
    return site == OB_SITE_HIDDEN ? d->hidden_size : site == OB_SITE_ATTENTION ? d->num_heads * d->head_dim : d->intermediate_size;
}

static uint32_t sign_bytes(uint32_t width) { return (width + 63) / 64 * 8; }

static int sign_at(const uint8_t *signs, uint32_t k) { return signs[k / 8] >> k % 8 & 1; }

static ob_status check_rotation(const ob_rotation *r, ob_error *error) {
    if (r->block < 2 || r->block & (r->block - 1) || r->width % r->block)
        return ob_fail(error, OB_ERROR_FORMAT, "section HADAMARD: blocks of %u, expected a power of two that divides %u inputs",
                       r->block, r->width);
    for (uint32_t k = r->width; k < 8 * sign_bytes(r->width); k++)
        if (sign_at(r->signs, k)) return ob_fail(error, OB_ERROR_FORMAT, "section HADAMARD: signs of more than %u inputs", r->width);
    return OB_OK;
}

ob_status ob_read_hadamard(ob_model *m, ob_error *error) {
    uint64_t bytes, expected = HEAD_BYTES;
    const uint8_t *section = ob_model_section(m, "HADAMARD", &bytes);
    uint32_t head[HEAD_BYTES / 4] = {0}; /* a block for each site, and a reserved field */
    if (!section) return OB_OK;
    if (bytes >= HEAD_BYTES) memcpy(head, section, HEAD_BYTES);
    for (int site = 0; site < OB_NUM_SITES; site++) {
        m->rotations[site] = (ob_rotation){head[site], width_of(&m->description, site), section + expected, NULL};
        if (head[site]) expected += sign_bytes(m->rotations[site].width);
    }
    if (bytes != expected || head[OB_NUM_SITES])
        return ob_fail(error, OB_ERROR_FORMAT, "section HADAMARD has %U bytes, expected %U, or a reserved field that is not zero", bytes,
                       expected);
    for (int site = 0; site < OB_NUM_SITES; site++) {
        ob_status status = head[site] ? check_rotation(&m->rotations[site], error) : OB_OK;
        if (status) return status;
    }
    return OB_OK;
}

static size_t factor_bytes(const ob_rotation *r) { return r->block ? ((size_t)r->width * sizeof(float) + 63) / 64 * 64 : 0; }

size_t ob_factor_bytes(const ob_model *m) {
    size_t bytes = 0;
    for (int site = 0; site < OB_NUM_SITES; site++) bytes += factor_bytes(&m->rotations[site]);
    return bytes;
}

void ob_place_factors(ob_model *m, uint8_t *memory) {
    for (int site = 0; site < OB_NUM_SITES; site++) {
        ob_rotation *r = &m->rotations[site];
        if (!r->block) continue;
        const float factor = 1.0f / ob_sqrt((float)r->block);
        r->factors = (float *)(void *)memory;
        memory += factor_bytes(r);
        for (uint32_t k = 0; k < r->width; k++) r->factors[k] = sign_at(r->signs, k) ? -factor : factor;
    }
}
