/* cli/listing.h - what a command prints row by row: lines, or with --output json one array. */
#ifndef REALM_CLI_LISTING_H
#define REALM_CLI_LISTING_H

#include "base/buf.h"
#include "data/data.h"

typedef struct realm_listing {
    bool json;
    realm_buf out;
    realm_json_writer w; /* json: rows are written here */
} realm_listing;

void realm_listing_begin(realm_listing *l, bool json);
/* Prints it, or where `s` says that not all rows could be had nothing but `err`; the command's exit status. */
int realm_listing_end(realm_listing *l, const char *command, realm_status s, const realm_error *err);

#endif
