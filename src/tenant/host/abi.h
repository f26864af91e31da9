/* tenant/host/abi.h - the one table of what programs can call.
 *
 * From it come the import tables of both modules (`realm` with 32-bit and `realm64` with 64-bit pointers and lengths),
 * the declarations of the functions behind them, what `realm program check` knows of an import, and, through
 * tools/abi-gen, the C header, the Go, Rust and AssemblyScript bindings in guest/ and the tables of docs/abi.md.
 * Constants and structures are in include/realm/abi.h. What stock toolchains import besides (WASI, wasi-nn) has tables
 * of its own.
 */
#ifndef REALM_TENANT_ABI_H
#define REALM_TENANT_ABI_H

#include "realm/abi.h"
#include "sandbox/sandbox.h"

/* X(group, name, params, flags, declaration, text)
 *
 *   params       letters of realm_import.params; every call returns an i32
 *   flags        OFF_FIBER for what runs a parser, a template, a tokenizer or a sampler, submits to the engine, or
 *                copies more than a few hundred kilobytes: its time is measured, where that of others is estimated;
 *                SUSPENDS for what may wait, and for whatever else takes a lock or writes to a file, as what has no
 *                flag runs at the lowest priority too;
 *                BRIEF_ for what a program in the loop does for each token: it may run on the engine's thread
 *   declaration  the parameters in C, one to one with `params`: size_t and pointers are 'p', int32_t and uint32_t 'i'
 *   text         what it does, one or two sentences for docs/abi.md
 *
 * A name that does not start with `realm_` gets that prefix in the guest's C header; names that the specification fixes
 * (realm_*, candle_matmul, memory64_*, attention_forward) are imported as they are. */
#define BRIEF_OFF_FIBER (REALM_IMPORT_OFF_FIBER | REALM_IMPORT_BRIEF)
#define BRIEF_SUSPENDS (REALM_IMPORT_SUSPENDS | REALM_IMPORT_BRIEF)

/* Their order is that of the documentation. */
#define REALM_ABI_GROUPS(X)                         \
    X(ABOUT, "About the host")                      \
    X(IO, "Input and output")                       \
    X(MODELS, "Models")                             \
    X(TEXT, "Text")                                 \
    X(PROMPTS, "Prompts")                           \
    X(CONTEXTS, "Contexts")                         \
    X(GENERATE, "Generations")                      \
    X(EVENTS, "Events in the program's own memory") \
    X(AHEAD, "Running ahead")                       \
    X(FORWARD, "Forward passes")                    \
    X(LOGITS, "Logits")                             \
    X(SAMPLERS, "Samplers")                         \
    X(GRAMMARS, "Grammars")                         \
    X(STORE, "The tenant's store")                  \
    X(TENSORS, "Tensors")                           \
    X(STREAMING, "Models larger than their memory budget")

/* clang-format off */
#define REALM_ABI_ABOUT(X) \
    X(ABOUT, abi_version, "", 0, (void), \
      "Major version << 16 | minor version.") \
    X(ABOUT, limits_get, "pp", 0, (realm_guest_limits *out, size_t max), \
      "What this instance may use; writes as much as fits and returns the structure's size.") \
    X(ABOUT, last_error, "pp", 0, (char *out, size_t max), \
      "Text of the last call that failed, cut to fit; returns its length.") \
    X(ABOUT, log, "ipp", BRIEF_SUSPENDS, (int32_t level, const char *text, size_t len), \
      "A line in the server's log; level 0 (debug) to 3 (error). Lines and bytes are bounded, what is too much is " \
      "dropped and counted.") \
    X(ABOUT, clock_ms, "ip", 0, (uint32_t clock, int64_t *out), \
      "Milliseconds of REALM_CLOCK_MONOTONIC or REALM_CLOCK_WALL.") \
    X(ABOUT, random, "pp", 0, (void *out, size_t len), \
      "Random bytes, at most 64 KiB a call.")

