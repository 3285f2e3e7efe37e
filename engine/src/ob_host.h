/* Host part: memory and threads for load.c. Nothing of the core includes this. */
#ifndef OB_HOST_H
#define OB_HOST_H

#include "onebit.h"

/* 64-byte aligned memory; NULL when there is none. */
void *ob_host_alloc(size_t bytes);
void ob_host_free(void *memory);

typedef struct ob_pool ob_pool;
/* A pool of num_threads threads, the caller's included; NULL when they cannot be started. */
ob_pool *ob_pool_create(uint32_t num_threads);
void ob_pool_free(ob_pool *pool);
/* The run function of ob_parallel, with the pool as its context. */
void ob_pool_run(void *pool, ob_task task, void *argument, uint32_t num_items);

#endif
