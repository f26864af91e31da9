/* pipeline/values.c - what templates see, what comes out: JSON on either side. */
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/str.h"
#include "base/utf8.h"
#include "pipeline/run.h"

/* ---- inputs ------------------------------------------------------------------------------------------------------ */

static realm_status write_given(realm_json_writer *w, const pipe_input *in, const realm_pipeline_input *given,
                                realm_error *err) {
    if (given->len > REALM_PIPELINE_INPUT_BYTES_MAX)
        return realm_error_set(err, REALM_E_LIMIT, "input %s: at most %u bytes", in->name,
                               REALM_PIPELINE_INPUT_BYTES_MAX);
    if (in->is_text) {
        if (!realm_utf8_valid(given->value, given->len))
            return realm_error_set(err, REALM_E_INVALID, "input %s: not UTF-8", in->name);
        realm_json_write_str(w, given->value, given->len);
        return REALM_OK;
    }
    realm_json_doc *doc;
    realm_status s = realm_json_parse(&doc, given->value, given->len, NULL, err);
    if (s != REALM_OK) {
        realm_error_prefix(err, "input %s: its default is no text, so JSON is expected", in->name);
        return s;
    }
    realm_json root = realm_json_root(doc);
    realm_json_write_value(w, &root);
    realm_json_doc_close(doc);
    return REALM_OK;
}

realm_status pipe_read_inputs(pipe_run *r, const realm_pipeline_input *inputs, size_t n, realm_error *err) {
    const realm_pipeline *p = r->p;
    realm_json_writer w;
    char shown[96];
    for (size_t k = 0; k < n; k++) {
        size_t i = 0;
        while (i < p->n_inputs && strcmp(p->inputs[i].name, inputs[k].name) != 0) i++;
        if (i == p->n_inputs)
            return realm_error_set(err, REALM_E_INVALID, "no input is called \"%s\"",
                                   realm_escape(shown, sizeof shown, inputs[k].name, strlen(inputs[k].name)));
        for (size_t j = 0; j < k; j++)
            if (strcmp(inputs[j].name, inputs[k].name) == 0)
                return realm_error_set(err, REALM_E_INVALID, "input %s is given twice", p->inputs[i].name);
    }
    realm_json_writer_init(&w, &r->inputs);
    realm_json_begin_object(&w);
    for (size_t i = 0; i < p->n_inputs; i++) {
        const pipe_input *in = &p->inputs[i];
        size_t k = 0;
        while (k < n && strcmp(inputs[k].name, in->name) != 0) k++;
        if (k == n && !in->value) return realm_error_set(err, REALM_E_INVALID, "input %s is required", in->name);
        realm_json_key(&w, in->name);
        if (k == n) {
            realm_json_write_raw(&w, in->value, strlen(in->value));
            continue;
        }
        realm_status s = write_given(&w, in, &inputs[k], err);
        if (s != REALM_OK) return s;
    }
    realm_json_end_object(&w);
    realm_status s = realm_buf_status(&r->inputs);
    return s == REALM_OK ? s : realm_error_set(err, s, "inputs: %s", realm_status_text(s));
}

/* ---- values ------------------------------------------------------------------------------------------------------ */

static const char *finish_name(realm_finish f) { return f == REALM_FINISH_LENGTH ? "length" : "stop"; }

static void write_texts(realm_json_writer *w, const pipe_step_run *s) {
    realm_json_begin_array(w);
    for (uint32_t b = 0; b < s->n_branches; b++) realm_json_write_str(w, s->branches[b].text, s->branches[b].len);
    realm_json_end_array(w);
}

/* The texts, one to a line. */
static void write_joined(realm_json_writer *w, const pipe_step_run *s) {
    if (s->n_branches == 1) {
        realm_json_write_str(w, s->branches[0].text, s->branches[0].len);
        return;
    }
    (void)realm_buf_puts(w->out, "\"");
    for (uint32_t b = 0; b < s->n_branches; b++) {
        if (b > 0) (void)realm_buf_puts(w->out, "\\n");
        realm_json_escape(w->out, s->branches[b].text, s->branches[b].len);
    }
    (void)realm_buf_puts(w->out, "\"");
}

