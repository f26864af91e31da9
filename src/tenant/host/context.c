/* tenant/host/context.c - host calls about contexts: token sequences whose KV pages stay between generations.
 *
 * A context belongs to the model that was in use when it was made. What runs on it is submitted by generate and
 * forward; here are the calls that only change the sequence. Saved ones are the tenant's (saved.c); a handle is always
 * a fork of its own.
 */
#include <string.h>

#include "tenant/host/host.h"

#define TOKENS_AT_ONCE 1024u /* copied through the stack */

void host_context_free(realm_host *h, void *object) {
    host_context *c = object;
    h->prompt_bytes -= c->charged;
    realm_context_release(c->c);
    realm_free(c);
}

/* A handle for an engine's context, which is taken over. */
static realm_call_result give(realm_host *h, const host_model *model, realm_context *made, int32_t *result) {
    realm_context_info info;
    realm_context_get_info(made, &info);
    const size_t charged = HOST_CONTEXT_BYTES + (size_t)info.n_tokens * HOST_CONTEXT_TOKEN_BYTES;
    if (host_charge_text(h, charged)) {
        realm_context_release(made);
        return host_failed(h, result);
    }
    host_context *c = realm_malloc(sizeof *c);
    if (!c) {
        h->prompt_bytes -= charged;
        realm_context_release(made);
        return host_fail(h, result, REALM_E_NOMEM, "out of memory");
    }
    *c = (host_context){.model = model, .c = made, .charged = charged};
    return host_handle_give(h, HOST_CONTEXT, c, result);
}

/* The engine makes room for a sequence's growth at once, at most twice of what is asked for, and keeps it. */
realm_status host_context_reserve(realm_host *h, host_context *c, uint64_t n_more) {
    realm_context_info info;
    realm_context_get_info(c->c, &info);
    const uint64_t most = REALM_MIN(2 * (info.n_tokens + n_more), (uint64_t)host_context_length(c->model));
    const size_t bytes = HOST_CONTEXT_BYTES + (size_t)most * HOST_CONTEXT_TOKEN_BYTES;
    if (bytes <= c->charged) return REALM_OK;
    realm_status st = host_charge_text(h, bytes - c->charged);
    if (!st) c->charged = bytes;
    return st;
}

realm_call_result host_context_new(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_context *made = NULL;
    (void)args;
    if (realm_context_open(h->model->m->engine, h->model->account, &made, &h->error)) return host_failed(h, result);
    return give(h, h->model, made, result);
}

static realm_call_result append(realm_host *h, host_context *c, const realm_tokens *t, int32_t *result) {
    realm_context_info info;
    if (host_context_reserve(h, c, t->len) || realm_context_append(c->c, t->ids, t->len, &h->error))
        return host_failed(h, result);
    realm_context_get_info(c->c, &info);
    *result = (int32_t)info.n_tokens;
    return REALM_CALL_DONE;
}

realm_call_result host_context_append(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_tokens t = {0};
    host_context *c = host_need(h, args[0], HOST_CONTEXT, "context_append", result);
    if (!c) return REALM_CALL_DONE;
    if (host_take_tokens(call, "context_append", c->model, args[1], args[2], &t))
        host_failed(h, result);
    else
        append(h, c, &t, result);
    realm_tokens_release(&t);
    return REALM_CALL_DONE;
}

realm_call_result host_context_append_prompt(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    host_context *c = host_need(h, args[0], HOST_CONTEXT, "context_append_prompt", result);
    host_prompt *p = c ? host_need(h, args[1], HOST_PROMPT, "context_append_prompt", result) : NULL;
    if (!p) return REALM_CALL_DONE;
    if (host_same_model(h, p->model, "the prompt", c->model)) return host_failed(h, result);
    return append(h, c, &p->tokens, result);
}

realm_call_result host_context_fork(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_context *made = NULL;
    host_context *c = host_need(h, args[0], HOST_CONTEXT, "context_fork", result);
    if (!c) return REALM_CALL_DONE;
    if (realm_context_fork(c->c, &made, &h->error)) return host_failed(h, result);
    return give(h, c->model, made, result);
}

