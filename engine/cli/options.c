/* See options.h. */
#include "options.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

const char options_help[] =
    "onebit-run MODEL.1bit [options]: generate text with a 1-bit or 1.58-bit model\n"
    "\n"
    "  -p, --prompt TEXT         complete TEXT (default: chat if the model can, else the prompt comes from stdin)\n"
    "  -n, --max-new-tokens N    at most N tokens (default 200; 0: until the context is full)\n"
    "      --chat                treat the prompt as a message to a chat model\n"
    "      --stop TEXT           stop before TEXT appears; may be given up to 8 times\n"
    "      --temperature T       0 takes the most likely token (default 0.7)\n"
    "      --top-k K             choose among the K most likely tokens (default 40; 0: all)\n"
    "      --top-p P             ... among the most likely ones up to mass P (default 0.9; 1: all)\n"
    "      --min-p P             drop tokens below P times the best one's probability (default 0)\n"
    "      --repetition-penalty R  above 1, tokens of the last 64 become less likely (default 1.1)\n"
    "      --seed N              same seed, same text (default: the clock)\n"
    "      --threads N           (default: one a processor)\n"
    "      --kv TYPE             how keys and values are kept: float16 (default), float32 or int8, the least memory\n"
    "      --isa NAME            scalar, avx2, avxvnni, avx512, amx, neon, i8mm or auto (default)\n"
    "      --draft FILE          a smaller model of the same tokenizer proposes tokens; the text stays the model's\n"
    "      --lookup              propose what followed earlier in the text (edits, quotations); same text\n"
    "      --speculate-tokens K  propose at most K tokens at once, 1 to 31 (default 15)\n"
    "      --context-shift N     when the context is full, keep its first N tokens and the newer half of the others\n"
    "      --no-verify           do not check the weights' CRC\n"
    "      --info                show what is in the file and which kernels would run\n"
    "      --stats               speeds to stderr at the end\n"
    "  -h, --help\n"
    "\n"
    "In a chat: /reset starts again, /exit leaves, Ctrl-C stops the answer.\n";

static char problem[200];

static const char *complain(const char *name, const char *value, const char *expected) {
    snprintf(problem, sizeof problem, "%.40s: '%.60s' given, %s expected", name, value, expected);
    return problem;
}

static const char *read_count(const char *name, const char *value, uint64_t most, uint64_t *out) {
    char *end;
    if (value[0] < '0' || value[0] > '9') return complain(name, value, "a whole number");
    *out = strtoull(value, &end, 10);
    if (*end || *out > most) return complain(name, value, *end ? "a whole number" : "a smaller number");
    return NULL;
}

static const char *read_number(const char *name, const char *value, float low, float high, float *out) {
    char *end;
    *out = strtof(value, &end);
    if (end == value || *end || !isfinite(*out) || *out < low || *out > high) {
        char expected[64];
        snprintf(expected, sizeof expected, "a number from %g to %g", (double)low, (double)high);
        return complain(name, value, expected);
    }
    return NULL;
}

/* Both spellings of an option, --top-k and --top_k, are the same. */
static int is_option(const char *given, const char *name) {
    for (; *given && *name; given++, name++)
        if (*given != *name && !(*given == '_' && *name == '-')) return 0;
    return *given == *name;
}

static const char *read_flag(options *o, const char *name, int *known) {
    *known = 1;
    if (is_option(name, "--chat")) o->chat = 1;
    else if (is_option(name, "--lookup")) o->lookup = 1;
    else if (is_option(name, "--no-verify")) o->no_verify = 1;
    else if (is_option(name, "--info")) o->info = 1;
    else if (is_option(name, "--stats")) o->stats = 1;
    else if (is_option(name, "--help") || is_option(name, "-h")) o->help = 1;
    else *known = 0;
    return NULL;
}

