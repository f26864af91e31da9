/* gguf/describe.c - what a model file is, from its header: for people, and as JSON.
 *
 * Everything is gathered into one `summary` and then printed from there, so that both forms say the same. The
 * file is untrusted: every byte of it passes realm_escape, sums are checked, lists that a file can make long (metadata,
 * distinct tensor shapes) are cut at a named length and say how many more there are.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "gguf/internal.h"

#define MAX_SHAPES 64u    /* distinct (name without layer number, type, dimensions) */
#define MAX_LISTED 1024u  /* metadata keys */
#define MAX_ELEMENTS 6u   /* of an array */
#define SHOWN_BYTES 121u  /* of a string value, with the final NUL */
#define ELEMENT_BYTES 41u /* of a string in an array */
#define TYPE_NUMBERS 64u

/* A hyperparameter that may be absent, or an array with one number per layer (then `sum` is over the layers and
 * `value` the largest). */
typedef struct count {
    bool known, per_layer;
    uint64_t value, sum;
} count;

typedef struct shape {
    const realm_gguf_tensor *first;
    uint64_t n;
} shape;

typedef struct summary {
    char arch[REALM_GGUF_MAX_ARCHITECTURE + 1];
    count layers, context, embedding, feed_forward, heads, kv_heads, key_length, value_length, vocab;
    uint64_t parameters, tensor_bytes; /* saturating */
    uint64_t least_weight_bytes;       /* 0: not known */
    struct {
        uint64_t n, parameters, bytes;
    } types[TYPE_NUMBERS];
    shape shapes[MAX_SHAPES];
    size_t n_shapes;
    uint64_t n_unlisted; /* tensors of further shapes */
    bool kv_known;
    uint64_t kv_bytes_per_token;
    bool kv_full_known;
    uint64_t kv_bytes_full;
} summary;

static uint64_t add_saturating(uint64_t a, uint64_t b) {
    uint64_t r;
    return realm_add_u64(a, b, &r) ? r : UINT64_MAX;
}

static uint64_t n_values(const realm_gguf_tensor *t) { /* cannot overflow: checked on open */
    return t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3];
}

static count read_count(const realm_gguf *g, const char *arch, const char *name) {
    char key[REALM_GGUF_MAX_ARCHITECTURE + 64];
    count c = {0};
    uint32_t n = 0;
    (void)snprintf(key, sizeof key, "%s.%s", arch, name);
    const realm_gguf_value *v = realm_gguf_find(g, key);
    if (!v) return c;
    if (v->type == REALM_GGUF_ARRAY && realm_gguf_scalar_bytes(v->element) > 0) {
        c.known = c.per_layer = true;
        for (uint64_t i = 0; i < v->n; i++) {
            int64_t e = realm_gguf_array_i64(v, i);
            uint64_t u = e > 0 ? (uint64_t)e : 0;
            c.sum = add_saturating(c.sum, u);
            c.value = REALM_MAX(c.value, u);
        }
    } else if (realm_gguf_get_u32(g, key, true, &n, NULL) == REALM_OK) {
        c.known = true;
        c.value = n;
    }
    return c;
}

/* "blk.12.attn_q.weight" without the number: how much is before and from where it goes on. */
static void split_name(const realm_gguf_tensor *t, size_t *before, size_t *after) {
    *before = *after = 0;
    if (t->name.len < 5 || memcmp(t->name.data, "blk.", 4) != 0) return;
    size_t i = 4;
    while (i < t->name.len && t->name.data[i] >= '0' && t->name.data[i] <= '9') i++;
    if (i == 4) return;
    *before = 4;
    *after = i;
}

static bool same_shape(const realm_gguf_tensor *a, const realm_gguf_tensor *b) {
    size_t a_before, a_after, b_before, b_after;
    if (a->type != b->type || memcmp(a->dims, b->dims, sizeof a->dims) != 0) return false;
    split_name(a, &a_before, &a_after);
    split_name(b, &b_before, &b_after);
    size_t rest = a->name.len - a_after;
    return a_before == b_before && rest == b->name.len - b_after &&
           memcmp(a->name.data + a_after, b->name.data + b_after, rest) == 0;
}

