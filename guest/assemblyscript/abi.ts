// The host's interface as it is: functions that take addresses and return codes, constants and structures; index.ts has
// the same in AssemblyScript's own manner. (made by tools/abi-gen (make abi) from src/tenant/host/abi.h and
// include/realm/abi.h; do not edit)

// A program built for a later major version is refused; minor versions only add.
export const ABI_MAJOR: i32 = 1;
export const ABI_MINOR: i32 = 2;

// Flags of encode and prompt_text.

// begin and end tokens as the model asks
export const TEXT_ADD_SPECIAL: u32 = 1;
// the text of control tokens becomes control tokens: never for a client's text
export const TEXT_PARSE_SPECIAL: u32 = 2;
// follows earlier text: no space prefix
export const TEXT_CONTINUES: u32 = 4;

// Flags of decode, token_piece.

// control tokens show as text
export const TEXT_SPECIAL: u32 = 1;

// Flags of prompt_chat.

// end with the header of the model's answer
export const CHAT_ANSWER: u32 = 1;

// Flags of realm_generate_options.
export const GENERATE_LOGPROBS: u32 = 1;
// end tokens are tokens like others
export const GENERATE_IGNORE_END: u32 = 2;
// control tokens show in the text
export const GENERATE_SPECIAL_TEXT: u32 = 4;
// realm_host_generate: the text is one user message, for the chat template
export const GENERATE_CHAT: u32 = 256;

// How tokens reach the world.

// through wait()
export const MODE_EVENTS: u32 = 0;
// straight to the client; wait() gives the end alone. One at a time
export const MODE_PIPE: u32 = 1;
// through wait(); the engine is at most options.run_ahead tokens ahead of confirm()
export const MODE_AHEAD: u32 = 2;

// A program that decides on every token itself (lockstep) calls forward(), samples, and calls it again.

// Bits of realm_generate_options.set: fields without their bit keep the request's own value.
export const SET_MAX_TOKENS: u32 = 1;
export const SET_TEMPERATURE: u32 = 2;
export const SET_TOP_K: u32 = 4;
export const SET_TOP_P: u32 = 8;
export const SET_MIN_P: u32 = 16;
export const SET_REPEAT_PENALTY: u32 = 32;
export const SET_FREQUENCY_PENALTY: u32 = 64;
export const SET_PRESENCE_PENALTY: u32 = 128;
export const SET_PENALTY_LAST_N: u32 = 256;
export const SET_SEED: u32 = 512;
export const SET_STOP: u32 = 1024;
export const SET_BIAS: u32 = 2048;
// the first three flags; GENERATE_CHAT counts always
export const SET_FLAGS: u32 = 4096;
// a handle; the other sampling fields are not looked at. Its state is copied
export const SET_SAMPLER: u32 = 8192;
// a handle; its state is copied. Applied before the sampling that is in force
export const SET_GRAMMAR: u32 = 16384;
export const SET_CONTEXT: u32 = 32768;

@unmanaged
export class GenerateOptions {
  // sizeof(realm_generate_options)
  size: u32 = 0;
  set: u32 = 0;
  // 0: until the context is full
  max_tokens: u32 = 0;
  top_k: u32 = 0;
  temperature: f32 = 0;
  top_p: f32 = 0;
  min_p: f32 = 0;
  repeat_penalty: f32 = 0;
  frequency_penalty: f32 = 0;
  presence_penalty: f32 = 0;
  penalty_last_n: u32 = 0;
  flags: u32 = 0;
  seed: u64 = 0;
  // address of n_stop realm_bytes
  stop: u64 = 0;
  // address of n_bias realm_bias
  bias: u64 = 0;
  n_stop: u32 = 0;
  n_bias: u32 = 0;
  sampler: i32 = 0;
  grammar: i32 = 0;
  // handles
  context: i32 = 0;
  // MODE_AHEAD: 1 to 64
  run_ahead: u32 = 0;
}
if (offsetof<GenerateOptions>() != 96) ERROR("GenerateOptions");
if (offsetof<GenerateOptions>("size") != 0) ERROR("GenerateOptions.size");
if (offsetof<GenerateOptions>("set") != 4) ERROR("GenerateOptions.set");
if (offsetof<GenerateOptions>("max_tokens") != 8) ERROR("GenerateOptions.max_tokens");
if (offsetof<GenerateOptions>("top_k") != 12) ERROR("GenerateOptions.top_k");
if (offsetof<GenerateOptions>("temperature") != 16) ERROR("GenerateOptions.temperature");
if (offsetof<GenerateOptions>("top_p") != 20) ERROR("GenerateOptions.top_p");
if (offsetof<GenerateOptions>("min_p") != 24) ERROR("GenerateOptions.min_p");
if (offsetof<GenerateOptions>("repeat_penalty") != 28) ERROR("GenerateOptions.repeat_penalty");
if (offsetof<GenerateOptions>("frequency_penalty") != 32) ERROR("GenerateOptions.frequency_penalty");
if (offsetof<GenerateOptions>("presence_penalty") != 36) ERROR("GenerateOptions.presence_penalty");
if (offsetof<GenerateOptions>("penalty_last_n") != 40) ERROR("GenerateOptions.penalty_last_n");
if (offsetof<GenerateOptions>("flags") != 44) ERROR("GenerateOptions.flags");
if (offsetof<GenerateOptions>("seed") != 48) ERROR("GenerateOptions.seed");
if (offsetof<GenerateOptions>("stop") != 56) ERROR("GenerateOptions.stop");
if (offsetof<GenerateOptions>("bias") != 64) ERROR("GenerateOptions.bias");
if (offsetof<GenerateOptions>("n_stop") != 72) ERROR("GenerateOptions.n_stop");
if (offsetof<GenerateOptions>("n_bias") != 76) ERROR("GenerateOptions.n_bias");
if (offsetof<GenerateOptions>("sampler") != 80) ERROR("GenerateOptions.sampler");
if (offsetof<GenerateOptions>("grammar") != 84) ERROR("GenerateOptions.grammar");
if (offsetof<GenerateOptions>("context") != 88) ERROR("GenerateOptions.context");
if (offsetof<GenerateOptions>("run_ahead") != 92) ERROR("GenerateOptions.run_ahead");

