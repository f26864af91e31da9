/* engine/prefix.c - full pages found again by what was computed to fill them.
 *
 * The key of a page is HMAC-SHA-256 under its owner's secret over length-prefixed fields: a tag, the model, the key of
 * the page before it, its position, its tokens. A key therefore says the whole text from the beginning, nobody without
 * the secret can make one, and equal texts of two tenants have unrelated keys: what one has computed, or that it has,
 * shows neither in the other's answers nor in their timing. Published prefixes have keys under a secret that all share;
 * a tenant's own pages may follow them, keyed with its own secret over their keys.
 *
 * A page becomes findable when its last token has been computed. Findable pages that nobody holds are the pool's cached
 * ones; pages.c decides when they go.
 */
#include <assert.h>
#include <string.h>

#include "crypto/crypto.h"
#include "engine/pages.h"

#define TAG "realm kv page 1"

static char *put(char *at, const void *field, size_t len) {
    uint32_t n = (uint32_t)len;
    memcpy(at, &n, sizeof n);
    memcpy(at + sizeof n, field, len);
    return at + sizeof n + len;
}

static bool make_key(const realm_page_pool *p, const realm_page_owner *o, const realm_page *parent, uint32_t index,
                     const realm_token *tokens, uint8_t key[REALM_PAGE_KEY_BYTES]) {
    static const uint8_t none[REALM_PAGE_KEY_BYTES];
    char text[sizeof TAG + sizeof p->model + REALM_PAGE_KEY_BYTES + sizeof index +
              REALM_KV_PAGE_TOKENS * sizeof *tokens + 5 * sizeof(uint32_t)];
    char *at = put(text, TAG, sizeof TAG - 1);
    at = put(at, p->model, strlen(p->model));
    at = put(at, parent ? parent->key : none, REALM_PAGE_KEY_BYTES);
    at = put(at, &index, sizeof index);
    at = put(at, tokens, REALM_KV_PAGE_TOKENS * sizeof *tokens);
    return realm_hmac_sha256(o->secret, sizeof o->secret, text, (size_t)(at - text), key) == REALM_OK;
}

/* ---- the table; under the lock ----------------------------------------------------------------------------------- */

static realm_page **bucket(const realm_page_pool *p, const uint8_t *key) {
    uint32_t h;
    memcpy(&h, key, sizeof h); /* keys are random to whoever does not know the secret */
    return &p->table[h & p->table_mask];
}

static realm_page *find(const realm_page_pool *p, const realm_page_owner *o, const uint8_t *key) {
    realm_page *g = *bucket(p, key);
    while (g && (g->owner != o || memcmp(g->key, key, REALM_PAGE_KEY_BYTES) != 0)) g = g->hash_next;
    return g;
}

void realm_page_hide(realm_page_pool *p, realm_page *g) {
    realm_page **at = bucket(p, g->key);
    while (*at != g) at = &(*at)->hash_next;
    *at = g->hash_next;
    g->hash_next = NULL;
    g->findable = false;
    p->n_public -= g->owner->is_public;
}

/* ---- noting and taking ------------------------------------------------------------------------------------------- */

static void publish(realm_page_pool *p, realm_page *g, const uint8_t *key) {
    realm_mutex_lock(&p->mu);
    memcpy(g->key, key, REALM_PAGE_KEY_BYTES);
    g->has_key = true;
    if (!find(p, g->owner, key)) { /* else another sequence computed the same */
        realm_page **at = bucket(p, key);
        g->hash_next = *at;
        *at = g;
        g->findable = true;
        p->n_public += g->owner->is_public;
    }
    realm_mutex_unlock(&p->mu);
}

void realm_prefix_note(realm_page_pool *p, realm_page_owner *o, realm_seq *s) {
    if (!o->has_secret) return;
    const uint32_t n = s->n_past / REALM_KV_PAGE_TOKENS;
    uint32_t i = n;
    while (i > 0 && !s->pages[i - 1]->has_key) i--;
    for (; i < n; i++) {
        uint8_t key[REALM_PAGE_KEY_BYTES];
        const realm_page *parent = i > 0 ? s->pages[i - 1] : NULL;
        if (!make_key(p, o, parent, i, s->tokens + (size_t)i * REALM_KV_PAGE_TOKENS, key)) return;
        publish(p, s->pages[i], key);
    }
}

void realm_prefix_hide(realm_page_pool *p, realm_seq *s, uint32_t from) {
    realm_mutex_lock(&p->mu);
    for (uint32_t i = from; i < s->n_pages; i++)
        if (s->pages[i]->findable) realm_page_hide(p, s->pages[i]);
    realm_mutex_unlock(&p->mu);
}

/* With a reference. */
static realm_page *look_up(realm_page_pool *p, const realm_page_owner *o, const realm_page *parent, uint32_t index,
                           const realm_token *tokens) {
    uint8_t key[REALM_PAGE_KEY_BYTES];
    if (!make_key(p, o, parent, index, tokens, key)) return NULL;
    realm_mutex_lock(&p->mu);
    realm_page *g = find(p, o, key);
    if (g) realm_page_ref_locked(p, g);
    realm_mutex_unlock(&p->mu);
    return g;
}

uint32_t realm_prefix_take(realm_page_pool *p, realm_page_owner *o, realm_page_owner *everybody, realm_seq *s,
                           uint32_t n_most) {
    const uint32_t first = s->n_past / REALM_KV_PAGE_TOKENS, had = s->n_past;
    const realm_page *parent = first > 0 ? s->pages[first - 1] : NULL;
    if (parent && !parent->has_key) return 0;
    realm_mutex_lock(&p->mu);
    const bool any_public = p->n_public > 0; /* whoever publishes may hide what did not become whole */
    realm_mutex_unlock(&p->mu);
    for (uint32_t i = first; ((uint64_t)i + 1) * REALM_KV_PAGE_TOKENS <= n_most; i++) {
        const realm_token *tokens = s->tokens + (size_t)i * REALM_KV_PAGE_TOKENS;
        realm_page *g = NULL;
        if (any_public && (!parent || parent->owner->is_public)) g = look_up(p, everybody, parent, i, tokens);
        if (!g && o->has_secret) g = look_up(p, o, parent, i, tokens);
        if (!g) break;
        if (i == first) realm_seq_keep_pages(p, s, first); /* a page that is computed in part */
        realm_seq_add_page(s, g, false);
        s->n_past = (i + 1) * REALM_KV_PAGE_TOKENS;
        parent = g;
    }
    realm_mutex_lock(&p->mu);
    p->prefix_asked++;
    p->prefix_found += s->n_past > had;
    realm_mutex_unlock(&p->mu);
    return s->n_past > had ? s->n_past - had : 0;
}
