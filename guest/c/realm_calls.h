/* realm_calls.h - the host's functions, for realm_guest.h: made by tools/abi-gen (make abi) from src/tenant/abi.h and
 * include/realm/abi.h; do not edit. */
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

/* Gives back any handle; what still runs is cancelled. */
int32_t realm_close(int32_t handle) REALM_IMPORT(close);

/* Prompt in, text out: a whole generation, batched with everybody's; returns the bytes of text, cut between characters
 * at `max`. */
int32_t realm_host_generate(int32_t model, const char *prompt, size_t prompt_len, const realm_generate_options *options,
                            char *out, size_t max) REALM_IMPORT(realm_host_generate);

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