@unmanaged
export class Bytes {
  ptr: u64 = 0;
  len: u64 = 0;
}
if (offsetof<Bytes>() != 16) ERROR("Bytes");
if (offsetof<Bytes>("ptr") != 0) ERROR("Bytes.ptr");
if (offsetof<Bytes>("len") != 8) ERROR("Bytes.len");

@unmanaged
export class Bias {
  token: i32 = 0;
  bias: f32 = 0;
}
if (offsetof<Bias>() != 8) ERROR("Bias");
if (offsetof<Bias>("token") != 0) ERROR("Bias.token");
if (offsetof<Bias>("bias") != 4) ERROR("Bias.bias");

export const EVENT_KIND_TOKEN: u32 = 1;
export const EVENT_KIND_END: u32 = 2;
// end token or stop string
export const END_STOP: u32 = 1;
// max_tokens, or the context is full
export const END_LENGTH: u32 = 2;
export const END_CANCELLED: u32 = 3;
// see status
export const END_ERROR: u32 = 4;

@unmanaged
export class GuestEvent {
  // of the generation
  handle: i32 = 0;
  kind: u32 = 0;
  // TOKEN
  token: i32 = 0;
  // with GENERATE_LOGPROBS
  logprob: f32 = 0;
  // in the text buffer of the same wait(); END may bring text that was held back
  text_at: u32 = 0;
  text_len: u32 = 0;
  // END: REALM_END_*
  finish: u32 = 0;
  // END: 0, or the negative code of the failure
  status: i32 = 0;
}
if (offsetof<GuestEvent>() != 32) ERROR("GuestEvent");
if (offsetof<GuestEvent>("handle") != 0) ERROR("GuestEvent.handle");
if (offsetof<GuestEvent>("kind") != 4) ERROR("GuestEvent.kind");
if (offsetof<GuestEvent>("token") != 8) ERROR("GuestEvent.token");
if (offsetof<GuestEvent>("logprob") != 12) ERROR("GuestEvent.logprob");
if (offsetof<GuestEvent>("text_at") != 16) ERROR("GuestEvent.text_at");
if (offsetof<GuestEvent>("text_len") != 20) ERROR("GuestEvent.text_len");
if (offsetof<GuestEvent>("finish") != 24) ERROR("GuestEvent.finish");
if (offsetof<GuestEvent>("status") != 28) ERROR("GuestEvent.status");

// tokens of a generation so far
@unmanaged
export class GuestUsage {
  prompt: u32 = 0;
  cached: u32 = 0;
  completion: u32 = 0;
}
if (offsetof<GuestUsage>() != 12) ERROR("GuestUsage");
if (offsetof<GuestUsage>("prompt") != 0) ERROR("GuestUsage.prompt");
if (offsetof<GuestUsage>("cached") != 4) ERROR("GuestUsage.cached");
if (offsetof<GuestUsage>("completion") != 8) ERROR("GuestUsage.completion");

// ---- contexts, forward passes, logits ----

@unmanaged
export class GuestContext {
  n_tokens: u32 = 0;
  // tokens, and those whose KV is there
  n_computed: u32 = 0;
  pages: u32 = 0;
  // of KV; shared: with another context, a prefix or a running generation
  shared_pages: u32 = 0;
  // 1: a generation or forward pass runs on it
  busy: u32 = 0;
  // 1: its pages were moved out of the KV memory; they come back when needed
  suspended: u32 = 0;
}
if (offsetof<GuestContext>() != 24) ERROR("GuestContext");
if (offsetof<GuestContext>("n_tokens") != 0) ERROR("GuestContext.n_tokens");
if (offsetof<GuestContext>("n_computed") != 4) ERROR("GuestContext.n_computed");
if (offsetof<GuestContext>("pages") != 8) ERROR("GuestContext.pages");
if (offsetof<GuestContext>("shared_pages") != 12) ERROR("GuestContext.shared_pages");
if (offsetof<GuestContext>("busy") != 16) ERROR("GuestContext.busy");
if (offsetof<GuestContext>("suspended") != 20) ERROR("GuestContext.suspended");

// keep the final hidden state of the rows
export const FORWARD_HIDDEN: u32 = 1;
// rows of one forward pass whose logits are kept
export const FORWARD_ROWS_MAX: u32 = 64;

@unmanaged
export class GuestToken {
  token: i32 = 0;
  logprob: f32 = 0;
}
if (offsetof<GuestToken>() != 8) ERROR("GuestToken");
if (offsetof<GuestToken>("token") != 0) ERROR("GuestToken.token");
if (offsetof<GuestToken>("logprob") != 4) ERROR("GuestToken.logprob");

@unmanaged
export class GuestLogitStats {
  best: i32 = 0;
  best_logprob: f32 = 0;
  // nats
  entropy: f32 = 0;
  // of the raw logits
  log_sum_exp: f32 = 0;
}
if (offsetof<GuestLogitStats>() != 16) ERROR("GuestLogitStats");
if (offsetof<GuestLogitStats>("best") != 0) ERROR("GuestLogitStats.best");
if (offsetof<GuestLogitStats>("best_logprob") != 4) ERROR("GuestLogitStats.best_logprob");
if (offsetof<GuestLogitStats>("entropy") != 8) ERROR("GuestLogitStats.entropy");
if (offsetof<GuestLogitStats>("log_sum_exp") != 12) ERROR("GuestLogitStats.log_sum_exp");

// ---- samplers and grammars ----

