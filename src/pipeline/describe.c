/* pipeline/describe.c - what a pipeline is, as `check` shows it: lines for people, or JSON. */
#include <string.h>

#include "base/str.h"
#include "pipeline/internal.h"

static const char *const kinds[] = {[PIPE_CALL] = "call", [PIPE_TEXT] = "text", [PIPE_VOTE] = "vote"};

static void describe_json(const realm_pipeline *p, realm_buf *out) {
    realm_json_writer w;
    realm_json_writer_init(&w, out);
    realm_json_begin_object(&w);
    realm_json_key(&w, "name");
    realm_json_write_cstr(&w, p->name);
    realm_json_key(&w, "description");
    realm_json_write_cstr(&w, p->comment);
    realm_json_key(&w, "inputs");
    realm_json_begin_array(&w);
    for (size_t i = 0; i < p->n_inputs; i++) {
        realm_json_begin_object(&w);
        realm_json_key(&w, "name");
        realm_json_write_cstr(&w, p->inputs[i].name);
        realm_json_key(&w, "required");
        realm_json_write_bool(&w, !p->inputs[i].value);
        if (p->inputs[i].value) {
            realm_json_key(&w, "default");
            realm_json_write_raw(&w, p->inputs[i].value, strlen(p->inputs[i].value));
        }
        realm_json_end_object(&w);
    }
    realm_json_end_array(&w);
    realm_json_key(&w, "models");
    realm_json_begin_array(&w);
    for (size_t i = 0; i < p->n_models; i++) {
        realm_json_begin_object(&w);
        realm_json_key(&w, "id");
        realm_json_write_cstr(&w, p->models[i].id);
        realm_json_key(&w, "source");
        realm_json_write_cstr(&w, p->models[i].source);
        realm_json_end_object(&w);
    }
    realm_json_end_array(&w);
    realm_json_key(&w, "steps");
    realm_json_begin_array(&w);
    for (size_t i = 0; i < p->n_steps; i++) {
        const pipe_step *s = &p->steps[i];
        realm_json_begin_object(&w);
        realm_json_key(&w, "id");
        realm_json_write_cstr(&w, s->id);
        realm_json_key(&w, "kind");
        realm_json_write_cstr(&w, kinds[s->kind]);
        if (s->kind == PIPE_CALL) {
            realm_json_key(&w, "model");
            realm_json_write_cstr(&w, p->models[s->model].id);
        }
        realm_json_key(&w, "after");
        realm_json_begin_array(&w);
        for (size_t k = 0; k < p->n_steps; k++)
            if (s->after >> k & 1) realm_json_write_cstr(&w, p->steps[k].id);
        realm_json_end_array(&w);
        realm_json_end_object(&w);
    }
    realm_json_end_array(&w);
    realm_json_key(&w, "limits");
    realm_json_begin_object(&w);
#define WRITE(name, standard, most) \
    realm_json_key(&w, #name);      \
    realm_json_write_int(&w, p->limits.name);
    REALM_PIPELINE_LIMITS(WRITE)
#undef WRITE
    realm_json_end_object(&w);
    realm_json_end_object(&w);
    (void)realm_buf_putc(out, '\n');
}

static void describe_text(const realm_pipeline *p, realm_buf *out) {
    char shown[512];
    if (p->name) (void)realm_buf_printf(out, "%s", realm_escape(shown, sizeof shown, p->name, strlen(p->name)));
    if (p->comment)
        (void)realm_buf_printf(out, "%s%s", p->name ? ": " : "",
                               realm_escape(shown, sizeof shown, p->comment, strlen(p->comment)));
    if (p->name || p->comment) (void)realm_buf_putc(out, '\n');
    for (size_t i = 0; i < p->n_inputs; i++) {
        const pipe_input *in = &p->inputs[i];
        (void)realm_buf_printf(out, "input  %-16s %s\n", in->name,
                               in->value ? realm_escape(shown, sizeof shown, in->value, strlen(in->value))
                                         : "required");
    }
    for (size_t i = 0; i < p->n_models; i++)
        (void)realm_buf_printf(out, "model  %-16s %s\n", p->models[i].id,
                               realm_escape(shown, sizeof shown, p->models[i].source, strlen(p->models[i].source)));
    for (size_t i = 0; i < p->n_steps; i++) {
        const pipe_step *s = &p->steps[i];
        (void)realm_buf_printf(out, "step   %-16s %s", s->id,
                               s->kind == PIPE_CALL ? p->models[s->model].id : kinds[s->kind]);
        const char *between = ", after ";
        for (size_t k = 0; k < p->n_steps; k++) {
            if (!(s->after >> k & 1)) continue;
            (void)realm_buf_printf(out, "%s%s", between, p->steps[k].id);
            between = " ";
        }
        (void)realm_buf_putc(out, '\n');
    }
    (void)realm_buf_puts(out, "limits");
#define PUT(name, standard, most) (void)realm_buf_printf(out, " " #name " %lld", (long long)p->limits.name);
    REALM_PIPELINE_LIMITS(PUT)
#undef PUT
    (void)realm_buf_putc(out, '\n');
}

realm_status realm_pipeline_describe(const realm_pipeline *p, bool json, realm_buf *out) {
    if (json)
        describe_json(p, out);
    else
        describe_text(p, out);
    return realm_buf_status(out);
}
