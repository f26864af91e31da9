/* model/model.c - opening, closing and planning; what differs by architecture is behind the table of families.
 *
 *      tokens -> EMBED -> x -> [ family's blocks over x ] -> norm + output LINEAR -> logits (rows wanted)
 */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/str.h"
#include "model/internal.h"

#define OUT_VALUE 1 /* of every plan: the residual stream after the last block, of the rows that are wanted out */

static const realm_family *const families[] = {&realm_family_llama, &realm_family_gemma3};

static realm_status find_family(const realm_gguf *g, const realm_family **out, realm_error *err) {
    realm_gguf_str arch;
    realm_status s = realm_gguf_get_str(g, "general.architecture", true, &arch, err);
    if (s != REALM_OK) return s;
    for (size_t i = 0; i < REALM_ARRAY_LEN(families); i++) {
        if (strlen(families[i]->arch) != arch.len || memcmp(families[i]->arch, arch.data, arch.len) != 0) continue;
        *out = families[i];
        return REALM_OK;
    }
    char text[64];
    return realm_error_set(err, REALM_E_UNSUPPORTED, "architecture \"%s\" is not supported",
                           realm_escape(text, sizeof text, arch.data, arch.len));
}

/* A required key is missing: the file is at fault, not the caller's question. */
static realm_status missing_key(realm_error *err) {
    if (err) err->code = REALM_E_FORMAT;
    return REALM_E_FORMAT;
}

/* Everything but the stream. */
static realm_status bind_model(realm_model **out, realm_backend *b, const realm_gguf *g, int mode,
                               realm_model_progress progress, void *user, realm_error *err) {
    *out = NULL;
    realm_binder binder;
    const realm_family *family = NULL;
    realm_status s = realm_gguf_check_metadata(g, err);
    if (s == REALM_OK) s = find_family(g, &family, err);
    if (s == REALM_E_NOT_FOUND) s = missing_key(err);
    if (s != REALM_OK) return s;
    realm_model *m = realm_calloc(1, sizeof *m);
    if (!m) return realm_error_set(err, REALM_E_NOMEM, "no memory for a model");
    m->backend = b;
    m->g = g;
    m->family = family;
    snprintf(m->hp.arch, sizeof m->hp.arch, "%s", family->arch);
    s = family->hparams(&m->hp, g, err);
    if (s == REALM_E_NOT_FOUND) s = missing_key(err);
    if (s != REALM_OK) goto fail;
    m->layers = realm_calloc(m->hp.n_layers, sizeof *m->layers);
    if (!m->layers) {
        s = realm_error_set(err, REALM_E_NOMEM, "no memory for %u layers", m->hp.n_layers);
        goto fail;
    }
    if ((s = realm_tensors_init(m, err)) != REALM_OK) goto fail;
    realm_binder_init(&binder, m, progress, user);
    binder.mode = mode;
    if ((s = realm_bind_ends(&binder, err)) != REALM_OK) goto fail;
    if ((s = family->bind(&binder, err)) != REALM_OK) goto fail;
    if ((s = realm_binder_check_all_used(&binder, err)) != REALM_OK) goto fail;
    realm_tensors_index(m);
    *out = m;
    return REALM_OK;
fail:
    realm_model_close(m);
    return s;
}

realm_status realm_model_measure(realm_backend *b, const realm_gguf *g, realm_model_memory *out, realm_error *err) {
    realm_model *m;
    *out = (realm_model_memory){0};
    realm_status s = bind_model(&m, b, g, BIND_MEASURE, NULL, NULL, err);
    if (s != REALM_OK) return s;
    out->fixed_bytes = out->all_bytes = m->weight_bytes;
    for (uint32_t i = 0; i < m->hp.n_layers; i++) {
        uint64_t bytes = realm_stream_layer_bytes(m, i);
        out->layer_bytes = REALM_MAX(out->layer_bytes, bytes);
        out->all_bytes += bytes;
    }
    out->least_budget = out->fixed_bytes + out->layer_bytes;
    realm_model_close(m);
    return REALM_OK;
}

/* How many slots the budget leaves room for; 0: all layers fit. */
static realm_status plan_slots(realm_backend *b, const realm_gguf *g, uint64_t budget, realm_model_memory *need,
                               uint32_t *n_slots, realm_error *err) {
    *n_slots = 0;
    if (budget == 0) return REALM_OK;
    realm_status s = realm_model_measure(b, g, need, err);
    if (s != REALM_OK || budget >= need->all_bytes) return s;
    if (budget < need->least_budget)
        return realm_error_set(
            err, REALM_E_LIMIT,
            "a weight budget of %llu bytes is too small: this model needs at least %llu (%llu that are "
            "always resident and %llu for one layer)",
            (unsigned long long)budget, (unsigned long long)need->least_budget, (unsigned long long)need->fixed_bytes,
            (unsigned long long)need->layer_bytes);
    uint64_t slots = (budget - need->fixed_bytes) / need->layer_bytes;
    *n_slots = (uint32_t)REALM_MIN(slots, REALM_MODEL_MAX_LAYERS);
    return REALM_OK;
}

