/* engine/select.c - loops over rows of logits and lists of candidates.
 *
 * A vocabulary is long (262,144 for Gemma) and rows come by the dozen in each step, so nothing here sorts one. Rows are
 * read in plain loops over a few lanes that compilers turn into vector code; a block without anything of interest is
 * skipped by one comparison. Candidates are cut by quickselect over (value, then lower id first): the order is total,
 * so the set is exact and the same whatever the vector width.
 */
#include <math.h>
#include <string.h>

#include "engine/sampling.h"

#define LANES REALM_SELECT_LANES

#define MAX_BLOCK 2048u /* a maximum's place is known to so many values */

float realm_row_max(const float *x, size_t n, size_t *near) {
    float best = -INFINITY;
    size_t place = 0, i = 0;
    for (; i + MAX_BLOCK <= n; i += MAX_BLOCK) {
        float m[LANES], most = -INFINITY;
        for (size_t l = 0; l < LANES; l++) m[l] = -INFINITY;
        for (size_t k = 0; k < MAX_BLOCK; k += LANES)
            for (size_t l = 0; l < LANES; l++) m[l] = x[i + k + l] > m[l] ? x[i + k + l] : m[l];
        for (size_t l = 0; l < LANES; l++) most = m[l] > most ? m[l] : most;
        if (most > best) {
            best = most;
            place = i;
        }
    }
    for (; i < n; i++)
        if (x[i] > best) {
            best = x[i];
            place = i;
        }
    if (near) *near = place;
    return best;
}

size_t realm_row_find(const float *x, size_t n, size_t at, float v) {
    size_t i = at;
    for (; i + LANES <= n; i += LANES) {
        int hit = 0;
        for (size_t l = 0; l < LANES; l++) hit |= x[i + l] == v;
        if (hit) break;
    }
    while (i < n && x[i] != v) i++;
    return i;
}

/* To about two units in the last place. Range reduction and polynomial as in the Cephes library's expf (Moshier,
 * netlib.org/cephes). */
static inline float exp_negative(float x) {
    const float c = x > -87.0f ? x : -87.0f;
    const float shifted = c * 1.44269504088896341f + 12582912.0f; /* rounds to an integer in the low bits */
    const float n = shifted - 12582912.0f;
    const float r = c - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union {
        int32_t i;
        float f;
    } scale = {.i = (((int32_t)n + 127) << 23) & -(int32_t)(x > -87.0f)}; /* a mask, so that there is no branch */
    return p * scale.f;
}

float realm_exp_negative(float x) { return exp_negative(x); }

#define BLOCK 256u /* float sums stay this short */

/* Exponentials and sums are separate loops, as only the first kind is a plain loop that compilers vectorise. */
double realm_row_exp(const float *x, size_t n, float max, float inv_t, float *w) {
    float own[BLOCK];
    double total = 0;
    for (size_t at = 0; at < n; at += BLOCK) {
        const size_t len = n - at < BLOCK ? n - at : BLOCK;
        float *v = w ? w + at : own;
        for (size_t i = 0; i < len; i++) v[i] = exp_negative((x[at + i] - max) * inv_t);
        float sum[LANES] = {0};
        size_t i = 0;
        for (; i + LANES <= len; i += LANES)
            for (size_t l = 0; l < LANES; l++) sum[l] += v[i + l];
        for (; i < len; i++) sum[0] += v[i];
        for (size_t l = 0; l < LANES; l++) total += (double)sum[l];
    }
    return total;
}

/* ---- candidates ------------------------------------------------------------------------------------------------- */

#define before realm_candidate_before

static inline void swap(realm_candidate *a, realm_candidate *b) {
    realm_candidate t = *a;
    *a = *b;
    *b = t;
}

/* Puts a pivot into its place within [lo, hi) and returns the place: those before it are before it in the order. */
static size_t partition(realm_candidate *c, size_t lo, size_t hi) {
    size_t mid = lo + (hi - lo) / 2, last = hi - 1;
    if (before(c[mid], c[lo])) swap(&c[mid], &c[lo]);
    if (before(c[last], c[lo])) swap(&c[last], &c[lo]);
    if (before(c[mid], c[last])) swap(&c[mid], &c[last]); /* the median of three stands last */
    realm_candidate pivot = c[last];
    size_t at = lo;
    for (size_t i = lo; i < last; i++)
        if (before(c[i], pivot)) swap(&c[i], &c[at++]);
    swap(&c[at], &c[last]);
    return at;
}

