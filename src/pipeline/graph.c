/* pipeline/graph.c - from references to an order: every name must be known, and nobody may wait for itself. */
#include <stdio.h>
#include <string.h>

#include "pipeline/internal.h"

/* What a template can read of a step. */
static const char *const attributes[] = {"text", "texts", "skipped", "finish_reason", "model", "votes"};

static bool same(const char *name, const char *s, size_t len) {
    return strlen(name) == len && memcmp(name, s, len) == 0;
}

static bool has_word(const char *words, const char *s, size_t len) {
    for (const char *w = words; *w;) {
        size_t n = strcspn(w, " ");
        if (n == len && memcmp(w, s, len) == 0) return true;
        w += n + (w[n] == ' ');
    }
    return false;
}

static void resolve_step(pipe_reading *r, const pipe_ref *ref, const char *id, size_t id_len, const char *rest) {
    realm_pipeline *p = r->p;
    size_t i = 0;
    while (i < p->n_steps && !same(p->steps[i].id, id, id_len)) i++;
    if (i == p->n_steps) {
        pipe_problem_at(r, ref->where, "no step is called \"%.*s\"", (int)id_len, id);
        return;
    }
    if (ref->step < p->n_steps) p->steps[ref->step].after |= UINT64_C(1) << i;
    if (!rest) return;
    if (*rest == '\0') {
        pipe_problem_at(r, ref->where, "steps.%s: say what of it, as in steps.%s.text", p->steps[i].id, p->steps[i].id);
        return;
    }
    size_t len = strcspn(rest + 1, ".");
    for (size_t k = 0; k < REALM_ARRAY_LEN(attributes); k++)
        if (same(attributes[k], rest + 1, len)) return;
    pipe_problem_at(r, ref->where, "steps.%s has text, texts, skipped, finish_reason, model and votes, but no \"%.*s\"",
                    p->steps[i].id, (int)len, rest + 1);
}

static void resolve(pipe_reading *r, const pipe_ref *ref) {
    const char *name = ref->name;
    size_t root = strcspn(name, ".");
    if (name[0] == '>') { /* not of a template: a step by its id */
        resolve_step(r, ref, name + 1, strlen(name + 1), NULL);
        return;
    }
    if (has_word(ref->also, name, root)) return;
    bool steps = same("steps", name, root), inputs = same("inputs", name, root);
    if (!steps && !inputs) {
        pipe_problem_at(r, ref->where, "\"%.*s\" is not defined; there are inputs.NAME and steps.ID.text%s%s%s",
                        (int)root, name, ref->also[0] ? " and " : "", ref->also, ref->also[0] ? " here" : "");
        return;
    }
    if (name[root] == '\0') {
        pipe_problem_at(r, ref->where, "%s: say which, as in %s", name, steps ? "steps.ID.text" : "inputs.NAME");
        return;
    }
    const char *id = name + root + 1;
    size_t len = strcspn(id, ".");
    if (steps) {
        resolve_step(r, ref, id, len, id + len);
        return;
    }
    for (size_t i = 0; i < r->p->n_inputs; i++)
        if (same(r->p->inputs[i].name, id, len)) return;
    pipe_problem_at(r, ref->where, "no input is called \"%.*s\"", (int)len, id);
}

/* Says of one circle who is in it. Every step in `left` waits for another one in it, so going on from any of them must
 * come back to one that was seen. */
static void tell_circle(pipe_reading *r, uint64_t left) {
    const pipe_step *steps = r->p->steps;
    uint64_t seen = 0;
    uint32_t at = (uint32_t)__builtin_ctzll(left);
    while (!(seen >> at & 1)) {
        seen |= UINT64_C(1) << at;
        at = (uint32_t)__builtin_ctzll(steps[at].after & left);
    }
    char where[32], text[REALM_ERROR_TEXT_MAX] = "";
    size_t len = 0;
    uint32_t first = at;
    snprintf(where, sizeof where, "line %u", steps[first].line);
    do {
        int n = snprintf(text + len, sizeof text - len, "%s waits for ", steps[at].id);
        len = REALM_MIN(len + (size_t)n, sizeof text - 1);
        at = (uint32_t)__builtin_ctzll(steps[at].after & left);
    } while (at != first);
    pipe_problem_at(r, where, "%s%s", text, steps[first].id);
}

void pipe_resolve(pipe_reading *r) {
    const realm_pipeline *p = r->p;
    for (size_t i = 0; i < r->n_refs; i++) resolve(r, &r->refs[i]);
    uint64_t left = p->n_steps == 64 ? UINT64_MAX : (UINT64_C(1) << p->n_steps) - 1;
    for (bool moved = true; moved;) {
        moved = false;
        for (size_t i = 0; i < p->n_steps; i++) {
            if (!(left >> i & 1) || (p->steps[i].after & left)) continue;
            left &= ~(UINT64_C(1) << i);
            moved = true;
        }
    }
    if (left) tell_circle(r, left);
}