#define REALM_ABI_IO(X) \
    X(IO, input, "pppp", REALM_IMPORT_OFF_FIBER, (const char *name, size_t name_len, char *out, size_t max), \
      "The request as JSON (name_len 0), or a top-level field of it: a string as its text, anything else as JSON. " \
      "REALM_E_NOT_FOUND when it is absent.") \
    X(IO, emit, "pp", BRIEF_SUSPENDS, (const char *text, size_t len), \
      "Hands well-formed UTF-8 to the client; waits while the client is slow.") \
    X(IO, realm_stream_token, "ipp", BRIEF_SUSPENDS, (int32_t token, const char *text, size_t len), \
      "The same for one token, or -1 for text that is none.") \
    X(IO, finish, "i", BRIEF_SUSPENDS, (uint32_t reason), \
      "How the answer ends (REALM_END_STOP, REALM_END_LENGTH), where that is not how the last generation did.")

#define REALM_ABI_MODELS(X) \
    X(MODELS, model_find, "pp", REALM_IMPORT_OFF_FIBER, (const char *name, size_t len), \
      "The id of a model that the server offers under this name, or that the tenant stored under this number. Id 0 is " \
      "always the request's own model.") \
    X(MODELS, model_use, "i", REALM_IMPORT_OFF_FIBER, (int32_t model), \
      "The model that text, prompts, grammars and new contexts belong to from now on; waits while it is loaded. " \
      "Returns the id that was used before.") \
    X(MODELS, realm_store_model, "ppi", REALM_IMPORT_OFF_FIBER, \
      (const void *image, size_t len, int32_t model), \
      "Stores a GGUF image for this tenant alone, under the given id, or with 0 under one derived from its hash. The " \
      "same image under two ids is stored once; an id that names another image is refused. Counts against " \
      "storage_bytes. Returns the id.") \
    X(MODELS, realm_get_model_info, "ipp", REALM_IMPORT_OFF_FIBER, (int32_t model, char *out, size_t max), \
      "JSON: architecture, shapes, types, context, tokenizer, whether there is a template.") \
    X(MODELS, realm_get_tensor, "ipppp", REALM_IMPORT_OFF_FIBER, \
      (int32_t model, const char *name, size_t name_len, float *out, size_t max), \
      "A tensor's values as float32, `max` in bytes; REALM_E_RANGE with the size needed in last_error when that is too " \
      "small. Needs read_weights for models that are not the tenant's own.") \
    X(MODELS, realm_remove_model, "i", REALM_IMPORT_OFF_FIBER, (int32_t model), \
      "Drops this tenant's reference to a stored model.")

#define REALM_ABI_TEXT(X) \
    X(TEXT, encode, "ppipp", REALM_IMPORT_OFF_FIBER, \
      (const char *text, size_t len, uint32_t flags, int32_t *out, size_t max), \
      "Token ids of a text. Flags REALM_TEXT_ADD_SPECIAL, _PARSE_SPECIAL, _CONTINUES.") \
    X(TEXT, decode, "ppipp", REALM_IMPORT_OFF_FIBER, \
      (const int32_t *tokens, size_t n, uint32_t flags, char *out, size_t max), \
      "Text of tokens; flag REALM_TEXT_SPECIAL shows control tokens.") \
    X(TEXT, token_piece, "iipp", 0, (int32_t token, uint32_t flags, char *out, size_t max), \
      "The bytes that one token stands for.")

#define REALM_ABI_PROMPTS(X) \
    X(PROMPTS, prompt_own, "", REALM_IMPORT_OFF_FIBER, (void), \
      "Handle of the request's own prompt, for the request's own model.") \
    X(PROMPTS, prompt_chat, "ppppi", REALM_IMPORT_OFF_FIBER, \
      (const char *messages, size_t messages_len, const char *tools, size_t tools_len, uint32_t flags), \
      "The model's chat template over JSON messages (and tools, or length 0). What messages spell never becomes a " \
      "control token. Flag REALM_CHAT_ANSWER ends with the header of an answer.") \
    X(PROMPTS, prompt_text, "ppi", REALM_IMPORT_OFF_FIBER, (const char *text, size_t len, uint32_t flags), \
      "A prompt from text; flags as for encode.") \
    X(PROMPTS, prompt_tokens, "pp", REALM_IMPORT_OFF_FIBER, (const int32_t *tokens, size_t n), \
      "A prompt from token ids.") \
    X(PROMPTS, prompt_get_text, "ipp", REALM_IMPORT_OFF_FIBER, (int32_t prompt, char *out, size_t max), \
      "A prompt's text.") \
    X(PROMPTS, prompt_get_tokens, "ipp", 0, (int32_t prompt, int32_t *out, size_t max), \
      "A prompt's token ids.")

