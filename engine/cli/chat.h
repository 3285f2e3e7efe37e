/* A conversation by the CHATSTR section: what stands around each message (docs/format.md). */
#ifndef ONEBIT_RUN_CHAT_H
#define ONEBIT_RUN_CHAT_H

#include "generate.h"

int chat_is_possible(const runner *r);

/* One message when message is not NULL, else a conversation on stdin. Returns NULL or what is wrong. */
const char *chat_run(runner *r, const char *message);

#endif
