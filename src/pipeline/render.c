/* pipeline/render.c - templates and expressions of a pipeline, run by src/template over one JSON object of values. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "pipeline/internal.h"

#define REFS_MAX 4096u

/* An expression stands between these two. */
static const struct {
    const char *before, *after;
} forms[] = {[PIPE_FORM_TEXT] = {"", ""},
             [PIPE_FORM_JSON] = {"{{ (", ") | tojson }}"},
             [PIPE_FORM_TRUTH] = {"{% if (", ") %}1{% endif %}"},
             [PIPE_FORM_VALUE] = {"{{ (", ") }}"}};

typedef struct naming {
    pipe_reading *r;
    const realm_json *at;
    uint32_t step;
    const char *also;
} naming;

static void take_name(void *user, const char *name, size_t len) {
    naming *n = user;
    char *copy = realm_arena_strndup(&n->r->p->arena, name, len);
    if (copy)
        pipe_add_ref(n->r, n->at, n->step, copy, n->also);
    else
        n->r->no_memory = true;
}

void pipe_add_ref(pipe_reading *r, const realm_json *at, uint32_t step, const char *name, const char *also) {
    char path[REALM_JSON_PATH_MAX], where[REALM_JSON_PATH_MAX + 32];
    if (r->n_refs == r->cap_refs) {
        size_t cap = r->cap_refs ? r->cap_refs * 2 : 64;
        if (cap > REFS_MAX) {
            pipe_problem(r, at, "refers to more than can be kept");
            return;
        }
        pipe_ref *refs = realm_realloc_array(r->refs, cap, sizeof *refs);
        if (!refs) {
            r->no_memory = true;
            return;
        }
        r->refs = refs;
        r->cap_refs = cap;
    }
    int n = snprintf(where, sizeof where, "line %u: %s", realm_json_line(at), realm_json_path(at, path, sizeof path));
    char *kept = realm_arena_strndup(&r->p->arena, where, (size_t)n);
    if (kept)
        r->refs[r->n_refs++] = (pipe_ref){name, kept, step, also};
    else
        r->no_memory = true;
}

/* Makes room for one more template. */
static bool reserve(realm_pipeline *p) {
    if (p->n_templates < p->cap_templates) return true;
    size_t cap = p->cap_templates ? p->cap_templates * 2 : 64;
    realm_template **more = realm_realloc_array(p->templates, cap, sizeof *more);
    if (!more) return false;
    p->templates = more;
    p->cap_templates = cap;
    return true;
}

realm_template *pipe_compile(pipe_reading *r, const realm_json *at, pipe_form form, uint32_t step, const char *also) {
    realm_pipeline *p = r->p;
    const char *text = "";
    size_t len = 0;
    realm_error why = {0};
    realm_template *t = NULL;
    if (realm_json_str(at, &text, &len, &why) != REALM_OK) {
        pipe_problem(r, at, "must be a %s, is %s", form == PIPE_FORM_TEXT ? "template" : "string with an expression",
                     realm_json_kind_name(realm_json_kind_of(at)));
        return NULL;
    }
    if (form != PIPE_FORM_TEXT && (memmem(text, len, "{{", 2) || memmem(text, len, "{%", 2))) {
        pipe_problem(r, at, "is an expression: without {{ }}");
        return NULL;
    }
    realm_buf source;
    realm_buf_init(&source, REALM_TEMPLATE_SOURCE_MAX);
    (void)realm_buf_puts(&source, forms[form].before);
    (void)realm_buf_append(&source, text, len);
    (void)realm_buf_puts(&source, forms[form].after);
    realm_status s = realm_buf_status(&source);
    if (s == REALM_OK && !reserve(p)) s = REALM_E_NOMEM;
    if (s == REALM_OK) s = realm_template_open(&t, source.data, source.len, NULL, &why);
    realm_buf_release(&source);
    if (s == REALM_OK) {
        p->templates[p->n_templates++] = t;
        naming n = {r, at, step, also};
        s = realm_template_each_name(t, take_name, &n, &why);
    }
    if (s == REALM_E_NOMEM)
        r->no_memory = true;
    else if (s != REALM_OK)
        pipe_problem(r, at, "%s", why.text[0] ? why.text : "is too long");
    return s == REALM_OK ? t : NULL;
}

realm_status pipe_render(const realm_template *t, const realm_buf *values, realm_buf *out, realm_error *err) {
    realm_template_input in = {.values = {values->data, values->len}};
    return realm_template_render(t, &in, out, NULL, err);
}