#define REALM_ABI_CONTEXTS(X) \
    X(CONTEXTS, context_new, "", REALM_IMPORT_OFF_FIBER, (void), \
      "An empty context: a token sequence and, once computed, its KV pages.") \
    X(CONTEXTS, context_append, "ipp", BRIEF_OFF_FIBER, (int32_t context, const int32_t *tokens, size_t n), \
      "Adds tokens; they are computed with the next forward pass or generation. Returns the new length. REALM_E_BUSY " \
      "while one of these runs.") \
    X(CONTEXTS, context_append_prompt, "ii", REALM_IMPORT_OFF_FIBER, (int32_t context, int32_t prompt), \
      "The same with the tokens of a prompt.") \
    X(CONTEXTS, context_fork, "i", REALM_IMPORT_OFF_FIBER, (int32_t context), \
      "A second context with the same tokens. Pages are shared until one of the two writes to them.") \
    X(CONTEXTS, context_truncate, "ii", BRIEF_OFF_FIBER, (int32_t context, uint32_t n_tokens), \
      "Keeps the first n_tokens.") \
    X(CONTEXTS, context_stat, "ip", BRIEF_SUSPENDS, (int32_t context, realm_guest_context *out), \
      "Length, how much is computed, pages held and shared.") \
    X(CONTEXTS, context_get_tokens, "iipp", BRIEF_SUSPENDS, (int32_t context, uint32_t from, int32_t *out, size_t max), \
      "Its token ids from a position on, at most `max`; returns how many were written.") \
    X(CONTEXTS, context_save, "ipp", REALM_IMPORT_OFF_FIBER, (int32_t context, const char *name, size_t len), \
      "Keeps a copy (pages shared) under a name of this tenant, for later requests; replaces an older one.") \
    X(CONTEXTS, context_open, "pp", REALM_IMPORT_OFF_FIBER, (const char *name, size_t len), \
      "A context forked from the saved one. REALM_E_NOT_FOUND.") \
    X(CONTEXTS, context_drop, "pp", REALM_IMPORT_OFF_FIBER, (const char *name, size_t len), \
      "Forgets a saved context.")

#define REALM_ABI_FORWARD(X) \
    X(FORWARD, forward, "ippii", BRIEF_OFF_FIBER, \
      (int32_t context, const int32_t *tokens, size_t n, uint32_t n_rows, uint32_t flags), \
      "Appends tokens to a context and computes them, batched with everybody's; returns a handle whose END event comes " \
      "through wait. It then holds the logits (flag REALM_FORWARD_HIDDEN: the final hidden state too) of the last " \
      "n_rows tokens.") \
    X(FORWARD, hidden_read, "iipp", BRIEF_SUSPENDS, (int32_t handle, uint32_t row, float *out, size_t max), \
      "The hidden state of a row after the final norm, as float32; the embedding of its text. Metered (read_bytes).")