static void write_step(const pipe_run *r, uint32_t i, realm_json_writer *w) {
    const pipe_step_run *s = &r->steps[i];
    const pipe_branch *last = s->n_branches > 0 ? &s->branches[s->n_branches - 1] : NULL;
    realm_json_begin_object(w);
    /* The joined text is written by hand, so it goes through write_raw, which knows about commas. */
    realm_buf joined;
    realm_buf_init(&joined, PIPELINE_VALUES_MAX);
    realm_json_writer inner;
    realm_json_writer_init(&inner, &joined);
    write_joined(&inner, s);
    realm_json_key(w, "text");
    realm_json_write_raw(w, joined.data ? joined.data : "\"\"", joined.data ? joined.len : 2);
    if (realm_buf_status(&joined) != REALM_OK) w->out->failed = realm_buf_status(&joined);
    realm_buf_release(&joined);
    realm_json_key(w, "texts");
    write_texts(w, s);
    realm_json_key(w, "skipped");
    realm_json_write_bool(w, s->skipped);
    realm_json_key(w, "finish_reason");
    realm_json_write_cstr(w, last ? finish_name(last->finish) : NULL);
    realm_json_key(w, "model");
    realm_json_write_cstr(w, last && r->p->steps[i].kind == PIPE_CALL ? r->p->models[last->model].id : NULL);
    realm_json_key(w, "votes");
    realm_json_write_uint(w, s->votes);
    realm_json_end_object(w);
}

static realm_status write_values(const pipe_run *r, const pipe_branch *branch, uint32_t index, const char *text,
                                 size_t len, realm_buf *out, realm_error *err) {
    realm_json_writer w;
    realm_json_writer_init(&w, out);
    realm_json_begin_object(&w);
    realm_json_key(&w, "inputs");
    realm_json_write_raw(&w, r->inputs.data, r->inputs.len);
    realm_json_key(&w, "steps");
    realm_json_begin_object(&w);
    for (uint32_t i = 0; i < r->p->n_steps; i++) {
        if (r->steps[i].state != STEP_DONE) continue;
        realm_json_key(&w, r->p->steps[i].id);
        write_step(r, i, &w);
    }
    realm_json_end_object(&w);
    if (branch) {
        realm_json_key(&w, "index");
        realm_json_write_uint(&w, index);
        if (branch->item) {
            realm_json_key(&w, "item");
            realm_json_write_raw(&w, branch->item, strlen(branch->item));
        }
    }
    if (text) {
        realm_json_key(&w, "text");
        realm_json_write_str(&w, text, len);
    }
    realm_json_end_object(&w);
    realm_status s = realm_buf_status(out);
    return s == REALM_OK ? s : realm_error_set(err, s, "the texts so far: %s", realm_status_text(s));
}

realm_status pipe_render_for(const pipe_run *r, const realm_template *t, const pipe_branch *branch, uint32_t index,
                             const char *text, size_t len, realm_buf *out, realm_error *err) {
    realm_buf values;
    realm_buf_init(&values, PIPELINE_VALUES_MAX);
    realm_status s = write_values(r, branch, index, text, len, &values, err);
    if (s == REALM_OK) s = pipe_render(t, &values, out, err);
    realm_buf_release(&values);
    return s;
}

/* ---- what comes out ---------------------------------------------------------------------------------------------- */

