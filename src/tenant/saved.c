/* tenant/saved.c - contexts that a tenant keeps by name between its requests, for each of its models.
 *
 * They are forks: their pages are shared with whoever has the same tokens, and leave KV memory when the room is needed.
 * The list is the tenant's and is bounded by its limit `contexts`; it goes with the tenant, and a model's entries with
 * the model. Nothing of it outlives the process.
 */
#include <string.h>

#include "base/alloc.h"
#include "base/str.h"
#include "tenant/internal.h"

struct saved_context {
    saved_context *next;
    const tenant_model *model;
    realm_context *c;
    size_t len;
    char name[];
};

/* The link that points at it, or at the end; t->mu is held. */
static saved_context **find(realm_tenant *t, const tenant_model *m, const char *name, size_t len) {
    saved_context **link = &t->saved;
    while (*link && ((*link)->model != m || (*link)->len != len || memcmp((*link)->name, name, len) != 0))
        link = &(*link)->next;
    return link;
}

static void entry_free(saved_context *s) {
    if (!s) return;
    realm_context_release(s->c);
    realm_free(s);
}

realm_status saved_put(realm_tenant *t, const tenant_model *m, const char *name, size_t len, realm_context *c,
                       realm_error *err) {
    saved_context *made = realm_malloc(sizeof *made + len), *old = NULL;
    if (!made) return realm_error_set(err, REALM_E_NOMEM, "out of memory");
    *made = (saved_context){.model = m, .len = len};
    memcpy(made->name, name, len);
    realm_status s = realm_context_fork(c, &made->c, err);
    if (s != REALM_OK) {
        realm_free(made);
        return s;
    }
    realm_mutex_lock(&t->mu);
    saved_context **link = find(t, m, name, len);
    if ((old = *link)) {
        made->next = old->next;
        *link = made;
    } else {
        uint64_t n = 0;
        for (const saved_context *each = t->saved; each; each = each->next) n++;
        if (n >= t->limits.contexts)
            s = realm_error_set(err, REALM_E_LIMIT, "contexts: %llu are saved, as many as are allowed",
                                (unsigned long long)n);
        else
            *link = made;
    }
    realm_mutex_unlock(&t->mu);
    entry_free(s == REALM_OK ? old : made);
    return s;
}

static realm_status no_such(const char *name, size_t len, realm_error *err) {
    char shown[80];
    return realm_error_set(err, REALM_E_NOT_FOUND, "no context of this model is saved as \"%s\"",
                           realm_escape(shown, sizeof shown, name, len));
}

realm_status saved_get(realm_tenant *t, const tenant_model *m, const char *name, size_t len, realm_context **out,
                       realm_error *err) {
    realm_mutex_lock(&t->mu);
    saved_context *found = *find(t, m, name, len);
    realm_status s = found ? realm_context_fork(found->c, out, err) : no_such(name, len, err);
    realm_mutex_unlock(&t->mu);
    return s;
}

realm_status saved_drop(realm_tenant *t, const tenant_model *m, const char *name, size_t len, realm_error *err) {
    realm_mutex_lock(&t->mu);
    saved_context **link = find(t, m, name, len), *found = *link;
    if (found) *link = found->next;
    realm_mutex_unlock(&t->mu);
    entry_free(found);
    return found ? REALM_OK : no_such(name, len, err);
}

void saved_drop_all(realm_tenant *t, const tenant_model *m) {
    saved_context *gone = NULL;
    realm_mutex_lock(&t->mu);
    for (saved_context **link = &t->saved; *link;) {
        saved_context *s = *link;
        if (m && s->model != m) {
            link = &s->next;
            continue;
        }
        *link = s->next;
        s->next = gone;
        gone = s;
    }
    realm_mutex_unlock(&t->mu);
    while (gone) {
        saved_context *s = gone;
        gone = s->next;
        entry_free(s);
    }
}