// n: last_n (0 all); a: repeat, b: frequency, c: presence
export const STAGE_PENALTIES: u32 = 1;
// n: last_n (0 all); a: multiplier, b: base, m: allowed length
export const STAGE_DRY: u32 = 2;
// data: realm_bias; n: how many
export const STAGE_BIAS: u32 = 3;
// data: bits as for logits_mask; n: bytes
export const STAGE_MASK: u32 = 4;
// handle; its state is copied
export const STAGE_GRAMMAR: u32 = 5;
// a; 0: greedy
export const STAGE_TEMPERATURE: u32 = 6;
// n
export const STAGE_TOP_K: u32 = 7;
// a
export const STAGE_TOP_P: u32 = 8;
// a
export const STAGE_MIN_P: u32 = 9;
// a
export const STAGE_TYPICAL: u32 = 10;
// a: probability, b: threshold
export const STAGE_XTC: u32 = 11;
// version 2. a: tau, b: eta; the last stage
export const STAGE_MIROSTAT: u32 = 12;

@unmanaged
export class SamplerStage {
  kind: u32 = 0;
  handle: i32 = 0;
  n: u32 = 0;
  m: u32 = 0;
  a: f32 = 0;
  b: f32 = 0;
  c: f32 = 0;
  zero: u32 = 0;
  // address
  data: u64 = 0;
}
if (offsetof<SamplerStage>() != 40) ERROR("SamplerStage");
if (offsetof<SamplerStage>("kind") != 0) ERROR("SamplerStage.kind");
if (offsetof<SamplerStage>("handle") != 4) ERROR("SamplerStage.handle");
if (offsetof<SamplerStage>("n") != 8) ERROR("SamplerStage.n");
if (offsetof<SamplerStage>("m") != 12) ERROR("SamplerStage.m");
if (offsetof<SamplerStage>("a") != 16) ERROR("SamplerStage.a");
if (offsetof<SamplerStage>("b") != 20) ERROR("SamplerStage.b");
if (offsetof<SamplerStage>("c") != 24) ERROR("SamplerStage.c");
if (offsetof<SamplerStage>("zero") != 28) ERROR("SamplerStage.zero");
if (offsetof<SamplerStage>("data") != 32) ERROR("SamplerStage.data");

export const GRAMMAR_JSON_SCHEMA: u32 = 1;
export const GRAMMAR_REGEX: u32 = 2;
export const GRAMMAR_LARK: u32 = 3;
export const GRAMMAR_CAN_END: i32 = 1;
export const GRAMMAR_MUST_END: i32 = 2;

// ---- a ring of events ----

// At the registered address: this header, n_slots events, text_bytes bytes. The program sets n_slots and text_bytes
// before ring_set, and moves `tail` and `text_tail` on over what it has read; the host moves `head` and `text_head`.
// All four count from 0 upwards and wrap at 2^32; slot and byte are taken modulo n_slots and text_bytes, which are
// powers of two. An event's text_at is a count like text_head; a text does not wrap inside the ring (the host skips to
// the start).

@unmanaged
export class EventRing {
  n_slots: u32 = 0;
  text_bytes: u32 = 0;
  head: u32 = 0;
  tail: u32 = 0;
  text_head: u32 = 0;
  text_tail: u32 = 0;
}
if (offsetof<EventRing>() != 24) ERROR("EventRing");
if (offsetof<EventRing>("n_slots") != 0) ERROR("EventRing.n_slots");
if (offsetof<EventRing>("text_bytes") != 4) ERROR("EventRing.text_bytes");
if (offsetof<EventRing>("head") != 8) ERROR("EventRing.head");
if (offsetof<EventRing>("tail") != 12) ERROR("EventRing.tail");
if (offsetof<EventRing>("text_head") != 16) ERROR("EventRing.text_head");
if (offsetof<EventRing>("text_tail") != 20) ERROR("EventRing.text_tail");

// ---- tensors ----

@unmanaged
export class GuestTensor {
  // the last used one is contiguous; unused ones, behind it, 1
  dims0: u64 = 0;
  dims1: u64 = 0;
  dims2: u64 = 0;
  dims3: u64 = 0;
  n_dims: u32 = 0;
  // ggml's number; 0: float32
  type: u32 = 0;
  // 1: of a model, read only
  weight: u32 = 0;
  zero: u32 = 0;
}
if (offsetof<GuestTensor>() != 48) ERROR("GuestTensor");
if (offsetof<GuestTensor>("dims0") != 0) ERROR("GuestTensor.dims");
if (offsetof<GuestTensor>("n_dims") != 32) ERROR("GuestTensor.n_dims");
if (offsetof<GuestTensor>("type") != 36) ERROR("GuestTensor.type");
if (offsetof<GuestTensor>("weight") != 40) ERROR("GuestTensor.weight");
if (offsetof<GuestTensor>("zero") != 44) ERROR("GuestTensor.zero");

// Operations see a tensor as rows of its last dimension. In place (out the same handle as an operand) is allowed where
// said. `m` 0 works on all rows of a, else on the first m.

// out(m,n) = a(m,k) b(n,k)^T; b a weight or a tensor
export const TENSOR_OP_MATMUL: u32 = 1;
// out(m,n) = a(m,k) b(k,n); b a tensor
export const TENSOR_OP_MATMUL_PLAIN: u32 = 2;
// out = rows `ids` of a (a weight or a tensor), times scale (0: 1)
export const TENSOR_OP_GET_ROWS: u32 = 3;
// out = a / sqrt(mean(a^2) + eps) * b over groups of b's length; in place
export const TENSOR_OP_RMS_NORM: u32 = 4;
// out = a + b; b of one row counts for every row; in place
export const TENSOR_OP_ADD: u32 = 5;
// out = a * b; likewise
export const TENSOR_OP_MUL: u32 = 6;
// out = a * scale; in place
export const TENSOR_OP_SCALE: u32 = 7;
// out = silu(a), times b where given; in place
export const TENSOR_OP_SILU: u32 = 8;
// the same with gelu, tanh form
export const TENSOR_OP_GELU: u32 = 9;
// by row; in place
export const TENSOR_OP_SOFTMAX: u32 = 10;
// rotates heads of head_dim; row i at position first + i; b: frequency factors or 0; \ in place
export const TENSOR_OP_ROPE: u32 = 11;
// out = softmax(scale q k^T) v; a q, b k, c v, d an additive mask (m,t) or 0; \ row i sees the first + i + 1 first
// positions
export const TENSOR_OP_ATTENTION: u32 = 12;
// out(m,1) = index of the greatest value of each row
export const TENSOR_OP_ARGMAX: u32 = 13;
// n_rows rows of a from `row` on, to rows from `out_row` on of out
export const TENSOR_OP_COPY: u32 = 14;

