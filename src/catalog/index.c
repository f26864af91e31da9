/* catalog/index.c - the index: a YAML file of the operator, and those that it points to. */
#include <ctype.h>
#include <string.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/file.h"
#include "catalog/internal.h"
#include "data/data.h"

static realm_status no_memory(realm_error *err) { return realm_error_set(err, REALM_E_NOMEM, "out of memory"); }

void catalog_model_release(catalog_model *m) {
    realm_free(m->name);
    realm_free(m->description);
    realm_free(m->file);
    for (size_t i = 0; i < m->n_parts; i++) realm_free(m->parts[i].url);
    realm_free(m->parts);
    *m = (catalog_model){0};
}

void catalog_index_release(catalog_index *x) {
    catalog_origins_release(&x->origins);
    for (size_t i = 0; i < x->n_urls; i++) realm_free(x->urls[i]);
    for (size_t i = 0; i < x->n_models; i++) catalog_model_release(&x->models[i]);
    realm_free(x->models);
    *x = (catalog_index){0};
}

const catalog_model *catalog_index_find(const catalog_index *x, const char *name) {
    for (size_t i = 0; i < x->n_models; i++)
        if (strcmp(x->models[i].name, name) == 0) return &x->models[i];
    return NULL;
}

bool catalog_sha256(const char *text, char out[REALM_CATALOG_SHA256_HEX]) {
    if (strlen(text) != REALM_CATALOG_SHA256_HEX - 1) return false;
    for (size_t i = 0; i < REALM_CATALOG_SHA256_HEX - 1; i++) {
        if (!isxdigit((unsigned char)text[i])) return false;
        out[i] = (char)tolower((unsigned char)text[i]);
    }
    out[REALM_CATALOG_SHA256_HEX - 1] = '\0';
    return true;
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

typedef struct reading {
    catalog_index *x;
    const char *base;
    bool fetched;
    size_t before; /* models that were there already */
    realm_error *err;
} reading;

/* "line N: path: why" from an error of our own. */
static realm_status say(const reading *r, const realm_json *v, const realm_error *why) {
    return realm_json_error(v, why->code, r->err, "%s", why->text);
}

static realm_status read_url(const reading *r, const realm_json *v, char **out) {
    const char *text = "";
    realm_error why = {0};
    realm_status s = realm_json_cstr(v, &text, r->err);
    if (s != REALM_OK) return s;
    s = catalog_url(&r->x->origins, r->fetched ? r->base : NULL, text, out, &why);
    return s == REALM_OK ? s : say(r, v, &why);
}

static realm_status read_parts(const reading *r, const realm_json *list, catalog_model *m) {
    static const char *const known[] = {"url", "size"};
    realm_json item, v;
    realm_status s = realm_json_expect(list, REALM_JSON_ARRAY, r->err);
    if (s != REALM_OK) return s;
    size_t n = realm_json_len(list);
    if (n == 0 || n > REALM_CATALOG_PARTS_MAX)
        return realm_json_error(list, REALM_E_RANGE, r->err, "must have 1 to %u parts", REALM_CATALOG_PARTS_MAX);
    if (!(m->parts = realm_calloc(n, sizeof *m->parts))) return no_memory(r->err);
    uint64_t sum = 0;
    for (size_t i = 0; s == REALM_OK && realm_json_at(list, i, &item); i++) {
        catalog_part *p = &m->parts[m->n_parts++];
        int64_t size = 0;
        s = realm_json_only(&item, known, REALM_ARRAY_LEN(known), NULL, r->err);
        (void)realm_json_get(&item, "url", &v);
        if (s == REALM_OK) s = read_url(r, &v, &p->url);
        (void)realm_json_get(&item, "size", &v);
        if (s == REALM_OK) s = realm_json_int(&v, 1, (int64_t)REALM_CATALOG_BYTES_MAX, &size, r->err);
        p->bytes = (uint64_t)size;
        sum += p->bytes;
    }
    if (s == REALM_OK && sum > REALM_CATALOG_BYTES_MAX)
        return realm_json_error(list, REALM_E_LIMIT, r->err, "more than %llu bytes together", REALM_CATALOG_BYTES_MAX);
    if (s == REALM_OK && m->bytes && m->bytes != sum)
        return realm_json_error(list, REALM_E_INVALID, r->err, "%llu bytes together, size says %llu",
                                (unsigned long long)sum, (unsigned long long)m->bytes);
    m->bytes = sum;
    return s;
}

/* Where its bytes are: exactly one of url, parts, file. */
static realm_status read_source(const reading *r, const realm_json *item, catalog_model *m) {
    realm_json url, parts, file;
    int ways = realm_json_get_set(item, "url", &url) + realm_json_get_set(item, "parts", &parts) +
               realm_json_get_set(item, "file", &file);
    if (ways != 1) return realm_json_error(item, REALM_E_INVALID, r->err, "must have one of url, parts and file");
    if (parts.node) return read_parts(r, &parts, m);
    if (url.node) {
        if (!(m->parts = realm_calloc(1, sizeof *m->parts))) return no_memory(r->err);
        m->n_parts = 1;
        m->parts[0].bytes = m->bytes;
        return read_url(r, &url, &m->parts[0].url);
    }
    const char *path = "";
    if (r->fetched) return realm_json_error(&file, REALM_E_DENIED, r->err, "an index from elsewhere names no files");
    realm_status s = realm_json_cstr(&file, &path, r->err);
    if (s != REALM_OK) return s;
    if (!*path) return realm_json_error(&file, REALM_E_INVALID, r->err, "must not be empty");
    const char *slash = strrchr(r->base, '/');
    char *dir = realm_strndup(r->base, slash ? (size_t)(slash - r->base) + 1 : 0);
    m->file = path[0] == '/' || !dir ? realm_strdup(path) : realm_path_join(dir, path);
    realm_free(dir);
    return m->file ? REALM_OK : no_memory(r->err);
}

static realm_status read_model(const reading *r, const realm_json *item, catalog_model *m) {
    static const char *const known[] = {"name", "description", "url", "parts", "file", "sha256", "size"};
    realm_json v;
    realm_error why = {0};
    const char *text = "";
    int64_t size = 0;
    realm_status s = realm_json_only(item, known, REALM_ARRAY_LEN(known), NULL, r->err);
    (void)realm_json_get(item, "name", &v);
    if (s == REALM_OK) s = realm_json_cstr(&v, &text, r->err);
    if (s == REALM_OK && realm_catalog_check_name(text, &why) != REALM_OK) s = say(r, &v, &why);
    if (s == REALM_OK && !(m->name = realm_strdup(text))) s = no_memory(r->err);
    text = NULL;
    if (s == REALM_OK) s = realm_json_opt_cstr(item, "description", &text, r->err);
    if (s == REALM_OK && text && !(m->description = realm_strdup(text))) s = no_memory(r->err);
    if (s == REALM_OK) s = realm_json_opt_int(item, "size", 1, (int64_t)REALM_CATALOG_BYTES_MAX, &size, r->err);
    m->bytes = (uint64_t)size;
    text = "";
    if (realm_json_get_set(item, "sha256", &v)) {
        if (s == REALM_OK) s = realm_json_cstr(&v, &text, r->err);
        if (s == REALM_OK && !catalog_sha256(text, m->sha256))
            s = realm_json_error(&v, REALM_E_INVALID, r->err, "must be 64 hexadecimal digits");
    }
    if (s == REALM_OK) s = read_source(r, item, m);
    if (s == REALM_OK && !m->file && !m->sha256[0])
        s = realm_json_error(&v, REALM_E_NOT_FOUND, r->err, "is required with url and parts");
    return s;
}

static realm_status read_models(const reading *r, const realm_json *root) {
    catalog_index *x = r->x;
    realm_json list, item;
    if (!realm_json_get_set(root, "models", &list)) return REALM_OK;
    realm_status s = realm_json_expect(&list, REALM_JSON_ARRAY, r->err);
    if (s == REALM_OK && !x->models && !(x->models = realm_calloc(REALM_CATALOG_MODELS_MAX, sizeof *x->models)))
        s = no_memory(r->err);
    for (size_t i = 0; s == REALM_OK && realm_json_at(&list, i, &item); i++) {
        if (x->n_models == REALM_CATALOG_MODELS_MAX)
            return realm_json_error(&item, REALM_E_LIMIT, r->err, "more than %u models", REALM_CATALOG_MODELS_MAX);
        catalog_model m = {0};
        s = read_model(r, &item, &m);
        const catalog_model *same = s == REALM_OK ? catalog_index_find(x, m.name) : NULL;
        if (same && same >= x->models + r->before)
            s = realm_json_error(&item, REALM_E_EXISTS, r->err, "%s stands above already", m.name);
        if (s != REALM_OK || same)
            catalog_model_release(&m);
        else
            x->models[x->n_models++] = m;
    }
    return s;
}

static realm_status read_list(const reading *r, const realm_json *root, const char *key,
                              realm_status (*take)(const reading *r, const realm_json *v)) {
    realm_json list, v;
    if (!realm_json_get_set(root, key, &list)) return REALM_OK;
    realm_status s = realm_json_expect(&list, REALM_JSON_ARRAY, r->err);
    for (size_t i = 0; s == REALM_OK && realm_json_at(&list, i, &v); i++) s = take(r, &v);
    return s;
}

static realm_status take_origin(const reading *r, const realm_json *v) {
    const char *text = "";
    realm_error why = {0};
    realm_status s = realm_json_cstr(v, &text, r->err);
    if (s == REALM_OK && catalog_origins_add(&r->x->origins, text, &why) != REALM_OK) s = say(r, v, &why);
    if (s == REALM_OK && r->x->origins.n > REALM_CATALOG_ORIGINS_MAX) /* one more has room: that of `--from` */
        s = realm_json_error(v, REALM_E_LIMIT, r->err, "more than %u origins", REALM_CATALOG_ORIGINS_MAX);
    return s;
}

static realm_status take_index(const reading *r, const realm_json *v) {
    catalog_index *x = r->x;
    if (x->n_urls == REALM_ARRAY_LEN(x->urls))
        return realm_json_error(v, REALM_E_LIMIT, r->err, "more than %zu indexes", REALM_ARRAY_LEN(x->urls));
    realm_status s = read_url(r, v, &x->urls[x->n_urls]);
    if (s == REALM_OK) x->n_urls++;
    return s;
}

realm_status catalog_index_add(catalog_index *x, const char *text, size_t len, const char *base, bool fetched,
                               realm_error *err) {
    static const char *const known[] = {"models", "origins", "indexes"};
    reading r = {x, base, fetched, x->n_models, err};
    realm_json_doc *doc;
    realm_status s = realm_yaml_parse(&doc, text, len, err);
    if (s != REALM_OK) return s;
    realm_json root = realm_json_root(doc);
    s = realm_json_only(&root, known, fetched ? 1 : REALM_ARRAY_LEN(known), NULL, err);
    if (s == REALM_OK && !fetched) s = read_list(&r, &root, "origins", take_origin);
    if (s == REALM_OK && !fetched) s = read_list(&r, &root, "indexes", take_index);
    if (s == REALM_OK) s = read_models(&r, &root);
    if (s != REALM_OK)
        while (x->n_models > r.before) catalog_model_release(&x->models[--x->n_models]);
    realm_json_doc_close(doc);
    return s;
}

/* ---- fetching ---------------------------------------------------------------------------------------------------- */

static realm_status index_begin(void *user, uint64_t at, uint64_t total, realm_error *err) {
    (void)user;
    (void)at;
    if (total <= REALM_CATALOG_INDEX_MAX) return REALM_OK;
    return realm_error_set(err, REALM_E_LIMIT, "%llu bytes, an index has at most %u", (unsigned long long)total,
                           REALM_CATALOG_INDEX_MAX);
}

static realm_status index_take(void *user, const void *data, size_t len, realm_error *err) {
    realm_status s = realm_buf_append(user, data, len);
    if (s == REALM_OK) return s;
    return realm_error_set(err, s, "an index has at most %u bytes", REALM_CATALOG_INDEX_MAX);
}

realm_status catalog_index_fetch(catalog_index *x, realm_error *err) {
    realm_status first = REALM_OK;
    for (; x->n_fetched < x->n_urls; x->n_fetched++) {
        const char *url = x->urls[x->n_fetched];
        realm_error why = {0};
        realm_buf text;
        realm_buf_init(&text, REALM_CATALOG_INDEX_MAX);
        catalog_sink sink = {index_begin, index_take, &text};
        realm_status s = catalog_fetch(&x->origins, url, 0, &sink, NULL, &why);
        if (s == REALM_OK && (s = catalog_index_add(x, text.data ? text.data : "", text.len, url, true, &why)))
            realm_error_prefix(&why, "%s", url);
        realm_buf_release(&text);
        if (s == REALM_OK || first != REALM_OK) continue;
        first = s;
        if (err) *err = why;
    }
    return first;
}
