/* tokenizer/internal.h - what the files of this folder share.
 *
 *   vocab.c    texts of the tokens, and the hash index over them
 *   split.c    the pre-tokenizers of byte-level BPE
 *   merge.c    the merge loop, one for BPE (by rank) and SentencePiece (by score)
 *   special.c  tokens whose text is matched whole; which tokens end a generation
 *   open.c     reading and checking the tables of a GGUF file
 *   encode.c   text to ids: special tokens, fragments, words
 *   decode.c   ids to text, whole and streamed
 */
#ifndef REALM_TOKENIZER_INTERNAL_H
#define REALM_TOKENIZER_INTERNAL_H

#include "tokenizer/tokenizer.h"

#define REALM_TOKENIZER_MAX_VOCAB (1u << 20)
#define REALM_TOKENIZER_MAX_MERGES (1u << 22)
#define REALM_TOKENIZER_MAX_TEXT (1u << 16)     /* bytes of one token */
#define REALM_TOKENIZER_MAX_SPECIAL 1024u       /* bytes of a token that is matched whole */
#define REALM_TOKENIZER_MAX_TEXTS (256u << 20)  /* bytes of all tokens */
#define REALM_TOKENIZER_MAX_INPUT (1024u << 20) /* bytes of one text to encode */

/* U+2581 LOWER ONE EIGHTH BLOCK, SentencePiece's visible space. */
#define REALM_SPM_SPACE "\xE2\x96\x81"
#define REALM_SPM_SPACE_LEN 3

/* n byte strings in one block: string i is bytes[start[i] .. start[i + 1]). */
typedef struct realm_strings {
    char *bytes;
    uint32_t *start; /* (n + 1) */
} realm_strings;

/* Polynomial hash over the Mersenne prime 2^61 - 1, base drawn when the file is opened: the hash of two neighbours
 * joined follows from their two hashes, so that a merge candidate is looked up without reading its text, and a file
 * cannot choose texts that collide. */
typedef struct realm_vocab_slot {
    uint32_t tag; /* low bits of the hash */
    int32_t id;   /* -1 is free */
} realm_vocab_slot;

typedef struct realm_vocab {
    uint32_t n;
    uint32_t max_len; /* longest text, bytes */
    realm_strings texts;
    uint64_t base;
    uint64_t *power; /* (max_len + 1): base to the i */
    realm_vocab_slot *slots;
    unsigned shift; /* 64 - log2 of the number of slots */
    size_t mask;
} realm_vocab;

/* Takes n texts, copies them and indexes all but the empty ones. REALM_E_FORMAT names the ids of two equal texts. */
REALM_WARN_UNUSED realm_status realm_vocab_init(realm_vocab *v, const realm_gguf_value *tokens, realm_error *err);
void realm_vocab_release(realm_vocab *v);
uint64_t realm_vocab_hash(const realm_vocab *v, uint64_t before, const char *s, size_t len);
/* Hash of `left` followed by a text of right_len bytes (at most max_len) whose hash is `right`. */
uint64_t realm_vocab_join(const realm_vocab *v, uint64_t left, uint64_t right, size_t right_len);
/* The token with this text and hash, or -1. */
realm_token realm_vocab_find(const realm_vocab *v, uint64_t hash, const char *s, size_t len);
static inline realm_gguf_str realm_vocab_text(const realm_vocab *v, realm_token id) {
    const uint32_t *at = v->texts.start + id;
    return (realm_gguf_str){v->texts.bytes + at[0], at[1] - at[0]};
}

/* How text is cut into words before merging (byte-level BPE). */
typedef enum realm_split_rule {
    REALM_SPLIT_GPT2,
    REALM_SPLIT_DIGITS, /* each number character alone, GPT-2's pattern between them */
    REALM_SPLIT_LLAMA3, /* numbers in groups of three */
    REALM_SPLIT_QWEN2,  /* as LLAMA3, numbers one by one */
    REALM_SPLIT_DEFAULT /* what GGUF means by "default": punctuation runs alone, GPT-2's pattern, digits by three */
} realm_split_rule;

/* Length of the word at the start of s; 1..len for len > 0. `s` must be the rest of the same text from call to call,
 * since what follows decides how white space is cut. Any bytes; linear over a whole text. */
size_t realm_split_word(realm_split_rule rule, const char *s, size_t len);

/* A pre-tokenizer by its name in tokenizer.ggml.pre. */
typedef struct realm_pretokenizer {
    const char *kind; /* "gpt2/<name>" */
    realm_split_rule rule;
    bool ignore_merges; /* a word that is a token is taken whole */
    bool add_bos;       /* where the file does not say */
} realm_pretokenizer;
const realm_pretokenizer *realm_pretokenizer_find(const char *name, size_t len);

