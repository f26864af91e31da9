/* compute/cpu/pack.c - from the file's rows to panels of 16 interleaved rows.
 *
 * Cold start waits for this, so it moves words, not values: the 16 bytes of nibbles of a Q4 or Q5 block in the file are
 * already the 4 words that the panel wants of that row, K types need a few word operations per block, and only the bit
 * planes are rearranged. Panels are independent items that the team shares. A panel is filled in stripes of 256
 * inputs, row by row: reads run along a row, writes stay within a few KiB.
 *
 * The block layouts on the file's side are defined in quant/legacy.c and quant/kblocks.c; the panel's in pack.h.
 */
#include "compute/cpu/pack.h"

#include <string.h>

#include "base/alloc.h"

#define STRIPE 256u        /* inputs that one pack function call covers: a whole block of the K types */
#define MAX_DIM (1u << 24) /* of rows / 16 and of k: keeps every index in 32 bits and every size in 64 */

static const realm_pack_layout layouts[] = {
    {REALM_PACK_F32, REALM_TYPE_F32, 1, 4, 0, 0, 0, 0},
    {REALM_PACK_F16, REALM_TYPE_F16, 1, 2, 0, 0, 0, 0},
    {REALM_PACK_BF16, REALM_TYPE_BF16, 1, 2, 0, 0, 0, 0},
    {REALM_PACK_Q4_0, REALM_TYPE_Q4_0, 32, 0, 256, 32, 0, 2},
    {REALM_PACK_Q4_1, REALM_TYPE_Q4_1, 32, 0, 256, 64, 0, 1},
    {REALM_PACK_Q5_0, REALM_TYPE_Q5_0, 32, 0, 320, 32, 0, 2},
    {REALM_PACK_Q5_1, REALM_TYPE_Q5_1, 32, 0, 320, 64, 0, 1},
    {REALM_PACK_Q8_0, REALM_TYPE_Q8_0, 32, 0, 512, 32, 0, 2},
    {REALM_PACK_Q4_K, REALM_TYPE_Q4_K, 256, 0, 256, 32, 64, 8},
    {REALM_PACK_Q5_K, REALM_TYPE_Q5_K, 256, 0, 320, 32, 64, 8},
    {REALM_PACK_Q6_K, REALM_TYPE_Q6_K, 256, 0, 384, 32, 64, 8},
};

const realm_pack_layout *realm_pack_layout_of(realm_type type) {
    for (size_t i = 0; i < REALM_ARRAY_LEN(layouts); i++)
        if (layouts[i].type == type) return &layouts[i];
    return NULL;
}

/* One row's share of a block (K types: of a super-block). The pointers are at the block's parts, `quants` already moved
 * to the row's lane of 4 bytes; the others take `lane`. */
typedef struct lane_dst {
    uint8_t *quants, *scales, *super;
    unsigned lane;
} lane_dst;

static inline uint32_t load_u32(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}
static inline void store_u32(uint8_t *p, uint32_t v) { memcpy(p, &v, 4); }

static inline void put_nibbles(uint8_t *quants, const uint8_t *bytes) {
    for (unsigned i = 0; i < 4; i++) store_u32(quants + 64 * i, load_u32(bytes + 4 * i));
}

/* The plane word of 32 fifth bits: bit n of byte j is bit 4n + j of `bits`. Gathers every fourth bit, for each j. */
static inline uint32_t fifth_bits_word(uint32_t bits) {
    uint32_t word = 0;
    for (unsigned j = 0; j < 4; j++) {
        uint32_t x = bits >> j & 0x11111111u;
        x = (x | x >> 3) & 0x03030303u;
        x = (x | x >> 6) & 0x000f000fu;
        x = (x | x >> 12) & 0xffu;
        word |= x << 8 * j;
    }
    return word;
}

static void pack_q4(const lane_dst *o, const uint8_t *src, bool has_min) {
    memcpy(o->scales + 2 * o->lane, src, 2);
    if (has_min) memcpy(o->scales + 32 + 2 * o->lane, src + 2, 2);
    put_nibbles(o->quants, src + (has_min ? 4 : 2));
}