static void add_tensor(summary *s, const realm_gguf_tensor *t) {
    size_t number = (size_t)t->type->type, i = 0;
    s->parameters = add_saturating(s->parameters, n_values(t));
    s->tensor_bytes = add_saturating(s->tensor_bytes, t->n_bytes);
    if (number < TYPE_NUMBERS) {
        s->types[number].n++;
        s->types[number].parameters = add_saturating(s->types[number].parameters, n_values(t));
        s->types[number].bytes = add_saturating(s->types[number].bytes, t->n_bytes);
    }
    while (i < s->n_shapes && !same_shape(s->shapes[i].first, t)) i++;
    if (i == MAX_SHAPES) {
        s->n_unlisted++;
        return;
    }
    if (i == s->n_shapes) s->shapes[s->n_shapes++] = (shape){.first = t};
    s->shapes[i].n++;
}

/* A key and a value of each KV head in each layer, two bytes a number. */
static void derive_kv(summary *s) {
    const count *kv = s->kv_heads.known ? &s->kv_heads : &s->heads;
    uint64_t head = s->heads.value && s->embedding.known ? s->embedding.value / s->heads.value : 0, all_heads, numbers;
    uint64_t k = s->key_length.known ? s->key_length.value : head;
    uint64_t v = s->value_length.known ? s->value_length.value : head;
    if (!s->layers.known || !kv->known || k == 0 || v == 0) return;
    all_heads = kv->sum;
    if (!kv->per_layer && !realm_mul_u64(kv->value, s->layers.value, &all_heads)) return;
    s->kv_known = realm_add_u64(k, v, &numbers) && realm_mul_u64(numbers, all_heads, &numbers) &&
                  realm_mul_u64(numbers, 2, &s->kv_bytes_per_token);
    s->kv_full_known =
        s->kv_known && s->context.known && realm_mul_u64(s->kv_bytes_per_token, s->context.value, &s->kv_bytes_full);
}

static void summarise(const realm_gguf *g, summary *s) {
    *s = (summary){0};
    for (size_t i = 0; i < g->n_tensors; i++) add_tensor(s, &g->tensors[i]);
    if (!realm_gguf_architecture(g, s->arch)) return;
    s->layers = read_count(g, s->arch, "block_count");
    s->context = read_count(g, s->arch, "context_length");
    s->embedding = read_count(g, s->arch, "embedding_length");
    s->feed_forward = read_count(g, s->arch, "feed_forward_length");
    s->heads = read_count(g, s->arch, "attention.head_count");
    s->kv_heads = read_count(g, s->arch, "attention.head_count_kv");
    s->key_length = read_count(g, s->arch, "attention.key_length");
    s->value_length = read_count(g, s->arch, "attention.value_length");
    s->vocab = read_count(g, s->arch, "vocab_size");
    const realm_gguf_value *tokens = realm_gguf_find(g, "tokenizer.ggml.tokens");
    if (!s->vocab.known && tokens) s->vocab = (count){.known = true, .value = realm_gguf_array_len(tokens)};
    derive_kv(s);
}

/* --- pieces that both forms share -------------------------------------------------------------------------------- */

/* Bytes of the file as text, cut to `shown` - 1 bytes; quoted and escaped once more for JSON. */
static void put_text(realm_buf *b, bool json, const char *data, size_t len, size_t shown) {
    char text[2 * REALM_GGUF_MAX_NAME];
    realm_escape(text, REALM_MIN(shown, sizeof text), data, len);
    if (!json) {
        (void)realm_buf_puts(b, text);
        return;
    }
    (void)realm_buf_putc(b, '"');
    for (const char *p = text; *p; p++) {
        if (*p == '"' || *p == '\\') (void)realm_buf_putc(b, '\\');
        (void)realm_buf_putc(b, *p);
    }
    (void)realm_buf_putc(b, '"');
}

/* A string value by key; false when absent or of another type. */
static bool put_key_text(realm_buf *b, bool json, const realm_gguf *g, const char *key) {
    realm_gguf_str s = {0};
    const realm_gguf_value *v = realm_gguf_find(g, key);
    if (!v || realm_gguf_get_str(g, key, true, &s, NULL) != REALM_OK) return false;
    put_text(b, json, s.data, s.len, SHOWN_BYTES);
    return true;
}

