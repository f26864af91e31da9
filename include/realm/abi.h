/* realm/abi.h - what a WebAssembly program and the host agree on: constants and structures.
 *
 * Included by the host and, through guest/c/realm_guest.h, by programs. The layouts are the same for 32-bit and 64-bit
 * programs: pointers inside structures are 64-bit numbers. Every structure that a program hands in starts with its own
 * size, so that fields can be added at its end; a shorter one means the defaults for what it lacks. The functions
 * themselves are listed in docs/abi.md.
 */
#ifndef REALM_ABI_H
#define REALM_ABI_H

#include <stdint.h>

/* A program built for a later major version is refused; minor versions only add. */
#define REALM_ABI_MAJOR 1
#define REALM_ABI_MINOR 2

/* Flags of encode and prompt_text. */
#define REALM_TEXT_ADD_SPECIAL 1u   /* begin and end tokens as the model asks */
#define REALM_TEXT_PARSE_SPECIAL 2u /* the text of control tokens becomes control tokens: never for a client's text */
#define REALM_TEXT_CONTINUES 4u     /* follows earlier text: no space prefix */
/* Flags of decode, token_piece. */
#define REALM_TEXT_SPECIAL 1u /* control tokens show as text */
/* Flags of prompt_chat. */
#define REALM_CHAT_ANSWER 1u /* end with the header of the model's answer */

/* Flags of realm_generate_options. */
#define REALM_GENERATE_LOGPROBS 1u
#define REALM_GENERATE_IGNORE_END 2u   /* end tokens are tokens like others */
#define REALM_GENERATE_SPECIAL_TEXT 4u /* control tokens show in the text */
#define REALM_GENERATE_CHAT 0x100u     /* realm_host_generate: the text is one user message, for the chat template */

/* How tokens reach the world. */
#define REALM_MODE_EVENTS 0u /* through wait() */
#define REALM_MODE_PIPE 1u   /* straight to the client; wait() gives the end alone. One at a time */
#define REALM_MODE_AHEAD 2u  /* through wait(); the engine is at most options.run_ahead tokens ahead of confirm() */
/* A program that decides on every token itself (lockstep) calls forward(), samples, and calls it again. */

/* Bits of realm_generate_options.set: fields without their bit keep the request's own value. */
#define REALM_SET_MAX_TOKENS 0x1u
#define REALM_SET_TEMPERATURE 0x2u
#define REALM_SET_TOP_K 0x4u
#define REALM_SET_TOP_P 0x8u
#define REALM_SET_MIN_P 0x10u
#define REALM_SET_REPEAT_PENALTY 0x20u
#define REALM_SET_FREQUENCY_PENALTY 0x40u
#define REALM_SET_PRESENCE_PENALTY 0x80u
#define REALM_SET_PENALTY_LAST_N 0x100u
#define REALM_SET_SEED 0x200u
#define REALM_SET_STOP 0x400u
#define REALM_SET_BIAS 0x800u
#define REALM_SET_FLAGS 0x1000u   /* the first three flags; REALM_GENERATE_CHAT counts always */
#define REALM_SET_SAMPLER 0x2000u /* a handle; the other sampling fields are not looked at. Its state is copied */
#define REALM_SET_GRAMMAR 0x4000u /* a handle; its state is copied. Applied before the sampling that is in force */
#define REALM_SET_CONTEXT 0x8000u

typedef struct realm_generate_options {
    uint32_t size; /* sizeof(realm_generate_options) */
    uint32_t set;
    uint32_t max_tokens; /* 0: until the context is full */
    uint32_t top_k;
    float temperature, top_p, min_p;
    float repeat_penalty, frequency_penalty, presence_penalty;
    uint32_t penalty_last_n;
    uint32_t flags;
    uint64_t seed;
    uint64_t stop; /* address of n_stop realm_bytes */
    uint64_t bias; /* address of n_bias realm_bias */
    uint32_t n_stop, n_bias;
    int32_t sampler, grammar, context; /* handles */
    uint32_t run_ahead;                /* REALM_MODE_AHEAD: 1 to 64 */
} realm_generate_options;

typedef struct realm_bytes {
    uint64_t ptr, len;
} realm_bytes;

typedef struct realm_bias {
    int32_t token;
    float bias;
} realm_bias;

#define REALM_EVENT_KIND_TOKEN 1u
#define REALM_EVENT_KIND_END 2u

