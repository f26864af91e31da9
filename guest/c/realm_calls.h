/* realm_calls.h - the host's functions, for realm_guest.h: made by tools/abi-gen (make abi) from src/tenant/host/abi.h
 * and include/realm/abi.h; do not edit. */
/* clang-format off */

/* ---- About the host ---- */

/* Major version << 16 | minor version. */
int32_t realm_abi_version(void) REALM_IMPORT(abi_version);

/* What this instance may use; writes as much as fits and returns the structure's size. */
int32_t realm_limits_get(realm_guest_limits *out, size_t max) REALM_IMPORT(limits_get);

/* Text of the last call that failed, cut to fit; returns its length. */
int32_t realm_last_error(char *out, size_t max) REALM_IMPORT(last_error);

/* A line in the server's log; level 0 (debug) to 3 (error). Lines and bytes are bounded, what is too much is dropped
 * and counted. */
int32_t realm_log(int32_t level, const char *text, size_t len) REALM_IMPORT(log);

/* Milliseconds of REALM_CLOCK_MONOTONIC or REALM_CLOCK_WALL. */
int32_t realm_clock_ms(uint32_t clock, int64_t *out) REALM_IMPORT(clock_ms);

/* Random bytes, at most 64 KiB a call. */
int32_t realm_random(void *out, size_t len) REALM_IMPORT(random);

/* ---- Input and output ---- */

/* The request as JSON (name_len 0), or a top-level field of it: a string as its text, anything else as JSON.
 * REALM_E_NOT_FOUND when it is absent. */
int32_t realm_input(const char *name, size_t name_len, char *out, size_t max) REALM_IMPORT(input);

/* Hands well-formed UTF-8 to the client; waits while the client is slow. */
int32_t realm_emit(const char *text, size_t len) REALM_IMPORT(emit);

/* The same for one token, or -1 for text that is none. */
int32_t realm_stream_token(int32_t token, const char *text, size_t len) REALM_IMPORT(realm_stream_token);

/* How the answer ends (REALM_END_STOP, REALM_END_LENGTH), where that is not how the last generation did. */
int32_t realm_finish(uint32_t reason) REALM_IMPORT(finish);

/* ---- Models ---- */

/* The id of a model that the server offers under this name, or that the tenant stored under this number. Id 0 is always
 * the request's own model. */
int32_t realm_model_find(const char *name, size_t len) REALM_IMPORT(model_find);

/* The model that text, prompts, grammars and new contexts belong to from now on; waits while it is loaded. Returns the
 * id that was used before. */
int32_t realm_model_use(int32_t model) REALM_IMPORT(model_use);

/* Stores a GGUF image for this tenant alone, under the given id, or with 0 under one derived from its hash. The same
 * image under two ids is stored once; an id that names another image is refused. Counts against storage_bytes. Returns
 * the id. */
int32_t realm_store_model(const void *image, size_t len, int32_t model) REALM_IMPORT(realm_store_model);

/* JSON: architecture, shapes, types, context, tokenizer, whether there is a template. */
int32_t realm_get_model_info(int32_t model, char *out, size_t max) REALM_IMPORT(realm_get_model_info);

/* A tensor's values as float32, `max` in bytes; REALM_E_RANGE with the size needed in last_error when that is too
 * small. Needs read_weights for models that are not the tenant's own. */
int32_t realm_get_tensor(int32_t model, const char *name, size_t name_len, float *out,
                         size_t max) REALM_IMPORT(realm_get_tensor);

/* Drops this tenant's reference to a stored model. */
int32_t realm_remove_model(int32_t model) REALM_IMPORT(realm_remove_model);

/* ---- Text ---- */

/* Token ids of a text. Flags REALM_TEXT_ADD_SPECIAL, _PARSE_SPECIAL, _CONTINUES. */
int32_t realm_encode(const char *text, size_t len, uint32_t flags, int32_t *out, size_t max) REALM_IMPORT(encode);

/* Text of tokens; flag REALM_TEXT_SPECIAL shows control tokens. */
int32_t realm_decode(const int32_t *tokens, size_t n, uint32_t flags, char *out, size_t max) REALM_IMPORT(decode);

/* The bytes that one token stands for. */
int32_t realm_token_piece(int32_t token, uint32_t flags, char *out, size_t max) REALM_IMPORT(token_piece);

/* ---- Prompts ---- */

/* Handle of the request's own prompt, for the request's own model. */
int32_t realm_prompt_own(void) REALM_IMPORT(prompt_own);

/* The model's chat template over JSON messages (and tools, or length 0). What messages spell never becomes a control
 * token. Flag REALM_CHAT_ANSWER ends with the header of an answer. */
