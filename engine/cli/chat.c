/* See chat.h. The context only grows: each turn appends the end of the last answer, the message and the beginning of the
 * answer. CHATSTR: u32 version 1, flags, count 8, 0; then {u32 offset, bytes}[8]; zero-terminated strings. */
#include "chat.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OPENING, SYSTEM_PREFIX, SYSTEM_SUFFIX, USER_PREFIX, USER_SUFFIX, ASSISTANT_PREFIX, ASSISTANT_SUFFIX,
       GENERATION_PREFIX, NUM_STRINGS };
enum { STRIPS_CONTENT = 1 };

typedef struct chat { uint32_t flags; const char *strings[NUM_STRINGS]; } chat;

int chat_is_possible(const runner *r) {
    uint64_t bytes;
    return ob_model_section(r->model, "CHATSTR", &bytes) != NULL;
}

static const char *chat_open(chat *c, const runner *r) {
    uint64_t bytes;
    const char *section = ob_model_section(r->model, "CHATSTR", &bytes);
    uint32_t header[4], entry[2];
    if (!section) return "this model has no chat template; use -p for completion";
    if (bytes < sizeof header + NUM_STRINGS * sizeof entry) return "section CHATSTR is truncated";
    memcpy(header, section, sizeof header);
    if (header[0] != 1 || header[2] != NUM_STRINGS) return "section CHATSTR is of another version; update onebit-run";
    c->flags = header[1];
    for (int i = 0; i < NUM_STRINGS; i++) {
        memcpy(entry, section + sizeof header + (size_t)i * sizeof entry, sizeof entry);
        if ((uint64_t)entry[0] + entry[1] >= bytes || section[(uint64_t)entry[0] + entry[1]] != 0
            || strlen(section + entry[0]) != entry[1])
            return "section CHATSTR is damaged";
        c->strings[i] = section + entry[0];
    }
    return NULL;
}

/* The end of a turn stops an answer: as a token where it starts with one, else as text. */
static void watch_for_end(const chat *c, runner *r) {
    static char text[256];
    const char *end = c->strings[ASSISTANT_SUFFIX];
    size_t length = strlen(end);
    while (length && strchr(" \r\n\t", *end)) { end++; length--; }
    for (size_t n = length; n && r->stop_token == OB_NO_TOKEN; n--)
        r->stop_token = ob_tokenizer_find(&r->tokenizer, end, n);
    if (r->stop_token != OB_NO_TOKEN || !length || length >= sizeof text) return;
    memcpy(text, end, length + 1);
    r->stops[r->num_stops++] = text;
}

static int is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

static const char *turn(const chat *c, runner *r, const char *message) {
    size_t length = strlen(message);
    if (c->flags & STRIPS_CONTENT) {
        while (length && is_space(message[length - 1])) length--;
        while (length && is_space(*message)) { message++; length--; }
    }
    const char *before = r->num_tokens ? c->strings[ASSISTANT_SUFFIX] : c->strings[OPENING];
    const char *parts[] = {before, c->strings[USER_PREFIX], NULL, c->strings[USER_SUFFIX], c->strings[GENERATION_PREFIX]};
    size_t bytes = length, at = 0;
    for (int i = 0; i < 5; i++) bytes += parts[i] ? strlen(parts[i]) : 0;
    char *text = malloc(bytes + 1);
    if (!text) return "out of memory";
    for (int i = 0; i < 5; i++) {
        const char *part = parts[i] ? parts[i] : message;
        size_t n = parts[i] ? strlen(part) : length;
        memcpy(text + at, part, n);
        at += n;
    }
    const char *wrong = runner_read(r, text, bytes, 0);
    free(text);
    return wrong ? wrong : runner_answer(r);
}

/* One line without its end, malloced; NULL at the end of the input. */
static char *read_line(void) {
    size_t bytes = 0, capacity = 0;
    char *line = NULL;
    for (int c; (c = getchar()) != EOF;) {
        if (bytes + 2 > capacity) {
            char *grown = realloc(line, capacity = 2 * capacity + 128);
            if (!grown) { free(line); return NULL; }
            line = grown;
        }
        line[bytes] = 0;
        if (c == '\n') return line;
        line[bytes++] = (char)c;
        line[bytes] = 0;
    }
    return line;
}

static void on_interrupt(int signal_number) {
    (void)signal_number;
    interrupted = 1;
}

const char *chat_run(runner *r, const char *message) {
    chat c;
    const char *wrong = chat_open(&c, r);
    if (wrong) return wrong;
    watch_for_end(&c, r);
    if (message) {
        wrong = turn(&c, r, message);
        putchar('\n');
        return wrong;
    }
    for (;;) {
        signal(SIGINT, SIG_DFL); /* at the prompt Ctrl-C leaves, during an answer it ends the answer */
        fputs("> ", stderr);
        char *line = read_line();
        if (!line || strcmp(line, "/exit") == 0) { free(line); return NULL; }
        interrupted = 0;
        signal(SIGINT, on_interrupt);
        if (strcmp(line, "/reset") == 0) runner_forget(r);
        else if (*line) {
            wrong = turn(&c, r, line);
            putchar('\n');
            if (wrong) {
                fprintf(stderr, "error: %s; starting again\n", wrong);
                runner_forget(r);
            }
        }
        free(line);
    }
}