realm_status pipe_output_text(const pipe_run *r, realm_buf *out, realm_error *err) {
    const realm_pipeline *p = r->p;
    realm_status s = REALM_OK;
    if (p->n_outputs == 0) { /* the last step's */
        const pipe_step_run *last = &r->steps[p->n_steps - 1];
        for (uint32_t b = 0; b < last->n_branches; b++) {
            if (b > 0) (void)realm_buf_putc(out, '\n');
            (void)realm_buf_append(out, last->branches[b].text, last->branches[b].len);
        }
        s = realm_buf_status(out);
        return s == REALM_OK ? s : realm_error_set(err, s, "output: %s", realm_status_text(s));
    }
    if (!p->outputs[0].name) {
        s = pipe_render_for(r, p->outputs[0].text, NULL, 0, NULL, 0, out, err);
        if (s != REALM_OK) realm_error_prefix(err, "output");
        return s;
    }
    realm_json_writer w;
    realm_json_writer_init(&w, out);
    realm_json_begin_object(&w);
    for (size_t i = 0; s == REALM_OK && i < p->n_outputs; i++) {
        realm_buf text;
        realm_buf_init(&text, (size_t)p->limits.output_bytes);
        s = pipe_render_for(r, p->outputs[i].text, NULL, 0, NULL, 0, &text, err);
        if (s != REALM_OK) realm_error_prefix(err, "output.%s", p->outputs[i].name);
        realm_json_key(&w, p->outputs[i].name);
        realm_json_write_str(&w, text.data ? text.data : "", text.len);
        realm_buf_release(&text);
    }
    realm_json_end_object(&w);
    if (s == REALM_OK && (s = realm_buf_status(out)) != REALM_OK)
        realm_error_set(err, s, "output: %s", realm_status_text(s));
    return s;
}

static double seconds(uint64_t from_ns, uint64_t to_ns) {
    return (double)((to_ns - from_ns) / REALM_NS_PER_MS) / 1000.0;
}

realm_status pipe_report(const pipe_run *r, const realm_buf *output, realm_buf *out) {
    const realm_pipeline *p = r->p;
    realm_json_writer writer, *w = &writer;
    const char *text = output->data ? output->data : "";
    realm_json_writer_init(w, out);
    realm_json_begin_object(w);
    realm_json_key(w, "output");
    if (p->n_outputs > 0 && p->outputs[0].name)
        realm_json_write_raw(w, text, output->len);
    else
        realm_json_write_str(w, text, output->len);
    realm_json_key(w, "steps");
    realm_json_begin_array(w);
    for (uint32_t i = 0; i < p->n_steps; i++) {
        const pipe_step_run *s = &r->steps[i];
        uint64_t attempts = 0;
        for (uint32_t b = 0; b < s->n_branches; b++) attempts += s->branches[b].attempts;
        const pipe_branch *last = s->n_branches > 0 ? &s->branches[s->n_branches - 1] : NULL;
        bool call = p->steps[i].kind == PIPE_CALL;
        realm_json_begin_object(w);
        realm_json_key(w, "id");
        realm_json_write_cstr(w, p->steps[i].id);
        realm_json_key(w, "skipped");
        realm_json_write_bool(w, s->skipped);
        realm_json_key(w, "texts");
        write_texts(w, s);
        if (call) {
            realm_json_key(w, "model");
            realm_json_write_cstr(w, last ? p->models[last->model].id : NULL);
            realm_json_key(w, "finish_reason");
            realm_json_write_cstr(w, last ? finish_name(last->finish) : NULL);
            realm_json_key(w, "calls");
            realm_json_write_uint(w, attempts);
            realm_json_key(w, "prompt_tokens");
            realm_json_write_uint(w, s->prompt_tokens);
            realm_json_key(w, "completion_tokens");
            realm_json_write_uint(w, s->completion_tokens);
        }
        if (p->steps[i].kind == PIPE_VOTE) {
            realm_json_key(w, "votes");
            realm_json_write_uint(w, s->votes);
        }
        realm_json_key(w, "seconds");
        realm_json_write_real(w, seconds(s->begin_ns, s->end_ns));
        realm_json_end_object(w);
    }
    realm_json_end_array(w);
    realm_json_key(w, "usage");
    realm_json_begin_object(w);
    realm_json_key(w, "calls");
    realm_json_write_uint(w, r->n_calls);
    realm_json_key(w, "prompt_tokens");
    realm_json_write_uint(w, r->prompt_tokens);
    realm_json_key(w, "completion_tokens");
    realm_json_write_uint(w, r->completion_tokens);
    realm_json_key(w, "total_tokens");
    realm_json_write_uint(w, r->prompt_tokens + r->completion_tokens);
    realm_json_end_object(w);
    realm_json_key(w, "seconds");
    realm_json_write_real(w, seconds(r->begin_ns, realm_clock_ns()));
    realm_json_end_object(w);
    return realm_buf_status(out);
}
