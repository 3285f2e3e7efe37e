/* Host part: the only file that touches a file, and memory and threads for models and sessions. */
#if !defined(_WIN32) && !defined(_DEFAULT_SOURCE)
#define _DEFAULT_SOURCE /* madvise */
#endif
#include "ob_error.h"
#include "ob_host.h"
#include "ob_session.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__unix__) || defined(__APPLE__)
#define OB_HAS_MMAP 1
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

enum { ALIGNMENT = 64, MAX_THREADS = 256, LARGE_PAGE = 1 << 21 };

void *ob_host_alloc(size_t bytes) {
    if (bytes > SIZE_MAX - 2 * ALIGNMENT) return NULL;
    uint8_t *block = malloc(bytes + 2 * ALIGNMENT);
    if (!block) return NULL;
    uint8_t *memory = block + ALIGNMENT * 2 - (uintptr_t)block % ALIGNMENT;
    memcpy(memory - sizeof block, &block, sizeof block); /* where the block begins, for ob_host_free */
    return memory;
}

void ob_host_free(void *memory) {
    uint8_t *block;
    if (!memory) return;
    memcpy(&block, (uint8_t *)memory - sizeof block, sizeof block);
    free(block);
}

/* ---- pages ---- */

/* Zeroed memory that takes room only where it is written. */
static void *alloc_pages(size_t bytes) {
#ifdef OB_HAS_MMAP
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
#else
    return ob_host_alloc(bytes);
#endif
}

static void free_pages(void *memory, size_t bytes) {
#ifdef OB_HAS_MMAP
    munmap(memory, bytes);
#else
    (void)bytes;
    ob_host_free(memory);
#endif
}

