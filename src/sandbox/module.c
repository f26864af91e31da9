/* sandbox/module.c - a WebAssembly module's sections, read before anything is compiled.
 *
 * Compiling is slow and its errors speak of byte offsets. This reader answers first, in microseconds and in the words
 * of the person who built the module: which import does not exist, which limit is passed, which export is missing. It
 * walks the section headers and the type, import, function, table, memory, export and one custom section; code, data
 * and elements are counted, not read, and left to Wasmtime's validator, which every module passes as well. So nothing
 * here needs to be trusted for safety, only to be right for the messages.
 *
 * Binary format: WebAssembly Core Specification 2.0, chapter 5; memory64 and custom page sizes as in their proposals
 * (flags of limits).
 */
#include "sandbox/module.h"

#include <stdio.h>
#include <string.h>

#include "base/str.h"

enum {
    SEC_CUSTOM,
    SEC_TYPE,
    SEC_IMPORT,
    SEC_FUNCTION,
    SEC_TABLE,
    SEC_MEMORY,
    SEC_GLOBAL,
    SEC_EXPORT,
    SEC_START,
    SEC_ELEMENT,
    SEC_CODE,
    SEC_DATA,
    SEC_DATA_COUNT,
    SEC_TAG,
    SEC_N
};

static const char *const SECTION_NAMES[SEC_N] = {"custom", "type",   "import",     "function", "table",
                                                 "memory", "global", "export",     "start",    "element",
                                                 "code",   "data",   "data count", "tag"};
/* Place of each section in the order that the format demands. */
static const uint8_t SECTION_ORDER[SEC_N] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 12, 13, 11, 6};

enum { KIND_FUNC, KIND_TABLE, KIND_MEMORY, KIND_GLOBAL, KIND_TAG, KIND_N };
static const char *const KIND_NAMES[KIND_N] = {"func", "table", "memory", "global", "tag"};

typedef struct functype {
    const uint8_t *params, *results; /* value types, in the file */
    uint32_t n_params, n_results;
} functype;

typedef struct reader {
    const uint8_t *at, *end; /* of the current section */
    const uint8_t *file, *file_end;
    const char *section;
    realm_arena *arena;
    realm_error *err;
    const realm_import *table;
    size_t n_table;
    uint64_t max_memory_bytes;
    functype *types;
    uint32_t n_types;
    uint32_t *func_types; /* type of each function, imports first */
    uint32_t n_funcs, n_imported_funcs;
    uint32_t n_tables, n_memories;
    realm_module *m;
} reader;

static realm_status bad(reader *r, realm_status code, const char *what) {
    return realm_error_set(r->err, code, "the module's %s section: %s (at byte %zu)", r->section, what,
                           (size_t)(r->at - r->file));
}

static realm_status out_of_memory(reader *r) {
    return realm_error_set(r->err, REALM_E_NOMEM, "out of memory while reading the module");
}

static realm_status get_byte(reader *r, uint8_t *out) {
    if (r->at == r->end) return bad(r, REALM_E_FORMAT, "cut off");
    *out = *r->at++;
    return REALM_OK;
}

/* Unsigned LEB128 of at most `bits` bits. */
static realm_status get_leb(reader *r, unsigned bits, uint64_t *out) {
    uint64_t v = 0;
    for (unsigned shift = 0; shift < bits; shift += 7) {
        uint8_t b = 0;
        realm_status st = get_byte(r, &b);
        if (st) return st;
        if (shift + 7 > bits && (b & 0x7f) >> (bits - shift)) return bad(r, REALM_E_FORMAT, "number too large");
        v |= (uint64_t)(b & 0x7f) << shift;
        if (!(b & 0x80)) {
            *out = v;
            return REALM_OK;
        }
    }
    return bad(r, REALM_E_FORMAT, "number too long");
}

static realm_status get_u32(reader *r, uint32_t *out) {
    uint64_t v = 0;
    realm_status st = get_leb(r, 32, &v);
    *out = (uint32_t)v;
    return st;
}

/* The count of a vector whose items take at least one byte each, against a limit. */
static realm_status get_count(reader *r, uint32_t max, const char *what, uint32_t *out) {
    realm_status st = get_u32(r, out);
    if (st) return st;
    if (*out > max)
        return realm_error_set(r->err, REALM_E_LIMIT, "the module's %s section: %u %s, at most %u are allowed",
                               r->section, *out, what, max);
    if (*out > (size_t)(r->end - r->at)) return bad(r, REALM_E_FORMAT, "more entries than bytes");
    return REALM_OK;
}

