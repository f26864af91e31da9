/* realm/abi.h - what a WebAssembly program and the host agree on: constants and structures.
 *
 * Included by the host and, through guest/realm_guest.h, by programs. The layouts are the same for 32-bit and 64-bit
 * programs: pointers inside structures are 64-bit numbers. Every structure that a program hands in starts with its own
 * size, so that fields can be added at its end; a shorter one means the defaults for what it lacks. The functions
 * themselves are listed in docs/abi.md.
 */
#ifndef REALM_ABI_H
#define REALM_ABI_H

#include <stdint.h>

/* A program built for a later major version is refused; minor versions only add. */
#define REALM_ABI_MAJOR 1
#define REALM_ABI_MINOR 0

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
#define REALM_SET_FLAGS 0x1000u /* the first three flags; REALM_GENERATE_CHAT counts always */

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
} realm_guest_limits;

/* Clocks of clock_ms. */
#define REALM_CLOCK_MONOTONIC 0u /* since some moment before the instance started */
#define REALM_CLOCK_WALL 1u      /* since 1970, UTC */

#endif