int32_t realm_prompt_chat(const char *messages, size_t messages_len, const char *tools, size_t tools_len,
                          uint32_t flags) REALM_IMPORT(prompt_chat);

/* A prompt from text; flags as for encode. */
int32_t realm_prompt_text(const char *text, size_t len, uint32_t flags) REALM_IMPORT(prompt_text);

/* A prompt from token ids. */
int32_t realm_prompt_tokens(const int32_t *tokens, size_t n) REALM_IMPORT(prompt_tokens);

/* A prompt's text. */
int32_t realm_prompt_get_text(int32_t prompt, char *out, size_t max) REALM_IMPORT(prompt_get_text);

/* A prompt's token ids. */
int32_t realm_prompt_get_tokens(int32_t prompt, int32_t *out, size_t max) REALM_IMPORT(prompt_get_tokens);

/* ---- Contexts ---- */

/* An empty context: a token sequence and, once computed, its KV pages. */
int32_t realm_context_new(void) REALM_IMPORT(context_new);

/* Adds tokens; they are computed with the next forward pass or generation. Returns the new length. REALM_E_BUSY while
 * one of these runs. */
int32_t realm_context_append(int32_t context, const int32_t *tokens, size_t n) REALM_IMPORT(context_append);

/* The same with the tokens of a prompt. */
int32_t realm_context_append_prompt(int32_t context, int32_t prompt) REALM_IMPORT(context_append_prompt);

/* A second context with the same tokens. Pages are shared until one of the two writes to them. */
int32_t realm_context_fork(int32_t context) REALM_IMPORT(context_fork);

/* Keeps the first n_tokens. */
int32_t realm_context_truncate(int32_t context, uint32_t n_tokens) REALM_IMPORT(context_truncate);

/* Length, how much is computed, pages held and shared. */
int32_t realm_context_stat(int32_t context, realm_guest_context *out) REALM_IMPORT(context_stat);

/* Its token ids from a position on, at most `max`; returns how many were written. */
int32_t realm_context_get_tokens(int32_t context, uint32_t from, int32_t *out,
                                 size_t max) REALM_IMPORT(context_get_tokens);

/* Keeps a copy (pages shared) under a name of this tenant, for later requests; replaces an older one. */
int32_t realm_context_save(int32_t context, const char *name, size_t len) REALM_IMPORT(context_save);

/* A context forked from the saved one. REALM_E_NOT_FOUND. */
int32_t realm_context_open(const char *name, size_t len) REALM_IMPORT(context_open);

/* Forgets a saved context. */
int32_t realm_context_drop(const char *name, size_t len) REALM_IMPORT(context_drop);

/* ---- Generations ---- */

/* Starts a generation and returns its handle. Options 0: the request's own parameters; else those whose bit is in `set`
 * replace them. With a context in the options the prompt (or 0) is added to it, and the answer after that. */
int32_t realm_generate(int32_t prompt, const realm_generate_options *options, uint32_t mode) REALM_IMPORT(generate);

/* Events of one generation or forward pass, or of any (0), since the last time, with their texts one after the other in
 * `text`; waits until there is one, at most timeout_ms (-1: for ever). 0 when the time is up; REALM_E_CLOSED after the
 * end was given, REALM_E_NOT_FOUND when nothing runs, REALM_E_CANCELLED when the client has gone. */
int32_t realm_wait(int32_t handle, realm_guest_event *events, size_t max_events, char *text, size_t max_text,
                   int32_t timeout_ms) REALM_IMPORT(wait);

/* Tokens that a generation or forward pass was charged so far. */
int32_t realm_usage(int32_t generation, realm_guest_usage *out) REALM_IMPORT(usage);

/* Ends it; its end comes as an event. */
int32_t realm_cancel(int32_t generation) REALM_IMPORT(cancel);

/* Gives back any handle; what still runs is cancelled, and has ended when the call returns where it runs on a context. */
int32_t realm_close(int32_t handle) REALM_IMPORT(close);

/* Prompt in, text out: a whole generation, batched with everybody's; returns the bytes of text, cut between characters
 * at `max`. */
int32_t realm_host_generate(int32_t model, const char *prompt, size_t prompt_len, const realm_generate_options *options,
                            char *out, size_t max) REALM_IMPORT(realm_host_generate);

/* ---- Events in the program's own memory ---- */

/* Registers a ring in the program's memory, len bytes with its header; 0, 0 takes it away. The host writes only while
 * the program is inside ring_wait. */
int32_t realm_ring_set(realm_event_ring *ring, size_t len) REALM_IMPORT(ring_set);

/* Fills the registered ring with events of all generations as far as there is room; waits as wait does when the ring is
 * empty. Returns how many were added. */
