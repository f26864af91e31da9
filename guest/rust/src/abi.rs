//! The host's interface as it is: functions that take addresses and return codes, constants and structures. The crate's
//! root has the same in Rust's own manner.
//!
//! (made by tools/abi-gen (make abi) from src/tenant/host/abi.h and include/realm/abi.h; do not edit)

// A program built for a later major version is refused; minor versions only add.
pub const ABI_MAJOR: i32 = 1;
pub const ABI_MINOR: i32 = 2;

// Flags of encode and prompt_text.

/// begin and end tokens as the model asks
pub const TEXT_ADD_SPECIAL: u32 = 1;
/// the text of control tokens becomes control tokens: never for a client's text
pub const TEXT_PARSE_SPECIAL: u32 = 2;
/// follows earlier text: no space prefix
pub const TEXT_CONTINUES: u32 = 4;

// Flags of decode, token_piece.

/// control tokens show as text
pub const TEXT_SPECIAL: u32 = 1;

// Flags of prompt_chat.

/// end with the header of the model's answer
pub const CHAT_ANSWER: u32 = 1;

// Flags of realm_generate_options.
pub const GENERATE_LOGPROBS: u32 = 1;
/// end tokens are tokens like others
pub const GENERATE_IGNORE_END: u32 = 2;
/// control tokens show in the text
pub const GENERATE_SPECIAL_TEXT: u32 = 4;
/// realm_host_generate: the text is one user message, for the chat template
pub const GENERATE_CHAT: u32 = 256;

// How tokens reach the world.

/// through wait()
pub const MODE_EVENTS: u32 = 0;
/// straight to the client; wait() gives the end alone. One at a time
pub const MODE_PIPE: u32 = 1;
/// through wait(); the engine is at most options.run_ahead tokens ahead of confirm()
pub const MODE_AHEAD: u32 = 2;

// A program that decides on every token itself (lockstep) calls forward(), samples, and calls it again.

// Bits of realm_generate_options.set: fields without their bit keep the request's own value.
pub const SET_MAX_TOKENS: u32 = 1;
pub const SET_TEMPERATURE: u32 = 2;
pub const SET_TOP_K: u32 = 4;
pub const SET_TOP_P: u32 = 8;
pub const SET_MIN_P: u32 = 16;
pub const SET_REPEAT_PENALTY: u32 = 32;
pub const SET_FREQUENCY_PENALTY: u32 = 64;
pub const SET_PRESENCE_PENALTY: u32 = 128;
pub const SET_PENALTY_LAST_N: u32 = 256;
pub const SET_SEED: u32 = 512;
pub const SET_STOP: u32 = 1024;
pub const SET_BIAS: u32 = 2048;
/// the first three flags; GENERATE_CHAT counts always
pub const SET_FLAGS: u32 = 4096;
/// a handle; the other sampling fields are not looked at. Its state is copied
pub const SET_SAMPLER: u32 = 8192;
/// a handle; its state is copied. Applied before the sampling that is in force
pub const SET_GRAMMAR: u32 = 16384;
pub const SET_CONTEXT: u32 = 32768;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GenerateOptions {
    /// sizeof(realm_generate_options)
    pub size: u32,
    pub set: u32,
    /// 0: until the context is full
    pub max_tokens: u32,
    pub top_k: u32,
    pub temperature: f32,
    pub top_p: f32,
    pub min_p: f32,
    pub repeat_penalty: f32,
    pub frequency_penalty: f32,
    pub presence_penalty: f32,
    pub penalty_last_n: u32,
    pub flags: u32,
    pub seed: u64,
    /// address of n_stop realm_bytes
    pub stop: u64,
    /// address of n_bias realm_bias
    pub bias: u64,
    pub n_stop: u32,
    pub n_bias: u32,
    pub sampler: i32,
    pub grammar: i32,
    /// handles
    pub context: i32,
    /// MODE_AHEAD: 1 to 64
    pub run_ahead: u32,
}
const _: () = assert!(core::mem::size_of::<GenerateOptions>() == 96);

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bytes {
    pub ptr: u64,
    pub len: u64,
}
const _: () = assert!(core::mem::size_of::<Bytes>() == 16);

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bias {
    pub token: i32,
    pub bias: f32,
}
const _: () = assert!(core::mem::size_of::<Bias>() == 8);

