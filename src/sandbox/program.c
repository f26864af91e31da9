/* sandbox/program.c - from a module's bytes to a program that instances are made of.
 *
 *     bytes -> sections read (module.c) -> cache, or compiler child -> deserialised -> pre-linked -> realm_program
 *
 * Pre-linking looks every import up once, so an instance starts without searching by name. A module that is open
 * already is not loaded again: a thousand tenants with one program hold one copy of its code.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "sandbox/internal.h"

#define SECTIONS_BYTES_MAX (64u << 20) /* names and tables of one module, decoded */

realm_program *realm_program_retain(realm_program *p) {
    atomic_fetch_add_explicit(&p->refs, 1, memory_order_relaxed);
    return p;
}

/* relaxed: it may have changed when the caller looks at it, whatever the order */
uint32_t realm_program_holds(const realm_program *p) { return atomic_load_explicit(&p->refs, memory_order_relaxed); }

void realm_program_release(realm_program *p) {
    /* acq_rel: uses under other references happen before the memory goes. */
    if (!p) return;
    unsigned refs = atomic_load_explicit(&p->refs, memory_order_relaxed);
    while (refs > 1)
        if (atomic_compare_exchange_weak_explicit(&p->refs, &refs, refs - 1, memory_order_acq_rel,
                                                  memory_order_relaxed))
            return;
    realm_sandbox *s = p->sandbox;
    realm_mutex_lock(&s->programs_mu);
    bool last = atomic_fetch_sub_explicit(&p->refs, 1, memory_order_acq_rel) == 1;
    if (last) {
        realm_program **link = &s->programs;
        while (*link && *link != p) link = &(*link)->next;
        if (*link) { /* one that never opened is not in it */
            *link = p->next;
            s->code_bytes -= p->artifact_bytes;
        }
    }
    realm_mutex_unlock(&s->programs_mu);
    if (!last) return;
    if (p->pre) wasmtime_instance_pre_delete(p->pre);
    if (p->module) wasmtime_module_delete(p->module);
    realm_arena_release(&p->arena);
    realm_free(p);
}

/* Machine code of this server's own making becomes a module. */
static realm_status load(realm_program *p, const char *artifact, size_t len, realm_error *err) {
    wasmtime_error_t *e = wasmtime_module_deserialize(p->sandbox->engine, (const uint8_t *)artifact, len, &p->module);
    if (e) {
        p->module = NULL;
        return realm_wasmtime_error(e, REALM_E_LIMIT, "the module cannot be loaded", err);
    }
    p->artifact_bytes = len;
    return REALM_OK;
}

/* The open program of the same bytes, retained; NULL when there is none. Puts `p` into the list otherwise. */
static realm_program *find_or_add(realm_program *p, bool add) {
    realm_sandbox *s = p->sandbox;
    realm_mutex_lock(&s->programs_mu);
    realm_program *open = s->programs;
    while (open && strcmp(open->sha256, p->sha256)) open = open->next;
    if (open) realm_program_retain(open);
    if (!open && add) {
        p->next = s->programs;
        s->programs = p;
        s->code_bytes += p->artifact_bytes;
    }
    realm_mutex_unlock(&s->programs_mu);
    return open;
}

static bool load_cached(realm_program *p, const char *key) {
    char *file = NULL;
    const char *payload = NULL;
    size_t n = 0;
    if (realm_cache_get(p->sandbox, key, &file, &n, &payload)) return false;
    realm_error ignored = {0};
    p->from_cache = load(p, payload, n, &ignored) == REALM_OK; /* of another processor or version: compiled again */
    realm_free(file);
    return p->from_cache;
}

static realm_status compile_and_load(realm_program *p, const char *key, const void *wasm, size_t len,
                                     const realm_program_limits *limits, realm_error *err) {
    char *artifact = NULL;
    size_t n = 0;
    uint64_t t0 = realm_clock_ns();
    realm_status st = realm_compile(p->sandbox, wasm, len, limits, &artifact, &n, err);
    if (st) return st;
    p->compile_ns = realm_clock_ns() - t0;
    st = load(p, artifact, n, err);
    if (!st) realm_cache_put(p->sandbox, key, artifact, n);
    realm_free(artifact);
    return st;
}