// Flags.

// rotates (i, i + d/2), else neighbours
export const TENSOR_ROPE_HALVES: u32 = 1;
// every row sees all t positions
export const TENSOR_ATTENTION_FULL: u32 = 2;

@unmanaged
export class GuestTensorOp {
  kind: u32 = 0;
  flags: u32 = 0;
  out: i32 = 0;
  a: i32 = 0;
  b: i32 = 0;
  c: i32 = 0;
  // tensor handles; 0 where there is none
  d: i32 = 0;
  n_head: u32 = 0;
  n_kv_head: u32 = 0;
  head_dim: u32 = 0;
  // ROPE: values of a head that turn; 0: head_dim
  rope_dims: u32 = 0;
  // ROPE: position of row 0; ATTENTION: positions before row 0
  first: u32 = 0;
  // ATTENTION: rows of k and v that count; 0: all
  t: u32 = 0;
  // ATTENTION: only the last so many positions; 0: all
  window: u32 = 0;
  scale: f32 = 0;
  eps: f32 = 0;
  base: f32 = 0;
  // ROPE; freq_scale 0: 1
  freq_scale: f32 = 0;
  // ATTENTION; 0: none
  softcap: f32 = 0;
  n_ids: u32 = 0;
  // GET_ROWS: address of n_ids i32
  ids: u64 = 0;
  m: u64 = 0;
  row: u64 = 0;
  n_rows: u64 = 0;
  // COPY
  out_row: u64 = 0;
}
if (offsetof<GuestTensorOp>() != 120) ERROR("GuestTensorOp");
if (offsetof<GuestTensorOp>("kind") != 0) ERROR("GuestTensorOp.kind");
if (offsetof<GuestTensorOp>("flags") != 4) ERROR("GuestTensorOp.flags");
if (offsetof<GuestTensorOp>("out") != 8) ERROR("GuestTensorOp.out");
if (offsetof<GuestTensorOp>("a") != 12) ERROR("GuestTensorOp.a");
if (offsetof<GuestTensorOp>("b") != 16) ERROR("GuestTensorOp.b");
if (offsetof<GuestTensorOp>("c") != 20) ERROR("GuestTensorOp.c");
if (offsetof<GuestTensorOp>("d") != 24) ERROR("GuestTensorOp.d");
if (offsetof<GuestTensorOp>("n_head") != 28) ERROR("GuestTensorOp.n_head");
if (offsetof<GuestTensorOp>("n_kv_head") != 32) ERROR("GuestTensorOp.n_kv_head");
if (offsetof<GuestTensorOp>("head_dim") != 36) ERROR("GuestTensorOp.head_dim");
if (offsetof<GuestTensorOp>("rope_dims") != 40) ERROR("GuestTensorOp.rope_dims");
if (offsetof<GuestTensorOp>("first") != 44) ERROR("GuestTensorOp.first");
if (offsetof<GuestTensorOp>("t") != 48) ERROR("GuestTensorOp.t");
if (offsetof<GuestTensorOp>("window") != 52) ERROR("GuestTensorOp.window");
if (offsetof<GuestTensorOp>("scale") != 56) ERROR("GuestTensorOp.scale");
if (offsetof<GuestTensorOp>("eps") != 60) ERROR("GuestTensorOp.eps");
if (offsetof<GuestTensorOp>("base") != 64) ERROR("GuestTensorOp.base");
if (offsetof<GuestTensorOp>("freq_scale") != 68) ERROR("GuestTensorOp.freq_scale");
if (offsetof<GuestTensorOp>("softcap") != 72) ERROR("GuestTensorOp.softcap");
if (offsetof<GuestTensorOp>("n_ids") != 76) ERROR("GuestTensorOp.n_ids");
if (offsetof<GuestTensorOp>("ids") != 80) ERROR("GuestTensorOp.ids");
if (offsetof<GuestTensorOp>("m") != 88) ERROR("GuestTensorOp.m");
if (offsetof<GuestTensorOp>("row") != 96) ERROR("GuestTensorOp.row");
if (offsetof<GuestTensorOp>("n_rows") != 104) ERROR("GuestTensorOp.n_rows");
if (offsetof<GuestTensorOp>("out_row") != 112) ERROR("GuestTensorOp.out_row");

@unmanaged
export class StreamStats {
  hits: u64 = 0;
  misses: u64 = 0;
  evictions: u64 = 0;
  bytes_resident: u64 = 0;
  bytes_read: u64 = 0;
  bytes_budget: u64 = 0;
  prefetched: u64 = 0;
}
if (offsetof<StreamStats>() != 56) ERROR("StreamStats");
if (offsetof<StreamStats>("hits") != 0) ERROR("StreamStats.hits");
if (offsetof<StreamStats>("misses") != 8) ERROR("StreamStats.misses");
if (offsetof<StreamStats>("evictions") != 16) ERROR("StreamStats.evictions");
if (offsetof<StreamStats>("bytes_resident") != 24) ERROR("StreamStats.bytes_resident");
if (offsetof<StreamStats>("bytes_read") != 32) ERROR("StreamStats.bytes_read");
if (offsetof<StreamStats>("bytes_budget") != 40) ERROR("StreamStats.bytes_budget");
if (offsetof<StreamStats>("prefetched") != 48) ERROR("StreamStats.prefetched");