#define REALM_ABI_LOGITS(X) \
    X(LOGITS, logits_sample, "iiip", BRIEF_OFF_FIBER, \
      (int32_t handle, uint32_t row, int32_t sampler, float *logprob), \
      "Draws a token with a sampler (0: greedy) and tells its log-probability where logprob is not 0. The sampler " \
      "takes note of the token.") \
    X(LOGITS, logits_top, "iiipp", BRIEF_OFF_FIBER, \
      (int32_t handle, uint32_t row, uint32_t k, realm_guest_token *out, size_t max), \
      "The k most likely tokens with their log-probabilities, at most 256.") \
    X(LOGITS, logits_gather, "iippp", BRIEF_OFF_FIBER, \
      (int32_t handle, uint32_t row, const int32_t *tokens, size_t n, float *logprobs), \
      "Log-probabilities of given tokens, at most 4096.") \
    X(LOGITS, logits_stats, "iip", BRIEF_OFF_FIBER, (int32_t handle, uint32_t row, realm_guest_logit_stats *out), \
      "Best token, its log-probability, entropy, log of the sum of exponentials.") \
    X(LOGITS, logits_bias, "iipp", BRIEF_OFF_FIBER, \
      (int32_t handle, uint32_t row, const realm_bias *bias, size_t n), \
      "Adds to the logits of given tokens, in place.") \
    X(LOGITS, logits_mask, "iipp", BRIEF_OFF_FIBER, (int32_t handle, uint32_t row, const void *bits, size_t len), \
      "Keeps the tokens whose bit is set (bit t % 8 of byte t / 8, vocabulary / 8 bytes rounded up), in place.") \
    X(LOGITS, logits_read, "iipp", BRIEF_SUSPENDS, (int32_t handle, uint32_t row, float *out, size_t max), \
      "The whole row as float32, `max` in values. Metered (read_bytes).") \
    X(LOGITS, tensor_logits, "i", REALM_IMPORT_OFF_FIBER, (int32_t tensor), \
      "A logits handle over a copy of a (rows, vocabulary) tensor, for the calls of that group.")

#define REALM_ABI_SAMPLERS(X) \
    X(SAMPLERS, sampler_new, "ppl", REALM_IMPORT_OFF_FIBER, \
      (const realm_sampler_stage *stages, size_t n, uint64_t seed), \
      "A chain of stages in the given order, run on the host: penalties, DRY, bias, mask, grammar, temperature, top-k, " \
      "top-p, min-p, typical, XTC, mirostat. Without a stage it is greedy.") \
    X(SAMPLERS, sampler_fork, "i", REALM_IMPORT_OFF_FIBER, (int32_t sampler), \
      "A copy with the same history.") \
    X(SAMPLERS, sampler_accept, "ipp", BRIEF_OFF_FIBER, (int32_t sampler, const int32_t *tokens, size_t n), \
      "Takes note of tokens that were put into the answer without being drawn: the history that penalties, DRY and the " \
      "grammar look at. The next draw is that of the token after them.") \
    X(SAMPLERS, sampler_prompt, "ipp", BRIEF_OFF_FIBER, (int32_t sampler, const int32_t *tokens, size_t n), \
      "Takes note of the tokens of a prompt: what the repeat penalty and DRY look at as well. Whoever samples with " \
      "logits_sample calls it first to get what a generation draws, which does it by itself.")

#define REALM_ABI_GRAMMARS(X) \
    X(GRAMMARS, grammar_compile, "ipp", REALM_IMPORT_OFF_FIBER, \
      (uint32_t kind, const char *text, size_t len), \
      "Compiles a JSON Schema, a regular expression or a Lark grammar for the model in use, within limits of size, " \
      "depth and time.") \
    X(GRAMMARS, grammar_fork, "i", REALM_IMPORT_OFF_FIBER, (int32_t grammar), \
      "A copy in the same state.") \
    X(GRAMMARS, grammar_accept, "ipp", REALM_IMPORT_OFF_FIBER, (int32_t grammar, const int32_t *tokens, size_t n), \
      "Goes on by as many of the tokens as the grammar allows; returns how many.") \
    X(GRAMMARS, grammar_rollback, "ii", REALM_IMPORT_OFF_FIBER, (int32_t grammar, uint32_t n), \
      "Takes back the last n tokens.") \
    X(GRAMMARS, grammar_mask, "ipp", REALM_IMPORT_OFF_FIBER, (int32_t grammar, void *bits, size_t len), \
      "The tokens that may come next, as for logits_mask.") \
    X(GRAMMARS, grammar_state, "i", REALM_IMPORT_OFF_FIBER, (int32_t grammar), \
      "Bits REALM_GRAMMAR_CAN_END (the text so far is complete) and REALM_GRAMMAR_MUST_END (nothing more may come).")