realm_status realm_program_open(realm_sandbox *s, const void *wasm, size_t len, const realm_program_limits *limits,
                                realm_program **out, realm_error *err) {
    static const realm_program_limits NONE = {0};
    uint8_t digest[REALM_SHA256_BYTES];
    char key[REALM_SHA256_HEX];
    *out = NULL;
    if (!limits) limits = &NONE;
    if (limits->compile_cpu_ns) *limits->compile_cpu_ns = 0;
    realm_program *p = realm_calloc(1, sizeof *p);
    if (!p) return realm_error_set(err, REALM_E_NOMEM, "no memory for a program");
    atomic_init(&p->refs, 1);
    p->sandbox = s;
    p->size_bytes = len;
    realm_arena_init(&p->arena, SECTIONS_BYTES_MAX);
    uint64_t memory = s->max_memory_bytes;
    if (limits->memory_bytes && limits->memory_bytes < memory) memory = limits->memory_bytes;
    realm_status st =
        realm_module_read(&p->m, &p->arena, wasm, len, s->imports, s->n_imports, memory, s->abi_major, err);
    if (st) goto fail;
    if ((st = realm_sha256(wasm, len, digest))) {
        realm_error_set(err, st, "the module could not be hashed");
        goto fail;
    }
    realm_hex(digest, sizeof digest, p->sha256);
    realm_program *open = find_or_add(p, false);
    if (open) {
        realm_program_release(p);
        *out = open;
        return REALM_OK;
    }
    realm_cache_key(s, p->sha256, key);
    if (!load_cached(p, key) && (st = compile_and_load(p, key, wasm, len, limits, err))) goto fail;
    wasmtime_error_t *e = wasmtime_linker_instantiate_pre(s->linker, p->module, &p->pre);
    if (e) {
        p->pre = NULL;
        st = realm_wasmtime_error(e, REALM_E_UNSUPPORTED, "the module cannot be linked", err);
        goto fail;
    }
    atomic_fetch_add_explicit(p->from_cache ? &s->cache_hits : &s->compiled, 1, memory_order_relaxed);
    if ((open = find_or_add(p, true))) realm_program_release(p); /* another thread was first */
    *out = open ? open : p;
    return REALM_OK;
fail:
    realm_program_release(p);
    return st;
}

void realm_program_get_info(const realm_program *p, realm_program_info *out) {
    *out = (realm_program_info){.kind = p->m.kind,
                                .reactor = p->m.has_init,
                                .memory64 = p->m.memory64,
                                .from_cache = p->from_cache,
                                .size_bytes = p->size_bytes,
                                .artifact_bytes = p->artifact_bytes,
                                .compile_ns = p->compile_ns,
                                .memory_min_bytes = p->m.memory_min_pages * REALM_WASM_PAGE,
                                .memory_max_bytes = p->m.memory_max_pages > UINT64_MAX / REALM_WASM_PAGE
                                                        ? UINT64_MAX
                                                        : p->m.memory_max_pages * REALM_WASM_PAGE,
                                .n_functions = p->m.n_functions,
                                .imports = p->m.imports,
                                .n_imports = p->m.n_imports,
                                .exports = p->m.exports,
                                .n_exports = p->m.n_exports};
    memcpy(out->sha256, p->sha256, sizeof out->sha256);
}

/* A JSON string of a name from the module. Names that are not UTF-8 did not compile. */
static void json_name(realm_buf *b, const char *s) {
    realm_buf_putc(b, '"');
    for (; *s; s++) {
        if (*s == '"' || *s == '\\')
            realm_buf_printf(b, "\\%c", *s);
        else if ((unsigned char)*s < 0x20 || *s == 0x7f)
            realm_buf_printf(b, "\\u%04x", (unsigned)(unsigned char)*s);
        else
            realm_buf_putc(b, *s);
    }
    realm_buf_putc(b, '"');
}

typedef const char *group_fn(const char *module, const char *name);

static const char *group_of(group_fn *group, const realm_program_item *item) {
    return group && item->module ? group(item->module, item->name) : NULL;
}