static realm_status get_name(reader *r, const char **out) {
    uint32_t n = 0;
    realm_status st = get_u32(r, &n);
    if (st) return st;
    if (n > (size_t)(r->end - r->at)) return bad(r, REALM_E_FORMAT, "a name runs past the end");
    if (n > REALM_MODULE_NAME_MAX) return bad(r, REALM_E_LIMIT, "a name is longer than 1024 bytes");
    if (n && memchr(r->at, 0, n)) return bad(r, REALM_E_FORMAT, "a name holds a NUL byte");
    char *s = realm_arena_strndup(r->arena, (const char *)r->at, n);
    if (!s) return out_of_memory(r);
    r->at += n;
    *out = s;
    return REALM_OK;
}

static const char *value_name(uint8_t t) {
    switch (t) {
    case 0x7f: return "i32";
    case 0x7e: return "i64";
    case 0x7d: return "f32";
    case 0x7c: return "f64";
    case 0x7b: return "v128";
    case 0x70: return "funcref";
    default: return NULL;
    }
}

static realm_status get_values(reader *r, const uint8_t **out, uint32_t *n) {
    realm_status st = get_count(r, REALM_MODULE_VALUES_MAX, "values in a function type", n);
    if (st) return st;
    *out = r->at;
    for (uint32_t i = 0; i < *n; i++, r->at++)
        if (!value_name(*r->at))
            return bad(r, REALM_E_UNSUPPORTED,
                       "a value type that is not supported (there are i32, i64, f32, f64, v128, funcref)");
    return REALM_OK;
}

static realm_status read_types(reader *r) {
    realm_status st = get_count(r, REALM_MODULE_TYPES_MAX, "types", &r->n_types);
    if (st) return st;
    r->types = realm_arena_array(r->arena, r->n_types, sizeof *r->types);
    if (!r->types) return out_of_memory(r);
    for (uint32_t i = 0; i < r->n_types; i++) {
        uint8_t form = 0;
        functype *t = &r->types[i];
        if ((st = get_byte(r, &form))) return st;
        if (form != 0x60) return bad(r, REALM_E_UNSUPPORTED, "a type that is not a function type");
        if ((st = get_values(r, &t->params, &t->n_params))) return st;
        if ((st = get_values(r, &t->results, &t->n_results))) return st;
    }
    return REALM_OK;
}

static const char *type_text(reader *r, const functype *t) {
    realm_buf b;
    realm_buf_init(&b, 2048);
    realm_buf_puts(&b, "func(");
    for (uint32_t i = 0; i < t->n_params; i++) realm_buf_printf(&b, "%s%s", i ? ", " : "", value_name(t->params[i]));
    realm_buf_putc(&b, ')');
    for (uint32_t i = 0; i < t->n_results; i++)
        realm_buf_printf(&b, "%s%s", i ? ", " : " -> ", value_name(t->results[i]));
    char *s = realm_buf_status(&b) ? NULL : realm_arena_strndup(r->arena, b.data, b.len);
    realm_buf_release(&b);
    return s;
}

/* What a letter of realm_import.params or its result is in the file. */
static uint8_t letter_value(char c, bool wide) {
    switch (c) {
    case 'p': return wide ? 0x7e : 0x7f;
    case 'l': return 0x7e;
    case 'f': return 0x7d;
    case 'd': return 0x7c;
    default: return 0x7f;
    }
}

static bool import_matches(const realm_import *im, const functype *t) {
    uint32_t n_results = im->result == 'v' ? 0 : 1;
    if (t->n_results != n_results || t->n_params != strlen(im->params)) return false;
    if (n_results && t->results[0] != letter_value(im->result, im->wide)) return false;
    for (uint32_t i = 0; i < t->n_params; i++)
        if (t->params[i] != letter_value(im->params[i], im->wide)) return false;
    return true;
}

static const char *import_text(const realm_import *im, char *out, size_t cap) {
    size_t n = (size_t)snprintf(out, cap, "func(");
    for (size_t i = 0; im->params[i] && n < cap; i++)
        n += (size_t)snprintf(out + n, cap - n, "%s%s", i ? ", " : "",
                              value_name(letter_value(im->params[i], im->wide)));
    if (n < cap && im->result == 'v')
        snprintf(out + n, cap - n, ")");
    else if (n < cap)
        snprintf(out + n, cap - n, ") -> %s", value_name(letter_value(im->result, im->wide)));
    return out;
}

