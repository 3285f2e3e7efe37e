/* Byte-pair merging in O(n log n) for any input: each symbol has at most one place in a binary heap, keyed by the rank of
 * its merge with the next symbol and then by position, which is the order the `tokenizers` library merges in. */
#include "ob_tokenizer.h"

/* Binary search for (left, right) in the merge table; fills rank and result, NO_TOKEN when the pair does not merge. */
static void find_merge(const ob_tokenizer *t, uint32_t left, uint32_t right, uint32_t *rank, uint32_t *result) {
    uint32_t low = ob_tok_entry(t, OB_TOK_MERGE_START, left), high = ob_tok_entry(t, OB_TOK_MERGE_START, left + 1);
    uint32_t end = high;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (ob_tok_entry(t, OB_TOK_MERGES, 3 * middle) < right) low = middle + 1; else high = middle;
    }
    *rank = *result = OB_NO_TOKEN;
    if (low < end && ob_tok_entry(t, OB_TOK_MERGES, 3 * low) == right) {
        *rank = ob_tok_entry(t, OB_TOK_MERGES, 3 * low + 1);
        *result = ob_tok_entry(t, OB_TOK_MERGES, 3 * low + 2);
    }
}

static int before(const ob_tok_symbol *symbols, uint32_t a, uint32_t b) {
    return symbols[a].rank != symbols[b].rank ? symbols[a].rank < symbols[b].rank : a < b;
}

static void sift_up(ob_tok_symbol *symbols, uint32_t *heap, uint32_t place) {
    uint32_t moved = heap[place];
    while (place > 0 && before(symbols, moved, heap[(place - 1) / 2])) {
        heap[place] = heap[(place - 1) / 2];
        symbols[heap[place]].heap_place = place;
        place = (place - 1) / 2;
    }
    heap[place] = moved;
    symbols[moved].heap_place = place;
}

static void sift_down(ob_tok_symbol *symbols, uint32_t *heap, uint32_t count, uint32_t place) {
    uint32_t moved = heap[place];
    for (;;) {
        uint32_t child = 2 * place + 1;
        if (child >= count) break;
        if (child + 1 < count && before(symbols, heap[child + 1], heap[child])) child++;
        if (!before(symbols, heap[child], moved)) break;
        heap[place] = heap[child];
        symbols[heap[place]].heap_place = place;
        place = child;
    }
    heap[place] = moved;
    symbols[moved].heap_place = place;
}

static void heap_remove(ob_tok_symbol *symbols, uint32_t *heap, uint32_t *count, uint32_t index) {
    uint32_t place = symbols[index].heap_place, last = heap[--*count];
    symbols[index].heap_place = OB_NO_TOKEN;
    if (last == index) return;
    heap[place] = last;
    symbols[last].heap_place = place;
    sift_up(symbols, heap, place);
    sift_down(symbols, heap, *count, symbols[last].heap_place);
}

/* Looks the merge of a symbol and its next one up and puts the symbol where it now belongs in the heap. */
static void refresh(const ob_tokenizer *t, ob_tok_symbol *symbols, uint32_t *heap, uint32_t *count, uint32_t index) {
    ob_tok_symbol *symbol = &symbols[index];
    if (symbol->heap_place != OB_NO_TOKEN) heap_remove(symbols, heap, count, index);
    symbol->rank = symbol->result = OB_NO_TOKEN;
    if (symbol->next != OB_NO_TOKEN)
        find_merge(t, symbol->id, symbols[symbol->next].id, &symbol->rank, &symbol->result);
    if (symbol->result != OB_NO_TOKEN) {
        heap[*count] = index;
        sift_up(symbols, heap, (*count)++);
    }
}

void ob_tok_merge(const ob_tokenizer *t, ob_tok_symbol *symbols, uint32_t *heap, uint32_t n) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < n; i++) {
        symbols[i].previous = i ? i - 1 : OB_NO_TOKEN;
        symbols[i].next = i + 1 < n ? i + 1 : OB_NO_TOKEN;
        symbols[i].heap_place = OB_NO_TOKEN;
    }
    for (uint32_t i = 0; i < n; i++) refresh(t, symbols, heap, &count, i);
    while (count > 0) {
        uint32_t index = heap[0];
        ob_tok_symbol *symbol = &symbols[index], *gone = &symbols[symbol->next];
        if (gone->heap_place != OB_NO_TOKEN) heap_remove(symbols, heap, &count, symbol->next);
        symbol->id = symbol->result;
        symbol->next = gone->next;
        if (symbol->next != OB_NO_TOKEN) symbols[symbol->next].previous = index;
        refresh(t, symbols, heap, &count, index);
        if (symbol->previous != OB_NO_TOKEN) refresh(t, symbols, heap, &count, symbol->previous);
    }
}
