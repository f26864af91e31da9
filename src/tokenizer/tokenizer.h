/* tokenizer/tokenizer.h - text to token ids and back, from the tables inside a GGUF file.
 *
 * Two families: byte-level BPE (`tokenizer.ggml.model` = "gpt2", with the pre-tokenizer that `tokenizer.ggml.pre`
 * names) and SentencePiece ("llama": merges by score, byte fallback). A tokenizer is immutable once opened and may be
 * used from any thread; streaming decoders belong to one caller each. Control tokens in text are parsed only where the
 * caller asks (prompt injection, docs/security.md).
 */
#ifndef REALM_TOKENIZER_TOKENIZER_H
#define REALM_TOKENIZER_TOKENIZER_H

#include "base/base.h"
#include "base/buf.h"
#include "gguf/gguf.h"

typedef int32_t realm_token; /* < 0: none */

typedef enum realm_token_attr { /* tokenizer.ggml.token_type */
                                REALM_TOKEN_NORMAL = 1,
                                REALM_TOKEN_UNKNOWN = 2,
                                REALM_TOKEN_CONTROL = 3,
                                REALM_TOKEN_USER_DEFINED = 4,
                                REALM_TOKEN_UNUSED = 5,
                                REALM_TOKEN_BYTE = 6
} realm_token_attr;

typedef enum realm_encode_flags {
    REALM_ENCODE_ADD_SPECIAL = 1,   /* BOS and EOS as the file asks (add_bos_token, add_eos_token) */
    REALM_ENCODE_PARSE_SPECIAL = 2, /* control tokens' text becomes control tokens; user-defined ones always do */
    REALM_ENCODE_CONTINUES = 4      /* the text follows earlier text: no space prefix */
} realm_encode_flags;

typedef struct realm_tokens { /* caller-owned, zero-initialised, grows; freed with realm_tokens_release */
    realm_token *ids;
    size_t len, cap;
} realm_tokens;
void realm_tokens_release(realm_tokens *t);
REALM_WARN_UNUSED realm_status realm_tokens_push(realm_tokens *t, realm_token id);

typedef struct realm_tokenizer realm_tokenizer;

/* Copies what it needs: the file may be closed afterwards. REALM_E_UNSUPPORTED names the tokenizer model or
 * pre-tokenizer that is not known; REALM_E_FORMAT for tables that contradict each other (lengths, ids out of range,
 * duplicate tokens, merges of unknown tokens, non-finite scores), naming the key; REALM_E_LIMIT past a million tokens,
 * 64 KiB in one or 1 KiB in a special one; REALM_E_NOMEM. */
REALM_WARN_UNUSED realm_status realm_tokenizer_open(realm_tokenizer **out, const realm_gguf *g, realm_error *err);
void realm_tokenizer_close(realm_tokenizer *t); /* NULL-safe */

size_t realm_tokenizer_vocab_size(const realm_tokenizer *t);
const char *realm_tokenizer_kind(const realm_tokenizer *t); /* "gpt2/smollm", "llama" ... */
realm_token realm_tokenizer_bos(const realm_tokenizer *t);  /* -1 when the file has none */
realm_token realm_tokenizer_eos(const realm_tokenizer *t);
bool realm_tokenizer_adds_bos(const realm_tokenizer *t);
/* True for EOS, EOT, EOM and the known end-of-turn tokens (<|im_end|>, <end_of_turn>, <|eot_id|>, ...): a generation
 * stops on them. */
bool realm_tokenizer_is_end(const realm_tokenizer *t, realm_token id);
realm_token_attr realm_tokenizer_attr(const realm_tokenizer *t, realm_token id);

/* Appends the ids of `text` (any bytes; malformed UTF-8 is encoded byte by byte) to `out`. Time n log n in len at
 * worst, memory for the longest word. REALM_E_NOMEM, or REALM_E_LIMIT when `out` would hold more than `max_tokens`
 * (refused before any work where the length alone shows it) or past 1 GiB of text; `out` is then as before the call. A
 * byte that a byte-level vocabulary has no token for (SmolLM2 lacks some controls) gives nothing, as in the reference.
 */
REALM_WARN_UNUSED realm_status realm_tokenizer_encode(const realm_tokenizer *t, const char *text, size_t len,
                                                      unsigned flags, size_t max_tokens, realm_tokens *out,
                                                      realm_error *err);

/* A piece of text that is parsed for control tokens (`special`) or is plain data. */
typedef struct realm_text_span {
    size_t start, len;
    bool special;
} realm_text_span;
/* Encodes one text whose spans differ in whether control tokens are parsed, as one text otherwise (merges cross span
 * boundaries except at control tokens). A control token counts only when all of it lies in special spans; user-defined
 * tokens count everywhere. REALM_ENCODE_PARSE_SPECIAL is not read. REALM_E_INVALID unless the spans are in order and
 * cover the text; else as realm_tokenizer_encode. */
REALM_WARN_UNUSED realm_status realm_tokenizer_encode_spans(const realm_tokenizer *t, const char *text, size_t len,
                                                            const realm_text_span *spans, size_t n_spans,
                                                            unsigned flags, size_t max_tokens, realm_tokens *out,
                                                            realm_error *err);

/* Bytes that a token stands for in the middle of a text (SentencePiece: U+2581 as a space). Control tokens give nothing
 * unless `special`. Borrowed from the tokenizer. REALM_E_RANGE for an id outside the vocabulary. */
REALM_WARN_UNUSED realm_status realm_tokenizer_piece(const realm_tokenizer *t, realm_token id, bool special,
                                                     const char **bytes, size_t *len);
/* The text in the vocabulary itself ("<|im_end|>"), borrowed. */
realm_gguf_str realm_tokenizer_text(const realm_tokenizer *t, realm_token id);
/* Id of the token with exactly this text, or -1. */
realm_token realm_tokenizer_find(const realm_tokenizer *t, const char *text, size_t len);

/* Whole decode: appends the text of n ids, malformed UTF-8 as U+FFFD. It is what a stream of the same ids gives, but
 * for SentencePiece's space prefix, which is dropped from the first token that is no control token where the file adds
 * one. REALM_E_RANGE for an unknown id, REALM_E_NOMEM, REALM_E_LIMIT at the buffer's maximum; `out` is then as before.
 */
REALM_WARN_UNUSED realm_status realm_tokenizer_decode(const realm_tokenizer *t, const realm_token *ids, size_t n,
                                                      bool special, realm_buf *out, realm_error *err);

/* Streaming decode: bytes are handed on only in whole characters; at most 3 are held back. */
typedef struct realm_detok {
    const realm_tokenizer *t;
    unsigned char held[8];
    unsigned n_held;
    bool special;
} realm_detok;
void realm_detok_init(realm_detok *d, const realm_tokenizer *t, bool special);
/* Appends what can be shown after this token (possibly nothing). Bytes that can never become well-formed become
 * U+FFFD, one for each longest start of a character. On failure (as realm_tokenizer_decode) nothing has changed but
 * out->failed. */
REALM_WARN_UNUSED realm_status realm_detok_push(realm_detok *d, realm_token id, realm_buf *out);
/* At the end: what was held back becomes U+FFFD. */
REALM_WARN_UNUSED realm_status realm_detok_finish(realm_detok *d, realm_buf *out);

#endif