pub const EVENT_KIND_TOKEN: u32 = 1;
pub const EVENT_KIND_END: u32 = 2;
/// end token or stop string
pub const END_STOP: u32 = 1;
/// max_tokens, or the context is full
pub const END_LENGTH: u32 = 2;
pub const END_CANCELLED: u32 = 3;
/// see status
pub const END_ERROR: u32 = 4;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GuestEvent {
    /// of the generation
    pub handle: i32,
    pub kind: u32,
    /// TOKEN
    pub token: i32,
    /// with GENERATE_LOGPROBS
    pub logprob: f32,
    /// in the text buffer of the same wait(); END may bring text that was held back
    pub text_at: u32,
    pub text_len: u32,
    /// END: REALM_END_*
    pub finish: u32,
    /// END: 0, or the negative code of the failure
    pub status: i32,
}
const _: () = assert!(core::mem::size_of::<GuestEvent>() == 32);

/// tokens of a generation so far
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GuestUsage {
    pub prompt: u32,
    pub cached: u32,
    pub completion: u32,
}
const _: () = assert!(core::mem::size_of::<GuestUsage>() == 12);

// ---- contexts, forward passes, logits ----

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GuestContext {
    pub n_tokens: u32,
    /// tokens, and those whose KV is there
    pub n_computed: u32,
    pub pages: u32,
    /// of KV; shared: with another context, a prefix or a running generation
    pub shared_pages: u32,
    /// 1: a generation or forward pass runs on it
    pub busy: u32,
    /// 1: its pages were moved out of the KV memory; they come back when needed
    pub suspended: u32,
}
const _: () = assert!(core::mem::size_of::<GuestContext>() == 24);

/// keep the final hidden state of the rows
pub const FORWARD_HIDDEN: u32 = 1;
/// rows of one forward pass whose logits are kept
pub const FORWARD_ROWS_MAX: u32 = 64;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GuestToken {
    pub token: i32,
    pub logprob: f32,
}
const _: () = assert!(core::mem::size_of::<GuestToken>() == 8);

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GuestLogitStats {
    pub best: i32,
    pub best_logprob: f32,
    /// nats
    pub entropy: f32,
    /// of the raw logits
    pub log_sum_exp: f32,
}
const _: () = assert!(core::mem::size_of::<GuestLogitStats>() == 16);

// ---- samplers and grammars ----

/// n: last_n (0 all); a: repeat, b: frequency, c: presence
pub const STAGE_PENALTIES: u32 = 1;
/// n: last_n (0 all); a: multiplier, b: base, m: allowed length
pub const STAGE_DRY: u32 = 2;
/// data: realm_bias; n: how many
pub const STAGE_BIAS: u32 = 3;
/// data: bits as for logits_mask; n: bytes
pub const STAGE_MASK: u32 = 4;
/// handle; its state is copied
pub const STAGE_GRAMMAR: u32 = 5;
/// a; 0: greedy
pub const STAGE_TEMPERATURE: u32 = 6;
/// n
pub const STAGE_TOP_K: u32 = 7;
/// a
pub const STAGE_TOP_P: u32 = 8;
/// a
pub const STAGE_MIN_P: u32 = 9;
/// a
pub const STAGE_TYPICAL: u32 = 10;
/// a: probability, b: threshold
pub const STAGE_XTC: u32 = 11;
/// version 2. a: tau, b: eta; the last stage
pub const STAGE_MIROSTAT: u32 = 12;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SamplerStage {
    pub kind: u32,
    pub handle: i32,
    pub n: u32,
    pub m: u32,
    pub a: f32,
    pub b: f32,
    pub c: f32,
    pub zero: u32,
    /// address
    pub data: u64,
}
const _: () = assert!(core::mem::size_of::<SamplerStage>() == 40);

pub const GRAMMAR_JSON_SCHEMA: u32 = 1;
pub const GRAMMAR_REGEX: u32 = 2;
pub const GRAMMAR_LARK: u32 = 3;
pub const GRAMMAR_CAN_END: i32 = 1;
pub const GRAMMAR_MUST_END: i32 = 2;