/* JSON has no NaN and no infinity: they become strings. */
static void put_float(realm_buf *b, bool json, double d, int digits) {
    const char *quote = json && !isfinite(d) ? "\"" : "";
    (void)realm_buf_printf(b, "%s%.*g%s", quote, digits, d, quote);
}

static void put_scalar(realm_buf *b, bool json, realm_gguf_value_type type, const unsigned char *p) {
    realm_gguf_value one = {.type = REALM_GGUF_ARRAY, .element = type, .n = 1, .data = p};
    uint64_t u;
    if (type == REALM_GGUF_F32 || type == REALM_GGUF_F64) {
        put_float(b, json, realm_gguf_array_f64(&one, 0), type == REALM_GGUF_F32 ? 9 : 17);
    } else if (type == REALM_GGUF_BOOL) {
        (void)realm_buf_puts(b, p[0] ? "true" : "false");
    } else if (type == REALM_GGUF_U64) {
        memcpy(&u, p, sizeof u);
        (void)realm_buf_printf(b, "%" PRIu64, u);
    } else {
        (void)realm_buf_printf(b, "%" PRId64, realm_gguf_array_i64(&one, 0));
    }
}

/* The first few elements, separated by commas; nothing for nested arrays. */
static void put_elements(realm_buf *b, bool json, const realm_gguf_value *v) {
    realm_gguf_iter it;
    realm_gguf_str s;
    uint64_t n = REALM_MIN(v->n, (uint64_t)MAX_ELEMENTS);
    size_t bytes = realm_gguf_scalar_bytes(v->element);
    realm_gguf_iter_init(&it, v);
    for (uint64_t i = 0; i < n; i++) {
        if (v->element == REALM_GGUF_STRING ? !realm_gguf_iter_next(&it, &s) : bytes == 0) return;
        if (i) (void)realm_buf_puts(b, ", ");
        if (v->element == REALM_GGUF_STRING)
            put_text(b, true, s.data, s.len, ELEMENT_BYTES); /* quoted in both forms: tokens have spaces */
        else
            put_scalar(b, json, v->element, v->data + i * bytes);
    }
}

/* A tensor's name with the layer number of a group shown as '*'. */
static void put_shape_name(realm_buf *b, bool json, const shape *s) {
    char name[REALM_GGUF_MAX_NAME + 1];
    size_t before, after, rest;
    split_name(s->first, &before, &after);
    if (s->n < 2 || after == 0) {
        put_text(b, json, s->first->name.data, s->first->name.len, ELEMENT_BYTES * 3);
        return;
    }
    rest = s->first->name.len - after;
    memcpy(name, s->first->name.data, before);
    name[before] = '*';
    memcpy(name + before + 1, s->first->name.data + after, rest);
    put_text(b, json, name, before + 1 + rest, ELEMENT_BYTES * 3);
}

/* --- JSON -------------------------------------------------------------------------------------------------------- */

static void json_text(realm_buf *b, const char *name, const realm_gguf *g, const char *key) {
    (void)realm_buf_printf(b, ",\"%s\":", name);
    if (!put_key_text(b, true, g, key)) (void)realm_buf_puts(b, "null");
}

static void json_number(realm_buf *b, const char *name, bool known, uint64_t v) {
    if (known)
        (void)realm_buf_printf(b, ",\"%s\":%" PRIu64, name, v);
    else
        (void)realm_buf_printf(b, ",\"%s\":null", name);
}

static void json_id(realm_buf *b, const char *name, const realm_gguf *g, const char *key) {
    uint32_t id = 0;
    bool known = realm_gguf_get_u32(g, key, true, &id, NULL) == REALM_OK;
    json_number(b, name, known, id);
}