int32_t realm_ring_wait(int32_t timeout_ms) REALM_IMPORT(ring_wait);

/* ---- Running ahead ---- */

/* In run-ahead mode: the first n generated tokens are accepted, the engine may go on. Once its end was given,
 * confirming all of them makes that final. */
int32_t realm_confirm(int32_t generation, uint32_t n) REALM_IMPORT(confirm);

/* In run-ahead mode: drops what was generated after the first n_keep tokens, puts the given tokens there instead (n may
 * be 0) and goes on. Dropped tokens are counted as generated. */
int32_t realm_rewind(int32_t generation, uint32_t n_keep, const int32_t *tokens, size_t n) REALM_IMPORT(rewind);

/* ---- Forward passes ---- */

/* Appends tokens to a context and computes them, batched with everybody's; returns a handle whose END event comes
 * through wait. It then holds the logits (flag REALM_FORWARD_HIDDEN: the final hidden state too) of the last n_rows
 * tokens. */
int32_t realm_forward(int32_t context, const int32_t *tokens, size_t n, uint32_t n_rows,
                      uint32_t flags) REALM_IMPORT(forward);

/* The hidden state of a row after the final norm, as float32; the embedding of its text. Metered (read_bytes). */
int32_t realm_hidden_read(int32_t handle, uint32_t row, float *out, size_t max) REALM_IMPORT(hidden_read);

/* ---- Logits ---- */

/* Draws a token with a sampler (0: greedy) and tells its log-probability where logprob is not 0. The sampler takes note
 * of the token. */
int32_t realm_logits_sample(int32_t handle, uint32_t row, int32_t sampler, float *logprob) REALM_IMPORT(logits_sample);

/* The k most likely tokens with their log-probabilities, at most 256. */
int32_t realm_logits_top(int32_t handle, uint32_t row, uint32_t k, realm_guest_token *out,
                         size_t max) REALM_IMPORT(logits_top);

/* Log-probabilities of given tokens, at most 4096. */
int32_t realm_logits_gather(int32_t handle, uint32_t row, const int32_t *tokens, size_t n,
                            float *logprobs) REALM_IMPORT(logits_gather);

/* Best token, its log-probability, entropy, log of the sum of exponentials. */
int32_t realm_logits_stats(int32_t handle, uint32_t row, realm_guest_logit_stats *out) REALM_IMPORT(logits_stats);

/* Adds to the logits of given tokens, in place. */
int32_t realm_logits_bias(int32_t handle, uint32_t row, const realm_bias *bias, size_t n) REALM_IMPORT(logits_bias);

/* Keeps the tokens whose bit is set (bit t % 8 of byte t / 8, vocabulary / 8 bytes rounded up), in place. */
int32_t realm_logits_mask(int32_t handle, uint32_t row, const void *bits, size_t len) REALM_IMPORT(logits_mask);

/* The whole row as float32, `max` in values. Metered (read_bytes). */
int32_t realm_logits_read(int32_t handle, uint32_t row, float *out, size_t max) REALM_IMPORT(logits_read);

/* A logits handle over a copy of a (rows, vocabulary) tensor, for the calls of that group. */
int32_t realm_tensor_logits(int32_t tensor) REALM_IMPORT(tensor_logits);

/* ---- Samplers ---- */

/* A chain of stages in the given order, run on the host: penalties, DRY, bias, mask, grammar, temperature, top-k,
 * top-p, min-p, typical, XTC, mirostat. Without a stage it is greedy. */
int32_t realm_sampler_new(const realm_sampler_stage *stages, size_t n, uint64_t seed) REALM_IMPORT(sampler_new);

/* A copy with the same history. */
int32_t realm_sampler_fork(int32_t sampler) REALM_IMPORT(sampler_fork);

/* Takes note of tokens that were put into the answer without being drawn: the history that penalties, DRY and the
 * grammar look at. The next draw is that of the token after them. */
int32_t realm_sampler_accept(int32_t sampler, const int32_t *tokens, size_t n) REALM_IMPORT(sampler_accept);

/* Takes note of the tokens of a prompt: what the repeat penalty and DRY look at as well. Whoever samples with
 * logits_sample calls it first to get what a generation draws, which does it by itself. */
int32_t realm_sampler_prompt(int32_t sampler, const int32_t *tokens, size_t n) REALM_IMPORT(sampler_prompt);

/* ---- Grammars ---- */

/* Compiles a JSON Schema, a regular expression or a Lark grammar for the model in use, within limits of size, depth and
 * time. */
int32_t realm_grammar_compile(uint32_t kind, const char *text, size_t len) REALM_IMPORT(grammar_compile);

/* A copy in the same state. */
int32_t realm_grammar_fork(int32_t grammar) REALM_IMPORT(grammar_fork);