void realm_select_best(realm_candidate *c, size_t n, size_t k) {
    size_t lo = 0, hi = n;
    while (hi - lo > 1) {
        size_t at = partition(c, lo, hi);
        if (at == k) return;
        if (at < k)
            lo = at + 1;
        else
            hi = at;
    }
}

size_t realm_select_mass(realm_candidate *c, size_t n, const float *weight, double mass) {
    size_t lo = 0, hi = n;
    while (hi - lo > 1) {
        size_t at = partition(c, lo, hi);
        double sum = 0, last = (double)(weight ? weight[c[at].id] : c[at].x);
        for (size_t i = lo; i <= at; i++) sum += (double)(weight ? weight[c[i].id] : c[i].x);
        if (sum < mass) { /* all up to the pivot belong, and more */
            mass -= sum;
            lo = at + 1;
        } else {
            hi = at; /* the pivot may be the last one that belongs */
            if (sum - last < mass) return at + 1;
        }
    }
    return hi > lo ? lo + 1 : (lo > 0 ? lo : 1);
}

size_t realm_gather_best(const float *x, size_t n, size_t k, realm_candidate *c) {
    size_t cap = 2 * k > k + LANES ? 2 * k : k + LANES, len = 0;
    float least = -INFINITY;
    for (size_t i = 0; i < n; i += LANES) {
        size_t end = i + LANES < n ? i + LANES : n;
        if (end - i == LANES) {
            int hit = 0;
            for (size_t l = 0; l < LANES; l++) hit |= x[i + l] > least;
            if (!hit) continue;
        }
        for (size_t j = i; j < end; j++) {
            if (!(x[j] > least)) continue;
            c[len++] = (realm_candidate){x[j], (realm_token)j};
            if (len < cap) continue;
            realm_select_best(c, len, k);
            len = k;
            least = c[0].x;
            for (size_t l = 1; l < k; l++) least = c[l].x < least ? c[l].x : least;
        }
    }
    if (len > k) {
        realm_select_best(c, len, k);
        len = k;
    }
    return len;
}

size_t realm_gather_above(const float *x, size_t n, float cut, realm_candidate *c, double *sum) {
    size_t len = 0;
    double total = 0;
    for (size_t i = 0; i < n; i += LANES) {
        size_t end = i + LANES < n ? i + LANES : n;
        if (end - i == LANES) {
            int hit = 0;
            for (size_t l = 0; l < LANES; l++) hit |= x[i + l] >= cut;
            if (!hit) continue;
        }
        for (size_t j = i; j < end; j++) {
            if (!(x[j] >= cut)) continue;
            c[len++] = (realm_candidate){x[j], (realm_token)j};
            total += (double)x[j];
        }
    }
    *sum = total;
    return len;
}

/* ---- masks ------------------------------------------------------------------------------------------------------ */

size_t realm_bits_count(const uint32_t *bits, size_t n) {
    size_t count = 0;
    for (size_t w = 0; w < n / 32; w++) count += (size_t)__builtin_popcount(bits[w]);
    if (n % 32) count += (size_t)__builtin_popcount(bits[n / 32] & ((UINT32_C(1) << n % 32) - 1));
    return count;
}

size_t realm_gather_set(const float *x, size_t n, const uint32_t *bits, realm_candidate *c) {
    size_t len = 0;
    for (size_t w = 0; w * 32 < n; w++)
        for (uint32_t left = bits[w]; left != 0; left &= left - 1) {
            size_t id = w * 32 + (size_t)__builtin_ctz(left);
            if (id < n) c[len++] = (realm_candidate){x[id], (realm_token)id};
        }
    return len;
}

void realm_row_mask(float *x, size_t n, const uint32_t *bits) {
    for (size_t w = 0; w * 32 < n; w++) {
        const uint32_t set = bits[w];
        if (set == UINT32_MAX) continue;
        float *v = x + w * 32;
        const size_t len = n - w * 32 < 32 ? n - w * 32 : 32;
        for (size_t i = 0; i < len; i++) v[i] = set >> i & 1 ? v[i] : -INFINITY;
    }
}