static void json_tensors(realm_buf *b, const realm_gguf *g, const summary *s) {
    const char *comma = "";
    (void)realm_buf_printf(b, ",\"tensors\":{\"count\":%zu,\"bytes\":%" PRIu64 ",\"types\":[", g->n_tensors,
                           s->tensor_bytes);
    for (uint32_t i = 0; i < TYPE_NUMBERS; i++) {
        if (s->types[i].n == 0) continue;
        (void)realm_buf_printf(
            b, "%s{\"type\":\"%s\",\"count\":%" PRIu64 ",\"parameters\":%" PRIu64 ",\"bytes\":%" PRIu64 "}", comma,
            realm_type_get(i)->name, s->types[i].n, s->types[i].parameters, s->types[i].bytes);
        comma = ",";
    }
    (void)realm_buf_puts(b, "],\"shapes\":[");
    for (size_t i = 0; i < s->n_shapes; i++) {
        const realm_gguf_tensor *t = s->shapes[i].first;
        (void)realm_buf_puts(b, i ? ",{\"name\":" : "{\"name\":");
        put_shape_name(b, true, &s->shapes[i]);
        (void)realm_buf_printf(b, ",\"type\":\"%s\",\"count\":%" PRIu64 ",\"dims\":[", t->type->name, s->shapes[i].n);
        for (uint32_t d = 0; d < t->n_dims; d++) (void)realm_buf_printf(b, d ? ",%" PRIu64 : "%" PRIu64, t->dims[d]);
        (void)realm_buf_printf(b, "],\"bytes\":%" PRIu64 "}", t->n_bytes);
    }
    (void)realm_buf_printf(b, "],\"more\":%" PRIu64 "}", s->n_unlisted);
}

static void json_metadata(realm_buf *b, const realm_gguf *g) {
    size_t n = REALM_MIN(g->n_entries, (size_t)MAX_LISTED);
    (void)realm_buf_puts(b, ",\"metadata\":[");
    for (size_t i = 0; i < n; i++) {
        const realm_gguf_entry *e = &g->entries[i];
        const realm_gguf_value *v = &e->value;
        (void)realm_buf_puts(b, i ? ",{\"key\":" : "{\"key\":");
        put_text(b, true, e->key.data, e->key.len, 2 * REALM_GGUF_MAX_NAME);
        (void)realm_buf_printf(b, ",\"type\":\"%s\"", realm_gguf_type_name(v->type));
        if (v->type == REALM_GGUF_ARRAY) {
            (void)realm_buf_printf(b, ",\"element\":\"%s\",\"length\":%" PRIu64 ",\"first\":[",
                                   realm_gguf_type_name(v->element), v->n);
            put_elements(b, true, v);
            (void)realm_buf_putc(b, ']');
        } else if (v->type == REALM_GGUF_STRING) {
            (void)realm_buf_printf(b, ",\"length\":%" PRIu64 ",\"value\":", v->n);
            put_text(b, true, (const char *)v->data, (size_t)v->n, SHOWN_BYTES);
        } else {
            (void)realm_buf_puts(b, ",\"value\":");
            put_scalar(b, true, v->type, v->data);
        }
        (void)realm_buf_putc(b, '}');
    }
    (void)realm_buf_printf(b, "],\"metadata_more\":%zu", g->n_entries - n);
}