static realm_status check_import(reader *r, const realm_program_item *item, const functype *t) {
    char mod[80], name[80], want[160];
    realm_escape(mod, sizeof mod, item->module, strlen(item->module));
    realm_escape(name, sizeof name, item->name, strlen(item->name));
    bool module_known = false;
    for (size_t i = 0; i < r->n_table; i++) {
        const realm_import *im = &r->table[i];
        if (strcmp(im->module, item->module)) continue;
        module_known = true;
        if (strcmp(im->name, item->name)) continue;
        if (import_matches(im, t)) return REALM_OK;
        return realm_error_set(r->err, REALM_E_UNSUPPORTED, "import %s.%s has the type %s, it must be %s", mod, name,
                               item->type, import_text(im, want, sizeof want));
    }
    if (module_known)
        return realm_error_set(r->err, REALM_E_UNSUPPORTED, "import %s.%s: there is no such function", mod, name);
    return realm_error_set(r->err, REALM_E_UNSUPPORTED, "import %s.%s: there is no import module of this name", mod,
                           name);
}

static realm_status read_imports(reader *r) {
    uint32_t n = 0;
    realm_status st = get_count(r, REALM_MODULE_IMPORTS_MAX, "imports", &n);
    if (st) return st;
    r->m->imports = realm_arena_array(r->arena, n, sizeof *r->m->imports);
    r->func_types = realm_arena_array(r->arena, n, sizeof *r->func_types);
    if (!r->m->imports || !r->func_types) return out_of_memory(r);
    for (uint32_t i = 0; i < n; i++) {
        realm_program_item *item = &r->m->imports[i];
        uint8_t kind = 0;
        uint32_t type = 0;
        if ((st = get_name(r, &item->module)) || (st = get_name(r, &item->name)) || (st = get_byte(r, &kind)))
            return st;
        if (kind != KIND_FUNC) {
            char mod[80], name[80];
            return realm_error_set(r->err, REALM_E_UNSUPPORTED, "import %s.%s: a %s cannot be imported, only functions",
                                   realm_escape(mod, sizeof mod, item->module, strlen(item->module)),
                                   realm_escape(name, sizeof name, item->name, strlen(item->name)),
                                   kind < KIND_N ? KIND_NAMES[kind] : "thing of unknown kind");
        }
        if ((st = get_u32(r, &type))) return st;
        if (type >= r->n_types) return bad(r, REALM_E_FORMAT, "a type that does not exist");
        if (!(item->type = type_text(r, &r->types[type]))) return out_of_memory(r);
        if ((st = check_import(r, item, &r->types[type]))) return st;
        r->func_types[r->n_imported_funcs++] = type;
        r->m->n_imports++;
    }
    r->n_funcs = r->n_imported_funcs;
    return REALM_OK;
}

static realm_status read_functions(reader *r) {
    uint32_t n = 0;
    realm_status st = get_count(r, REALM_MODULE_FUNCTIONS_MAX, "functions", &n);
    if (st) return st;
    uint32_t *all = realm_arena_array(r->arena, (size_t)r->n_imported_funcs + n, sizeof *all);
    if (!all) return out_of_memory(r);
    if (r->n_imported_funcs) memcpy(all, r->func_types, r->n_imported_funcs * sizeof *all);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t type = 0;
        if ((st = get_u32(r, &type))) return st;
        if (type >= r->n_types) return bad(r, REALM_E_FORMAT, "a type that does not exist");
        all[r->n_imported_funcs + i] = type;
    }
    r->func_types = all;
    r->n_funcs = r->n_imported_funcs + n;
    r->m->n_functions = n;
    return REALM_OK;
}

/* Limits of a memory or table: flags, least, and the most where bit 0 is set. */
static realm_status get_limits(reader *r, uint8_t *flags, uint64_t *least, uint64_t *most) {
    realm_status st = get_byte(r, flags);
    if (st) return st;
    if (*flags & ~7u) return bad(r, REALM_E_UNSUPPORTED, "custom page sizes are not supported");
    if (*flags & 2u) return bad(r, REALM_E_UNSUPPORTED, "shared memory is not supported");
    *most = 0;
    if ((st = get_leb(r, *flags & 4u ? 64 : 32, least))) return st;
    return *flags & 1u ? get_leb(r, *flags & 4u ? 64 : 32, most) : REALM_OK;
}

static realm_status read_tables(reader *r) {
    realm_status st = get_count(r, 2, "tables", &r->n_tables);
    for (uint32_t i = 0; !st && i < r->n_tables; i++) {
        uint8_t type = 0, flags = 0;
        uint64_t least = 0, most = 0;
        if ((st = get_byte(r, &type))) return st;
        if (type != 0x70) return bad(r, REALM_E_UNSUPPORTED, "a table of anything but funcref");
        if ((st = get_limits(r, &flags, &least, &most))) return st;
        if (least > REALM_MODULE_TABLE_MAX)
            return realm_error_set(r->err, REALM_E_LIMIT,
                                   "the module's table section: %llu elements, at most %u are allowed",
                                   (unsigned long long)least, REALM_MODULE_TABLE_MAX);
    }
    return st;
}