/* BPE: left and right token to merged token. */
typedef struct realm_pair_slot {
    uint64_t pair; /* left << 32 | right */
    uint32_t rank;
    int32_t id; /* -1 is free */
} realm_pair_slot;

typedef struct realm_pairs {
    realm_pair_slot *slots;
    uint64_t multiplier; /* odd, drawn when the file is opened */
    unsigned shift;
    size_t mask;
} realm_pairs;
REALM_WARN_UNUSED realm_status realm_pairs_init(realm_pairs *p, size_t n, realm_error *err);
void realm_pairs_release(realm_pairs *p);
/* Keeps the first of two equal pairs. At most n calls. */
void realm_pairs_add(realm_pairs *p, realm_token left, realm_token right, uint32_t rank, realm_token id);
/* NULL when the two do not merge. */
const realm_pair_slot *realm_pairs_find(const realm_pairs *p, realm_token left, realm_token right);

/* Tokens whose text is matched whole, sorted by text. */
typedef struct realm_specials {
    realm_token *ids;
    uint32_t n;
    uint32_t first[257];      /* ids[first[b] .. first[b + 1]) start with byte b */
    uint64_t two[65536 / 64]; /* first two bytes that occur; all of a row where a text is one byte long */
} realm_specials;

enum { REALM_TOKEN_ENDS = 1, REALM_TOKEN_RSTRIP = 2 };

struct realm_tokenizer {
    bool bpe; /* else SentencePiece */
    const char *kind;
    realm_vocab vocab;
    realm_strings pieces; /* bytes that each token stands for, (vocab.n) */
    uint8_t *attr;        /* (vocab.n) realm_token_attr */
    uint8_t *flags;       /* (vocab.n) REALM_TOKEN_ENDS, REALM_TOKEN_RSTRIP */
    realm_specials specials;
    realm_token byte_ids[256]; /* -1: none */
    realm_token bos, eos, unk;
    bool add_bos, add_eos;
    uint32_t max_piece; /* most bytes of text that one token stands for */
    /* BPE */
    realm_split_rule rule;
    bool ignore_merges;
    realm_pairs pairs;
    uint8_t encoded[256][2]; /* byte-level alphabet: UTF-8 of the character that stands for a byte */
    uint8_t encoded_len[256];
    /* SentencePiece */
    bool add_space_prefix;
    uint32_t *order;    /* (vocab.n) smaller merges first */
    uint8_t joins[256]; /* last bytes of characters that stand before U+2581 inside some token */
};

/* May a token come out of merging plain text? Control tokens never do, whatever the tables say. */
static inline bool realm_token_mergeable(const realm_tokenizer *t, realm_token id) {
    uint8_t a = t->attr[id];
    return a == REALM_TOKEN_NORMAL || a == REALM_TOKEN_USER_DEFINED || a == REALM_TOKEN_UNUSED;
}

/* Fills t->specials; texts and attributes are in place. */
REALM_WARN_UNUSED realm_status realm_specials_init(realm_tokenizer *t, realm_error *err);
/* Longest token at s: user-defined ones within len bytes, control ones only within control_len. -1 when none. */
realm_token realm_specials_match(const realm_tokenizer *t, const char *s, size_t len, size_t control_len);
/* Marks the tokens that end a generation and corrects attributes that the file left out. */
REALM_WARN_UNUSED realm_status realm_specials_mark(realm_tokenizer *t, const realm_gguf *g, bool has_types,
                                                   realm_error *err);

/* Work memory of one encode call. */
typedef struct realm_symbol {
    uint64_t hash;       /* of the text so far (SentencePiece) */
    uint32_t start, len; /* bytes in the word; len 0: merged into its left neighbour */
    uint32_t prev, next; /* UINT32_MAX at the ends */
    realm_token id;      /* -1: no token has this text */
} realm_symbol;

typedef struct realm_candidate {
    uint64_t key; /* rank or score order << 32 | position of the left symbol: the smallest merges first */
    uint32_t len; /* of both together; differs from the symbols' when one of them has changed since */
    realm_token id;
} realm_candidate;

typedef struct realm_scratch {
    realm_symbol *symbols;
    realm_candidate *heap;
    size_t cap; /* symbols; the heap has twice as many */
    char *text; /* SentencePiece: the word with U+2581 for spaces */
    size_t text_len, text_cap;
    realm_tokens *out;
    size_t max_tokens;
} realm_scratch;

/* REALM_E_LIMIT at max_tokens. */
REALM_WARN_UNUSED realm_status realm_scratch_push(realm_scratch *w, realm_token id);
/* Appends the tokens of one word (no white space escaping left to do). */
REALM_WARN_UNUSED realm_status realm_merge_word(const realm_tokenizer *t, realm_scratch *w, const char *word,
                                                size_t len);

#endif