static void describe_json(realm_buf *b, const realm_gguf *g, const summary *s, uint64_t template_bytes) {
    const realm_gguf_value *tokens = realm_gguf_find(g, "tokenizer.ggml.tokens");
    (void)realm_buf_printf(b, "{\"format\":\"gguf\",\"version\":%u,\"file_bytes\":%zu,\"alignment\":%" PRIu64,
                           g->version, g->size, g->alignment);
    json_text(b, "architecture", g, "general.architecture");
    json_text(b, "name", g, "general.name");
    json_number(b, "parameters", true, s->parameters);
    json_number(b, "block_count", s->layers.known, s->layers.value);
    json_number(b, "context_length", s->context.known, s->context.value);
    json_number(b, "embedding_length", s->embedding.known, s->embedding.value);
    json_number(b, "feed_forward_length", s->feed_forward.known, s->feed_forward.value);
    json_number(b, "head_count", s->heads.known, s->heads.value);
    json_number(b, "head_count_kv", s->kv_heads.known, s->kv_heads.value);
    json_number(b, "key_length", s->key_length.known, s->key_length.value);
    json_number(b, "value_length", s->value_length.known, s->value_length.value);
    json_number(b, "vocab_size", s->vocab.known, s->vocab.value);
    (void)realm_buf_printf(b, ",\"tokenizer\":{\"tokens\":%" PRIu64, tokens ? realm_gguf_array_len(tokens) : 0);
    json_text(b, "model", g, "tokenizer.ggml.model");
    json_text(b, "pre", g, "tokenizer.ggml.pre");
    json_id(b, "bos_token_id", g, "tokenizer.ggml.bos_token_id");
    json_id(b, "eos_token_id", g, "tokenizer.ggml.eos_token_id");
    (void)realm_buf_printf(b, "},\"chat_template\":{\"present\":%s,\"bytes\":%" PRIu64 "}",
                           template_bytes ? "true" : "false", template_bytes);
    json_tensors(b, g, s);
    (void)realm_buf_printf(b, ",\"memory\":{\"weights_bytes\":%" PRIu64, s->tensor_bytes);
    json_number(b, "weights_bytes_least", s->least_weight_bytes > 0, s->least_weight_bytes);
    json_number(b, "kv_bytes_per_token", s->kv_known, s->kv_bytes_per_token);
    json_number(b, "kv_bytes_full_context", s->kv_full_known, s->kv_bytes_full);
    (void)realm_buf_putc(b, '}');
    json_metadata(b, g);
    (void)realm_buf_puts(b, "}\n");
}

/* --- for people -------------------------------------------------------------------------------------------------- */

static void put_size(realm_buf *b, uint64_t bytes) {
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double v = (double)bytes;
    size_t u = 0;
    for (; v >= 1024 && u + 1 < REALM_ARRAY_LEN(units); u++) v /= 1024;
    (void)realm_buf_printf(b, u ? "%.1f %s" : "%.0f %s", v, units[u]);
}

static void line_text(realm_buf *b, const char *name, const realm_gguf *g, const char *key) {
    (void)realm_buf_printf(b, "%-20s", name);
    if (!put_key_text(b, false, g, key)) (void)realm_buf_putc(b, '-');
    (void)realm_buf_putc(b, '\n');
}

static void line_count(realm_buf *b, const char *name, const count *c) {
    if (!c->known) return;
    (void)realm_buf_printf(b, "%-20s%" PRIu64 "%s\n", name, c->value, c->per_layer ? " at most, differs by layer" : "");
}

static void text_tensors(realm_buf *b, const realm_gguf *g, const summary *s) {
    (void)realm_buf_printf(b, "\ntensors (%zu)\n", g->n_tensors);
    for (uint32_t i = 0; i < TYPE_NUMBERS; i++) {
        if (s->types[i].n == 0) continue;
        (void)realm_buf_printf(b, "  %-8s %6" PRIu64 "  ", realm_type_get(i)->name, s->types[i].n);
        put_size(b, s->types[i].bytes);
        (void)realm_buf_putc(b, '\n');
    }
    (void)realm_buf_puts(b, "\nshapes (columns x rows)\n");
    for (size_t i = 0; i < s->n_shapes; i++) {
        const realm_gguf_tensor *t = s->shapes[i].first;
        (void)realm_buf_printf(b, "  %4" PRIu64 "  %-8s ", s->shapes[i].n, t->type->name);
        for (uint32_t d = 0; d < t->n_dims; d++) (void)realm_buf_printf(b, d ? " x %" PRIu64 : "%" PRIu64, t->dims[d]);
        (void)realm_buf_puts(b, "  ");
        put_shape_name(b, false, &s->shapes[i]);
        (void)realm_buf_putc(b, '\n');
    }
    if (s->n_unlisted) (void)realm_buf_printf(b, "  and %" PRIu64 " tensors of other shapes\n", s->n_unlisted);
}