/* Goes on by as many of the tokens as the grammar allows; returns how many. */
int32_t realm_grammar_accept(int32_t grammar, const int32_t *tokens, size_t n) REALM_IMPORT(grammar_accept);

/* Takes back the last n tokens. */
int32_t realm_grammar_rollback(int32_t grammar, uint32_t n) REALM_IMPORT(grammar_rollback);

/* The tokens that may come next, as for logits_mask. */
int32_t realm_grammar_mask(int32_t grammar, void *bits, size_t len) REALM_IMPORT(grammar_mask);

/* Bits REALM_GRAMMAR_CAN_END (the text so far is complete) and REALM_GRAMMAR_MUST_END (nothing more may come). */
int32_t realm_grammar_state(int32_t grammar) REALM_IMPORT(grammar_state);

/* ---- The tenant's store ---- */

/* A value of the tenant's store, which all its requests share. REALM_E_NOT_FOUND. */
int32_t realm_store_get(const char *key, size_t key_len, void *out, size_t max) REALM_IMPORT(store_get);

/* Sets a value, durably. REALM_E_LIMIT when storage_bytes is used up. */
int32_t realm_store_put(const char *key, size_t key_len, const void *value, size_t value_len) REALM_IMPORT(store_put);

/* Removes a key. REALM_E_NOT_FOUND. */
int32_t realm_store_delete(const char *key, size_t key_len) REALM_IMPORT(store_delete);

/* Keys with a prefix, in order, behind `after`, each followed by a NUL, as many as fit; returns the bytes. */
int32_t realm_store_list(const char *prefix, size_t prefix_len, const char *after, size_t after_len, char *out,
                         size_t max) REALM_IMPORT(store_list);

/* ---- Tensors ---- */

/* A float32 tensor of zeros, up to 4 dimensions, the last one contiguous. Counts against tensor_bytes. */
int32_t realm_tensor_new(const uint64_t *dims, size_t n_dims) REALM_IMPORT(tensor_new);

/* A weight of a model by its name in the file; no copy. Reading it needs read_weights; that keeps nobody from computing
 * values out of it. */
int32_t realm_tensor_weight(int32_t model, const char *name, size_t len) REALM_IMPORT(tensor_weight);

/* Dimensions and type. */
int32_t realm_tensor_info(int32_t tensor, realm_guest_tensor *out) REALM_IMPORT(tensor_info);

/* Writes values from the given element on. */
int32_t realm_tensor_write(int32_t tensor, uint64_t at, const float *values, size_t n) REALM_IMPORT(tensor_write);

/* Reads values, of a weight whole rows. Metered (read_bytes). */
int32_t realm_tensor_read(int32_t tensor, uint64_t at, float *out, size_t n) REALM_IMPORT(tensor_read);

/* Runs a list of operations in order on the shared device, all checked before the first runs; waits for them.
 * last_error names the operation and operand at fault. */
int32_t realm_tensor_run(const realm_guest_tensor_op *ops, size_t n) REALM_IMPORT(tensor_run);

/* float32 [m,k] x [k,n] from and to the program's memory; lengths in bytes. */
int32_t realm_candle_matmul(const float *a, size_t a_len, const float *b, size_t b_len, uint32_t m, uint32_t k,
                            uint32_t n, float *out) REALM_IMPORT(candle_matmul);

/* Attention over tensor handles, causal (mask 0: the last row sees all) or with an additive (rows, positions) mask;
 * scale_bits are the bits of the float32 scale. */
int32_t realm_attention_forward(int32_t q, int32_t k, int32_t v, int32_t mask, int32_t out, uint32_t n_head,
                                uint32_t n_kv_head, uint32_t head_dim, uint32_t scale_bits) REALM_IMPORT(attention_forward);

/* ---- Models larger than their memory budget ---- */

/* The layer's tensors as in the file, in the file's order, into the program's memory (needs read_weights); with out 0
 * brings the layer in and pins it, no copy. Returns bytes. */
int32_t realm_memory64_load_layer(int32_t model, uint32_t layer, void *out,
                                  size_t max) REALM_IMPORT(memory64_load_layer);

/* A tensor handle by layer and name (`attn_q.weight`); no copy. */
int32_t realm_memory64_load_tensor(int32_t model, uint32_t layer, const char *name,
                                   size_t len) REALM_IMPORT(memory64_load_tensor);

/* Unpins. */
int32_t realm_memory64_unload_layer(int32_t model, uint32_t layer) REALM_IMPORT(memory64_unload_layer);

/* Hits, misses, evictions and bytes of the model in use. */
int32_t realm_memory64_get_stats(realm_stream_stats *out, size_t max) REALM_IMPORT(memory64_get_stats);
