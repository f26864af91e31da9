/* api/api.h - the OpenAI protocol over exchanges: what is between net and tenant.
 *
 *      net --realm_api_handler--> route, key, worker (parse, check, admit, start) --> runs
 *      runs --events--> JSON or SSE --> net
 *
 * Routes of the public listener: POST /v1/chat/completions, /v1/completions, /tokenize, /detokenize, /apply-template;
 * GET /v1/models, /v1/models/{id}, /v1/usage, /health, /ready, and /metrics for an admin key. Routes of the admin
 * listener: GET /health, /ready, /metrics (no key: bind it where only the operator reaches it) and, with an admin key,
 * /admin/v1/usage and /admin/v1/models. Every other route needs a tenant's key. /metrics sums over tenants, which is
 * why a tenant's key does not open it; with an admin key it also has each tenant's numbers.
 */
#ifndef REALM_API_API_H
#define REALM_API_API_H

#include "net/net.h"
#include "tenant/tenant.h"

/* Tags of listeners (realm_listen). */
enum { REALM_API_PUBLIC = 0, REALM_API_ADMIN = 1 };

typedef struct realm_api realm_api;

typedef struct realm_api_config { /* 0: the default */
    unsigned n_workers;           /* threads that parse, check and start requests; 4 */
    uint32_t max_waiting;         /* requests waiting for one; past it 503; 1024 */
    uint64_t held_bytes;          /* bodies worked on and answers kept, of all requests; 1 GiB */
} realm_api_config;

/* The runtime outlives the api. Starts the workers. */
REALM_WARN_UNUSED realm_status realm_api_open(realm_api **out, realm_runtime *rt, const realm_api_config *config,
                                              realm_error *err);
/* What realm_server_open wants. */
realm_http_handler realm_api_handler(realm_api *api);
/* For /metrics: whose connections to count. Outlives the api; set once before traffic matters. */
void realm_api_set_server(realm_api *api, const realm_server *server);
/* What /ready says: 503 while starting (models are being loaded; a request for one that is not there yet is told to
 * come again) and while draining (so that balancers look elsewhere while exchanges end; who comes late with a request
 * that computes is refused). Any thread. SERVING at first. */
typedef enum realm_api_state { REALM_API_SERVING, REALM_API_STARTING, REALM_API_DRAINING } realm_api_state;
void realm_api_set_state(realm_api *api, realm_api_state state);
/* After the server was stopped and before it is closed: a worker may still be writing /metrics. Joins the workers.
 * NULL-safe. */
void realm_api_close(realm_api *api);

#endif