static realm_status keep_gain(realm_model *m, realm_error *err) {
    static const char name[] = "output_norm.weight";
    m->out_gain = realm_malloc(m->hp.d_model * sizeof *m->out_gain);
    if (!m->out_gain) return realm_error_set(err, REALM_E_NOMEM, "no memory for %u gains", m->hp.d_model);
    return realm_model_tensor_rows(realm_model_tensor_find(m, name, sizeof name - 1), 0, 1, m->out_gain, err);
}

realm_status realm_model_open(realm_model **out, realm_backend *b, const realm_gguf *g,
                              const realm_model_options *options, realm_error *err) {
    static const realm_model_options defaults;
    if (!options) options = &defaults;
    *out = NULL;
    realm_model *m;
    realm_model_memory need = {0};
    uint32_t n_slots;
    realm_status s = plan_slots(b, g, options->weight_budget_bytes, &need, &n_slots, err);
    if (s == REALM_OK)
        s = bind_model(&m, b, g, n_slots > 0 ? BIND_STREAM : BIND_RESIDENT, options->progress, options->user, err);
    if (s != REALM_OK) return s;
    s = keep_gain(m, err);
    if (s == REALM_OK) s = realm_stream_open(&m->stream, m, n_slots, need.layer_bytes, m->weight_bytes, err);
    if (s != REALM_OK) {
        realm_model_close(m);
        return s;
    }
    m->weight_bytes += n_slots * need.layer_bytes;
    *out = m;
    return REALM_OK;
}

void realm_model_close(realm_model *m) {
    if (!m) return;
    realm_stream_close(m->stream);
    realm_backend_turn_begin(m->backend);
    for (size_t i = m->n_weights; i-- > 0;) m->backend->v->weight_close(m->backend, m->weights[i]);
    realm_backend_turn_end(m->backend);
    realm_tensors_release(m);
    realm_free(m->out_gain);
    realm_free(m->weights);
    realm_free(m->layers);
    realm_free(m);
}

const realm_hparams *realm_model_hparams(const realm_model *m) { return &m->hp; }
uint64_t realm_model_weight_bytes(const realm_model *m) { return m->weight_bytes; }

realm_status realm_model_kv_open(const realm_model *m, uint32_t n_pages, realm_kv **out, realm_error *err) {
    realm_kv_desc desc = {
        .n_layers = m->hp.n_layers, .n_kv_head = m->hp.n_kv_head, .head_dim = m->hp.head_dim, .n_pages = n_pages};
    return m->backend->v->kv_open(m->backend, &desc, out, err);
}

realm_status realm_model_plan_open(const realm_model *m, realm_kv *kv, uint32_t max_rows, uint32_t max_out,
                                   realm_plan **out, realm_error *err) {
    const realm_hparams *hp = &m->hp;
    *out = NULL;
    realm_planner p = {
        .m = m, .cap_values = m->family->n_values + 3, .cap_ops = m->family->ops_per_layer * hp->n_layers + 3};
    p.values = realm_calloc(p.cap_values, sizeof *p.values);
    p.ops = realm_calloc(p.cap_ops, sizeof *p.ops);
    realm_status s = REALM_OK;
    if (!p.values || !p.ops) {
        s = realm_error_set(err, REALM_E_NOMEM, "no memory for a plan of %u ops", p.cap_ops);
        goto done;
    }
    realm_value x = realm_planner_value(&p, hp->d_model, REALM_ROWS_BATCH);
    realm_value wanted = realm_planner_value(&p, hp->d_model, REALM_ROWS_OUT); /* OUT_VALUE */
    realm_value logits = realm_planner_value(&p, hp->n_vocab, REALM_ROWS_OUT);
    realm_planner_op(&p, REALM_OP_EMBED)->u.embed = (realm_op_embed){.w = m->embed, .y = x, .scale = hp->embed_scale};
    m->family->plan(&p, x, wanted);
    p.streamed = 0;
    realm_planner_op(&p, REALM_OP_LINEAR)->u.linear = (realm_op_linear){
        .x = wanted, .gain = m->out_norm, .eps = hp->norm_eps, .n_weights = 1, .w = {m->output}, .y = {logits}};
    realm_plan_desc desc = {.values = p.values,
                            .n_values = p.n_values,
                            .ops = p.ops,
                            .n_ops = p.n_ops,
                            .max_rows = max_rows,
                            .max_out = max_out,
                            .logits = logits,
                            .kv = kv,
                            .residency = realm_stream_residency(m->stream)};
    realm_backend_turn_begin(m->backend);
    s = m->backend->v->plan_open(m->backend, &desc, out, err);
    realm_backend_turn_end(m->backend);
done:
    realm_free(p.values);
    realm_free(p.ops);
    return s;
}

realm_status realm_model_hidden(const realm_model *m, realm_plan *plan, uint32_t row, float *out, realm_error *err) {
    const float *x = m->backend->v->value(plan, OUT_VALUE);
    if (!x) return realm_error_set(err, REALM_E_UNSUPPORTED, "%s does not hand out hidden states", m->backend->name);
    const realm_direct op = {.kind = REALM_DIRECT_NORM,
                             .m = 1,
                             .cols = m->hp.d_model,
                             .x = x + (size_t)row * m->hp.d_model,
                             .y = out,
                             .u.norm = {.gain = m->out_gain, .eps = m->hp.norm_eps}};
    return m->backend->v->direct(m->backend, &op, 0, NULL, err); /* one row is one slice */
}