// ---- a ring of events ----

// At the registered address: this header, n_slots events, text_bytes bytes. The program sets n_slots and text_bytes
// before ring_set, and moves `tail` and `text_tail` on over what it has read; the host moves `head` and `text_head`.
// All four count from 0 upwards and wrap at 2^32; slot and byte are taken modulo n_slots and text_bytes, which are
// powers of two. An event's text_at is a count like text_head; a text does not wrap inside the ring (the host skips to
// the start).

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EventRing {
    pub n_slots: u32,
    pub text_bytes: u32,
    pub head: u32,
    pub tail: u32,
    pub text_head: u32,
    pub text_tail: u32,
}
const _: () = assert!(core::mem::size_of::<EventRing>() == 24);

// ---- tensors ----

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GuestTensor {
    /// the last used one is contiguous; unused ones, behind it, 1
    pub dims: [u64; 4],
    pub n_dims: u32,
    /// ggml's number; 0: float32
    pub type_: u32,
    /// 1: of a model, read only
    pub weight: u32,
    pub zero: u32,
}
const _: () = assert!(core::mem::size_of::<GuestTensor>() == 48);

// Operations see a tensor as rows of its last dimension. In place (out the same handle as an operand) is allowed where
// said. `m` 0 works on all rows of a, else on the first m.

/// out(m,n) = a(m,k) b(n,k)^T; b a weight or a tensor
pub const TENSOR_OP_MATMUL: u32 = 1;
/// out(m,n) = a(m,k) b(k,n); b a tensor
pub const TENSOR_OP_MATMUL_PLAIN: u32 = 2;
/// out = rows `ids` of a (a weight or a tensor), times scale (0: 1)
pub const TENSOR_OP_GET_ROWS: u32 = 3;
/// out = a / sqrt(mean(a^2) + eps) * b over groups of b's length; in place
pub const TENSOR_OP_RMS_NORM: u32 = 4;
/// out = a + b; b of one row counts for every row; in place
pub const TENSOR_OP_ADD: u32 = 5;
/// out = a * b; likewise
pub const TENSOR_OP_MUL: u32 = 6;
/// out = a * scale; in place
pub const TENSOR_OP_SCALE: u32 = 7;
/// out = silu(a), times b where given; in place
pub const TENSOR_OP_SILU: u32 = 8;
/// the same with gelu, tanh form
pub const TENSOR_OP_GELU: u32 = 9;
/// by row; in place
pub const TENSOR_OP_SOFTMAX: u32 = 10;
/// rotates heads of head_dim; row i at position first + i; b: frequency factors or 0; \ in place
pub const TENSOR_OP_ROPE: u32 = 11;
/// out = softmax(scale q k^T) v; a q, b k, c v, d an additive mask (m,t) or 0; \ row i sees the first + i + 1 first
/// positions
pub const TENSOR_OP_ATTENTION: u32 = 12;
/// out(m,1) = index of the greatest value of each row
pub const TENSOR_OP_ARGMAX: u32 = 13;
/// n_rows rows of a from `row` on, to rows from `out_row` on of out
pub const TENSOR_OP_COPY: u32 = 14;

// Flags.

