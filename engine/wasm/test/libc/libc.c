/* Memory that is never given back, and what is neither a compiler's builtin nor in JavaScript. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

extern uint8_t __heap_base;
static uintptr_t end;

void *aligned_alloc(size_t alignment, size_t bytes) {
    if (!end) end = (uintptr_t)&__heap_base;
    uintptr_t at = (end + alignment - 1) / alignment * alignment;
    end = at + bytes;
    size_t pages = __builtin_wasm_memory_size(0), needed = (end + 65535) / 65536;
    if (needed > pages && __builtin_wasm_memory_grow(0, needed - pages) == (size_t)-1) return NULL;
    return (void *)at;
}

void *malloc(size_t bytes) { return aligned_alloc(16, bytes); }
void *calloc(size_t count, size_t bytes) { return malloc(count * bytes); /* fresh memory is zero */ }
void free(void *memory) { (void)memory; }

int memcmp(const void *a, const void *b, size_t bytes) {
    const uint8_t *x = a, *y = b;
    for (size_t i = 0; i < bytes; i++)
        if (x[i] != y[i]) return x[i] - y[i];
    return 0;
}

size_t strlen(const char *text) {
    size_t n = 0;
    while (text[n]) n++;
    return n;
}

int strncmp(const char *a, const char *b, size_t bytes) {
    size_t i = 0;
    while (i < bytes && a[i] && a[i] == b[i]) i++;
    return i == bytes ? 0 : (uint8_t)a[i] - (uint8_t)b[i];
}

int strcmp(const char *a, const char *b) { return strncmp(a, b, (size_t)-1); }

char *strstr(const char *text, const char *part) {
    for (; *text; text++)
        if (!strncmp(text, part, strlen(part))) return (char *)(uintptr_t)text;
    return NULL;
}

float nextafterf(float from, float to) {
    uint32_t bits;
    memcpy(&bits, &from, 4);
    if (from != from || to != to || from == to) return from == to ? to : from + to;
    if (from == 0) bits = to > 0 ? 1 : 0x80000001u;
    else bits += (from < to) == (from > 0) ? 1 : -1u;
    memcpy(&from, &bits, 4);
    return from;
}
