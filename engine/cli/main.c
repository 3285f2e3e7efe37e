/* onebit-run: a .1bit file, a prompt, text. Errors are one line on stderr and exit code 2. */
#if !defined(_WIN32) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif

#include "chat.h"
#include "info.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifndef _WIN32
#include <unistd.h>
#endif

static void on_interrupt(int signal_number) {
    interrupted = 1;
    signal(signal_number, SIG_DFL); /* the second Ctrl-C ends the program, whatever it is doing */
}

static uint32_t default_threads(void) {
#ifdef _SC_NPROCESSORS_ONLN
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > 64 ? 64 : (uint32_t)n;
#else
    return 1;
#endif
}

/* All of stdin, malloced. */
static char *read_stdin(size_t *bytes) {
    size_t capacity = 1 << 16, n;
    char *text = malloc(capacity);
    *bytes = 0;
    while (text && !feof(stdin) && (n = fread(text + *bytes, 1, capacity - *bytes, stdin)) > 0) {
        *bytes += n;
        if (*bytes < capacity) continue;
        char *grown = realloc(text, capacity *= 2);
        if (!grown) free(text);
        text = grown;
    }
    return text;
}

static const char *complete(runner *r) {
    size_t bytes = r->options->prompt ? strlen(r->options->prompt) : 0;
    char *text = NULL;
    if (!r->options->prompt) {
#ifndef _WIN32
        if (isatty(STDIN_FILENO)) fputs("type the prompt and end it with Ctrl-D (-p TEXT gives it right away)\n", stderr);
#endif
        if (!(text = read_stdin(&bytes))) return "out of memory";
    }
    if (bytes == 0 && r->description.bos_token == OB_NO_TOKEN) bytes = 1; /* nothing at all starts from a new line */
    const char *prompt = text && *text ? text : r->options->prompt && *r->options->prompt ? r->options->prompt : "\n";
    const char *wrong = runner_read(r, prompt, bytes, 1);
    if (!wrong) {
        fwrite(prompt, 1, bytes, stdout);
        wrong = runner_answer(r);
        putchar('\n');
    }
    free(text);
    return wrong;
}

static void print_stats(const runner *r) {
    fprintf(stderr, "prompt: %llu tokens in %.3f s (%.1f tokens/s); answer: %llu tokens in %.3f s (%.1f tokens/s)\n",
            (unsigned long long)r->prompt_tokens, r->prompt_seconds,
            r->prompt_seconds > 0 ? (double)r->prompt_tokens / r->prompt_seconds : 0.0,
            (unsigned long long)r->new_tokens, r->answer_seconds,
            r->answer_seconds > 0 ? (double)r->new_tokens / r->answer_seconds : 0.0);
    if (!r->speculation) return;
    ob_speculation_counts c;
    ob_speculation_count(r->speculation, &c);
    fprintf(stderr, "%llu passes; %llu of %llu proposed tokens accepted; %llu passes of the draft\n",
            (unsigned long long)c.steps, (unsigned long long)c.accepted, (unsigned long long)c.proposed,
            (unsigned long long)c.drafted);
}

int main(int argc, char **argv) {
    options o;
    static runner r; /* zero, so that closing it is right wherever opening it stopped */
    const char *wrong = options_parse(&o, argc, argv);
    if (!wrong && o.help) {
        fputs(options_help, stdout);
        return 0;
    }
    if (!wrong) {
        if (!o.num_threads) o.num_threads = default_threads();
        wrong = runner_open(&r, &o);
        if (!wrong && o.info) info_print(r.model);
        else if (!wrong) {
            signal(SIGINT, on_interrupt);
            if (o.chat || (!o.prompt && chat_is_possible(&r))) wrong = chat_run(&r, o.prompt);
            else wrong = complete(&r);
            if (!wrong && o.stats) print_stats(&r);
        }
        if (!wrong && fflush(stdout)) wrong = "cannot write to stdout";
    }
    if (wrong) {
        fflush(stdout);
        fprintf(stderr, "error: %s\n", wrong);
    }
    runner_close(&r);
    return wrong ? 2 : 0;
}