realm_call_result host_context_truncate(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    host_context *c = host_need(h, args[0], HOST_CONTEXT, "context_truncate", result);
    if (!c) return REALM_CALL_DONE;
    if (realm_context_truncate(c->c, (size_t)args[1], &h->error)) return host_failed(h, result);
    return REALM_CALL_DONE;
}

realm_call_result host_context_stat(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_context_info info;
    host_context *c = host_need(h, args[0], HOST_CONTEXT, "context_stat", result);
    void *to = c ? host_range(call, args[1], sizeof(realm_guest_context), "context_stat", result) : NULL;
    if (!to) return REALM_CALL_DONE;
    realm_context_get_info(c->c, &info);
    realm_guest_context out = {.n_tokens = info.n_tokens,
                               .n_computed = info.n_computed,
                               .pages = info.pages,
                               .shared_pages = info.shared_pages,
                               .busy = info.busy,
                               .suspended = info.suspended};
    memcpy(to, &out, sizeof out);
    return REALM_CALL_DONE;
}

realm_call_result host_context_get_tokens(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_token ids[TOKENS_AT_ONCE];
    host_context *c = host_need(h, args[0], HOST_CONTEXT, "context_get_tokens", result);
    if (!c) return REALM_CALL_DONE;
    uint64_t max = REALM_MIN(args[3], (uint64_t)host_context_length(c->model));
    unsigned char *to = host_room(call, args[2], args[3], sizeof *ids, "context_get_tokens", result);
    if (!to) return REALM_CALL_DONE;
    size_t done = 0, n = TOKENS_AT_ONCE;
    while (n == TOKENS_AT_ONCE && done < max) {
        n = realm_context_get_tokens(c->c, (size_t)args[1] + done, ids,
                                     (size_t)REALM_MIN(max - done, (uint64_t)TOKENS_AT_ONCE));
        memcpy(to + done * sizeof *ids, ids, n * sizeof *ids); /* may not be aligned */
        done += n;
    }
    *result = (int32_t)done;
    return REALM_CALL_DONE;
}

/* ---- by name ---- */

static const char *take_name(realm_call *call, const char *what, uint64_t ptr, uint64_t len, int32_t *result) {
    if (len == 0 || len > HOST_NAME_MAX) {
        host_fail(host_of(call), result, len ? REALM_E_LIMIT : REALM_E_INVALID, "%s: a name has 1 to %u bytes", what,
                  HOST_NAME_MAX);
        return NULL;
    }
    return host_range(call, ptr, len, what, result);
}

realm_call_result host_context_save(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    host_context *c = host_need(h, args[0], HOST_CONTEXT, "context_save", result);
    const char *name = c ? take_name(call, "context_save", args[1], args[2], result) : NULL;
    if (!name) return REALM_CALL_DONE;
    realm_tenant *t = realm_run_request(h->run)->tenant;
    if (saved_put(t, c->model->m, name, (size_t)args[2], c->c, &h->error)) return host_failed(h, result);
    return REALM_CALL_DONE;
}

realm_call_result host_context_open(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_context *made = NULL;
    const char *name = take_name(call, "context_open", args[0], args[1], result);
    if (!name) return REALM_CALL_DONE;
    realm_tenant *t = realm_run_request(h->run)->tenant;
    if (saved_get(t, h->model->m, name, (size_t)args[1], &made, &h->error)) return host_failed(h, result);
    return give(h, h->model, made, result);
}

realm_call_result host_context_drop(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    const char *name = take_name(call, "context_drop", args[0], args[1], result);
    if (!name) return REALM_CALL_DONE;
    realm_tenant *t = realm_run_request(h->run)->tenant;
    if (saved_drop(t, h->model->m, name, (size_t)args[1], &h->error)) return host_failed(h, result);
    return REALM_CALL_DONE;
}
