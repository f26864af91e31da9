/* tenant/trim.c - compiled code that nobody uses: dropped, those unused for longest first, while there is more of it
 * than is to be kept. Whoever asks next has it opened again.
 *
 * Several tenants may have the same program open; it goes when none of them runs it, from all of them at once.
 */
#include <stdlib.h>

#include "base/alloc.h"
#include "tenant/internal.h"

typedef struct kept_program { /* by a tenant */
    realm_program *program;
    realm_tenant *tenant;
    uint64_t used_ns; /* when a request last asked for it */
    uint32_t n;       /* 1; where those of one program are folded: so many, from this place of the list on */
    size_t at;
} kept_program;

static int by_program(const void *a, const void *b) {
    const uintptr_t x = (uintptr_t)((const kept_program *)a)->program,
                    y = (uintptr_t)((const kept_program *)b)->program;
    return x < y ? -1 : x > y;
}

static int by_use(const void *a, const void *b) {
    const uint64_t x = ((const kept_program *)a)->used_ns, y = ((const kept_program *)b)->used_ns;
    return x < y ? -1 : x > y;
}

/* The stored programs that tenants keep open, each held once more; rt->mu is held. NULL when memory is out. */
static kept_program *kept_programs(realm_runtime *rt, size_t *n) {
    size_t all = 0;
    for (const realm_tenant *t = rt->tenants; t; t = t->next) all++;
    kept_program *list = realm_calloc(all + 1, sizeof *list);
    *n = 0;
    for (realm_tenant *t = rt->tenants; list && t; t = t->next) {
        realm_mutex_lock(&t->mu);
        if (t->program && !t->program_set)
            list[(*n)++] = (kept_program){realm_program_retain(t->program), t, t->program_used_ns, 1, 0};
        realm_mutex_unlock(&t->mu);
    }
    return list;
}

/* Of a list in the order of programs: one entry for each that nobody but its tenants holds, with the latest use. */
static size_t fold_unused(const kept_program *list, size_t n, kept_program *out) {
    size_t made = 0;
    for (size_t i = 0; i < n;) {
        kept_program one = list[i];
        size_t next = i + 1;
        one.at = i;
        for (; next < n && list[next].program == one.program; next++, one.n++)
            one.used_ns = REALM_MAX(one.used_ns, list[next].used_ns);
        /* Its tenants hold it, and the list. What runs it has it open anyway: to take it away frees nothing, and the
         * next request would find it by its bytes again. */
        if (realm_program_holds(one.program) <= 2 * one.n) out[made++] = one;
        i = next;
    }
    return made;
}

/* Takes a program out of the tenants that keep it; those that were about to run it finish on it. */
static void take_program(const kept_program *list, const kept_program *one, realm_program **dropped,
                         size_t *n_dropped) {
    for (size_t i = one->at; i < one->at + one->n; i++) {
        realm_tenant *t = list[i].tenant;
        realm_mutex_lock(&t->mu);
        if (t->program == one->program && !t->program_set) {
            dropped[(*n_dropped)++] = t->program;
            t->program = NULL;
        }
        realm_mutex_unlock(&t->mu);
    }
}

void tenants_trim_programs(realm_runtime *rt) {
    realm_sandbox_stats stats;
    size_t n = 0, n_dropped = 0;
    realm_sandbox_get_stats(rt->sandbox, &stats);
    if (stats.code_bytes <= rt->program_bytes) return;
    uint64_t excess = stats.code_bytes - rt->program_bytes;
    realm_mutex_lock(&rt->mu);
    kept_program *list = kept_programs(rt, &n), *unused = realm_calloc(n + 1, sizeof *unused);
    realm_program **dropped = realm_calloc(n + 1, sizeof(realm_program *));
    if (list && unused && dropped) { /* else a quarter of a second later */
        qsort(list, n, sizeof *list, by_program);
        const size_t n_unused = fold_unused(list, n, unused);
        qsort(unused, n_unused, sizeof *unused, by_use);
        for (size_t i = 0; i < n_unused && excess > 0; i++) {
            realm_program_info info;
            realm_program_get_info(unused[i].program, &info);
            take_program(list, &unused[i], dropped, &n_dropped);
            excess -= REALM_MIN(excess, info.artifact_bytes);
        }
    }
    realm_mutex_unlock(&rt->mu);
    for (size_t i = 0; i < n_dropped; i++) realm_program_release(dropped[i]);
    for (size_t i = 0; i < n; i++) realm_program_release(list[i].program);
    realm_free(dropped);
    realm_free(unused);
    realm_free(list);
}
