/* See ob_unicode.h. */
#include "ob_unicode.h"

/* Hangul syllables are composed by arithmetic (Unicode standard, section 3.12). */
enum {
    HANGUL_S = 0xAC00, HANGUL_L = 0x1100, HANGUL_V = 0x1161, HANGUL_T = 0x11A7,
    HANGUL_NUM_L = 19, HANGUL_NUM_V = 21, HANGUL_NUM_T = 28,
    HANGUL_NUM_S = HANGUL_NUM_L * HANGUL_NUM_V * HANGUL_NUM_T
};

size_t ob_utf8_decode(const uint8_t *text, size_t n, uint32_t *code_point, int *valid) {
    uint32_t lead = text[0], value, low = 0x80, high = 0xBF;
    size_t length, i;
    if (valid) *valid = 1;
    if (lead < 0x80) { *code_point = lead; return 1; }
    if (lead >= 0xC2 && lead <= 0xDF) { length = 2; value = lead & 0x1F; }
    else if (lead >= 0xE0 && lead <= 0xEF) {
        length = 3; value = lead & 0x0F;
        if (lead == 0xE0) low = 0xA0;   /* shorter forms exist */
        if (lead == 0xED) high = 0x9F;  /* surrogates */
    } else if (lead >= 0xF0 && lead <= 0xF4) {
        length = 4; value = lead & 0x07;
        if (lead == 0xF0) low = 0x90;
        if (lead == 0xF4) high = 0x8F;  /* beyond U+10FFFF */
    } else { length = 1; value = 0; n = 0; }
    for (i = 1; i < length; i++) {
        if (i >= n || text[i] < low || text[i] > high) { n = 0; break; }
        value = value << 6 | (text[i] & 0x3Fu);
        low = 0x80; high = 0xBF;
    }
    if (n == 0) { value = 0xFFFD; if (valid) *valid = 0; }
    *code_point = value;
    return i < length ? i : length;
}

size_t ob_utf8_encode(uint32_t c, uint8_t out[4]) {
    if (c < 0x80) { out[0] = (uint8_t)c; return 1; }
    if (c < 0x800) { out[0] = (uint8_t)(0xC0 | c >> 6); out[1] = (uint8_t)(0x80 | (c & 0x3F)); return 2; }
    if (c < 0x10000) {
        out[0] = (uint8_t)(0xE0 | c >> 12);
        out[1] = (uint8_t)(0x80 | (c >> 6 & 0x3F));
        out[2] = (uint8_t)(0x80 | (c & 0x3F));
        return 3;
    }
    out[0] = (uint8_t)(0xF0 | c >> 18);
    out[1] = (uint8_t)(0x80 | (c >> 12 & 0x3F));
    out[2] = (uint8_t)(0x80 | (c >> 6 & 0x3F));
    out[3] = (uint8_t)(0x80 | (c & 0x3F));
    return 4;
}

int ob_unicode_class(uint32_t c) {
    uint32_t low = 0, high = ob_unicode_num_class_ranges;
    if (c < 0x80) {
        if ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') return OB_CLASS_LETTER;
        if (c >= '0' && c <= '9') return OB_CLASS_NUMBER;
        return c == ' ' || (c >= 9 && c <= 13) ? OB_CLASS_SPACE : OB_CLASS_OTHER;
    }
    while (high - low > 1) {  /* the first entry starts at 0, so low is always a range that begins at or before c */
        uint32_t middle = low + (high - low) / 2;
        if (ob_unicode_class_ranges[middle] >> 2 <= c) low = middle; else high = middle;
    }
    return (int)(ob_unicode_class_ranges[low] & 3);
}

uint32_t ob_unicode_combining_class(uint32_t c) {
    uint32_t low = 0, high = ob_unicode_num_combining_ranges;
    if (c < 0x300) return 0;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (ob_unicode_combining_ranges[middle].first <= c) low = middle; else high = middle;
    }
    const ob_combining_range *range = &ob_unicode_combining_ranges[low];
    return c >= range->first && c - range->first < range->count ? range->combining_class : 0;
}

static const ob_decomposition *find_decomposition(uint32_t c) {
    uint32_t low = 0, high = ob_unicode_num_decompositions;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (ob_unicode_decompositions[middle].code_point < c) low = middle + 1; else high = middle;
    }
    if (low < ob_unicode_num_decompositions && ob_unicode_decompositions[low].code_point == c)
        return &ob_unicode_decompositions[low];
    return NULL;
}