#define REALM_ABI_GENERATE(X) \
    X(GENERATE, generate, "ipi", REALM_IMPORT_OFF_FIBER, \
      (int32_t prompt, const realm_generate_options *options, uint32_t mode), \
      "Starts a generation and returns its handle. Options 0: the request's own parameters; else those whose bit is in " \
      "`set` replace them. With a context in the options the prompt (or 0) is added to it, and the answer after that.") \
    X(GENERATE, wait, "ippppi", BRIEF_SUSPENDS, \
      (int32_t handle, realm_guest_event *events, size_t max_events, char *text, size_t max_text, int32_t timeout_ms), \
      "Events of one generation or forward pass, or of any (0), since the last time, with their texts one after the " \
      "other in `text`; waits until there is one, at most timeout_ms (-1: for ever). 0 when the time is up; " \
      "REALM_E_CLOSED after the end was given, REALM_E_NOT_FOUND when nothing runs, REALM_E_CANCELLED when the client " \
      "has gone.") \
    X(GENERATE, usage, "ip", BRIEF_SUSPENDS, (int32_t generation, realm_guest_usage *out), \
      "Tokens that a generation or forward pass was charged so far.") \
    X(GENERATE, cancel, "i", BRIEF_SUSPENDS, (int32_t generation), \
      "Ends it; its end comes as an event.") \
    X(GENERATE, close, "i", BRIEF_OFF_FIBER, (int32_t handle), \
      "Gives back any handle; what still runs is cancelled, and has ended when the call returns where it runs on a " \
      "context.") \
    X(GENERATE, realm_host_generate, "ippppp", REALM_IMPORT_OFF_FIBER, \
      (int32_t model, const char *prompt, size_t prompt_len, const realm_generate_options *options, char *out, \
       size_t max), \
      "Prompt in, text out: a whole generation, batched with everybody's; returns the bytes of text, cut between " \
      "characters at `max`.")

#define REALM_ABI_EVENTS(X) \
    X(EVENTS, ring_set, "pp", 0, (realm_event_ring *ring, size_t len), \
      "Registers a ring in the program's memory, len bytes with its header; 0, 0 takes it away. The host writes only " \
      "while the program is inside ring_wait.") \
    X(EVENTS, ring_wait, "i", BRIEF_SUSPENDS, (int32_t timeout_ms), \
      "Fills the registered ring with events of all generations as far as there is room; waits as wait does when the " \
      "ring is empty. Returns how many were added.")

#define REALM_ABI_AHEAD(X) \
    X(AHEAD, confirm, "ii", BRIEF_SUSPENDS, (int32_t generation, uint32_t n), \
      "In run-ahead mode: the first n generated tokens are accepted, the engine may go on. Once its end was given, " \
      "confirming all of them makes that final.") \
    X(AHEAD, rewind, "iipp", REALM_IMPORT_OFF_FIBER, \
      (int32_t generation, uint32_t n_keep, const int32_t *tokens, size_t n), \
      "In run-ahead mode: drops what was generated after the first n_keep tokens, puts the given tokens there instead " \
      "(n may be 0) and goes on. Dropped tokens are counted as generated.")

#define REALM_ABI_STORE(X) \
    X(STORE, store_get, "pppp", REALM_IMPORT_SUSPENDS, (const char *key, size_t key_len, void *out, size_t max), \
      "A value of the tenant's store, which all its requests share. REALM_E_NOT_FOUND.") \
    X(STORE, store_put, "pppp", REALM_IMPORT_SUSPENDS, \
      (const char *key, size_t key_len, const void *value, size_t value_len), \
      "Sets a value, durably. REALM_E_LIMIT when storage_bytes is used up.") \
    X(STORE, store_delete, "pp", REALM_IMPORT_SUSPENDS, (const char *key, size_t key_len), \
      "Removes a key. REALM_E_NOT_FOUND.") \
    X(STORE, store_list, "pppppp", REALM_IMPORT_SUSPENDS, \
      (const char *prefix, size_t prefix_len, const char *after, size_t after_len, char *out, size_t max), \
      "Keys with a prefix, in order, behind `after`, each followed by a NUL, as many as fit; returns the bytes.")