/// rotates (i, i + d/2), else neighbours
pub const TENSOR_ROPE_HALVES: u32 = 1;
/// every row sees all t positions
pub const TENSOR_ATTENTION_FULL: u32 = 2;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GuestTensorOp {
    pub kind: u32,
    pub flags: u32,
    pub out: i32,
    pub a: i32,
    pub b: i32,
    pub c: i32,
    /// tensor handles; 0 where there is none
    pub d: i32,
    pub n_head: u32,
    pub n_kv_head: u32,
    pub head_dim: u32,
    /// ROPE: values of a head that turn; 0: head_dim
    pub rope_dims: u32,
    /// ROPE: position of row 0; ATTENTION: positions before row 0
    pub first: u32,
    /// ATTENTION: rows of k and v that count; 0: all
    pub t: u32,
    /// ATTENTION: only the last so many positions; 0: all
    pub window: u32,
    pub scale: f32,
    pub eps: f32,
    pub base: f32,
    /// ROPE; freq_scale 0: 1
    pub freq_scale: f32,
    /// ATTENTION; 0: none
    pub softcap: f32,
    pub n_ids: u32,
    /// GET_ROWS: address of n_ids i32
    pub ids: u64,
    pub m: u64,
    pub row: u64,
    pub n_rows: u64,
    /// COPY
    pub out_row: u64,
}
const _: () = assert!(core::mem::size_of::<GuestTensorOp>() == 120);

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StreamStats {
    pub hits: u64,
    pub misses: u64,
    pub evictions: u64,
    pub bytes_resident: u64,
    pub bytes_read: u64,
    pub bytes_budget: u64,
    pub prefetched: u64,
}
const _: () = assert!(core::mem::size_of::<StreamStats>() == 56);

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GuestLimits {
    /// of this structure, as the host knows it
    pub size: u32,
    pub abi_major: u32,
    pub abi_minor: u32,
    /// longest prompt and answer together
    pub context_tokens: u32,
    /// linear memory of an instance
    pub memory_bytes: u64,
    /// CPU time between two waits
    pub cpu_ms_per_wake: u64,
    /// of the tenant, in flight; 0: no limit
    pub generations: u32,
    /// open at once in an instance
    pub handles: u32,
    /// of one emit
    pub emit_bytes: u32,
    /// token ids are below
    pub vocabulary: u32,
    /// of logits, hidden states and tensors that this instance may read back
    pub read_bytes: u64,
    /// of tensors at once
    pub tensor_bytes: u64,
    /// of the tenant's store and stored models
    pub storage_bytes: u64,
    /// of the tenant's contexts and generations; 0: no limit
    pub kv_tokens: u64,
    /// of this instance; 0: no limit
    pub wall_ms: u64,
}
const _: () = assert!(core::mem::size_of::<GuestLimits>() == 88);

// Clocks of clock_ms.

/// since some moment before the instance started
pub const CLOCK_MONOTONIC: u32 = 0;
/// since 1970, UTC
pub const CLOCK_WALL: u32 = 1;

// ---- Result codes ----

/// success.
pub const OK: i32 = 0;
/// invalid argument.
pub const E_INVALID: i32 = -1;
/// malformed data.
pub const E_FORMAT: i32 = -2;
/// not supported.
pub const E_UNSUPPORTED: i32 = -3;
/// out of memory.
pub const E_NOMEM: i32 = -4;
/// input or output failed.
pub const E_IO: i32 = -5;
/// not found.
pub const E_NOT_FOUND: i32 = -6;
/// already exists.
pub const E_EXISTS: i32 = -7;
/// a limit was reached.
pub const E_LIMIT: i32 = -8;
/// out of range or buffer too small.
pub const E_RANGE: i32 = -9;
/// would block.
pub const E_AGAIN: i32 = -10;
/// cancelled.
pub const E_CANCELLED: i32 = -11;
/// timed out.
pub const E_TIMEOUT: i32 = -12;
/// not permitted.
pub const E_DENIED: i32 = -13;
/// no valid key.
pub const E_UNAUTHENTICATED: i32 = -14;
/// the program failed.
pub const E_PROGRAM: i32 = -15;
/// closed.
pub const E_CLOSED: i32 = -16;
/// the compute device failed.
pub const E_DEVICE: i32 = -17;
/// internal error.
pub const E_INTERNAL: i32 = -18;
/// overloaded.
pub const E_BUSY: i32 = -19;
/// too many in this time.
pub const E_RATE: i32 = -20;
/// more than the quota holds.
pub const E_QUOTA: i32 = -21;
/// too many at the same time.
pub const E_CROWDED: i32 = -22;
/// longer than the context.
pub const E_CONTEXT: i32 = -23;
/// more than is taken.
pub const E_TOO_LARGE: i32 = -24;
/// the grammar cannot be kept to.
pub const E_GRAMMAR: i32 = -25;