static realm_status read_memories(reader *r) {
    realm_status st = get_count(r, 1, "memories", &r->n_memories);
    if (st || !r->n_memories) return st;
    uint8_t flags = 0;
    realm_module *m = r->m;
    if ((st = get_limits(r, &flags, &m->memory_min_pages, &m->memory_max_pages))) return st;
    m->memory64 = (flags & 4u) != 0;
    if (m->memory_min_pages > r->max_memory_bytes / REALM_WASM_PAGE)
        return realm_error_set(
            r->err, REALM_E_LIMIT,
            "the module's memory section: starts with %llu pages of 64 KiB, the limit of memory_bytes "
            "allows %llu",
            (unsigned long long)m->memory_min_pages, (unsigned long long)(r->max_memory_bytes / REALM_WASM_PAGE));
    return REALM_OK;
}

static realm_status read_exports(reader *r) {
    uint32_t n = 0;
    realm_status st = get_count(r, REALM_MODULE_EXPORTS_MAX, "exports", &n);
    if (st) return st;
    r->m->exports = realm_arena_array(r->arena, n, sizeof *r->m->exports);
    if (!r->m->exports) return out_of_memory(r);
    for (uint32_t i = 0; i < n; i++) {
        realm_program_item *item = &r->m->exports[i];
        uint8_t kind = 0;
        uint32_t index = 0;
        if ((st = get_name(r, &item->name)) || (st = get_byte(r, &kind)) || (st = get_u32(r, &index))) return st;
        if (kind >= KIND_N) return bad(r, REALM_E_FORMAT, "an export of unknown kind");
        item->type = KIND_NAMES[kind];
        if (kind == KIND_FUNC) {
            if (index >= r->n_funcs) return bad(r, REALM_E_FORMAT, "an export of a function that does not exist");
            if (!(item->type = type_text(r, &r->types[r->func_types[index]]))) return out_of_memory(r);
        }
        r->m->n_exports++;
    }
    return REALM_OK;
}

static realm_status read_custom(reader *r) {
    static const char NAME[] = REALM_ABI_SECTION;
    uint32_t n = 0;
    realm_status st = get_u32(r, &n);
    if (st) return st;
    if (n > (size_t)(r->end - r->at)) return bad(r, REALM_E_FORMAT, "the name runs past the end");
    bool ours = n == sizeof NAME - 1 && !memcmp(r->at, NAME, n);
    r->at += n;
    if (ours) {
        if (r->end - r->at < 4) return bad(r, REALM_E_FORMAT, "realm.abi must hold four bytes");
        r->m->abi = (uint32_t)r->at[0] | (uint32_t)r->at[1] << 8 | (uint32_t)r->at[2] << 16 | (uint32_t)r->at[3] << 24;
    }
    r->at = r->end;
    return REALM_OK;
}

static realm_status read_section(reader *r, unsigned id) {
    realm_status st = REALM_OK;
    switch (id) {
    case SEC_CUSTOM: return read_custom(r);
    case SEC_TYPE: st = read_types(r); break;
    case SEC_IMPORT: st = read_imports(r); break;
    case SEC_FUNCTION: st = read_functions(r); break;
    case SEC_TABLE: st = read_tables(r); break;
    case SEC_MEMORY: st = read_memories(r); break;
    case SEC_EXPORT: st = read_exports(r); break;
    case SEC_TAG: return bad(r, REALM_E_UNSUPPORTED, "exceptions are not supported");
    default: r->at = r->end; break; /* the compiler's to validate */
    }
    if (!st && r->at != r->end) return bad(r, REALM_E_FORMAT, "longer than its content");
    return st;
}

static const realm_program_item *find_export(const realm_module *m, const char *name) {
    for (size_t i = 0; i < m->n_exports; i++)
        if (!strcmp(m->exports[i].name, name)) return &m->exports[i];
    return NULL;
}

/* An exported function by name, of the expected type: 1 there, 0 absent, -1 of another type (err is set). */
static int has_function(reader *r, const char *name, const char *type) {
    const realm_program_item *e = find_export(r->m, name);
    if (!e) return 0;
    if (!strcmp(e->type, type)) return 1;
    realm_error_set(r->err, REALM_E_UNSUPPORTED, "export %s is a %s, it must be %s", name, e->type, type);
    return -1;
}

