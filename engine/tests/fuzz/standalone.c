/* A fuzz driver for compilers without libFuzzer: mutates a seed corpus with a generator, no coverage feedback.
 *
 *     fuzz_x SECONDS SEED FILE...     runs for SECONDS; prints the number of inputs; a finding aborts under the sanitizers,
 *                                     and the input that caused it is left in ./crash-input
 */
#include "fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_SEEDS = 256, MAX_BYTES = 1 << 20 };

static uint64_t state;
static uint8_t *seeds[MAX_SEEDS];
static size_t sizes[MAX_SEEDS];

/* One of: flip a bit, set a byte, drop a stretch, repeat a stretch, copy a stretch elsewhere. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size) {
    if (size == 0) {
        if (max_size == 0) return 0;
        data[0] = (uint8_t)fuzz_random(&state);
        return 1;
    }
    size_t at = fuzz_random(&state) % size, length = 1 + fuzz_random(&state) % 16;
    if (length > size - at) length = size - at;
    switch (fuzz_random(&state) % 5) {
    case 0: data[at] ^= (uint8_t)(1u << fuzz_random(&state) % 8); break;
    case 1: data[at] = (uint8_t)fuzz_random(&state); break;
    case 2:
        memmove(data + at, data + at + length, size - at - length);
        return size - length;
    case 3:
        if (size + length > max_size) break;
        memmove(data + at + length, data + at, size - at);
        return size + length;
    default: memmove(data + fuzz_random(&state) % (size - length + 1), data + at, length);
    }
    return size;
}

static size_t read_seed(const char *path, uint8_t **out) {
    FILE *file = fopen(path, "rb");
    if (!file || !(*out = malloc(MAX_BYTES))) return 0;
    size_t size = fread(*out, 1, MAX_BYTES, file);
    fclose(file);
    return size;
}

static void keep(const uint8_t *data, size_t size) {
    FILE *file = fopen("crash-input", "wb");
    if (!file) return;
    fwrite(data, 1, size, file);
    fclose(file);
}

int main(int argc, char **argv) {
    int count = 0;
    unsigned long runs = 0;
    static uint8_t data[MAX_BYTES];
    if (argc < 4) return fputs("usage: fuzz SECONDS SEED FILE...\n", stderr), 2;
    double seconds = atof(argv[1]);
    state = strtoull(argv[2], NULL, 10);
    for (int i = 3; i < argc && count < MAX_SEEDS; i++)
        if ((sizes[count] = read_seed(argv[i], &seeds[count])) > 0) {
            LLVMFuzzerTestOneInput(seeds[count], sizes[count]);
            count++;
        }
    if (!count) return fputs("no seed could be read\n", stderr), 2;
    int keeps = getenv("FUZZ_KEEP") != NULL; /* writing every input first is slow, so only when a crash is sought */
    struct timespec begin, now;
    timespec_get(&begin, TIME_UTC);
    for (double elapsed = 0; elapsed < seconds; runs++) {
        uint32_t seed = fuzz_random(&state) % (uint32_t)count;
        size_t size = sizes[seed];
        memcpy(data, seeds[seed], size);
        for (uint32_t n = 1 + fuzz_random(&state) % 3; n > 0; n--)
            size = LLVMFuzzerCustomMutator(data, size, sizeof data, fuzz_random(&state));
        if (keeps) keep(data, size);
        LLVMFuzzerTestOneInput(data, size);
        if (runs % 16 == 0) {
            timespec_get(&now, TIME_UTC);
            elapsed = (double)(now.tv_sec - begin.tv_sec) + 1e-9 * (double)(now.tv_nsec - begin.tv_nsec);
        }
    }
    printf("%lu inputs from %d seeds\n", runs, count);
    return 0;
}
