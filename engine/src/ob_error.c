/* Error text without stdio: a tiny formatter for the four directives the engine's messages use. */
#include "ob_error.h"

#include <stdarg.h>

uint32_t ob_abi_version(void) { return OB_ABI_VERSION; }

const char *ob_status_name(ob_status status) {
    switch (status) {
    case OB_OK: return "ok";
    case OB_ERROR_ARGUMENT: return "argument";
    case OB_ERROR_FORMAT: return "format";
    case OB_ERROR_MEMORY: return "memory";
    case OB_ERROR_FULL: return "full";
    case OB_ERROR_IO: return "io";
    case OB_ERROR_UNSUPPORTED: return "unsupported";
    case OB_ERROR_NUMERIC: return "numeric";
    }
    return "unknown";
}

typedef struct text {
    char *at; /* next character to write; [room] left, the last one kept for the end mark */
    size_t room;
} text;

static void put(text *out, char c) {
    if (out->room <= 1) return;
    *out->at++ = c;
    out->room--;
}

static void put_string(text *out, const char *s) {
    for (; s && *s; s++) put(out, *s);
}

static void put_number(text *out, uint64_t value) {
    char digits[20]; /* 2^64 has 20 digits */
    int count = 0;
    do digits[count++] = (char)('0' + value % 10);
    while (value /= 10);
    while (count) put(out, digits[--count]);
}

ob_status ob_fail(ob_error *error, ob_status status, const char *format, ...) {
    if (!error) return status;
    text out = {error->message, sizeof error->message};
    va_list values;
    va_start(values, format);
    for (; *format; format++) {
        if (*format != '%') {
            put(&out, *format);
            continue;
        }
        switch (*++format) {
        case 's': put_string(&out, va_arg(values, const char *)); break;
        case 'u': put_number(&out, va_arg(values, uint32_t)); break;
        case 'U': put_number(&out, va_arg(values, uint64_t)); break;
        case '%': put(&out, '%'); break;
        default: format--; break;
        }
    }
    va_end(values);
    *out.at = 0;
    error->status = (int32_t)status;
    return status;
}