static void pack_q5(const lane_dst *o, const uint8_t *src, bool has_min) {
    const size_t head = has_min ? 4 : 2;
    memcpy(o->scales + 2 * o->lane, src, 2);
    if (has_min) memcpy(o->scales + 32 + 2 * o->lane, src + 2, 2);
    put_nibbles(o->quants, src + head + 4);
    store_u32(o->quants + 256, fifth_bits_word(load_u32(src + head)));
}

static void pack_q8_0(const lane_dst *o, const uint8_t *src) {
    memcpy(o->scales + 2 * o->lane, src, 2);
    for (unsigned i = 0; i < 8; i++) store_u32(o->quants + 64 * i, load_u32(src + 2 + 4 * i) ^ 0x80808080u);
}

/* Scale and minimum s of the 8 of a Q4_K or Q5_K block: 6 bits each, in 12 bytes (quant/kblocks.c). */
static inline void k_scale_min(const uint8_t *p, unsigned s, uint8_t *scale, uint8_t *min) {
    if (s < 4) {
        *scale = p[s] & 63;
        *min = p[s + 4] & 63;
    } else {
        *scale = (uint8_t)((p[s + 4] & 15) | p[s - 4] >> 6 << 4);
        *min = (uint8_t)(p[s + 4] >> 4 | p[s] >> 6 << 4);
    }
}

/* The file keeps blocks 2c and 2c + 1 in the low and high nibbles of 32 bytes; a panel keeps both halves of one. */
static inline void put_k_nibbles(uint8_t *quants, const uint8_t *bytes, unsigned shift) {
    for (unsigned i = 0; i < 4; i++) {
        uint32_t first = load_u32(bytes + 4 * i) >> shift & 0x0f0f0f0fu;
        uint32_t last = load_u32(bytes + 16 + 4 * i) >> shift & 0x0f0f0f0fu;
        store_u32(quants + 64 * i, first | last << 4);
    }
}

/* Bit s of each of 32 bytes, as one word: a multiplication gathers the low bits of 8 bytes into the top byte. */
static inline uint32_t bits_of_bytes(const uint8_t *bytes, unsigned s) {
    uint32_t out = 0;
    for (unsigned i = 0; i < 4; i++) {
        uint64_t v;
        memcpy(&v, bytes + 8 * i, 8);
        v = v >> s & UINT64_C(0x0101010101010101);
        out |= (uint32_t)(v * UINT64_C(0x0102040810204080) >> 56) << 8 * i;
    }
    return out;
}

static void pack_q45_k(const lane_dst *o, const uint8_t *src, bool fifth) {
    size_t quant_bytes = fifth ? 320 : 256;
    const uint8_t *high = src + 16, *low = fifth ? src + 48 : src + 16;
    memcpy(o->super + 2 * o->lane, src, 2);
    memcpy(o->super + 32 + 2 * o->lane, src + 2, 2);
    for (unsigned s = 0; s < 8; s++) {
        k_scale_min(src + 4, s, o->scales + 32 * s + o->lane, o->scales + 32 * s + 16 + o->lane);
        put_k_nibbles(o->quants + quant_bytes * s, low + 32 * (s / 2), s % 2 * 4);
        if (fifth) store_u32(o->quants + quant_bytes * s + 256, fifth_bits_word(bits_of_bytes(high, s)));
    }
}

static void pack_q6_k(const lane_dst *o, const uint8_t *src) {
    memcpy(o->super + 2 * o->lane, src + 208, 2);
    for (unsigned s = 0; s < 8; s++) {
        const uint8_t *low = src + 64 * (s / 4) + 32 * (s % 2), *high = src + 128 + 32 * (s / 4);
        uint8_t *q = o->quants + (size_t)384 * s;
        put_k_nibbles(q, low, s % 4 / 2 * 4);
        for (unsigned h = 0; h < 2; h++) {
            uint32_t word = 0;
            for (unsigned i = 0; i < 4; i++)
                word |= (load_u32(high + 16 * h + 4 * i) >> s % 4 * 2 & 0x03030303u) << 2 * i;
            store_u32(q + 256 + 64 * h, word);
        }
        o->scales[32 * s + o->lane] = src[192 + 2 * s];
        o->scales[32 * s + 16 + o->lane] = src[192 + 2 * s + 1];
    }
}