@unmanaged
export class GuestLimits {
  // of this structure, as the host knows it
  size: u32 = 0;
  abi_major: u32 = 0;
  abi_minor: u32 = 0;
  // longest prompt and answer together
  context_tokens: u32 = 0;
  // linear memory of an instance
  memory_bytes: u64 = 0;
  // CPU time between two waits
  cpu_ms_per_wake: u64 = 0;
  // of the tenant, in flight; 0: no limit
  generations: u32 = 0;
  // open at once in an instance
  handles: u32 = 0;
  // of one emit
  emit_bytes: u32 = 0;
  // token ids are below
  vocabulary: u32 = 0;
  // of logits, hidden states and tensors that this instance may read back
  read_bytes: u64 = 0;
  // of tensors at once
  tensor_bytes: u64 = 0;
  // of the tenant's store and stored models
  storage_bytes: u64 = 0;
  // of the tenant's contexts and generations; 0: no limit
  kv_tokens: u64 = 0;
  // of this instance; 0: no limit
  wall_ms: u64 = 0;
}
if (offsetof<GuestLimits>() != 88) ERROR("GuestLimits");
if (offsetof<GuestLimits>("size") != 0) ERROR("GuestLimits.size");
if (offsetof<GuestLimits>("abi_major") != 4) ERROR("GuestLimits.abi_major");
if (offsetof<GuestLimits>("abi_minor") != 8) ERROR("GuestLimits.abi_minor");
if (offsetof<GuestLimits>("context_tokens") != 12) ERROR("GuestLimits.context_tokens");
if (offsetof<GuestLimits>("memory_bytes") != 16) ERROR("GuestLimits.memory_bytes");
if (offsetof<GuestLimits>("cpu_ms_per_wake") != 24) ERROR("GuestLimits.cpu_ms_per_wake");
if (offsetof<GuestLimits>("generations") != 32) ERROR("GuestLimits.generations");
if (offsetof<GuestLimits>("handles") != 36) ERROR("GuestLimits.handles");
if (offsetof<GuestLimits>("emit_bytes") != 40) ERROR("GuestLimits.emit_bytes");
if (offsetof<GuestLimits>("vocabulary") != 44) ERROR("GuestLimits.vocabulary");
if (offsetof<GuestLimits>("read_bytes") != 48) ERROR("GuestLimits.read_bytes");
if (offsetof<GuestLimits>("tensor_bytes") != 56) ERROR("GuestLimits.tensor_bytes");
if (offsetof<GuestLimits>("storage_bytes") != 64) ERROR("GuestLimits.storage_bytes");
if (offsetof<GuestLimits>("kv_tokens") != 72) ERROR("GuestLimits.kv_tokens");
if (offsetof<GuestLimits>("wall_ms") != 80) ERROR("GuestLimits.wall_ms");

// Clocks of clock_ms.

// since some moment before the instance started
export const CLOCK_MONOTONIC: u32 = 0;
// since 1970, UTC
export const CLOCK_WALL: u32 = 1;

// ---- Result codes ----

// success.
export const OK: i32 = 0;
// invalid argument.
export const E_INVALID: i32 = -1;
// malformed data.
export const E_FORMAT: i32 = -2;
// not supported.
export const E_UNSUPPORTED: i32 = -3;
// out of memory.
export const E_NOMEM: i32 = -4;
// input or output failed.
export const E_IO: i32 = -5;
// not found.
export const E_NOT_FOUND: i32 = -6;
// already exists.
export const E_EXISTS: i32 = -7;
// a limit was reached.
export const E_LIMIT: i32 = -8;
// out of range or buffer too small.
export const E_RANGE: i32 = -9;
// would block.
export const E_AGAIN: i32 = -10;
// cancelled.
export const E_CANCELLED: i32 = -11;
// timed out.
export const E_TIMEOUT: i32 = -12;
// not permitted.
export const E_DENIED: i32 = -13;
// no valid key.
export const E_UNAUTHENTICATED: i32 = -14;
// the program failed.
export const E_PROGRAM: i32 = -15;
// closed.
export const E_CLOSED: i32 = -16;
// the compute device failed.
export const E_DEVICE: i32 = -17;
// internal error.
export const E_INTERNAL: i32 = -18;
// overloaded.
export const E_BUSY: i32 = -19;
// too many in this time.
export const E_RATE: i32 = -20;
// more than the quota holds.
export const E_QUOTA: i32 = -21;
// too many at the same time.
export const E_CROWDED: i32 = -22;
// longer than the context.
export const E_CONTEXT: i32 = -23;
// more than is taken.
export const E_TOO_LARGE: i32 = -24;
// the grammar cannot be kept to.
export const E_GRAMMAR: i32 = -25;

// What a result code means.
export function codeText(code: i32): string {
  switch (code) {
    case 0: return "success";
    case -1: return "invalid argument";
    case -2: return "malformed data";
    case -3: return "not supported";
    case -4: return "out of memory";
    case -5: return "input or output failed";
    case -6: return "not found";
    case -7: return "already exists";
    case -8: return "a limit was reached";
    case -9: return "out of range or buffer too small";
    case -10: return "would block";
    case -11: return "cancelled";
    case -12: return "timed out";
    case -13: return "not permitted";
    case -14: return "no valid key";
    case -15: return "the program failed";
    case -16: return "closed";
    case -17: return "the compute device failed";
    case -18: return "internal error";
    case -19: return "overloaded";
    case -20: return "too many in this time";
    case -21: return "more than the quota holds";
    case -22: return "too many at the same time";
    case -23: return "longer than the context";
    case -24: return "more than is taken";
    case -25: return "the grammar cannot be kept to";
    default: return "unknown failure";
  }
}

// ---- About the host ----

// Major version << 16 | minor version.
// @ts-ignore: decorator
@external("realm", "abi_version")
export declare function abi_version(): i32;

// What this instance may use; writes as much as fits and returns the structure's size.
// @ts-ignore: decorator
@external("realm", "limits_get")
export declare function limits_get(out: usize, max: usize): i32;

// Text of the last call that failed, cut to fit; returns its length.
// @ts-ignore: decorator
@external("realm", "last_error")
export declare function last_error(out: usize, max: usize): i32;

// A line in the server's log; level 0 (debug) to 3 (error). Lines and bytes are bounded, what is too much is dropped
// and counted.
// @ts-ignore: decorator
@external("realm", "log")
export declare function log(level: i32, text: usize, len: usize): i32;

// Milliseconds of CLOCK_MONOTONIC or CLOCK_WALL.
// @ts-ignore: decorator
@external("realm", "clock_ms")
export declare function clock_ms(clock: u32, out: usize): i32;

