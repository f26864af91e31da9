/* Any bytes as a pipeline's file: what is read can be described, in both forms, and what is refused is refused with a
 * line; nothing is run. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "data/data.h"
#include "pipeline/pipeline.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    realm_pipeline *p;
    realm_error err = {0};
    realm_buf problems, out;
    realm_buf_init(&problems, 1 << 20);
    realm_buf_init(&out, 64u << 20);
    realm_status s = realm_pipeline_parse(&p, (const char *)data, size, "dir/", &problems, &err);
    if (s != REALM_OK) {
        if (p || !err.text[0] || (s == REALM_E_INVALID && problems.len == 0)) abort();
    } else {
        realm_json_doc *doc;
        if (problems.len > 0 || realm_pipeline_step_count(p) == 0) abort();
        if (realm_pipeline_describe(p, false, &out) != REALM_OK) abort();
        realm_buf_reset(&out);
        if (realm_pipeline_describe(p, true, &out) != REALM_OK) abort();
        if (realm_json_parse(&doc, out.data, out.len, NULL, &err) != REALM_OK) abort();
        realm_json_doc_close(doc);
        realm_pipeline_close(p);
    }
    realm_buf_release(&problems);
    realm_buf_release(&out);
    return 0;
}
