/* A model in the caller's memory: opening an image and answering questions about it. */
#include "ob_model.h"

#include "ob_crc32c.h"
#include "ob_error.h"

enum { ALIGNMENT = 64, TENSORS_PER_LAYER = 8 /* at least: two norms, q, k, v, o, up, down */ };

static size_t round_up(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

/* The header is checked first, so that num_layers is not a number from nowhere: each layer needs its tensor records. */
static ob_status read_header(ob_model *model, const void *image, uint64_t image_bytes, size_t *bytes, ob_error *error) {
    memset(model, 0, sizeof *model);
    ob_status status = ob_read_header(model, image, image_bytes, error);
    if (status) return status;
    if (model->num_tensors / TENSORS_PER_LAYER < model->description.num_layers)
        return ob_fail(error, OB_ERROR_FORMAT, "%u tensors are too few for %u layers", model->num_tensors,
                       model->description.num_layers);
    if ((status = ob_read_hadamard(model, error))) return status;
    *bytes = round_up(sizeof *model) + round_up(model->description.num_layers * sizeof(ob_layer)) + ob_factor_bytes(model);
    return OB_OK;
}

ob_status ob_model_arena_bytes(const void *image, uint64_t image_bytes, size_t *bytes, ob_error *error) {
    ob_model model;
    if (!bytes) return ob_fail(error, OB_ERROR_ARGUMENT, "bytes is a null pointer");
    return read_header(&model, image, image_bytes, bytes, error);
}

static ob_status choose_kernels(ob_model *model, uint32_t isa, ob_error *error) {
    if (isa >= OB_NUM_ISAS) return ob_fail(error, OB_ERROR_ARGUMENT, "unknown instruction set %u", isa);
    if (ob_kernels_choose(&model->kernels, isa)) return OB_OK;
    return ob_fail(error, OB_ERROR_UNSUPPORTED, "this processor or build cannot run the instruction set asked for (%u)", isa);
}

ob_status ob_model_init(const void *image, uint64_t image_bytes, const ob_model_options *options, void *arena, size_t arena_bytes,
                        ob_model **model, ob_error *error) {
    ob_model *m = arena;
    size_t bytes = 0;
    if (!model || !arena || (uintptr_t)arena % ALIGNMENT)
        return ob_fail(error, OB_ERROR_ARGUMENT, "the arena is a null pointer or not 64-byte aligned");
    if (arena_bytes < sizeof *m) return ob_fail(error, OB_ERROR_MEMORY, "the model's arena is too small");
    ob_status status = read_header(m, image, image_bytes, &bytes, error);
    if (status) return status;
    if (arena_bytes < bytes)
        return ob_fail(error, OB_ERROR_MEMORY, "the model's arena has %U bytes and needs %U", (uint64_t)arena_bytes, (uint64_t)bytes);
    m->layers = (ob_layer *)(void *)((uint8_t *)arena + round_up(sizeof *m));
    memset(m->layers, 0, m->description.num_layers * sizeof(ob_layer));
    ob_place_factors(m, (uint8_t *)m->layers + round_up(m->description.num_layers * sizeof(ob_layer)));
    if ((status = choose_kernels(m, options ? options->isa : OB_ISA_AUTO, error))) return status;
    if ((status = ob_read_tensors(m, error))) return status;
    for (uint32_t i = 0; i < m->num_tensors && !(options && options->skip_tensor_check); i++)
        if ((status = ob_model_check_tensor(m, i, error))) return status;
    *model = m;
    return OB_OK;
}

void ob_model_describe(const ob_model *model, ob_description *description) { *description = model->description; }

uint32_t ob_model_num_tensors(const ob_model *model) { return model->num_tensors; }

ob_status ob_model_tensor(const ob_model *model, uint32_t index, ob_tensor_info *info, ob_error *error) {
    if (index >= model->num_tensors)
        return ob_fail(error, OB_ERROR_ARGUMENT, "tensor %u of %u", index, model->num_tensors);
    ob_record r = ob_read_record(model, index);
    memset(info, 0, sizeof *info);
    memcpy(info->name, r.name, sizeof r.name);
    info->kind = r.kind, info->layer = r.layer, info->layout = r.layout, info->granularity = r.granularity;
    info->activation = r.activation & ~(uint32_t)OB_TURNED, info->scale_type = r.scale_type;
    info->rows = r.rows, info->cols = r.cols, info->group_size = r.group_size, info->crc32c = r.crc32c;
    info->data_bytes = r.data_bytes, info->scale_bytes = r.scale_bytes;
    return OB_OK;
}

ob_status ob_model_check_tensor(const ob_model *model, uint32_t index, ob_error *error) {
    if (index >= model->num_tensors)
        return ob_fail(error, OB_ERROR_ARGUMENT, "tensor %u of %u", index, model->num_tensors);
    ob_record r = ob_read_record(model, index);
    uint32_t crc = ob_crc32c(0, model->image + r.data_offset, r.data_bytes);
    if (r.scale_bytes) crc = ob_crc32c(crc, model->image + r.scale_offset, r.scale_bytes);
    if (crc == r.crc32c) return OB_OK;
    return ob_fail(error, OB_ERROR_FORMAT, "tensor %u (%s): its checksum is wrong, the file is damaged", index, r.name);
}

int ob_model_kernel(const ob_model *model, uint32_t index, char *line) { return ob_kernels_line(&model->kernels, index, line); }