// Random bytes, at most 64 KiB a call.
// @ts-ignore: decorator
@external("realm", "random")
export declare function random(out: usize, len: usize): i32;

// ---- Input and output ----

// The request as JSON (name_len 0), or a top-level field of it: a string as its text, anything else as JSON.
// E_NOT_FOUND when it is absent.
// @ts-ignore: decorator
@external("realm", "input")
export declare function input(name: usize, name_len: usize, out: usize, max: usize): i32;

// Hands well-formed UTF-8 to the client; waits while the client is slow.
// @ts-ignore: decorator
@external("realm", "emit")
export declare function emit(text: usize, len: usize): i32;

// The same for one token, or -1 for text that is none.
// @ts-ignore: decorator
@external("realm", "realm_stream_token")
export declare function realm_stream_token(token: i32, text: usize, len: usize): i32;

// How the answer ends (END_STOP, END_LENGTH), where that is not how the last generation did.
// @ts-ignore: decorator
@external("realm", "finish")
export declare function finish(reason: u32): i32;

// ---- Models ----

// The id of a model that the server offers under this name, or that the tenant stored under this number. Id 0 is always
// the request's own model.
// @ts-ignore: decorator
@external("realm", "model_find")
export declare function model_find(name: usize, len: usize): i32;

// The model that text, prompts, grammars and new contexts belong to from now on; waits while it is loaded. Returns the
// id that was used before.
// @ts-ignore: decorator
@external("realm", "model_use")
export declare function model_use(model: i32): i32;

// Stores a GGUF image for this tenant alone, under the given id, or with 0 under one derived from its hash. The same
// image under two ids is stored once; an id that names another image is refused. Counts against storage_bytes. Returns
// the id.
// @ts-ignore: decorator
@external("realm", "realm_store_model")
export declare function realm_store_model(image: usize, len: usize, model: i32): i32;

// JSON: architecture, shapes, types, context, tokenizer, whether there is a template.
// @ts-ignore: decorator
@external("realm", "realm_get_model_info")
export declare function realm_get_model_info(model: i32, out: usize, max: usize): i32;

// A tensor's values as float32, `max` in bytes; E_RANGE with the size needed in last_error when that is too small.
// Needs read_weights for models that are not the tenant's own.
// @ts-ignore: decorator
@external("realm", "realm_get_tensor")
export declare function realm_get_tensor(model: i32, name: usize, name_len: usize, out: usize, max: usize): i32;

// Drops this tenant's reference to a stored model.
// @ts-ignore: decorator
@external("realm", "realm_remove_model")
export declare function realm_remove_model(model: i32): i32;

// ---- Text ----

// Token ids of a text. Flags TEXT_ADD_SPECIAL, _PARSE_SPECIAL, _CONTINUES.
// @ts-ignore: decorator
@external("realm", "encode")
export declare function encode(text: usize, len: usize, flags: u32, out: usize, max: usize): i32;

// Text of tokens; flag TEXT_SPECIAL shows control tokens.
// @ts-ignore: decorator
@external("realm", "decode")
export declare function decode(tokens: usize, n: usize, flags: u32, out: usize, max: usize): i32;

// The bytes that one token stands for.
// @ts-ignore: decorator
@external("realm", "token_piece")
export declare function token_piece(token: i32, flags: u32, out: usize, max: usize): i32;

// ---- Prompts ----

// Handle of the request's own prompt, for the request's own model.
// @ts-ignore: decorator
@external("realm", "prompt_own")
export declare function prompt_own(): i32;

// The model's chat template over JSON messages (and tools, or length 0). What messages spell never becomes a control
// token. Flag CHAT_ANSWER ends with the header of an answer.
// @ts-ignore: decorator
@external("realm", "prompt_chat")
export declare function prompt_chat(messages: usize, messages_len: usize, tools: usize, tools_len: usize, flags: u32): i32;

// A prompt from text; flags as for encode.
// @ts-ignore: decorator
@external("realm", "prompt_text")
export declare function prompt_text(text: usize, len: usize, flags: u32): i32;

// A prompt from token ids.
// @ts-ignore: decorator
@external("realm", "prompt_tokens")
export declare function prompt_tokens(tokens: usize, n: usize): i32;

// A prompt's text.
// @ts-ignore: decorator
@external("realm", "prompt_get_text")
export declare function prompt_get_text(prompt: i32, out: usize, max: usize): i32;

// A prompt's token ids.
// @ts-ignore: decorator
@external("realm", "prompt_get_tokens")
export declare function prompt_get_tokens(prompt: i32, out: usize, max: usize): i32;

// ---- Contexts ----

// An empty context: a token sequence and, once computed, its KV pages.
// @ts-ignore: decorator
@external("realm", "context_new")
export declare function context_new(): i32;

// Adds tokens; they are computed with the next forward pass or generation. Returns the new length. E_BUSY while one of
// these runs.
// @ts-ignore: decorator
@external("realm", "context_append")
export declare function context_append(context: i32, tokens: usize, n: usize): i32;

// The same with the tokens of a prompt.
// @ts-ignore: decorator
@external("realm", "context_append_prompt")
export declare function context_append_prompt(context: i32, prompt: i32): i32;

// A second context with the same tokens. Pages are shared until one of the two writes to them.
// @ts-ignore: decorator
@external("realm", "context_fork")
export declare function context_fork(context: i32): i32;

// Keeps the first n_tokens.
// @ts-ignore: decorator
@external("realm", "context_truncate")
export declare function context_truncate(context: i32, n_tokens: u32): i32;

// Length, how much is computed, pages held and shared.
// @ts-ignore: decorator
@external("realm", "context_stat")
export declare function context_stat(context: i32, out: usize): i32;

// Its token ids from a position on, at most `max`; returns how many were written.
// @ts-ignore: decorator
@external("realm", "context_get_tokens")
export declare function context_get_tokens(context: i32, from: u32, out: usize, max: usize): i32;

// Keeps a copy (pages shared) under a name of this tenant, for later requests; replaces an older one.
// @ts-ignore: decorator
@external("realm", "context_save")
export declare function context_save(context: i32, name: usize, len: usize): i32;

