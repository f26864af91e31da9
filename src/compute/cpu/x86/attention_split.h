/* compute/cpu/x86/attention_split.h - one split of attention, page by page; included by attention_avx2.c and
 * attention_avx512.c alone, behind what they do with their registers: BLOCK queries at a time, scores_halves,
 * scores_wide, softmax, outputs_any, widen_page and clear.
 *
 * First the scores of all pages, then the softmax of each query over its tokens, then the outputs. Where more than one
 * block of queries uses a page, it is widened to floats first.
 */

INLINE uint32_t clip(uint32_t t, uint32_t base) { return t <= base ? 0 : t - base < PAGE ? t - base : PAGE; }

/* Up to BLOCK queries against one page. A query multiplies only tokens that it sees: the others may hold anything. So
 * the tokens that all see are done together, those before and after it one query at a time, in order for each. */
static void outputs_page(const realm_attend_args *a, uint32_t first, uint32_t n, uint32_t page, const void *v,
                         bool wide) {
    uint32_t base = page * PAGE, low = 0, high = PAGE, dim = a->v_dim;
    for (uint32_t j = first; j < first + n; j++) {
        uint32_t b = clip(a->begin[j], base), e = clip(a->end[j], base);
        low = b > low ? b : low;
        high = e < high ? e : high;
    }
    bool together = low < high;
    const float *p = a->scores + first * SPLIT + base;
    float *o = a->o + (size_t)first * dim;
    const void *next = a->next_k[page] ? (const void *)a->next_k[page] : v; /* what is there already costs nothing */
    for (uint32_t j = 0; j < n; j++) {
        uint32_t b = clip(a->begin[first + j], base), e = clip(a->end[first + j], base);
        outputs_any(1, p + j * SPLIT, v, wide, dim, b, together ? low : e, next, o + (size_t)j * dim);
    }
    if (!together) return;
    outputs_any(n, p, v, wide, dim, low, high, next, o);
    for (uint32_t j = 0; j < n; j++)
        outputs_any(1, p + j * SPLIT, v, wide, dim, high, clip(a->end[first + j], base), next, o + (size_t)j * dim);
}

static void attend_split(const realm_attend_args *a) {
    uint32_t low = SPLIT, high = 0;
    for (uint32_t j = 0; j < a->n_q; j++) {
        if (a->begin[j] >= a->end[j]) continue;
        low = a->begin[j] < low ? a->begin[j] : low;
        high = a->end[j] > high ? a->end[j] : high;
    }
    clear(a->o, (size_t)a->n_q * a->v_dim);
    bool wide = a->n_q > BLOCK;
    for (uint32_t i = low / PAGE; i * PAGE < high; i++) {
        float *s = a->scores + i * PAGE;
        if (wide) {
            widen_page(a->k[i], (size_t)a->head_dim * PAGE, a->page);
            scores_wide(a->n_q, a->q, a->head_dim, a->page, s);
        } else {
            scores_halves(a->n_q, a->q, a->head_dim, a->k[i], s, a->v[i]);
        }
    }
    for (uint32_t j = 0; j < a->n_q; j++) {
        a->m[j] = -INFINITY;
        a->l[j] = 0;
        if (a->begin[j] < a->end[j])
            softmax(a->scores + j * SPLIT, a->begin[j], a->end[j], a->softcap, a->mask ? a->mask[j] : NULL, &a->m[j],
                    &a->l[j]);
    }
    for (uint32_t i = low / PAGE; i * PAGE < high; i++) {
        const void *v = a->v[i];
        if (wide) {
            uint32_t end = high - i * PAGE < PAGE ? high - i * PAGE : PAGE;
            widen_page(a->v[i], (size_t)end * a->v_dim, a->page);
            v = a->page;
        }
        for (uint32_t j = 0; j < a->n_q; j += BLOCK)
            outputs_page(a, j, a->n_q - j < BLOCK ? a->n_q - j : BLOCK, i, v, wide);
    }
}
