/* The least of a C library that the engine's own tests need in WebAssembly; what is only declared comes from c_test.mjs. */
#ifndef STDIO_H
#define STDIO_H
#include <stddef.h>
typedef struct FILE FILE;
#define stderr ((FILE *)2)
#define stdout ((FILE *)1)
int printf(const char *format, ...);
int fprintf(FILE *file, const char *format, ...);
int snprintf(char *to, size_t bytes, const char *format, ...);
int fputc(int character, FILE *file);
#endif