#define REALM_ABI_TENSORS(X) \
    X(TENSORS, tensor_new, "pp", REALM_IMPORT_OFF_FIBER, (const uint64_t *dims, size_t n_dims), \
      "A float32 tensor of zeros, up to 4 dimensions, the last one contiguous. Counts against tensor_bytes.") \
    X(TENSORS, tensor_weight, "ipp", REALM_IMPORT_OFF_FIBER, (int32_t model, const char *name, size_t len), \
      "A weight of a model by its name in the file; no copy. Reading it needs read_weights; that keeps nobody from computing values out of it.") \
    X(TENSORS, tensor_info, "ip", 0, (int32_t tensor, realm_guest_tensor *out), \
      "Dimensions and type.") \
    X(TENSORS, tensor_write, "ilpp", REALM_IMPORT_OFF_FIBER, (int32_t tensor, uint64_t at, const float *values, size_t n), \
      "Writes values from the given element on.") \
    X(TENSORS, tensor_read, "ilpp", REALM_IMPORT_OFF_FIBER, (int32_t tensor, uint64_t at, float *out, size_t n), \
      "Reads values, of a weight whole rows. Metered (read_bytes).") \
    X(TENSORS, tensor_run, "pp", REALM_IMPORT_OFF_FIBER, (const realm_guest_tensor_op *ops, size_t n), \
      "Runs a list of operations in order on the shared device, all checked before the first runs; waits for them. " \
      "last_error names the operation and operand at fault.") \
    X(TENSORS, candle_matmul, "ppppiiip", REALM_IMPORT_OFF_FIBER, \
      (const float *a, size_t a_len, const float *b, size_t b_len, uint32_t m, uint32_t k, uint32_t n, float *out), \
      "float32 [m,k] x [k,n] from and to the program's memory; lengths in bytes.") \
    X(TENSORS, attention_forward, "iiiiiiiii", REALM_IMPORT_OFF_FIBER, \
      (int32_t q, int32_t k, int32_t v, int32_t mask, int32_t out, uint32_t n_head, uint32_t n_kv_head, \
       uint32_t head_dim, uint32_t scale_bits), \
      "Attention over tensor handles, causal (mask 0: the last row sees all) or with an additive (rows, positions) " \
      "mask; scale_bits are the bits of the float32 scale.")

#define REALM_ABI_STREAMING(X) \
    X(STREAMING, memory64_load_layer, "iipp", REALM_IMPORT_OFF_FIBER, \
      (int32_t model, uint32_t layer, void *out, size_t max), \
      "The layer's tensors as in the file, in the file's order, into the program's memory (needs read_weights); with " \
      "out 0 brings the layer in and pins it, no copy. Returns bytes.") \
    X(STREAMING, memory64_load_tensor, "iipp", REALM_IMPORT_OFF_FIBER, \
      (int32_t model, uint32_t layer, const char *name, size_t len), \
      "A tensor handle by layer and name (`attn_q.weight`); no copy.") \
    X(STREAMING, memory64_unload_layer, "ii", REALM_IMPORT_OFF_FIBER, (int32_t model, uint32_t layer), \
      "Unpins.") \
    X(STREAMING, memory64_get_stats, "pp", REALM_IMPORT_OFF_FIBER, (realm_stream_stats *out, size_t max), \
      "Hits, misses, evictions and bytes of the model in use.")

/* clang-format on */

#define REALM_ABI_CALLS(X) \
    REALM_ABI_ABOUT(X)     \
    REALM_ABI_IO(X)        \
    REALM_ABI_MODELS(X)    \
    REALM_ABI_TEXT(X)      \
    REALM_ABI_PROMPTS(X)   \
    REALM_ABI_CONTEXTS(X)  \
    REALM_ABI_GENERATE(X)  \
    REALM_ABI_EVENTS(X)    \
    REALM_ABI_AHEAD(X)     \
    REALM_ABI_FORWARD(X)   \
    REALM_ABI_LOGITS(X)    \
    REALM_ABI_SAMPLERS(X)  \
    REALM_ABI_GRAMMARS(X)  \
    REALM_ABI_STORE(X)     \
    REALM_ABI_TENSORS(X)   \
    REALM_ABI_STREAMING(X)

#define REALM_ABI_DECLARE(group, name, params, flags, declaration, text) \
    realm_call_result host_##name(realm_call *call, const uint64_t *args, int32_t *result);
REALM_ABI_CALLS(REALM_ABI_DECLARE)
#undef REALM_ABI_DECLARE

#endif