static void json_items(realm_buf *b, const char *key, const realm_program_item *items, size_t n, group_fn *group) {
    realm_buf_printf(b, ",\"%s\":[", key);
    for (size_t i = 0; i < n; i++) {
        realm_buf_puts(b, i ? ",{" : "{");
        if (items[i].module) {
            realm_buf_puts(b, "\"module\":");
            json_name(b, items[i].module);
            realm_buf_putc(b, ',');
        }
        realm_buf_puts(b, "\"name\":");
        json_name(b, items[i].name);
        realm_buf_puts(b, ",\"type\":");
        json_name(b, items[i].type);
        const char *of = group_of(group, &items[i]);
        if (of) {
            realm_buf_puts(b, ",\"group\":");
            json_name(b, of);
        }
        realm_buf_putc(b, '}');
    }
    realm_buf_putc(b, ']');
}

static void text_items(realm_buf *b, const char *heading, const realm_program_item *items, size_t n, group_fn *group) {
    realm_buf_printf(b, "%s\n", heading);
    for (size_t i = 0; i < n; i++) {
        char mod[128], name[128];
        if (items[i].module)
            realm_buf_printf(b, "  %s.", realm_escape(mod, sizeof mod, items[i].module, strlen(items[i].module)));
        else
            realm_buf_puts(b, "  ");
        const char *of = group_of(group, &items[i]);
        realm_buf_printf(b, "%s: %s%s%s%s\n", realm_escape(name, sizeof name, items[i].name, strlen(items[i].name)),
                         items[i].type, of ? " [" : "", of ? of : "", of ? "]" : "");
    }
}

realm_status realm_program_describe(const realm_program *p, bool json, group_fn *group, realm_buf *b) {
    realm_program_info i;
    realm_program_get_info(p, &i);
    static const struct {
        const char *name, *entry;
    } KINDS[] = {[REALM_PROGRAM_MAIN] = {"main", "realm_main"},
                 [REALM_PROGRAM_GENERATE] = {"generate", "realm_new and generate"},
                 [REALM_PROGRAM_COMMAND] = {"command", "_start"}};
    if (json) {
        realm_buf_printf(b,
                         "{\"sha256\":\"%s\",\"kind\":\"%s\",\"reactor\":%s,\"memory64\":%s,\"size_bytes\":%" PRIu64
                         ",\"artifact_bytes\":%" PRIu64 ",\"from_cache\":%s,\"compile_ms\":%.3f,\"functions\":%u,"
                         "\"memory_min_bytes\":%" PRIu64 ",\"memory_max_bytes\":",
                         i.sha256, KINDS[i.kind].name, i.reactor ? "true" : "false", i.memory64 ? "true" : "false",
                         i.size_bytes, i.artifact_bytes, i.from_cache ? "true" : "false", (double)i.compile_ns / 1e6,
                         i.n_functions, i.memory_min_bytes);
        if (i.memory_max_bytes)
            realm_buf_printf(b, "%" PRIu64, i.memory_max_bytes);
        else
            realm_buf_puts(b, "null");
        json_items(b, "imports", i.imports, i.n_imports, group);
        json_items(b, "exports", i.exports, i.n_exports, group);
        realm_buf_putc(b, '}');
        return realm_buf_status(b);
    }
    realm_buf_printf(b, "sha256     %s\nentry      %s%s\n", i.sha256, KINDS[i.kind].entry,
                     i.reactor ? ", after _initialize" : "");
    realm_buf_printf(b, "size       %" PRIu64 " bytes, %u functions, %" PRIu64 " bytes compiled\n", i.size_bytes,
                     i.n_functions, i.artifact_bytes);
    if (i.from_cache)
        realm_buf_puts(b, "compiled   before, from the cache\n");
    else
        realm_buf_printf(b, "compiled   in %.1f ms\n", (double)i.compile_ns / 1e6);
    realm_buf_printf(b, "memory     %" PRIu64 " bytes at start%s", i.memory_min_bytes, i.memory64 ? ", 64-bit" : "");
    if (i.memory_max_bytes) realm_buf_printf(b, ", %" PRIu64 " at most", i.memory_max_bytes);
    realm_buf_putc(b, '\n');
    text_items(b, "imports", i.imports, i.n_imports, group);
    text_items(b, "exports", i.exports, i.n_exports, group);
    return realm_buf_status(b);
}
