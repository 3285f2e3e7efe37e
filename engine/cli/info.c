/* See info.h. */
#include "info.h"

#include <stdio.h>

static const char *const layouts[OB_NUM_LAYOUTS] = {"float32", "float16", "int8", "int4", "binary", "ternary", "ternary5",
                                                    "binary_t16", "ternary_t16", "ternary5_t16"};
static const char *const norms[] = {"layernorm", "rmsnorm"};
static const char *const mlps[] = {"gelu", "relu2", "swiglu", "relu2_glu"};
static const char *const positions[] = {"learned", "rope"};
static const char *const sections[] = {"CONFIG", "TOKJSON", "TOKBIN", "CHATTPL", "CHATSTR", "MANIFEST"};

void info_print(const ob_model *model) {
    ob_description d;
    ob_tensor_info tensor;
    uint64_t weights = 0, total = 0, bytes;
    ob_model_describe(model, &d);
    printf("vocab_size %u, hidden_size %u, num_layers %u, num_heads %u, num_key_value_heads %u, head_dim %u,\n"
           "intermediate_size %u, max_seq_len %u, %s, %s, %s%s%s%s\n",
           d.vocab_size, d.hidden_size, d.num_layers, d.num_heads, d.num_key_value_heads, d.head_dim, d.intermediate_size,
           d.max_seq_len, norms[d.norm & 1], mlps[d.mlp & 3], positions[d.position & 1],
           d.flags & OB_FLAG_QK_NORM ? ", qk_norm" : "", d.flags & OB_FLAG_SUB_NORM ? ", sub_norm" : "",
           d.flags & OB_FLAG_TIED_HEAD ? ", tied head" : "");
    for (uint32_t i = 0; i < ob_model_num_tensors(model); i++) {
        if (ob_model_tensor(model, i, &tensor, NULL)) continue;
        uint64_t count = (uint64_t)tensor.rows * tensor.cols, size = tensor.data_bytes + tensor.scale_bytes;
        printf("%-48s %6u x %-6u %-12s %10llu bytes %7.3f bits per weight\n", tensor.name, tensor.rows, tensor.cols,
               tensor.layout < OB_NUM_LAYOUTS ? layouts[tensor.layout] : "?", (unsigned long long)size,
               8.0 * (double)size / (double)(count ? count : 1));
        weights += count;
        total += size;
    }
    printf("%llu weights in %llu bytes: %.3f bits per weight\nsections:", (unsigned long long)weights,
           (unsigned long long)total, 8.0 * (double)total / (double)(weights ? weights : 1));
    for (size_t i = 0; i < sizeof sections / sizeof *sections; i++)
        if (ob_model_section(model, sections[i], &bytes)) printf(" %s (%llu bytes)", sections[i], (unsigned long long)bytes);
    putchar('\n');
    char line[OB_KERNEL_LINE];
    for (uint32_t i = 0; ob_model_kernel(model, i, line); i++) printf("kernel: %s\n", line);
}
