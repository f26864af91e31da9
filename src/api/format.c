/* What an answer must look like: response_format of the OpenAI API, json_schema of llama.cpp's server.
 *
 * Both end as a JSON Schema that is compiled once the rest of the request is known to be right. One that does not
 * compile is the client's error and is told with its place in the request, as in
 * "response_format.json_schema.schema.properties.age.type": the answer is never given without it. So is one that turns
 * out later to need more work for a token than there is, or to leave no token: it is told in the status, or in the
 * stream that has begun.
 */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "api/internal.h"

/* The schema's place in the request and, where the compiler names one ("schema at #/properties/a: ..."), that in it. */
static bool schema_error(api_error *e, const realm_json *schema, const realm_error *err) {
    static const char at[] = "schema at #";
    api_error_field(e, schema, "invalid_value", "%s", err->text);
    if (strncmp(err->text, at, sizeof at - 1) != 0) return false;
    const char *from = err->text + sizeof at - 1, *end = strstr(from, ": ");
    size_t len = strlen(e->param);
    for (; from < end && len + 1 < sizeof e->param; from++) e->param[len++] = *from == '/' ? '.' : *from;
    e->param[len] = '\0';
    return false;
}

/* {"name","schema","description","strict"}: a schema is always kept to, `strict` or not. */
static bool read_named_schema(gen_request *q, api_error *e) {
    static const char *const known[] = {"name", "schema", "description", "strict"};
    realm_json *v = &q->json_schema, item, unknown;
    const char *s = "";
    size_t len = 0;
    bool strict = false;
    (void)realm_json_get(&q->format, "json_schema", v);
    API_CHECK(realm_json_expect(v, REALM_JSON_OBJECT, &err_), v);
    unknown = *v;
    API_CHECK(realm_json_only(v, known, REALM_ARRAY_LEN(known), &unknown, &err_), &unknown);
    (void)realm_json_get(v, "name", &item);
    API_CHECK(realm_json_str(&item, &s, &len, &err_), &item);
    for (size_t i = 0; i < len; i++)
        if (len > 64 || !(isalnum((unsigned char)s[i]) || s[i] == '_' || s[i] == '-')) len = 0;
    if (len == 0) return api_error_field(e, &item, "invalid_value", "must be 1 to 64 of a-z A-Z 0-9 _ -");
    if (realm_json_get_set(v, "description", &item)) API_CHECK(realm_json_str(&item, &s, &len, &err_), &item);
    if (!api_opt_bool(v, "strict", &strict, e)) return false;
    (void)realm_json_get(v, "schema", &q->schema);
    API_CHECK(realm_json_expect(&q->schema, REALM_JSON_OBJECT, &err_), &q->schema);
    return true;
}

static bool read_response_format(gen_request *q, api_error *e) {
    static const char *const known[] = {"type", "json_schema"};
    realm_json *v = &q->format, type, unknown;
    if (!realm_json_get_set(&q->root, "response_format", v)) return true;
    API_CHECK(realm_json_expect(v, REALM_JSON_OBJECT, &err_), v);
    (void)realm_json_get(v, "type", &type);
    if (!API_ONE_OF(&type, "text", "json_object", "json_schema")) return false;
    q->has_schema = realm_json_is(&type, "json_schema");
    q->constrained = !realm_json_is(&type, "text");
    unknown = *v;
    API_CHECK(realm_json_only(v, known, q->has_schema ? 2 : 1, &unknown, &err_), &unknown);
    return !q->has_schema || read_named_schema(q, e);
}

bool gen_read_format(gen_request *q, api_error *e) {
    realm_json schema;
    if (!read_response_format(q, e)) return false;
    if (!realm_json_get_set(&q->root, "json_schema", &schema)) return true;
    if (q->constrained)
        return api_error_field(e, &schema, "invalid_value", "response_format says already what the answer must be");
    API_CHECK(realm_json_expect(&schema, REALM_JSON_OBJECT, &err_), &schema);
    q->schema = schema;
    q->constrained = q->has_schema = true;
    return true;
}

/* The part of the request that says it. */
static const realm_json *place_of(const gen_request *q) { return q->has_schema ? &q->schema : &q->format; }

void gen_grammar_error(const gen_request *q, const realm_error *err, api_error *e) {
    api_error_field(e, place_of(q), "unusable_schema", "%s", err->text);
}

bool gen_request_constrain(gen_request *q, realm_tenant *t, api_error *e) {
    static const char any_object[] = "{\"type\":\"object\"}";
    const realm_json *said = place_of(q);
    realm_error err = {0};
    realm_buf text;
    realm_buf_init(&text, REALM_GRAMMAR_BYTES_MAX);
    realm_status s = q->has_schema ? realm_json_dump(said, &text) : realm_buf_puts(&text, any_object);
    if (s != REALM_OK) {
        const bool large = realm_buf_status(&text) == REALM_E_LIMIT;
        realm_buf_release(&text);
        if (!large) return api_error_status(e, REALM_E_NOMEM, NULL);
        return api_error_field(e, said, "invalid_value", "at most %u bytes are taken", REALM_GRAMMAR_BYTES_MAX);
    }
    s = realm_tenant_grammar(t, q->served, REALM_GRAMMAR_KIND_JSON_SCHEMA, text.data, text.len, &q->grammar, &err);
    realm_buf_release(&text);
    q->gen.grammar = q->grammar;
    switch (s) {
    case REALM_OK: return true;
    case REALM_E_FORMAT:
    case REALM_E_LIMIT:
    case REALM_E_TIMEOUT: return schema_error(e, said, &err);
    default: return api_error_status(e, s, &err);
    }
}
