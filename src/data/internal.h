/* data/internal.h - what the files of this folder share: a document is a jansson tree and, for YAML, a table of lines.
 *
 * jansson's nodes carry no position and `true` is one static node, so lines hang on (container, key or index).
 */
#ifndef REALM_DATA_INTERNAL_H
#define REALM_DATA_INTERNAL_H

#include <jansson.h>

#include "data/data.h"

typedef struct realm_json_line_entry {
    const json_t *container;
    const char *key; /* of an object's member, borrowed from it; NULL in arrays */
    size_t index;
    unsigned line;
} realm_json_line_entry;

struct realm_json_doc {
    json_t *root;
    realm_json_line_entry *lines; /* NULL in JSON */
    size_t n_lines, cap_lines;
};

/* Makes jansson allocate through base/alloc; before any other call of it. Any thread. */
void realm_json_library_init(void);
/* An empty document; NULL when memory is out. */
realm_json_doc *realm_json_doc_new(void);

#endif