#define REALM_END_STOP 1u   /* end token or stop string */
#define REALM_END_LENGTH 2u /* max_tokens, or the context is full */
#define REALM_END_CANCELLED 3u
#define REALM_END_ERROR 4u /* see status */

typedef struct realm_guest_event {
    int32_t handle; /* of the generation */
    uint32_t kind;
    int32_t token;    /* TOKEN */
    float logprob;    /* with REALM_GENERATE_LOGPROBS */
    uint32_t text_at; /* in the text buffer of the same wait(); END may bring text that was held back */
    uint32_t text_len;
    uint32_t finish; /* END: REALM_END_* */
    int32_t status;  /* END: 0, or the negative code of the failure */
} realm_guest_event;

typedef struct realm_guest_usage { /* tokens of a generation so far */
    uint32_t prompt, cached, completion;
} realm_guest_usage;

/* ---- contexts, forward passes, logits ---- */

typedef struct realm_guest_context {
    uint32_t n_tokens, n_computed; /* tokens, and those whose KV is there */
    uint32_t pages, shared_pages;  /* of KV; shared: with another context, a prefix or a running generation */
    uint32_t busy;                 /* 1: a generation or forward pass runs on it */
    uint32_t suspended;            /* 1: its pages were moved out of the KV memory; they come back when needed */
} realm_guest_context;

#define REALM_FORWARD_HIDDEN 1u    /* keep the final hidden state of the rows */
#define REALM_FORWARD_ROWS_MAX 64u /* rows of one forward pass whose logits are kept */

typedef struct realm_guest_token {
    int32_t token;
    float logprob;
} realm_guest_token;

typedef struct realm_guest_logit_stats {
    int32_t best;
    float best_logprob;
    float entropy;     /* nats */
    float log_sum_exp; /* of the raw logits */
} realm_guest_logit_stats;

/* ---- samplers and grammars ---- */

#define REALM_STAGE_PENALTIES 1u   /* n: last_n (0 all); a: repeat, b: frequency, c: presence */
#define REALM_STAGE_DRY 2u         /* n: last_n (0 all); a: multiplier, b: base, m: allowed length */
#define REALM_STAGE_BIAS 3u        /* data: realm_bias; n: how many */
#define REALM_STAGE_MASK 4u        /* data: bits as for logits_mask; n: bytes */
#define REALM_STAGE_GRAMMAR 5u     /* handle; its state is copied */
#define REALM_STAGE_TEMPERATURE 6u /* a; 0: greedy */
#define REALM_STAGE_TOP_K 7u       /* n */
#define REALM_STAGE_TOP_P 8u       /* a */
#define REALM_STAGE_MIN_P 9u       /* a */
#define REALM_STAGE_TYPICAL 10u    /* a */
#define REALM_STAGE_XTC 11u        /* a: probability, b: threshold */
#define REALM_STAGE_MIROSTAT 12u   /* version 2. a: tau, b: eta; the last stage */

typedef struct realm_sampler_stage {
    uint32_t kind;
    int32_t handle;
    uint32_t n, m;
    float a, b, c;
    uint32_t zero;
    uint64_t data; /* address */
} realm_sampler_stage;

#define REALM_GRAMMAR_JSON_SCHEMA 1u
#define REALM_GRAMMAR_REGEX 2u
#define REALM_GRAMMAR_LARK 3u
#define REALM_GRAMMAR_CAN_END 1
#define REALM_GRAMMAR_MUST_END 2

/* ---- a ring of events ---- */

/* At the registered address: this header, n_slots events, text_bytes bytes. The program sets n_slots and text_bytes
 * before ring_set, and moves `tail` and `text_tail` on over what it has read; the host moves `head` and `text_head`.
 * All four count from 0 upwards and wrap at 2^32; slot and byte are taken modulo n_slots and text_bytes, which are
 * powers of two. An event's text_at is a count like text_head; a text does not wrap inside the ring (the host skips to
 * the start). */
typedef struct realm_event_ring {
    uint32_t n_slots, text_bytes;
    uint32_t head, tail;
    uint32_t text_head, text_tail;
} realm_event_ring;

/* ---- tensors ---- */

typedef struct realm_guest_tensor {
    uint64_t dims[4]; /* the last used one is contiguous; unused ones, behind it, 1 */
    uint32_t n_dims;
    uint32_t type;   /* ggml's number; 0: float32 */
    uint32_t weight; /* 1: of a model, read only */
    uint32_t zero;
} realm_guest_tensor;

/* Operations see a tensor as rows of its last dimension. In place (out the same handle as an operand) is allowed where
 * said. `m` 0 works on all rows of a, else on the first m. */
