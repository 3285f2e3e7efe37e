/* Many tokens on AMX: what ob_linear_t16_i8_x86.h does with a chunk when tile registers do the products.
 *
 * A row of the panel is a row of AMX's B operand as it lies: 16 steps of 64 bytes are a tile of 64 inputs x 16 rows. The
 * codes are its A operand as they lie: 16 tokens x 64 bytes. Two tiles of tokens meet two of rows in four tiles of sums.
 * The first tokens of a chunk unpack the panel as they go, so that unpacking hides behind the products. Assembly, because
 * the compilers' intrinsics do not say that they read memory. Included once, with everything it needs above it. */

enum { AMX_TOKENS = 32, AMX_STEPS = 16 };

typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

#define TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile ::)
#define TILE_LOAD(tile, from, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"((size_t)(stride)) : "memory")
#define TILE_STORE(tile, to, stride) \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"((size_t)(stride)) : "memory")
#define TILE_DOT(sums, codes, digits) __asm__ volatile("tdpbsud %%tmm" #digits ", %%tmm" #codes ", %%tmm" #sums ::)

/* Sums in tiles 0 to 3 (0, 1: first 16 tokens), codes in 4 and 5, digits in 6 and 7. */
INLINE void configure_tiles(uint32_t tokens) {
    tile_config config = {.palette = 1};
    const uint32_t low = tokens < 16 ? tokens : 16, high = tokens - low;
    for (int i = 0; i < 8; i++) {
        uint32_t rows = i >= 6 ? 16 : i == 4 || i < 2 ? low : high;
        config.rows[i] = (uint8_t)rows, config.row_bytes[i] = rows ? 64 : 0;
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
}

INLINE void end_panels(void) { __asm__ volatile("tilerelease" ::); }

/* What of the panel is unpacked so far. */
typedef struct unpacking {
    const uint8_t *from[2];
    uint8_t *to;
    uint32_t tiles_left;
} unpacking;

/* Unpacks until `end`, or to the end of the chunk and then zeros. */
INLINE void unpack_until(uint32_t layout, unpacking *u, const uint8_t *end) {
    for (; u->to < end && u->tiles_left; u->tiles_left--, u->to += num_planes(layout) * PANEL_STEP)
        for (int v = 0; v < 2; v++) {
            prefetch_ahead(u->from[v], FAR_BYTES);
            unpack_vector(layout, u->from[v], u->to + v * VEC_BYTES);
            u->from[v] += OB_TILE_BYTES;
        }
    for (; u->to < end; u->to += VEC_BYTES) v_store(u->to, v_zero());
}

/* kept[t, rows] (+)= digits . codes for up to 32 tokens; `u` NULL when the panel is there already. */
INLINE void chunk_tiles_of_sums(uint32_t layout, const panel *p, uint32_t first, uint32_t tokens, unpacking *u, int32_t *kept) {
    const ob_weights *w = p->w;
    const size_t stride = p->in->codes_stride, begin = (size_t)p->tile_begin * w->tile;
    const uint32_t steps = (p->tile_end - p->tile_begin) * (uint32_t)num_planes(layout);
    const int fresh = p->tile_begin % w->tiles_group == 0, two = tokens > 16;
    int32_t *high = kept + 16 * WIDE;
    if (fresh) {
        TILE_ZERO(0);
        TILE_ZERO(1);
        if (two) {
            TILE_ZERO(2);
            TILE_ZERO(3);
        }
    } else {
        TILE_LOAD(0, kept, WIDE * 4);
        TILE_LOAD(1, kept + LANES, WIDE * 4);
        if (two) {
            TILE_LOAD(2, high, WIDE * 4);
            TILE_LOAD(3, high + LANES, WIDE * 4);
        }
    }
    const uint8_t *digits = p->work + WORK_PANEL;
    for (uint32_t s = 0; s < steps; s += AMX_STEPS, digits += AMX_STEPS * PANEL_STEP) {
        const int8_t *x = p->in->codes_TK + first * stride + begin + 4 * s;
        size_t x_stride = stride;
        int8_t last[AMX_TOKENS * 64];
        if (begin + 4 * s + 64 > stride) { /* the last inputs of a row: reading on could leave the memory */
            size_t have = stride - begin - 4 * s;
            memset(last, 0, sizeof last);
            for (uint32_t t = 0; t < tokens; t++) memcpy(last + t * 64, x + t * stride, have);
            x = last, x_stride = 64;
        }
        if (u) unpack_until(layout, u, digits + AMX_STEPS * PANEL_STEP);
        TILE_LOAD(4, x, x_stride);
        TILE_LOAD(6, digits, PANEL_STEP);
        TILE_DOT(0, 4, 6);
        TILE_LOAD(7, digits + VEC_BYTES, PANEL_STEP);
        TILE_DOT(1, 4, 7);
        if (two) {
            TILE_LOAD(5, x + 16 * x_stride, x_stride);
            TILE_DOT(2, 5, 6);
            TILE_DOT(3, 5, 7);
        }
    }
    TILE_STORE(0, kept, WIDE * 4);
    TILE_STORE(1, kept + LANES, WIDE * 4);
    if (two) {
        TILE_STORE(2, high, WIDE * 4);
        TILE_STORE(3, high + LANES, WIDE * 4);
    }
}

INLINE void finish_kept(const panel *p, uint32_t group, uint32_t first, int tokens, const int32_t *kept) {
    vec acc[8];
    UNROLL for (int i = 0; i < 2 * tokens; i++) acc[i] = v_load(kept + i * LANES);
    finish_group(p, group, first, tokens, acc);
}

INLINE void chunk(uint32_t layout, const panel *p) {
    const ob_weights *w = p->w;
    const uint32_t group = p->tile_begin / w->tiles_group, n = p->in->num_tokens;
    const int ends = p->tile_end == group * w->tiles_group + group_tiles(w, group);
    unpacking u = {.to = p->work + WORK_PANEL, .tiles_left = p->tile_end - p->tile_begin};
    for (int v = 0; v < 2; v++)
        u.from[v] = w->data + ((uint64_t)(p->rows[v] / OB_BLOCK_ROWS) * w->tiles_block + p->tile_begin) * OB_TILE_BYTES;
    for (uint32_t t = 0, configured = 0; t < n; t += AMX_TOKENS) {
        uint32_t tokens = n - t < AMX_TOKENS ? n - t : AMX_TOKENS, i = 0;
        int32_t *kept = (int32_t *)(void *)(p->work + WORK_SUMS) + (size_t)t * WIDE;
        if (tokens != configured) configure_tiles(configured = tokens);
        chunk_tiles_of_sums(layout, p, t, tokens, t ? NULL : &u, kept);
        if (!ends) continue;
        for (; i + 4 <= tokens; i += 4) finish_kept(p, group, t + i, 4, kept + (size_t)i * WIDE);
        for (; i < tokens; i++) finish_kept(p, group, t + i, 1, kept + (size_t)i * WIDE);
    }
}