static void pack_float_panel(const realm_pack_layout *l, uint8_t *panel, const uint8_t *src, size_t row_bytes,
                             unsigned n_rows, uint32_t k) {
    for (uint32_t k0 = 0; k0 < k; k0 += STRIPE) {
        uint32_t k1 = REALM_MIN(k, k0 + STRIPE);
        for (unsigned r = 0; r < n_rows; r++) {
            const uint8_t *s = src + r * row_bytes;
            if (l->element_bytes == 4)
                for (uint32_t i = k0; i < k1; i++) memcpy(panel + ((size_t)i * 16 + r) * 4, s + (size_t)i * 4, 4);
            else
                for (uint32_t i = k0; i < k1; i++) memcpy(panel + ((size_t)i * 16 + r) * 2, s + (size_t)i * 2, 2);
        }
    }
}

static void pack_quant_panel(const realm_pack_layout *l, uint8_t *panel, const uint8_t *src, size_t row_bytes,
                             unsigned n_rows, uint32_t k) {
    const uint32_t n_blocks = k / 32, step = l->block_len / 32;
    const size_t block_bytes = row_bytes / (k / l->block_len);
    for (uint32_t stripe = 0; stripe < n_blocks; stripe += STRIPE / 32)
        for (unsigned r = 0; r < n_rows; r++)
            for (uint32_t b = stripe; b < REALM_MIN(stripe + STRIPE / 32, n_blocks); b += step) {
                const uint8_t *s = src + r * row_bytes + block_bytes * (b / step);
                const realm_pack_block at = realm_pack_block_at(l, b);
                const lane_dst o = {panel + at.quants + 4 * r, panel + at.scales, panel + at.super, r};
                switch (l->kind) {
                case REALM_PACK_Q4_0: pack_q4(&o, s, false); break;
                case REALM_PACK_Q4_1: pack_q4(&o, s, true); break;
                case REALM_PACK_Q5_0: pack_q5(&o, s, false); break;
                case REALM_PACK_Q5_1: pack_q5(&o, s, true); break;
                case REALM_PACK_Q8_0: pack_q8_0(&o, s); break;
                case REALM_PACK_Q4_K: pack_q45_k(&o, s, false); break;
                case REALM_PACK_Q5_K: pack_q45_k(&o, s, true); break;
                default: pack_q6_k(&o, s); break;
                }
            }
}

/* The same from columns: src is (k, n) float32, whose runs of 16 are a panel's vectors already. */
static void pack_columns_panel(uint8_t *panel, const uint8_t *src, size_t row_bytes, unsigned n_rows, uint32_t k) {
    for (uint32_t i = 0; i < k; i++) memcpy(panel + (size_t)i * 64, src + i * row_bytes, n_rows * sizeof(float));
}

typedef struct pack_job {
    const struct realm_packed *p;
    const void *src;
    size_t row_bytes; /* from row to row of src */
    bool columns;     /* src's rows are the inputs */
} pack_job;

static void pack_panels(const pack_job *job, uint32_t begin, uint32_t end) {
    const struct realm_packed *p = job->p;
    for (uint32_t i = begin; i < end; i++) {
        uint64_t row = (uint64_t)i * REALM_PANEL_ROWS;
        unsigned n_rows = (unsigned)REALM_MIN(REALM_PANEL_ROWS, p->rows - row);
        uint8_t *panel = p->panels + i * p->panel_bytes;
        const uint8_t *src = (const uint8_t *)job->src + row * (job->columns ? sizeof(float) : job->row_bytes);
        if (n_rows < REALM_PANEL_ROWS) memset(panel, 0, p->panel_bytes);
        if (job->columns)
            pack_columns_panel(panel, src, job->row_bytes, n_rows, p->k);
        else if (realm_pack_is_float(p->layout))
            pack_float_panel(p->layout, panel, src, job->row_bytes, n_rows, p->k);
        else
            pack_quant_panel(p->layout, panel, src, job->row_bytes, n_rows, p->k);
    }
}

static void pack_worker(realm_worker *w, void *user) {
    const pack_job *job = user;
    uint32_t grain = REALM_MAX(1u, REALM_MIN(16u, job->p->n_panels / (4 * w->n)));
    uint32_t begin, end;
    while (realm_worker_claim(w, job->p->n_panels, grain, &begin, &end)) pack_panels(job, begin, end);
    realm_worker_barrier(w);
}