// A context forked from the saved one. E_NOT_FOUND.
// @ts-ignore: decorator
@external("realm", "context_open")
export declare function context_open(name: usize, len: usize): i32;

// Forgets a saved context.
// @ts-ignore: decorator
@external("realm", "context_drop")
export declare function context_drop(name: usize, len: usize): i32;

// ---- Generations ----

// Starts a generation and returns its handle. Options 0: the request's own parameters; else those whose bit is in `set`
// replace them. With a context in the options the prompt (or 0) is added to it, and the answer after that.
// @ts-ignore: decorator
@external("realm", "generate")
export declare function generate(prompt: i32, options: usize, mode: u32): i32;

// Events of one generation or forward pass, or of any (0), since the last time, with their texts one after the other in
// `text`; waits until there is one, at most timeout_ms (-1: for ever). 0 when the time is up; E_CLOSED after the end
// was given, E_NOT_FOUND when nothing runs, E_CANCELLED when the client has gone.
// @ts-ignore: decorator
@external("realm", "wait")
export declare function wait(handle: i32, events: usize, max_events: usize, text: usize, max_text: usize, timeout_ms: i32): i32;

// Tokens that a generation or forward pass was charged so far.
// @ts-ignore: decorator
@external("realm", "usage")
export declare function usage(generation: i32, out: usize): i32;

// Ends it; its end comes as an event.
// @ts-ignore: decorator
@external("realm", "cancel")
export declare function cancel(generation: i32): i32;

// Gives back any handle; what still runs is cancelled, and has ended when the call returns where it runs on a context.
// @ts-ignore: decorator
@external("realm", "close")
export declare function close(handle: i32): i32;

// Prompt in, text out: a whole generation, batched with everybody's; returns the bytes of text, cut between characters
// at `max`.
// @ts-ignore: decorator
@external("realm", "realm_host_generate")
export declare function realm_host_generate(model: i32, prompt: usize, prompt_len: usize, options: usize, out: usize, max: usize): i32;

// ---- Events in the program's own memory ----

// Registers a ring in the program's memory, len bytes with its header; 0, 0 takes it away. The host writes only while
// the program is inside ring_wait.
// @ts-ignore: decorator
@external("realm", "ring_set")
export declare function ring_set(ring: usize, len: usize): i32;

// Fills the registered ring with events of all generations as far as there is room; waits as wait does when the ring is
// empty. Returns how many were added.
// @ts-ignore: decorator
@external("realm", "ring_wait")
export declare function ring_wait(timeout_ms: i32): i32;

// ---- Running ahead ----

// In run-ahead mode: the first n generated tokens are accepted, the engine may go on. Once its end was given,
// confirming all of them makes that final.
// @ts-ignore: decorator
@external("realm", "confirm")
export declare function confirm(generation: i32, n: u32): i32;

// In run-ahead mode: drops what was generated after the first n_keep tokens, puts the given tokens there instead (n may
// be 0) and goes on. Dropped tokens are counted as generated.
// @ts-ignore: decorator
@external("realm", "rewind")
export declare function rewind(generation: i32, n_keep: u32, tokens: usize, n: usize): i32;

// ---- Forward passes ----

// Appends tokens to a context and computes them, batched with everybody's; returns a handle whose END event comes
// through wait. It then holds the logits (flag FORWARD_HIDDEN: the final hidden state too) of the last n_rows tokens.
// @ts-ignore: decorator
@external("realm", "forward")
export declare function forward(context: i32, tokens: usize, n: usize, n_rows: u32, flags: u32): i32;

// The hidden state of a row after the final norm, as float32; the embedding of its text. Metered (read_bytes).
// @ts-ignore: decorator
@external("realm", "hidden_read")
export declare function hidden_read(handle: i32, row: u32, out: usize, max: usize): i32;

// ---- Logits ----

// Draws a token with a sampler (0: greedy) and tells its log-probability where logprob is not 0. The sampler takes note
// of the token.
// @ts-ignore: decorator
@external("realm", "logits_sample")
export declare function logits_sample(handle: i32, row: u32, sampler: i32, logprob: usize): i32;

// The k most likely tokens with their log-probabilities, at most 256.
// @ts-ignore: decorator
@external("realm", "logits_top")
export declare function logits_top(handle: i32, row: u32, k: u32, out: usize, max: usize): i32;

// Log-probabilities of given tokens, at most 4096.
// @ts-ignore: decorator
@external("realm", "logits_gather")
export declare function logits_gather(handle: i32, row: u32, tokens: usize, n: usize, logprobs: usize): i32;

// Best token, its log-probability, entropy, log of the sum of exponentials.
// @ts-ignore: decorator
@external("realm", "logits_stats")
export declare function logits_stats(handle: i32, row: u32, out: usize): i32;

// Adds to the logits of given tokens, in place.
// @ts-ignore: decorator
@external("realm", "logits_bias")
export declare function logits_bias(handle: i32, row: u32, bias: usize, n: usize): i32;

// Keeps the tokens whose bit is set (bit t % 8 of byte t / 8, vocabulary / 8 bytes rounded up), in place.
// @ts-ignore: decorator
@external("realm", "logits_mask")
export declare function logits_mask(handle: i32, row: u32, bits: usize, len: usize): i32;

// The whole row as float32, `max` in values. Metered (read_bytes).
// @ts-ignore: decorator
@external("realm", "logits_read")
export declare function logits_read(handle: i32, row: u32, out: usize, max: usize): i32;

// A logits handle over a copy of a (rows, vocabulary) tensor, for the calls of that group.
// @ts-ignore: decorator
@external("realm", "tensor_logits")
export declare function tensor_logits(tensor: i32): i32;

// ---- Samplers ----

// A chain of stages in the given order, run on the host: penalties, DRY, bias, mask, grammar, temperature, top-k,
// top-p, min-p, typical, XTC, mirostat. Without a stage it is greedy.
// @ts-ignore: decorator
@external("realm", "sampler_new")
export declare function sampler_new(stages: usize, n: usize, seed: u64): i32;