/* The primary composite of a pair, or 0. */
static uint32_t compose(uint32_t a, uint32_t b) {
    uint32_t low = 0, high = ob_unicode_num_compositions;
    if (a >= HANGUL_L && a < HANGUL_L + HANGUL_NUM_L && b >= HANGUL_V && b < HANGUL_V + HANGUL_NUM_V)
        return HANGUL_S + ((a - HANGUL_L) * HANGUL_NUM_V + (b - HANGUL_V)) * HANGUL_NUM_T;
    if (a >= HANGUL_S && a < HANGUL_S + HANGUL_NUM_S && (a - HANGUL_S) % HANGUL_NUM_T == 0 && b > HANGUL_T
        && b < HANGUL_T + HANGUL_NUM_T)
        return a + (b - HANGUL_T);
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const ob_composition *pair = &ob_unicode_compositions[middle];
        if (pair->first < a || (pair->first == a && pair->second < b)) low = middle + 1; else high = middle;
    }
    if (low < ob_unicode_num_compositions && ob_unicode_compositions[low].first == a
        && ob_unicode_compositions[low].second == b)
        return ob_unicode_compositions[low].composed;
    return 0;
}

/* Stable bottom-up merge sort of one run of marks by combining class; an entry is class << 24 | code point. A hostile
 * text is one long run, so nothing quadratic here. */
static void sort_marks(uint32_t *marks, size_t n, uint32_t *spare) {
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t start = 0; start < n; start += 2 * width) {
            size_t middle = n - start > width ? start + width : n;
            size_t end = n - start > 2 * width ? start + 2 * width : n;
            size_t a = start, b = middle;
            for (size_t k = start; k < end; k++)
                spare[k] = b >= end || (a < middle && marks[a] >> 24 <= marks[b] >> 24) ? marks[a++] : marks[b++];
        }
        for (size_t k = 0; k < n; k++) marks[k] = spare[k];
    }
}

static size_t decompose(const uint8_t *text, size_t n, uint32_t *out) {
    size_t count = 0;
    for (size_t i = 0; i < n;) {
        uint32_t c;
        i += ob_utf8_decode(text + i, n - i, &c, NULL);
        if (c < 0xC0) { out[count++] = c; continue; }
        if (c >= HANGUL_S && c < HANGUL_S + HANGUL_NUM_S) {
            uint32_t s = c - HANGUL_S, t = s % HANGUL_NUM_T;
            out[count++] = HANGUL_L + s / (HANGUL_NUM_V * HANGUL_NUM_T);
            out[count++] = HANGUL_V + s / HANGUL_NUM_T % HANGUL_NUM_V;
            if (t) out[count++] = HANGUL_T + t;
            continue;
        }
        const ob_decomposition *found = find_decomposition(c);
        uint32_t parts = found ? found->count : 1;
        for (uint32_t k = 0; k < parts; k++) {
            uint32_t part = found ? ob_unicode_decomposition_pool[found->index + k] : c;
            out[count++] = ob_unicode_combining_class(part) << 24 | part;
        }
    }
    return count;
}

int ob_nfc_is_trivial(const uint8_t *text, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (text[i] >= 0xCC) return 0;  /* the lead byte of U+0300 */
    return 1;
}

size_t ob_nfc(const uint8_t *text, size_t n, uint8_t *out, uint32_t *points, uint32_t *spare) {
    size_t count = decompose(text, n, points), kept = 0, starter = 0, written = 0;
    int have_starter = 0;
    for (size_t i = 0; i < count;) {
        size_t end = i;
        while (end < count && points[end] >> 24) end++;
        if (end - i > 1) sort_marks(points + i, end - i, spare);
        i = end + 1;
    }
    uint32_t last_class = 0;  /* of the last mark kept since the starter; marks behind an equal or higher one are blocked */
    for (size_t i = 0; i < count; i++) {
        uint32_t class_ = points[i] >> 24, c = points[i] & 0xFFFFFF, joined = 0;
        int adjacent = have_starter && kept == starter + 1;
        if (have_starter && (adjacent || (last_class < class_ && class_ != 0)))
            joined = compose(points[starter] & 0xFFFFFF, c);
        if (joined) { points[starter] = joined; continue; }
        if (class_ == 0) { starter = kept; have_starter = 1; last_class = 0; }
        else last_class = class_;
        points[kept++] = points[i];
    }
    for (size_t i = 0; i < kept; i++) written += ob_utf8_encode(points[i] & 0xFFFFFF, out + written);
    return written;
}
