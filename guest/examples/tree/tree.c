/* tree: a tree of thoughts. The answer is written sentence by sentence; at each one several ways to go on are tried,
 * the best are kept, and from those the next sentence is tried.
 *
 * The client names words, separated by commas; the model writes a story that uses them. A node of the tree is a
 * context: the conversation and the sentences so far. Its children are forks of it that share its pages, each with one
 * sampled sentence more, all sampled at once. A node is worth how many of the words its story has, and, among equals,
 * how likely the model finds its sentences. Small models forget what they were asked for; a search does not.
 */
#include "realm_guest.h"
#include "realm_text.h"

enum { DEPTH = 3, KEPT = 2, CHILDREN = 4, NODES = KEPT * CHILDREN, STORY_MAX = 2048, EVENTS = 64, WORDS_MAX = 16 };

typedef struct node {
    int32_t context, generation;
    char story[STORY_MAX];
    size_t len;
    uint32_t tokens, words; /* words: how many of the client's are in it */
    bool whole;             /* its last sentence came to an end */
    double logprob;
} node;

static node nodes[NODES], kept[KEPT];
static size_t n_kept;
static uint32_t tried;
static realm_guest_event events[EVENTS];
static char text[16384], question_bytes[1024], room[8192], chat_bytes[4096], out_bytes[STORY_MAX + 256];
static realm_text words[WORDS_MAX];
static size_t n_words;

static char lower(char c) { return c >= 'A' && c <= 'Z' ? (char)(c + ('a' - 'A')) : c; }

static void split_words(const realm_text *list) {
    for (size_t at = 0; at < list->len && n_words < WORDS_MAX; at++) {
        while (at < list->len && (list->at[at] == ' ' || list->at[at] == ',')) at++;
        size_t from = at;
        for (; at < list->len && list->at[at] != ','; at++) list->at[at] = lower(list->at[at]);
        size_t to = at;
        while (to > from && list->at[to - 1] == ' ') to--;
        if (to > from) words[n_words++] = (realm_text){.at = list->at + from, .len = to - from};
    }
}

static uint32_t count_words(const node *n) {
    uint32_t found = 0;
    for (size_t w = 0; w < n_words; w++)
        for (size_t at = 0; at + words[w].len <= n->len; at++) {
            size_t i = 0;
            while (i < words[w].len && lower(n->story[at + i]) == words[w].at[i]) i++;
            if (i < words[w].len) continue;
            found++;
            break;
        }
    return found;
}

static double mean(const node *n) { return n->tokens ? n->logprob / n->tokens : -1000; }

static bool better(const node *a, const node *b) {
    if (a->whole != b->whole) return a->whole;
    return a->words != b->words ? a->words > b->words : mean(a) > mean(b);
}

/* The conversation as the root of the tree, computed once for all of it. */
static int32_t open_root(node *root, const realm_text *list) {
    realm_text chat = REALM_TEXT_IN(chat_bytes), ask = REALM_TEXT_IN(out_bytes);
    realm_text_puts(&ask, "Write a short story of three sentences. It must use these words: ");
    realm_text_add(&ask, list->at, list->len);
    realm_text_puts(&chat, "[{\"role\":\"user\",\"content\":");
    realm_text_json(&chat, ask.at, ask.len);
    realm_text_puts(&chat, "}]");
    if (ask.cut || chat.cut) return REALM_E_RANGE;
    int32_t prompt = realm_prompt_chat(chat.at, chat.len, NULL, 0, REALM_CHAT_ANSWER);
    if (prompt < 0) return prompt;
    if ((root->context = realm_context_new()) < 0) return root->context;
    int32_t status = realm_context_append_prompt(root->context, prompt);
    if (status < 0) return status;
    int32_t pass = realm_forward(root->context, NULL, 0, 1, 0);
    if (pass < 0) return pass;
    status = realm_wait(pass, events, 1, NULL, 0, -1);
    realm_close(pass);
    return status < 0 ? status : events[0].status;
}

/* A fork of the parent that goes on by one sentence. */
static int32_t grow(node *child, const node *parent, uint64_t seed) {
    *child = *parent;
    if ((child->context = realm_context_fork(parent->context)) < 0) return child->context;
    realm_bytes stop = {.ptr = (uintptr_t)".", .len = 1};
    realm_generate_options options = {
        .size = sizeof options,
        .set = REALM_SET_MAX_TOKENS | REALM_SET_TEMPERATURE | REALM_SET_SEED | REALM_SET_STOP | REALM_SET_FLAGS |
               REALM_SET_CONTEXT,
        .max_tokens = 60,
        .temperature = 0.8f,
        .seed = seed,
        .flags = REALM_GENERATE_LOGPROBS,
        .stop = (uintptr_t)&stop,
        .n_stop = 1,
        .context = child->context,
    };
    tried++;
    return child->generation = realm_generate(0, &options, REALM_MODE_EVENTS);
}

static int32_t finish_all(size_t n) {
    for (size_t running = n; running > 0;) {
        int32_t got = realm_wait(0, events, EVENTS, text, sizeof text, -1);
        if (got < 0) return got;
        for (int32_t e = 0; e < got; e++) {
            node *c = nodes;
            while (c->generation != events[e].handle) c++;
            for (uint32_t i = 0; i < events[e].text_len && c->len + 1 < STORY_MAX; i++)
                c->story[c->len++] = text[events[e].text_at + i];
            if (events[e].kind == REALM_EVENT_KIND_TOKEN) {
                c->tokens++;
                c->logprob += (double)events[e].logprob;
                continue;
            }
            if (events[e].status < 0) return events[e].status;
            c->whole = events[e].finish == REALM_END_STOP;
            if (c->len > 0 && c->story[c->len - 1] != '.') c->story[c->len++] = '.';
            c->words = count_words(c);
            realm_close(c->generation);
            running--;
        }
    }
    return 0;
}

/* The best nodes of n; the others give their pages back. */
static void keep_best(size_t n) {
    for (size_t k = 0; k < n_kept; k++) realm_close(kept[k].context);
    n_kept = 0;
    while (n_kept < KEPT && n_kept < n) {
        node *best = NULL;
        for (size_t i = 0; i < n; i++)
            if (nodes[i].context && (!best || better(&nodes[i], best))) best = &nodes[i];
        kept[n_kept++] = *best;
        best->context = 0;
    }
    for (size_t i = 0; i < n; i++)
        if (nodes[i].context) realm_close(nodes[i].context);
}

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    realm_text list = REALM_TEXT_IN(question_bytes);
    int32_t status = realm_text_question(&list, room, sizeof room);
    if (status < 0) return status;
    if ((status = open_root(&kept[0], &list)) < 0) return status;
    split_words(&list);
    n_kept = 1;
    uint64_t seed = 1;
    for (int depth = 0; depth < DEPTH; depth++) {
        size_t n = 0;
        for (size_t k = 0; k < n_kept; k++)
            for (int c = 0; c < CHILDREN; c++, n++)
                if ((status = grow(&nodes[n], &kept[k], seed++)) < 0) return status;
        if ((status = finish_all(n)) < 0) return status;
        keep_best(n);
    }
    realm_text out = REALM_TEXT_IN(out_bytes);
    realm_text_add(&out, kept[0].story, kept[0].len);
    realm_text_puts(&out, "\n\n-- ");
    realm_text_int(&out, kept[0].words);
    realm_text_puts(&out, " of ");
    realm_text_int(&out, (int64_t)n_words);
    realm_text_puts(&out, " words, ");
    realm_text_int(&out, tried);
    realm_text_puts(&out, " sentences tried");
    return realm_text_emit(&out);
}