// A copy with the same history.
// @ts-ignore: decorator
@external("realm", "sampler_fork")
export declare function sampler_fork(sampler: i32): i32;

// Takes note of tokens that were put into the answer without being drawn: the history that penalties, DRY and the
// grammar look at. The next draw is that of the token after them.
// @ts-ignore: decorator
@external("realm", "sampler_accept")
export declare function sampler_accept(sampler: i32, tokens: usize, n: usize): i32;

// Takes note of the tokens of a prompt: what the repeat penalty and DRY look at as well. Whoever samples with
// logits_sample calls it first to get what a generation draws, which does it by itself.
// @ts-ignore: decorator
@external("realm", "sampler_prompt")
export declare function sampler_prompt(sampler: i32, tokens: usize, n: usize): i32;

// ---- Grammars ----

// Compiles a JSON Schema, a regular expression or a Lark grammar for the model in use, within limits of size, depth and
// time.
// @ts-ignore: decorator
@external("realm", "grammar_compile")
export declare function grammar_compile(kind: u32, text: usize, len: usize): i32;

// A copy in the same state.
// @ts-ignore: decorator
@external("realm", "grammar_fork")
export declare function grammar_fork(grammar: i32): i32;

// Goes on by as many of the tokens as the grammar allows; returns how many.
// @ts-ignore: decorator
@external("realm", "grammar_accept")
export declare function grammar_accept(grammar: i32, tokens: usize, n: usize): i32;

// Takes back the last n tokens.
// @ts-ignore: decorator
@external("realm", "grammar_rollback")
export declare function grammar_rollback(grammar: i32, n: u32): i32;

// The tokens that may come next, as for logits_mask.
// @ts-ignore: decorator
@external("realm", "grammar_mask")
export declare function grammar_mask(grammar: i32, bits: usize, len: usize): i32;

// Bits GRAMMAR_CAN_END (the text so far is complete) and GRAMMAR_MUST_END (nothing more may come).
// @ts-ignore: decorator
@external("realm", "grammar_state")
export declare function grammar_state(grammar: i32): i32;

// ---- The tenant's store ----

// A value of the tenant's store, which all its requests share. E_NOT_FOUND.
// @ts-ignore: decorator
@external("realm", "store_get")
export declare function store_get(key: usize, key_len: usize, out: usize, max: usize): i32;

// Sets a value, durably. E_LIMIT when storage_bytes is used up.
// @ts-ignore: decorator
@external("realm", "store_put")
export declare function store_put(key: usize, key_len: usize, value: usize, value_len: usize): i32;

// Removes a key. E_NOT_FOUND.
// @ts-ignore: decorator
@external("realm", "store_delete")
export declare function store_delete(key: usize, key_len: usize): i32;

// Keys with a prefix, in order, behind `after`, each followed by a NUL, as many as fit; returns the bytes.
// @ts-ignore: decorator
@external("realm", "store_list")
export declare function store_list(prefix: usize, prefix_len: usize, after: usize, after_len: usize, out: usize, max: usize): i32;

// ---- Tensors ----

// A float32 tensor of zeros, up to 4 dimensions, the last one contiguous. Counts against tensor_bytes.
// @ts-ignore: decorator
@external("realm", "tensor_new")
export declare function tensor_new(dims: usize, n_dims: usize): i32;

// A weight of a model by its name in the file; no copy. Reading it needs read_weights; that keeps nobody from computing
// values out of it.
// @ts-ignore: decorator
@external("realm", "tensor_weight")
export declare function tensor_weight(model: i32, name: usize, len: usize): i32;

// Dimensions and type.
// @ts-ignore: decorator
@external("realm", "tensor_info")
export declare function tensor_info(tensor: i32, out: usize): i32;

// Writes values from the given element on.
// @ts-ignore: decorator
@external("realm", "tensor_write")
export declare function tensor_write(tensor: i32, at: u64, values: usize, n: usize): i32;

// Reads values, of a weight whole rows. Metered (read_bytes).
// @ts-ignore: decorator
@external("realm", "tensor_read")
export declare function tensor_read(tensor: i32, at: u64, out: usize, n: usize): i32;

// Runs a list of operations in order on the shared device, all checked before the first runs; waits for them.
// last_error names the operation and operand at fault.
// @ts-ignore: decorator
@external("realm", "tensor_run")
export declare function tensor_run(ops: usize, n: usize): i32;

// float32 [m,k] x [k,n] from and to the program's memory; lengths in bytes.
// @ts-ignore: decorator
@external("realm", "candle_matmul")
export declare function candle_matmul(a: usize, a_len: usize, b: usize, b_len: usize, m: u32, k: u32, n: u32, out: usize): i32;

// Attention over tensor handles, causal (mask 0: the last row sees all) or with an additive (rows, positions) mask;
// scale_bits are the bits of the float32 scale.
// @ts-ignore: decorator
@external("realm", "attention_forward")
export declare function attention_forward(q: i32, k: i32, v: i32, mask: i32, out: i32, n_head: u32, n_kv_head: u32, head_dim: u32, scale_bits: u32): i32;

// ---- Models larger than their memory budget ----

// The layer's tensors as in the file, in the file's order, into the program's memory (needs read_weights); with out 0
// brings the layer in and pins it, no copy. Returns bytes.
// @ts-ignore: decorator
@external("realm", "memory64_load_layer")
export declare function memory64_load_layer(model: i32, layer: u32, out: usize, max: usize): i32;

// A tensor handle by layer and name (`attn_q.weight`); no copy.
// @ts-ignore: decorator
@external("realm", "memory64_load_tensor")
export declare function memory64_load_tensor(model: i32, layer: u32, name: usize, len: usize): i32;

// Unpins.
// @ts-ignore: decorator
@external("realm", "memory64_unload_layer")
export declare function memory64_unload_layer(model: i32, layer: u32): i32;

// Hits, misses, evictions and bytes of the model in use.
// @ts-ignore: decorator
@external("realm", "memory64_get_stats")
export declare function memory64_get_stats(out: usize, max: usize): i32;
