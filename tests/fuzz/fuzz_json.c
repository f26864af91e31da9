/* Any bytes through the JSON and the YAML parser: what parses must dump, and the dump must parse to the same dump. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "data/data.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    realm_json_doc *d, *again;
    realm_error err = {0};
    const char *text = (const char *)data + 1;
    realm_status s =
        data[0] & 1 ? realm_yaml_parse(&d, text, size - 1, &err) : realm_json_parse(&d, text, size - 1, NULL, &err);
    if (s != REALM_OK) {
        if (d || !err.text[0]) abort();
        return 0;
    }
    realm_buf a, b;
    realm_buf_init(&a, 64u << 20);
    realm_buf_init(&b, 64u << 20);
    realm_json root = realm_json_root(d);
    if (realm_json_dump(&root, &a) != REALM_OK) abort();
    if (realm_json_parse(&again, a.data, a.len, NULL, &err) == REALM_OK) {
        realm_json root2 = realm_json_root(again);
        if (realm_json_dump(&root2, &b) != REALM_OK || a.len != b.len || memcmp(a.data, b.data, a.len) != 0) abort();
        realm_json_doc_close(again);
    } else if (!(data[0] & 1)) {
        abort();
    }
    realm_buf_release(&a);
    realm_buf_release(&b);
    realm_json_doc_close(d);
    return 0;
}
