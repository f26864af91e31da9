#include <stdio.h>
#include <string.h>

#include "base/base.h"

REALM_API const char *realm_status_name(realm_status status) {
    switch (status) {
#define X(name, value, text) \
    case name: return #name;
        REALM_STATUS_LIST(X)
#undef X
    }
    return "REALM_E_UNKNOWN";
}

REALM_API const char *realm_status_text(realm_status status) {
    switch (status) {
#define X(name, value, text) \
    case name: return text;
        REALM_STATUS_LIST(X)
#undef X
    }
    return "unknown status";
}

realm_status realm_error_set(realm_error *err, realm_status code, const char *fmt, ...) {
    if (err) {
        va_list ap;
        va_start(ap, fmt);
        err->code = code;
        vsnprintf(err->text, sizeof err->text, fmt, ap);
        va_end(ap);
    }
    return code;
}

realm_status realm_error_prefix(realm_error *err, const char *fmt, ...) {
    if (!err) return REALM_OK;
    char old[REALM_ERROR_TEXT_MAX];
    memcpy(old, err->text, sizeof old);
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(err->text, sizeof err->text, fmt, ap);
    va_end(ap);
    size_t used = n < 0 ? 0 : REALM_MIN((size_t)n, sizeof err->text - 1);
    for (const char *s = ": "; *s && used < sizeof err->text - 1; s++) err->text[used++] = *s;
    size_t rest = strnlen(old, sizeof err->text - 1 - used);
    memcpy(err->text + used, old, rest);
    err->text[used + rest] = '\0';
    return err->code;
}

void realm_error_clear(realm_error *err) {
    if (!err) return;
    err->code = REALM_OK;
    err->text[0] = '\0';
}
