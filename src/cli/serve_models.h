/* cli/serve_models.h - which models a server serves: those it begins with, and those that its configuration names
 * later.
 */
#ifndef REALM_CLI_SERVE_MODELS_H
#define REALM_CLI_SERVE_MODELS_H

#include "cli/serve_config.h"

/* A line on stderr for whoever runs the server. Any thread. */
void serve_say(const char *fmt, ...) REALM_PRINTF(1, 2);

typedef struct serve_models serve_models;
/* The runtime outlives it. */
REALM_WARN_UNUSED realm_status serve_models_open(serve_models **out, realm_runtime *rt, realm_error *err);
/* Loads those of the configuration, one after the other, on this thread. REALM_E_CANCELLED: SIGTERM or SIGINT is
 * pending. */
REALM_WARN_UNUSED realm_status serve_models_first(serve_models *l, serve_config *c, realm_error *err);
/* Takes over a configuration that was read again (from realm_calloc): on a thread of its own models that it names and
 * that are not served are loaded, prefixes that it adds to others are published; what else it says of models waits for
 * the next start, and is said. One that waits to be looked at is replaced. */
void serve_models_again(serve_models *l, serve_config *fresh);
/* Gives up what is being loaded. NULL-safe. */
void serve_models_close(serve_models *l);

#endif