static const char *read_value(options *o, const char *name, const char *value) {
    uint64_t n = 0;
    const char *wrong = NULL;
    if (is_option(name, "-p") || is_option(name, "--prompt")) o->prompt = value;
    else if (is_option(name, "-n") || is_option(name, "--max-new-tokens")) {
        wrong = read_count(name, value, UINT32_MAX, &n);
        o->max_new_tokens = (uint32_t)n;
    } else if (is_option(name, "--stop")) {
        if (!*value) return complain(name, value, "some text");
        if (o->num_stops == MAX_STOPS) return complain(name, value, "at most 8 stop texts");
        o->stops[o->num_stops++] = value;
    } else if (is_option(name, "--temperature")) wrong = read_number(name, value, 0, 100, &o->sampling.temperature);
    else if (is_option(name, "--top-p")) wrong = read_number(name, value, 0, 1, &o->sampling.top_p);
    else if (is_option(name, "--min-p")) wrong = read_number(name, value, 0, 1, &o->sampling.min_p);
    else if (is_option(name, "--repetition-penalty"))
        wrong = read_number(name, value, 0.01f, 100, &o->sampling.repetition_penalty);
    else if (is_option(name, "--top-k")) {
        wrong = read_count(name, value, UINT32_MAX, &n);
        o->sampling.top_k = (uint32_t)n;
    } else if (is_option(name, "--seed")) wrong = read_count(name, value, UINT64_MAX, &o->sampling.seed);
    else if (is_option(name, "--threads")) {
        wrong = read_count(name, value, 1024, &n);
        o->num_threads = (uint32_t)n;
    } else if (is_option(name, "--draft")) o->draft = value;
    else if (is_option(name, "--speculate-tokens")) {
        wrong = read_count(name, value, OB_MAX_PROPOSED, &n);
        if (!wrong && !n) return complain(name, value, "1 to 31");
        o->speculate_tokens = (uint32_t)n;
    } else if (is_option(name, "--context-shift")) {
        wrong = read_count(name, value, UINT32_MAX - 1, &n);
        o->keep = (uint32_t)n;
    } else if (is_option(name, "--kv")) {
        static const char *const types[OB_NUM_KV_TYPES] = {"default", "float32", "float16", "int8"};
        o->kv_type = 0;
        while (o->kv_type < OB_NUM_KV_TYPES && strcmp(value, types[o->kv_type])) o->kv_type++;
        if (o->kv_type == OB_NUM_KV_TYPES) return complain(name, value, "float32, float16 or int8");
    } else if (is_option(name, "--isa")) {
        o->isa = ob_isa_from_name(value);
        if (o->isa >= OB_NUM_ISAS) return complain(name, value, "scalar, avx2, avxvnni, avx512, amx, neon, i8mm or auto");
    } else return complain("option", name, "one that --help lists");
    return wrong;
}

const char *options_parse(options *o, int argc, char **argv) {
    memset(o, 0, sizeof *o);
    o->max_new_tokens = 200;
    o->keep = UINT32_MAX;
    o->sampling.temperature = 0.7f; /* the defaults of `onebit generate` */
    o->sampling.top_k = 40;
    o->sampling.top_p = 0.9f;
    o->sampling.repetition_penalty = 1.1f;
    o->sampling.seed = (uint64_t)time(NULL);
    for (int i = 1; i < argc; i++) {
        int known = 0;
        if (argv[i][0] != '-') {
            if (o->model) return complain("model", argv[i], "only one file");
            o->model = argv[i];
            continue;
        }
        read_flag(o, argv[i], &known);
        if (known) continue;
        char name[64];
        const char *equals = strchr(argv[i], '='), *value = NULL;
        size_t length = equals ? (size_t)(equals - argv[i]) : strlen(argv[i]);
        if (length >= sizeof name) return complain("option", argv[i], "one that --help lists");
        memcpy(name, argv[i], length);
        name[length] = 0;
        if (equals) value = equals + 1;
        else if (i + 1 < argc) value = argv[++i];
        if (!value) {
            options scratch = *o;
            const char *unknown = read_value(&scratch, name, "1");
            return unknown && strncmp(unknown, "option:", 7) == 0 ? unknown : complain(name, "", "a value");
        }
        const char *wrong = read_value(o, name, value);
        if (wrong) return wrong;
    }
    if (!o->model && !o->help) return "no model given; usage: onebit-run MODEL.1bit [options], see --help";
    return NULL;
}
