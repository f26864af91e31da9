/* The error object, and which HTTP status a failure becomes.
 *
 * {"error":{"message":...,"type":...,"param":...,"code":...}}: all four keys always. SDKs decide by the status (they
 * retry 408, 409, 429 and everything from 500) unless x-should-retry says otherwise.
 */
#include <stdio.h>
#include <string.h>

#include "api/internal.h"
#include "base/str.h"

bool api_error_set(api_error *e, unsigned status, const char *code, const char *param, const char *fmt, ...) {
    va_list ap;
    *e = (api_error){.status = status, .code = code};
    if (param) (void)snprintf(e->param, sizeof e->param, "%s", param);
    va_start(ap, fmt);
    (void)vsnprintf(e->message, sizeof e->message, fmt, ap);
    va_end(ap);
    return false;
}

bool api_error_value(api_error *e, const realm_json *v, const realm_error *err) {
    *e = (api_error){.status = err->code == REALM_E_NOMEM ? 503 : 400};
    e->code = err->code == REALM_E_NOT_FOUND     ? "missing_required_parameter"
              : err->code == REALM_E_RANGE       ? "invalid_value"
              : err->code == REALM_E_UNSUPPORTED ? "unknown_parameter"
                                                 : "invalid_type";
    if (e->status == 503) e->code = "overloaded";
    realm_json_path(v, e->param, sizeof e->param);
    (void)snprintf(e->message, sizeof e->message, "%s", err->text);
    return false;
}

bool api_error_model(api_error *e, const char *id, size_t len) {
    char shown[REALM_MODEL_ID_MAX];
    return api_error_set(e, 404, "model_not_found", "model", "no model is called \"%s\" on this server",
                         realm_escape(shown, sizeof shown, id, len));
}

bool api_error_field(api_error *e, const realm_json *v, const char *code, const char *fmt, ...) {
    char text[REALM_ERROR_TEXT_MAX - REALM_JSON_PATH_MAX - 8];
    va_list ap;
    *e = (api_error){.status = 400, .code = code};
    realm_json_path(v, e->param, sizeof e->param);
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    (void)snprintf(e->message, sizeof e->message, "%s: %s", e->param, text);
    return false;
}

/* The tenant's own program: it would fail again. */
static bool program_error(api_error *e, const char *text) {
    api_error_set(e, 500, "program_failed", NULL, "%s", text);
    e->no_retry = true;
    return false;
}

/* A limit of the tenant's: `again` where waiting helps, which it does not when the day's end is far or the request is
 * too large for what the tenant may hold. */
static bool limit_error(api_error *e, const char *code, bool again, const char *text) {
    api_error_set(e, 429, code, NULL, "%s", text);
    e->retry_after_ms = again ? 1000 : 0; /* the day's end: api_error_rate */
    e->no_retry = !again;
    return false;
}

bool api_error_status(api_error *e, realm_status s, const realm_error *err) {
    const char *text = err && err->text[0] ? err->text : realm_status_text(s);
    switch (s) {
    case REALM_E_INVALID:
    case REALM_E_FORMAT:
    case REALM_E_UNSUPPORTED: return api_error_set(e, 400, "invalid_request", NULL, "%s", text);
    case REALM_E_RANGE: return api_error_set(e, 400, "invalid_value", NULL, "%s", text);
    /* the one code that clients look for, to shorten a conversation */
    case REALM_E_CONTEXT: return api_error_set(e, 400, "context_length_exceeded", NULL, "%s", text);
    case REALM_E_TOO_LARGE: return api_error_set(e, 413, "body_too_large", NULL, "%s", text);
    case REALM_E_NOT_FOUND: return api_error_set(e, 404, "not_found", NULL, "%s", text);
    case REALM_E_UNAUTHENTICATED: return api_error_set(e, 401, "invalid_api_key", NULL, "%s", text);
    case REALM_E_DENIED: return api_error_set(e, 403, "permission_denied", NULL, "%s", text);
    case REALM_E_RATE:
    case REALM_E_CROWDED: return limit_error(e, "rate_limit_exceeded", true, text);
    case REALM_E_QUOTA: return limit_error(e, "insufficient_quota", false, text);
    case REALM_E_BUSY:
    case REALM_E_NOMEM:
    case REALM_E_AGAIN:
        api_error_set(e, 503, "overloaded", NULL, "%s", text);
        e->retry_after_ms = 1000;
        return false;
    case REALM_E_CANCELLED:
    case REALM_E_CLOSED: return api_error_set(e, 503, "shutting_down", NULL, "%s", text);
    case REALM_E_LIMIT:   /* CPU, memory, handles, output of the program */
    case REALM_E_TIMEOUT: /* its wall time */
    case REALM_E_GRAMMAR: /* one of its own; a client's is gen_grammar_error's */
    case REALM_E_PROGRAM: return program_error(e, text);
    default: return api_error_server(e, s, err);
    }
}

bool api_error_server(api_error *e, realm_status s, const realm_error *err) {
    if (s == REALM_E_BUSY || s == REALM_E_NOMEM || s == REALM_E_AGAIN) {
        api_error_set(e, 503, "overloaded", NULL, "%s", realm_status_text(s));
        e->retry_after_ms = 1000;
    } else {
        api_error_set(e, 500, "internal_error", NULL, "%s", realm_status_text(s));
    }
    if (err) (void)snprintf(e->detail, sizeof e->detail, "%s", err->text);
    return false;
}

void api_error_rate(api_error *e, realm_status s, const realm_rate *rate) {
    if ((s == REALM_E_RATE || s == REALM_E_QUOTA) && rate->retry_after_ms) e->retry_after_ms = rate->retry_after_ms;
}

bool api_error_buf(api_error *e, realm_status s) {
    if (s == REALM_E_NOMEM) return api_error_status(e, s, NULL);
    return api_error_set(e, 413, "body_too_large", NULL, "the request is too large");
}

static const char *type_of(unsigned status) {
    switch (status) {
    case 401: return "authentication_error";
    case 403: return "permission_error";
    case 429: return "rate_limit_error";
    default: return status >= 500 ? "server_error" : "invalid_request_error";
    }
}

void api_error_write(const api_error *e, realm_buf *out) {
    realm_json_writer w;
    realm_json_writer_init(&w, out);
    realm_json_begin_object(&w);
    realm_json_key(&w, "error");
    realm_json_begin_object(&w);
    realm_json_key(&w, "message");
    realm_json_write_cstr(&w, e->message);
    realm_json_key(&w, "type");
    realm_json_write_cstr(&w, e->code && strcmp(e->code, "insufficient_quota") == 0 ? e->code : type_of(e->status));
    realm_json_key(&w, "param");
    realm_json_write_cstr(&w, e->param[0] ? e->param : NULL);
    realm_json_key(&w, "code");
    realm_json_write_cstr(&w, e->code);
    realm_json_end_object(&w);
    realm_json_end_object(&w);
}