static void text_metadata(realm_buf *b, const realm_gguf *g) {
    size_t n = REALM_MIN(g->n_entries, (size_t)MAX_LISTED);
    (void)realm_buf_printf(b, "\nmetadata (%zu)\n", g->n_entries);
    for (size_t i = 0; i < n; i++) {
        const realm_gguf_entry *e = &g->entries[i];
        const realm_gguf_value *v = &e->value;
        (void)realm_buf_puts(b, "  ");
        put_text(b, false, e->key.data, e->key.len, SHOWN_BYTES);
        (void)realm_buf_puts(b, " = ");
        if (v->type == REALM_GGUF_ARRAY) {
            (void)realm_buf_printf(b, "%" PRIu64 " x %s [", v->n, realm_gguf_type_name(v->element));
            put_elements(b, false, v);
            (void)realm_buf_puts(b, v->n > MAX_ELEMENTS ? ", ...]" : "]");
        } else if (v->type == REALM_GGUF_STRING) {
            put_text(b, false, (const char *)v->data, (size_t)v->n, SHOWN_BYTES);
        } else {
            put_scalar(b, false, v->type, v->data);
        }
        (void)realm_buf_putc(b, '\n');
    }
    if (n < g->n_entries) (void)realm_buf_printf(b, "  and %zu more\n", g->n_entries - n);
}

static void describe_text(realm_buf *b, const realm_gguf *g, const summary *s, uint64_t template_bytes) {
    (void)realm_buf_printf(b, "%-20sGGUF version %u, ", "format", g->version);
    put_size(b, g->size);
    (void)realm_buf_printf(b, ", alignment %" PRIu64 "\n", g->alignment);
    line_text(b, "architecture", g, "general.architecture");
    line_text(b, "name", g, "general.name");
    (void)realm_buf_printf(b, "%-20s%" PRIu64 " (%.1f million)\n", "parameters", s->parameters,
                           (double)s->parameters / 1e6);
    line_count(b, "layers", &s->layers);
    line_count(b, "context length", &s->context);
    line_count(b, "embedding length", &s->embedding);
    line_count(b, "feed forward length", &s->feed_forward);
    line_count(b, "heads", &s->heads);
    line_count(b, "KV heads", &s->kv_heads);
    line_count(b, "key length", &s->key_length);
    line_count(b, "value length", &s->value_length);
    line_count(b, "vocabulary", &s->vocab);
    line_text(b, "tokenizer", g, "tokenizer.ggml.model");
    line_text(b, "pre-tokenizer", g, "tokenizer.ggml.pre");
    if (template_bytes)
        (void)realm_buf_printf(b, "%-20s%" PRIu64 " bytes\n", "chat template", template_bytes);
    else
        (void)realm_buf_printf(b, "%-20snone\n", "chat template");
    (void)realm_buf_printf(b, "%-20s", "memory, weights");
    put_size(b, s->tensor_bytes);
    if (s->least_weight_bytes > 0) {
        (void)realm_buf_puts(b, "; at least ");
        put_size(b, s->least_weight_bytes);
        (void)realm_buf_printf(b, " (--weight-budget %" PRIu64 "), the rest streams", s->least_weight_bytes);
    }
    if (s->kv_known) {
        (void)realm_buf_printf(b, "\n%-20s%" PRIu64 " bytes per token in F16", "memory, KV cache",
                               s->kv_bytes_per_token);
        if (s->kv_full_known) {
            (void)realm_buf_puts(b, ", ");
            put_size(b, s->kv_bytes_full);
            (void)realm_buf_puts(b, " for a full context");
        }
    }
    (void)realm_buf_putc(b, '\n');
    text_tensors(b, g, s);
    text_metadata(b, g);
}

realm_status realm_gguf_describe(const realm_gguf *g, bool json, uint64_t least_weight_bytes, realm_buf *out,
                                 realm_error *err) {
    summary s;
    const realm_gguf_value *t = realm_gguf_find(g, "tokenizer.chat_template");
    uint64_t template_bytes = t && t->type == REALM_GGUF_STRING ? t->n : 0;
    summarise(g, &s);
    s.least_weight_bytes = least_weight_bytes;
    if (json)
        describe_json(out, g, &s, template_bytes);
    else
        describe_text(out, g, &s, template_bytes);
    realm_status status = realm_buf_status(out);
    return status == REALM_OK ? REALM_OK
                              : realm_error_set(err, status, "describing the file: %s", realm_status_text(status));
}
