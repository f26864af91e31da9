/* tenant/host/stream.c - layers of models that are larger than their memory budget, as programs see them.
 *
 * A layer is pinned by the tensor service's thread, which waits for it without the device; the program is suspended.
 * What an instance has pinned is unpinned when it ends, however it ends. A layer's bytes are copied by the pool
 * (weights.c).
 */
#include <stdio.h>
#include <string.h>

#include "tenant/host/tensor.h"

static realm_status no_such_layer(realm_host *h, const host_model *m, uint32_t layer) {
    return realm_error_set(&h->error, REALM_E_RANGE, "there is no layer %u, the model has %u", layer,
                           realm_model_hparams(m->m->model)->n_layers);
}

/* One tensor of a layer is enough to name the layer to the service. */
static realm_status open_one_of(realm_host *h, const host_model *m, uint32_t layer, realm_tensor **weight) {
    size_t n;
    const realm_model_tensor *const *list = realm_model_layer_tensors(m->m->model, layer, &n);
    if (!list || n == 0) return no_such_layer(h, m, layer);
    realm_gguf_str name = list[0]->file->name;
    return host_weight_open(h, m, name.data, name.len, weight);
}

static realm_call_result pin(realm_call *call, const host_model *m, uint32_t layer, int32_t *result) {
    static const char WHAT[] = "memory64_load_layer";
    realm_host *h = host_of(call);
    host_tensors *t = host_tensors_of(h);
    realm_call_result state;
    if (!t) return host_failed(h, result);
    if (host_tensor_started(call)) {
        if (!host_tensor_done(call, WHAT, &state, result)) return state;
        t->pins[t->n_pins++] = t->work.pin;
        t->work.pinned = false; /* the instance's from here on */
        host_tensor_forget_own(h);
        return REALM_CALL_DONE;
    }
    if (t->n_pins == HOST_PINS_MAX)
        return host_fail(h, result, REALM_E_LIMIT, "%s: %u layers are pinned, as many as are allowed", WHAT,
                         HOST_PINS_MAX);
    if (open_one_of(h, m, layer, &t->work.own[0])) return host_failed(h, result);
    t->work.pin = (host_pin){m, layer};
    realm_tensor_op op = {.kind = REALM_TENSOR_PIN, .a = t->work.own[0]};
    return host_tensor_start(call, &op, 1, WHAT, result);
}

static realm_call_result copy_layer(realm_call *call, const host_model *m, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    size_t n;
    uint64_t total = 0;
    const realm_model_tensor *const *list = realm_model_layer_tensors(m->m->model, (uint32_t)args[1], &n);
    if (!host_model_is_own(m) && !realm_run_limits(h->run)->read_weights)
        return host_fail(h, result, REALM_E_DENIED,
                         "memory64_load_layer: reading weights needs the tenant's read_weights");
    if (!list) {
        no_such_layer(h, m, (uint32_t)args[1]);
        return host_failed(h, result);
    }
    for (size_t i = 0; i < n; i++) total += list[i]->file->n_bytes; /* all within one file: no overflow */
    if (!host_range(call, args[2], args[3], "memory64_load_layer", result)) return REALM_CALL_DONE;
    if (total > args[3] || total > INT32_MAX)
        return host_fail(h, result, REALM_E_RANGE,
                         "memory64_load_layer: layer %u has %llu bytes, there is room for %llu", (unsigned)args[1],
                         (unsigned long long)total, (unsigned long long)args[3]);
    if (host_charge_read(h, total, "memory64_load_layer")) return host_failed(h, result);
    return host_copy_layer(call, m, list, n, total, result);
}

/* memory64_load_layer(model, layer, out, max) -> bytes */
realm_call_result host_memory64_load_layer(realm_call *call, const uint64_t *args, int32_t *result) {
    const host_model *m;
    if (args[2] != 0 && host_copy_started(call)) return host_copy_go_on(call, args[2], "memory64_load_layer", result);
    realm_call_result state = host_model_get(call, args[0], &m, result);
    if (!m) return state;
    return args[2] == 0 ? pin(call, m, (uint32_t)args[1], result) : copy_layer(call, m, args, result);
}

/* memory64_load_tensor(model, layer, name, len): names lack the "blk.<layer>." that the file's have. */
realm_call_result host_memory64_load_tensor(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    const host_model *m;
    char full[HOST_NAME_MAX + 32];
    realm_tensor *t;
    if (args[3] > HOST_NAME_MAX)
        return host_fail(h, result, REALM_E_RANGE, "memory64_load_tensor: a name has at most %u bytes", HOST_NAME_MAX);
    if (!host_range(call, args[2], args[3], "memory64_load_tensor", result)) return REALM_CALL_DONE;
    realm_call_result state = host_model_get(call, args[0], &m, result);
    if (!m) return state;
    const char *name = realm_call_memory(call, args[2], args[3]);
    int len = snprintf(full, sizeof full, "blk.%u.", (unsigned)args[1]);
    memcpy(full + len, name, (size_t)args[3]);
    if (host_weight_open(h, m, full, (size_t)len + (size_t)args[3], &t)) return host_failed(h, result);
    return host_tensor_give(h, t, m, result);
}

realm_call_result host_memory64_unload_layer(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    const host_model *m;
    host_tensors *t = h->tensors;
    realm_call_result state = host_model_get(call, args[0], &m, result);
    if (!m) return state;
    for (uint32_t i = 0; t && i < t->n_pins; i++) {
        if (t->pins[i].model != m || t->pins[i].layer != (uint32_t)args[1]) continue;
        t->pins[i] = t->pins[--t->n_pins];
        if (realm_model_layer_unpin(m->m->model, (uint32_t)args[1], &h->error)) return host_failed(h, result);
        return REALM_CALL_DONE;
    }
    return host_fail(h, result, REALM_E_INVALID, "memory64_unload_layer: this instance has not loaded layer %u",
                     (unsigned)args[1]);
}

realm_call_result host_memory64_get_stats(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_model_stream_stats s;
    realm_model_get_stream_stats(h->model->m->model, &s);
    realm_stream_stats out = {.hits = s.hits,
                              .misses = s.misses,
                              .evictions = s.evictions,
                              .bytes_resident = s.bytes_resident,
                              .bytes_read = s.bytes_read,
                              .bytes_budget = realm_model_weight_bytes(h->model->m->model),
                              .prefetched = s.prefetched};
    uint64_t n = REALM_MIN(args[1], (uint64_t)sizeof out);
    void *to = host_range(call, args[0], args[1], "memory64_get_stats", result);
    if (!to) return REALM_CALL_DONE;
    memcpy(to, &out, (size_t)n);
    *result = (int32_t)sizeof out;
    return REALM_CALL_DONE;
}
