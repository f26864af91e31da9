/* model/plan.c - the lists behind a plan while a family describes its forward pass. */
#include <assert.h>

#include "model/internal.h"

realm_value realm_planner_value(realm_planner *p, uint32_t cols, realm_rows_of rows) {
    assert(p->n_values < p->cap_values);
    p->values[p->n_values] = (realm_value_desc){.cols = cols, .rows = rows};
    return (realm_value)p->n_values++;
}

realm_op *realm_planner_op(realm_planner *p, realm_op_kind kind) {
    assert(p->n_ops < p->cap_ops);
    realm_op *op = &p->ops[p->n_ops++];
    *op = (realm_op){.kind = kind, .streamed = p->streamed};
    return op;
}
