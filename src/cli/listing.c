#include "cli/listing.h"

#include "cli/args.h"

#define OUTPUT_MAX ((size_t)64 << 20)

void realm_listing_begin(realm_listing *l, bool json) {
    l->json = json;
    realm_buf_init(&l->out, OUTPUT_MAX);
    realm_json_writer_init(&l->w, &l->out);
    if (json) realm_json_begin_array(&l->w);
}

int realm_listing_end(realm_listing *l, const char *command, realm_status s, const realm_error *err) {
    if (s != REALM_OK) {
        realm_buf_release(&l->out);
        return realm_fail(command, err);
    }
    if (l->json) {
        realm_json_end_array(&l->w);
        (void)realm_buf_putc(&l->out, '\n');
    }
    return realm_print(command, &l->out);
}