/// What a result code means.
pub const fn code_text(code: i32) -> &'static str {
    match code {
        0 => "success",
        -1 => "invalid argument",
        -2 => "malformed data",
        -3 => "not supported",
        -4 => "out of memory",
        -5 => "input or output failed",
        -6 => "not found",
        -7 => "already exists",
        -8 => "a limit was reached",
        -9 => "out of range or buffer too small",
        -10 => "would block",
        -11 => "cancelled",
        -12 => "timed out",
        -13 => "not permitted",
        -14 => "no valid key",
        -15 => "the program failed",
        -16 => "closed",
        -17 => "the compute device failed",
        -18 => "internal error",
        -19 => "overloaded",
        -20 => "too many in this time",
        -21 => "more than the quota holds",
        -22 => "too many at the same time",
        -23 => "longer than the context",
        -24 => "more than is taken",
        -25 => "the grammar cannot be kept to",
        _ => "unknown failure",
    }
}

#[cfg_attr(not(target_pointer_width = "64"), link(wasm_import_module = "realm"))]
#[cfg_attr(target_pointer_width = "64", link(wasm_import_module = "realm64"))]
extern "C" {
    // ---- About the host ----

    /// Major version << 16 | minor version.
    pub fn abi_version() -> i32;

    /// What this instance may use; writes as much as fits and returns the structure's size.
    pub fn limits_get(out: *mut GuestLimits, max: usize) -> i32;

    /// Text of the last call that failed, cut to fit; returns its length.
    pub fn last_error(out: *mut u8, max: usize) -> i32;

    /// A line in the server's log; level 0 (debug) to 3 (error). Lines and bytes are bounded, what is too much is
    /// dropped and counted.
    pub fn log(level: i32, text: *const u8, len: usize) -> i32;

    /// Milliseconds of CLOCK_MONOTONIC or CLOCK_WALL.
    pub fn clock_ms(clock: u32, out: *mut i64) -> i32;

    /// Random bytes, at most 64 KiB a call.
    pub fn random(out: *mut u8, len: usize) -> i32;
    // ---- Input and output ----

    /// The request as JSON (name_len 0), or a top-level field of it: a string as its text, anything else as JSON.
    /// E_NOT_FOUND when it is absent.
    pub fn input(name: *const u8, name_len: usize, out: *mut u8, max: usize) -> i32;

    /// Hands well-formed UTF-8 to the client; waits while the client is slow.
    pub fn emit(text: *const u8, len: usize) -> i32;

    /// The same for one token, or -1 for text that is none.
    pub fn realm_stream_token(token: i32, text: *const u8, len: usize) -> i32;

    /// How the answer ends (END_STOP, END_LENGTH), where that is not how the last generation did.
    pub fn finish(reason: u32) -> i32;
    // ---- Models ----

    /// The id of a model that the server offers under this name, or that the tenant stored under this number. Id 0 is
    /// always the request's own model.
    pub fn model_find(name: *const u8, len: usize) -> i32;

    /// The model that text, prompts, grammars and new contexts belong to from now on; waits while it is loaded. Returns
    /// the id that was used before.
    pub fn model_use(model: i32) -> i32;

    /// Stores a GGUF image for this tenant alone, under the given id, or with 0 under one derived from its hash. The
    /// same image under two ids is stored once; an id that names another image is refused. Counts against
    /// storage_bytes. Returns the id.
    pub fn realm_store_model(image: *const u8, len: usize, model: i32) -> i32;

    /// JSON: architecture, shapes, types, context, tokenizer, whether there is a template.
    pub fn realm_get_model_info(model: i32, out: *mut u8, max: usize) -> i32;

    /// A tensor's values as float32, `max` in bytes; E_RANGE with the size needed in last_error when that is too small.
    /// Needs read_weights for models that are not the tenant's own.
    pub fn realm_get_tensor(model: i32, name: *const u8, name_len: usize, out: *mut f32, max: usize) -> i32;

    /// Drops this tenant's reference to a stored model.
    pub fn realm_remove_model(model: i32) -> i32;
    // ---- Text ----

    /// Token ids of a text. Flags TEXT_ADD_SPECIAL, _PARSE_SPECIAL, _CONTINUES.
    pub fn encode(text: *const u8, len: usize, flags: u32, out: *mut i32, max: usize) -> i32;

    /// Text of tokens; flag TEXT_SPECIAL shows control tokens.
    pub fn decode(tokens: *const i32, n: usize, flags: u32, out: *mut u8, max: usize) -> i32;

    /// The bytes that one token stands for.
    pub fn token_piece(token: i32, flags: u32, out: *mut u8, max: usize) -> i32;
    // ---- Prompts ----

    /// Handle of the request's own prompt, for the request's own model.
    pub fn prompt_own() -> i32;

    /// The model's chat template over JSON messages (and tools, or length 0). What messages spell never becomes a
    /// control token. Flag CHAT_ANSWER ends with the header of an answer.
    pub fn prompt_chat(messages: *const u8, messages_len: usize, tools: *const u8, tools_len: usize, flags: u32) -> i32;

    /// A prompt from text; flags as for encode.
    pub fn prompt_text(text: *const u8, len: usize, flags: u32) -> i32;

    /// A prompt from token ids.
    pub fn prompt_tokens(tokens: *const i32, n: usize) -> i32;

    /// A prompt's text.
    pub fn prompt_get_text(prompt: i32, out: *mut u8, max: usize) -> i32;

    /// A prompt's token ids.
    pub fn prompt_get_tokens(prompt: i32, out: *mut i32, max: usize) -> i32;
    // ---- Contexts ----

    /// An empty context: a token sequence and, once computed, its KV pages.
    pub fn context_new() -> i32;

    /// Adds tokens; they are computed with the next forward pass or generation. Returns the new length. E_BUSY while
    /// one of these runs.
    pub fn context_append(context: i32, tokens: *const i32, n: usize) -> i32;

    /// The same with the tokens of a prompt.
    pub fn context_append_prompt(context: i32, prompt: i32) -> i32;

    /// A second context with the same tokens. Pages are shared until one of the two writes to them.
    pub fn context_fork(context: i32) -> i32;

    /// Keeps the first n_tokens.
    pub fn context_truncate(context: i32, n_tokens: u32) -> i32;

    /// Length, how much is computed, pages held and shared.
    pub fn context_stat(context: i32, out: *mut GuestContext) -> i32;

    /// Its token ids from a position on, at most `max`; returns how many were written.
    pub fn context_get_tokens(context: i32, from: u32, out: *mut i32, max: usize) -> i32;

    /// Keeps a copy (pages shared) under a name of this tenant, for later requests; replaces an older one.
    pub fn context_save(context: i32, name: *const u8, len: usize) -> i32;

    /// A context forked from the saved one. E_NOT_FOUND.
    pub fn context_open(name: *const u8, len: usize) -> i32;

    /// Forgets a saved context.
    pub fn context_drop(name: *const u8, len: usize) -> i32;
    // ---- Generations ----

    /// Starts a generation and returns its handle. Options 0: the request's own parameters; else those whose bit is in
    /// `set` replace them. With a context in the options the prompt (or 0) is added to it, and the answer after that.
    pub fn generate(prompt: i32, options: *const GenerateOptions, mode: u32) -> i32;

    /// Events of one generation or forward pass, or of any (0), since the last time, with their texts one after the
    /// other in `text`; waits until there is one, at most timeout_ms (-1: for ever). 0 when the time is up; E_CLOSED
    /// after the end was given, E_NOT_FOUND when nothing runs, E_CANCELLED when the client has gone.
    pub fn wait(handle: i32, events: *mut GuestEvent, max_events: usize, text: *mut u8, max_text: usize, timeout_ms: i32) -> i32;

    /// Tokens that a generation or forward pass was charged so far.
    pub fn usage(generation: i32, out: *mut GuestUsage) -> i32;

    /// Ends it; its end comes as an event.
    pub fn cancel(generation: i32) -> i32;

    /// Gives back any handle; what still runs is cancelled, and has ended when the call returns where it runs on a
    /// context.
    pub fn close(handle: i32) -> i32;

    /// Prompt in, text out: a whole generation, batched with everybody's; returns the bytes of text, cut between
    /// characters at `max`.
    pub fn realm_host_generate(model: i32, prompt: *const u8, prompt_len: usize, options: *const GenerateOptions, out: *mut u8, max: usize) -> i32;
    // ---- Events in the program's own memory ----

    /// Registers a ring in the program's memory, len bytes with its header; 0, 0 takes it away. The host writes only
    /// while the program is inside ring_wait.
    pub fn ring_set(ring: *mut EventRing, len: usize) -> i32;

    /// Fills the registered ring with events of all generations as far as there is room; waits as wait does when the
    /// ring is empty. Returns how many were added.
    pub fn ring_wait(timeout_ms: i32) -> i32;
    // ---- Running ahead ----

    /// In run-ahead mode: the first n generated tokens are accepted, the engine may go on. Once its end was given,
    /// confirming all of them makes that final.
    pub fn confirm(generation: i32, n: u32) -> i32;

    /// In run-ahead mode: drops what was generated after the first n_keep tokens, puts the given tokens there instead
    /// (n may be 0) and goes on. Dropped tokens are counted as generated.
    pub fn rewind(generation: i32, n_keep: u32, tokens: *const i32, n: usize) -> i32;
    // ---- Forward passes ----

    /// Appends tokens to a context and computes them, batched with everybody's; returns a handle whose END event comes
    /// through wait. It then holds the logits (flag FORWARD_HIDDEN: the final hidden state too) of the last n_rows
    /// tokens.
    pub fn forward(context: i32, tokens: *const i32, n: usize, n_rows: u32, flags: u32) -> i32;

    /// The hidden state of a row after the final norm, as float32; the embedding of its text. Metered (read_bytes).
    pub fn hidden_read(handle: i32, row: u32, out: *mut f32, max: usize) -> i32;
    // ---- Logits ----

    /// Draws a token with a sampler (0: greedy) and tells its log-probability where logprob is not 0. The sampler takes
    /// note of the token.
    pub fn logits_sample(handle: i32, row: u32, sampler: i32, logprob: *mut f32) -> i32;

    /// The k most likely tokens with their log-probabilities, at most 256.
    pub fn logits_top(handle: i32, row: u32, k: u32, out: *mut GuestToken, max: usize) -> i32;

    /// Log-probabilities of given tokens, at most 4096.
    pub fn logits_gather(handle: i32, row: u32, tokens: *const i32, n: usize, logprobs: *mut f32) -> i32;

    /// Best token, its log-probability, entropy, log of the sum of exponentials.
    pub fn logits_stats(handle: i32, row: u32, out: *mut GuestLogitStats) -> i32;

    /// Adds to the logits of given tokens, in place.
    pub fn logits_bias(handle: i32, row: u32, bias: *const Bias, n: usize) -> i32;

    /// Keeps the tokens whose bit is set (bit t % 8 of byte t / 8, vocabulary / 8 bytes rounded up), in place.
    pub fn logits_mask(handle: i32, row: u32, bits: *const u8, len: usize) -> i32;

    /// The whole row as float32, `max` in values. Metered (read_bytes).
    pub fn logits_read(handle: i32, row: u32, out: *mut f32, max: usize) -> i32;

    /// A logits handle over a copy of a (rows, vocabulary) tensor, for the calls of that group.
    pub fn tensor_logits(tensor: i32) -> i32;
    // ---- Samplers ----

    /// A chain of stages in the given order, run on the host: penalties, DRY, bias, mask, grammar, temperature, top-k,
    /// top-p, min-p, typical, XTC, mirostat. Without a stage it is greedy.
    pub fn sampler_new(stages: *const SamplerStage, n: usize, seed: u64) -> i32;

    /// A copy with the same history.
    pub fn sampler_fork(sampler: i32) -> i32;

    /// Takes note of tokens that were put into the answer without being drawn: the history that penalties, DRY and the
    /// grammar look at. The next draw is that of the token after them.
    pub fn sampler_accept(sampler: i32, tokens: *const i32, n: usize) -> i32;

    /// Takes note of the tokens of a prompt: what the repeat penalty and DRY look at as well. Whoever samples with
    /// logits_sample calls it first to get what a generation draws, which does it by itself.
    pub fn sampler_prompt(sampler: i32, tokens: *const i32, n: usize) -> i32;
    // ---- Grammars ----

    /// Compiles a JSON Schema, a regular expression or a Lark grammar for the model in use, within limits of size,
    /// depth and time.
    pub fn grammar_compile(kind: u32, text: *const u8, len: usize) -> i32;

    /// A copy in the same state.
    pub fn grammar_fork(grammar: i32) -> i32;

    /// Goes on by as many of the tokens as the grammar allows; returns how many.
    pub fn grammar_accept(grammar: i32, tokens: *const i32, n: usize) -> i32;

    /// Takes back the last n tokens.
    pub fn grammar_rollback(grammar: i32, n: u32) -> i32;

    /// The tokens that may come next, as for logits_mask.
    pub fn grammar_mask(grammar: i32, bits: *mut u8, len: usize) -> i32;

    /// Bits GRAMMAR_CAN_END (the text so far is complete) and GRAMMAR_MUST_END (nothing more may come).
    pub fn grammar_state(grammar: i32) -> i32;
    // ---- The tenant's store ----

    /// A value of the tenant's store, which all its requests share. E_NOT_FOUND.
    pub fn store_get(key: *const u8, key_len: usize, out: *mut u8, max: usize) -> i32;

    /// Sets a value, durably. E_LIMIT when storage_bytes is used up.
    pub fn store_put(key: *const u8, key_len: usize, value: *const u8, value_len: usize) -> i32;

    /// Removes a key. E_NOT_FOUND.
    pub fn store_delete(key: *const u8, key_len: usize) -> i32;

    /// Keys with a prefix, in order, behind `after`, each followed by a NUL, as many as fit; returns the bytes.
    pub fn store_list(prefix: *const u8, prefix_len: usize, after: *const u8, after_len: usize, out: *mut u8, max: usize) -> i32;
    // ---- Tensors ----

    /// A float32 tensor of zeros, up to 4 dimensions, the last one contiguous. Counts against tensor_bytes.
    pub fn tensor_new(dims: *const u64, n_dims: usize) -> i32;

    /// A weight of a model by its name in the file; no copy. Reading it needs read_weights; that keeps nobody from
    /// computing values out of it.
    pub fn tensor_weight(model: i32, name: *const u8, len: usize) -> i32;

    /// Dimensions and type.
    pub fn tensor_info(tensor: i32, out: *mut GuestTensor) -> i32;

    /// Writes values from the given element on.
    pub fn tensor_write(tensor: i32, at: u64, values: *const f32, n: usize) -> i32;

    /// Reads values, of a weight whole rows. Metered (read_bytes).
    pub fn tensor_read(tensor: i32, at: u64, out: *mut f32, n: usize) -> i32;

    /// Runs a list of operations in order on the shared device, all checked before the first runs; waits for them.
    /// last_error names the operation and operand at fault.
    pub fn tensor_run(ops: *const GuestTensorOp, n: usize) -> i32;

    /// float32 [m,k] x [k,n] from and to the program's memory; lengths in bytes.
    pub fn candle_matmul(a: *const f32, a_len: usize, b: *const f32, b_len: usize, m: u32, k: u32, n: u32, out: *mut f32) -> i32;

    /// Attention over tensor handles, causal (mask 0: the last row sees all) or with an additive (rows, positions)
    /// mask; scale_bits are the bits of the float32 scale.
    pub fn attention_forward(q: i32, k: i32, v: i32, mask: i32, out: i32, n_head: u32, n_kv_head: u32, head_dim: u32, scale_bits: u32) -> i32;
    // ---- Models larger than their memory budget ----

    /// The layer's tensors as in the file, in the file's order, into the program's memory (needs read_weights); with
    /// out 0 brings the layer in and pins it, no copy. Returns bytes.
    pub fn memory64_load_layer(model: i32, layer: u32, out: *mut u8, max: usize) -> i32;

    /// A tensor handle by layer and name (`attn_q.weight`); no copy.
    pub fn memory64_load_tensor(model: i32, layer: u32, name: *const u8, len: usize) -> i32;

    /// Unpins.
    pub fn memory64_unload_layer(model: i32, layer: u32) -> i32;

    /// Hits, misses, evictions and bytes of the model in use.
    pub fn memory64_get_stats(out: *mut StreamStats, max: usize) -> i32;
}
