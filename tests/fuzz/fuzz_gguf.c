/* Any bytes as a model file: they are refused with one line, or everything in them can be walked and described. */
#include "../unit/gguf/walk.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    realm_error err = {0};
    (void)walk_copy(data, size, &err);
    return 0;
}