static size_t panel_bytes_of(const realm_pack_layout *l, uint32_t k) {
    if (realm_pack_is_float(l)) return ((size_t)k * 16 * l->element_bytes + 63) & ~(size_t)63;
    return (k / 32 + l->group - 1) / l->group * realm_pack_group_bytes(l);
}

realm_status realm_cpu_pack_shape(const realm_weight_desc *desc, struct realm_packed **out, realm_error *err) {
    *out = NULL;
    const realm_pack_layout *l = realm_pack_layout_of(desc->type->type);
    if (!l)
        return realm_error_set(err, REALM_E_UNSUPPORTED, "the CPU backend has no matrix product for %s weights",
                               desc->type->name);
    uint64_t row_bytes;
    if (desc->rows == 0 || desc->cols == 0 || desc->rows > (uint64_t)MAX_DIM * REALM_PANEL_ROWS || desc->cols > MAX_DIM)
        return realm_error_set(err, REALM_E_UNSUPPORTED, "a weight of %llu x %llu values is outside 1 .. %u columns",
                               (unsigned long long)desc->rows, (unsigned long long)desc->cols, MAX_DIM);
    if (desc->cols % l->block_len || !realm_type_row_bytes(desc->type, desc->cols, &row_bytes))
        return realm_error_set(err, REALM_E_FORMAT, "%llu columns are no multiple of the %u of a %s block",
                               (unsigned long long)desc->cols, l->block_len, desc->type->name);
    struct realm_packed *p = realm_calloc(1, sizeof *p);
    if (!p) return realm_error_set(err, REALM_E_NOMEM, "out of memory for a packed weight");
    p->layout = l;
    p->rows = desc->rows;
    p->k = (uint32_t)desc->cols;
    p->n_panels = (uint32_t)((desc->rows + REALM_PANEL_ROWS - 1) / REALM_PANEL_ROWS);
    p->panel_bytes = panel_bytes_of(l, p->k);
    if (!realm_mul_size(p->panel_bytes, p->n_panels, &p->bytes)) {
        realm_free(p);
        return realm_error_set(err, REALM_E_NOMEM, "a packed weight of %llu rows is too large",
                               (unsigned long long)desc->rows);
    }
    *out = p;
    return REALM_OK;
}

static void pack_all(realm_team *team, const pack_job *job) {
    if (team)
        realm_team_run(team, pack_worker, (void *)(uintptr_t)job);
    else
        pack_panels(job, 0, job->p->n_panels);
}

void realm_cpu_pack_floats(realm_team *team, struct realm_packed *p, const float *data, size_t stride, bool columns) {
    pack_all(team, &(pack_job){.p = p, .src = data, .row_bytes = stride * sizeof *data, .columns = columns});
}

void realm_cpu_pack_into(realm_team *team, struct realm_packed *p, const void *data, void *memory) {
    uint64_t row_bytes = 0;
    (void)realm_type_row_bytes(realm_type_get((uint32_t)p->layout->type), p->k,
                               &row_bytes); /* went well for the shape */
    p->panels = memory;
    pack_all(team, &(pack_job){.p = p, .src = data, .row_bytes = (size_t)row_bytes});
}

realm_status realm_cpu_pack(realm_team *team, const realm_weight_desc *desc, struct realm_packed **out,
                            realm_error *err) {
    struct realm_packed *p;
    *out = NULL;
    realm_status s = realm_cpu_pack_shape(desc, &p, err);
    if (s != REALM_OK) return s;
    p->slab = team ? realm_team_slab(team) : NULL;
    void *memory = p->slab ? realm_slab_take(p->slab, p->bytes) : realm_pages_map(p->bytes);
    if (!memory) {
        s = realm_error_set(err, REALM_E_NOMEM, "out of memory for a packed weight of %zu bytes", p->bytes);
        realm_free(p);
        return s;
    }
    p->owned = true;
    realm_cpu_pack_into(team, p, desc->data, memory);
    *out = p;
    return REALM_OK;
}

void realm_cpu_unpack(struct realm_packed *p) {
    if (!p) return;
    if (p->owned && p->slab)
        realm_slab_give(p->slab, p->panels);
    else if (p->owned)
        realm_pages_unmap(p->panels, p->bytes);
    realm_free(p);
}

uint64_t realm_cpu_packed_bytes(const struct realm_packed *p) { return p ? p->bytes : 0; }