static realm_status find_entry(reader *r) {
    realm_module *m = r->m;
    const realm_program_item *memory = find_export(m, "memory");
    if (!memory || strcmp(memory->type, "memory"))
        return realm_error_set(r->err, REALM_E_UNSUPPORTED, "the module must export its memory as \"memory\"");
    int init_there = has_function(r, "_initialize", "func()");
    if (init_there < 0) return REALM_E_UNSUPPORTED;
    m->has_init = init_there > 0;
    int main_there = has_function(r, "realm_main", "func() -> i32");
    int new_there = has_function(r, "realm_new", "func() -> i32");
    int generate_there = has_function(
        r, "generate", m->memory64 ? "func(i64, i64, i32, i64) -> i64" : "func(i32, i32, i32, i32) -> i32");
    int alloc_there = has_function(r, "realm_alloc", m->memory64 ? "func(i64) -> i64" : "func(i32) -> i32");
    if (main_there > 0) {
        m->kind = REALM_PROGRAM_MAIN;
        realm_error_clear(r->err);
        return REALM_OK;
    }
    if (main_there < 0 || new_there < 0 || generate_there < 0 || alloc_there < 0) return REALM_E_UNSUPPORTED;
    m->has_alloc = alloc_there != 0;
    if (new_there && generate_there) {
        m->kind = REALM_PROGRAM_GENERATE;
        return REALM_OK;
    }
    int start_there = has_function(r, "_start", "func()");
    if (start_there < 0) return REALM_E_UNSUPPORTED;
    if (start_there && !new_there && !generate_there) {
        m->kind = REALM_PROGRAM_COMMAND;
        m->has_init = false; /* a module is one or the other; _start does all */
        return REALM_OK;
    }
    if (new_there || generate_there)
        return realm_error_set(r->err, REALM_E_UNSUPPORTED, "the module exports %s but not %s",
                               new_there ? "realm_new" : "generate", new_there ? "generate" : "realm_new");
    return realm_error_set(r->err, REALM_E_UNSUPPORTED,
                           "the module exports no entry point: neither realm_main, nor realm_new and generate, nor "
                           "_start");
}

realm_status realm_module_read(realm_module *out, realm_arena *arena, const void *wasm, size_t len,
                               const realm_import *imports, size_t n_imports, uint64_t max_memory_bytes,
                               uint32_t abi_major, realm_error *err) {
    static const uint8_t HEAD[8] = {0, 'a', 's', 'm', 1, 0, 0, 0};
    memset(out, 0, sizeof *out);
    const uint8_t *file = wasm;
    if (len > REALM_MODULE_BYTES_MAX)
        return realm_error_set(err, REALM_E_LIMIT, "the module has %zu bytes, at most %u are allowed", len,
                               REALM_MODULE_BYTES_MAX);
    if (len < sizeof HEAD || memcmp(file, HEAD, 4))
        return realm_error_set(err, REALM_E_FORMAT, "not a WebAssembly module: it does not start with \\0asm");
    if (memcmp(file, HEAD, sizeof HEAD))
        return realm_error_set(err, REALM_E_UNSUPPORTED,
                               "not a core WebAssembly module of version 1 (components are not supported)");
    realm_error local = {0};
    reader r = {.file = file,
                .file_end = file + len,
                .at = file + 8,
                .arena = arena,
                .err = err ? err : &local,
                .table = imports,
                .n_table = n_imports,
                .max_memory_bytes = max_memory_bytes,
                .m = out};
    unsigned place = 0;
    while (r.at < r.file_end) {
        uint8_t id = *r.at++;
        uint32_t size = 0;
        r.section = id < SEC_N ? SECTION_NAMES[id] : "next";
        r.end = r.file_end;
        if (id >= SEC_N) return bad(&r, REALM_E_FORMAT, "a section of unknown kind");
        realm_status st = get_u32(&r, &size);
        if (st) return st;
        if (size > (size_t)(r.file_end - r.at)) return bad(&r, REALM_E_FORMAT, "runs past the end of the file");
        if (id != SEC_CUSTOM) {
            if (SECTION_ORDER[id] <= place) return bad(&r, REALM_E_FORMAT, "there twice or out of order");
            place = SECTION_ORDER[id];
        }
        r.end = r.at + size;
        if ((st = read_section(&r, id))) return st;
    }
    if (out->abi >> 16 > abi_major)
        return realm_error_set(err, REALM_E_UNSUPPORTED,
                               "the module needs version %u.%u of the ABI, this server has %u", out->abi >> 16,
                               out->abi & 0xffff, abi_major);
    return find_entry(&r);
}
