#ifndef STDLIB_H
#define STDLIB_H
#include <stddef.h>
void *aligned_alloc(size_t alignment, size_t bytes);
void *malloc(size_t bytes);
void *calloc(size_t count, size_t bytes);
void free(void *memory);
_Noreturn void abort(void);
#endif