/* Advice to the system; nothing depends on whether it is taken. */
static void prefer_large_pages(void *memory, size_t bytes) {
#if defined(OB_HAS_MMAP) && defined(MADV_HUGEPAGE)
    madvise(memory, bytes, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

/* ---- files ---- */

typedef struct image {
    void *bytes;
    uint64_t size;
} image;

#ifdef OB_HAS_MMAP
/* Maps a file, or without one (-1) zeroed memory, to begin at a large page; NULL when it cannot be. */
static void *map_aligned(int file, size_t size) {
    const size_t room = size + LARGE_PAGE;
    uint8_t *begin = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *end = begin + room;
    if (begin == MAP_FAILED) return NULL;
    uint8_t *at = begin + (LARGE_PAGE - (uintptr_t)begin % LARGE_PAGE) % LARGE_PAGE;
    const int flags = MAP_PRIVATE | MAP_FIXED | (file < 0 ? MAP_ANONYMOUS : 0);
    if (mmap(at, size, file < 0 ? PROT_READ | PROT_WRITE : PROT_READ, flags, file, 0) == MAP_FAILED) {
        munmap(begin, room);
        return NULL;
    }
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uint8_t *rest = at + (size + page - 1) / page * page;
    if (at > begin) munmap(begin, (size_t)(at - begin));
    if (end > rest) munmap(rest, (size_t)(end - rest));
    prefer_large_pages(at, size);
    return at;
}

static int read_all(int file, uint8_t *bytes, size_t size) {
    for (size_t done = 0; done < size;) {
        ssize_t n = read(file, bytes + done, size - done);
        if (n <= 0) return 0;
        done += (size_t)n;
    }
    return 1;
}

static ob_status map_image(int file, const char *path, int copy, image *out, ob_error *error) {
    struct stat about;
    if (fstat(file, &about) || !S_ISREG(about.st_mode)) return ob_fail(error, OB_ERROR_IO, "%s is not a regular file", path);
    out->size = (uint64_t)about.st_size;
    if (!out->size) return ob_fail(error, OB_ERROR_FORMAT, "%s is empty", path);
    out->bytes = map_aligned(copy ? -1 : file, (size_t)out->size);
    if (!out->bytes) return ob_fail(error, OB_ERROR_IO, "cannot map %s: %s", path, strerror(errno));
    if (!copy || read_all(file, out->bytes, (size_t)out->size)) return OB_OK;
    munmap(out->bytes, (size_t)out->size);
    return ob_fail(error, OB_ERROR_IO, "cannot read %s", path);
}

static ob_status open_image(const char *path, int copy, image *out, ob_error *error) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return ob_fail(error, OB_ERROR_IO, "cannot open %s: %s", path, strerror(errno));
    ob_status status = map_image(file, path, copy, out, error);
    close(file);
    return status;
}

static void close_image(image *i) {
    if (i->bytes) munmap(i->bytes, (size_t)i->size);
}
#else
static ob_status read_image(FILE *file, const char *path, image *out, ob_error *error) {
    if (fseek(file, 0, SEEK_END)) return ob_fail(error, OB_ERROR_IO, "cannot read %s", path);
    long size = ftell(file);
    if (size <= 0 || fseek(file, 0, SEEK_SET)) return ob_fail(error, OB_ERROR_FORMAT, "%s is empty or too large", path);
    out->size = (uint64_t)size;
    out->bytes = ob_host_alloc((size_t)size);
    if (!out->bytes) return ob_fail(error, OB_ERROR_MEMORY, "no memory for %s (%U bytes)", path, out->size);
    if (fread(out->bytes, 1, (size_t)size, file) == (size_t)size) return OB_OK;
    ob_host_free(out->bytes);
    return ob_fail(error, OB_ERROR_IO, "cannot read %s", path);
}

static ob_status open_image(const char *path, int copy, image *out, ob_error *error) {
    (void)copy; /* it always is one here */
    FILE *file = fopen(path, "rb");
    if (!file) return ob_fail(error, OB_ERROR_IO, "cannot open %s: %s", path, strerror(errno));
    ob_status status = read_image(file, path, out, error);
    fclose(file);
    return status;
}

static void close_image(image *i) { ob_host_free(i->bytes); }
#endif

/* ---- models ---- */

/* Checksums of all tensors, shared out to threads; each keeps the first tensor it finds wrong. */
typedef struct check_job {
    const ob_model *model;
    uint32_t first_wrong[MAX_THREADS];
} check_job;

static void check_share(void *argument, uint32_t index, uint32_t num_items, uint32_t thread) {
    check_job *j = argument;
    uint32_t count = ob_model_num_tensors(j->model);
    (void)thread;
    j->first_wrong[index] = count;
    for (uint32_t i = index; i < count; i += num_items)
        if (ob_model_check_tensor(j->model, i, NULL)) {
            j->first_wrong[index] = i;
            return;
        }
}

static ob_status check_tensors(const ob_model *model, uint32_t num_threads, ob_error *error) {
    check_job j = {model, {0}};
    if (num_threads < 1) num_threads = 1;
    if (num_threads > MAX_THREADS) num_threads = MAX_THREADS;
    ob_pool *pool = num_threads > 1 ? ob_pool_create(num_threads) : NULL;
    if (!pool) num_threads = 1;
    if (pool) ob_pool_run(pool, check_share, &j, num_threads);
    else check_share(&j, 0, 1, 0);
    ob_pool_free(pool);
    uint32_t wrong = j.first_wrong[0];
    for (uint32_t i = 1; i < num_threads; i++)
        if (j.first_wrong[i] < wrong) wrong = j.first_wrong[i];
    return wrong < ob_model_num_tensors(model) ? ob_model_check_tensor(model, wrong, error) : OB_OK;
}

/* What ob_unload needs lies in the 64 bytes before the model. */
typedef union model_owner {
    image image;
    uint8_t pad[ALIGNMENT];
} model_owner;

static ob_status open_model(image i, const ob_model_options *options, ob_model **model, ob_error *error) {
    size_t bytes;
    ob_model_options unchecked = {.isa = options ? options->isa : OB_ISA_AUTO, .skip_tensor_check = 1};
    ob_status status = ob_model_arena_bytes(i.bytes, i.size, &bytes, error);
    if (status) return status;
    uint8_t *memory = ob_host_alloc(sizeof(model_owner) + bytes);
    if (!memory) return ob_fail(error, OB_ERROR_MEMORY, "no memory for the model's tables (%U bytes)", (uint64_t)bytes);
    ((model_owner *)(void *)memory)->image = i;
    status = ob_model_init(i.bytes, i.size, &unchecked, memory + sizeof(model_owner), bytes, model, error);
    if (status == OB_OK && !(options && options->skip_tensor_check))
        status = check_tensors(*model, options ? options->num_threads : 1, error);
    if (status) {
        *model = NULL;
        ob_host_free(memory);
    }
    return status;
}

ob_status ob_load(const char *path, const ob_model_options *options, ob_model **model, ob_error *error) {
    image i = {NULL, 0};
    if (!path || !model) return ob_fail(error, OB_ERROR_ARGUMENT, "path or model is a null pointer");
    *model = NULL;
    ob_status status = open_image(path, options && options->copy, &i, error);
    if (status) return status;
    status = open_model(i, options, model, error);
    if (status) close_image(&i);
    return status;
}

void ob_unload(ob_model *model) {
    if (!model) return;
    model_owner *owner = (model_owner *)(void *)((uint8_t *)model - sizeof *owner);
    image i = owner->image;
    ob_host_free(owner);
    close_image(&i);
}

/* ---- sessions ---- */

typedef union session_owner {
    struct {
        ob_pool *pool;
        size_t bytes;
    } of;
    uint8_t pad[ALIGNMENT];
} session_owner;

static ob_status open_session(const ob_model *model, const ob_session_options *options, ob_pool *pool, ob_session **session,
                              ob_error *error) {
    size_t bytes;
    ob_status status = ob_session_arena_bytes(model, options, &bytes, error);
    if (status) return status;
    session_owner *owner = alloc_pages(bytes += sizeof *owner);
    if (!owner)
        return ob_fail(error, OB_ERROR_MEMORY, "no memory for a session (%U bytes); ask for a shorter context", (uint64_t)bytes);
    owner->of.pool = pool;
    owner->of.bytes = bytes;
    status = ob_session_init(model, options, owner + 1, bytes - sizeof *owner, session, error);
    if (status) free_pages(owner, bytes);
    else prefer_large_pages(owner, (size_t)((*session)->keys - (uint8_t *)owner)); /* the cache fills page by page */
    return status;
}

ob_status ob_session_create(const ob_model *model, const ob_session_options *options, ob_session **session, ob_error *error) {
    ob_session_options o = {0};
    if (!model || !session) return ob_fail(error, OB_ERROR_ARGUMENT, "model or session is a null pointer");
    *session = NULL;
    if (options) o = *options;
    if (o.num_threads > MAX_THREADS)
        return ob_fail(error, OB_ERROR_ARGUMENT, "num_threads is %u, expected at most %u", o.num_threads, (uint32_t)MAX_THREADS);
    ob_pool *pool = o.num_threads > 1 ? ob_pool_create(o.num_threads) : NULL;
    if (o.num_threads > 1 && !pool) return ob_fail(error, OB_ERROR_MEMORY, "cannot start %u threads", o.num_threads);
    ob_parallel parallel = {pool, ob_pool_run, o.num_threads, 0};
    o.parallel = pool ? &parallel : NULL;
    ob_status status = open_session(model, &o, pool, session, error);
    if (status) ob_pool_free(pool);
    return status;
}

void ob_session_free(ob_session *session) {
    if (!session) return;
    session_owner *owner = (session_owner *)(void *)session - 1;
    ob_pool_free(owner->of.pool);
    free_pages(owner, owner->of.bytes);
}