#define REALM_TENSOR_OP_MATMUL 1u       /* out(m,n) = a(m,k) b(n,k)^T; b a weight or a tensor */
#define REALM_TENSOR_OP_MATMUL_PLAIN 2u /* out(m,n) = a(m,k) b(k,n); b a tensor */
#define REALM_TENSOR_OP_GET_ROWS 3u     /* out = rows `ids` of a (a weight or a tensor), times scale (0: 1) */
#define REALM_TENSOR_OP_RMS_NORM 4u     /* out = a / sqrt(mean(a^2) + eps) * b over groups of b's length; in place */
#define REALM_TENSOR_OP_ADD 5u          /* out = a + b; b of one row counts for every row; in place */
#define REALM_TENSOR_OP_MUL 6u          /* out = a * b; likewise */
#define REALM_TENSOR_OP_SCALE 7u        /* out = a * scale; in place */
#define REALM_TENSOR_OP_SILU 8u         /* out = silu(a), times b where given; in place */
#define REALM_TENSOR_OP_GELU 9u         /* the same with gelu, tanh form */
#define REALM_TENSOR_OP_SOFTMAX 10u     /* by row; in place */
#define REALM_TENSOR_OP_ROPE                                                                  \
    11u /* rotates heads of head_dim; row i at position first + i; b: frequency factors or 0; \
           in place */
#define REALM_TENSOR_OP_ATTENTION                                                                                 \
    12u                            /* out = softmax(scale q k^T) v; a q, b k, c v, d an additive mask (m,t) or 0; \
                                      row i sees the first + i + 1 first positions */
#define REALM_TENSOR_OP_ARGMAX 13u /* out(m,1) = index of the greatest value of each row */
#define REALM_TENSOR_OP_COPY 14u   /* n_rows rows of a from `row` on, to rows from `out_row` on of out */
/* Flags. */
#define REALM_TENSOR_ROPE_HALVES 1u    /* rotates (i, i + d/2), else neighbours */
#define REALM_TENSOR_ATTENTION_FULL 2u /* every row sees all t positions */

typedef struct realm_guest_tensor_op {
    uint32_t kind, flags;
    int32_t out, a, b, c, d; /* tensor handles; 0 where there is none */
    uint32_t n_head, n_kv_head, head_dim;
    uint32_t rope_dims; /* ROPE: values of a head that turn; 0: head_dim */
    uint32_t first;     /* ROPE: position of row 0; ATTENTION: positions before row 0 */
    uint32_t t;         /* ATTENTION: rows of k and v that count; 0: all */
    uint32_t window;    /* ATTENTION: only the last so many positions; 0: all */
    float scale, eps;
    float base, freq_scale; /* ROPE; freq_scale 0: 1 */
    float softcap;          /* ATTENTION; 0: none */
    uint32_t n_ids;
    uint64_t ids; /* GET_ROWS: address of n_ids i32 */
    uint64_t m;
    uint64_t row, n_rows, out_row; /* COPY */
} realm_guest_tensor_op;

typedef struct realm_stream_stats {
    uint64_t hits, misses, evictions;
    uint64_t bytes_resident, bytes_read, bytes_budget;
    uint64_t prefetched;
} realm_stream_stats;

typedef struct realm_guest_limits {
    uint32_t size; /* of this structure, as the host knows it */
    uint32_t abi_major, abi_minor;
    uint32_t context_tokens;  /* longest prompt and answer together */
    uint64_t memory_bytes;    /* linear memory of an instance */
    uint64_t cpu_ms_per_wake; /* CPU time between two waits */
    uint32_t generations;     /* of the tenant, in flight; 0: no limit */
    uint32_t handles;         /* open at once in an instance */
    uint32_t emit_bytes;      /* of one emit */
    uint32_t vocabulary;      /* token ids are below */
    uint64_t read_bytes;      /* of logits, hidden states and tensors that this instance may read back */
    uint64_t tensor_bytes;    /* of tensors at once */
    uint64_t storage_bytes;   /* of the tenant's store and stored models */
    uint64_t kv_tokens;       /* of the tenant's contexts and generations; 0: no limit */
    uint64_t wall_ms;         /* of this instance; 0: no limit */
} realm_guest_limits;

/* Clocks of clock_ms. */
#define REALM_CLOCK_MONOTONIC 0u /* since some moment before the instance started */
#define REALM_CLOCK_WALL 1u      /* since 1970, UTC */

#endif
