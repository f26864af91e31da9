// Code generated: made by tools/abi-gen (make abi) from src/tenant/host/abi.h and include/realm/abi.h; do not edit.

// Package abi is the host's interface as it is: functions that take addresses and return codes, constants and
// structures. Package realm has the same in Go's own manner.
package abi

import (
	"structs"
	"unsafe"
)

// A program built for a later major version is refused; minor versions only add.
const ABIMajor = 1
const ABIMinor = 2

// Flags of encode and prompt_text.

// begin and end tokens as the model asks
const TextAddSpecial = 1

// the text of control tokens becomes control tokens: never for a client's text
const TextParseSpecial = 2

// follows earlier text: no space prefix
const TextContinues = 4

// Flags of decode, token_piece.

// control tokens show as text
const TextSpecial = 1

// Flags of prompt_chat.

// end with the header of the model's answer
const ChatAnswer = 1

// Flags of realm_generate_options.
const GenerateLogprobs = 1

// end tokens are tokens like others
const GenerateIgnoreEnd = 2

// control tokens show in the text
const GenerateSpecialText = 4

// realm_host_generate: the text is one user message, for the chat template
const GenerateChat = 256

// How tokens reach the world.

// through wait()
const ModeEvents = 0

// straight to the client; wait() gives the end alone. One at a time
const ModePipe = 1

// through wait(); the engine is at most options.run_ahead tokens ahead of confirm()
const ModeAhead = 2

// A program that decides on every token itself (lockstep) calls forward(), samples, and calls it again.

// Bits of realm_generate_options.set: fields without their bit keep the request's own value.
const SetMaxTokens = 1
const SetTemperature = 2
const SetTopK = 4
const SetTopP = 8
const SetMinP = 16
const SetRepeatPenalty = 32
const SetFrequencyPenalty = 64
const SetPresencePenalty = 128
const SetPenaltyLastN = 256
const SetSeed = 512
const SetStop = 1024
const SetBias = 2048

// the first three flags; GenerateChat counts always
const SetFlags = 4096

// a handle; the other sampling fields are not looked at. Its state is copied
const SetSampler = 8192

// a handle; its state is copied. Applied before the sampling that is in force
const SetGrammar = 16384
const SetContext = 32768

type GenerateOptions struct {
	_ structs.HostLayout

	// sizeof(realm_generate_options)
	Size uint32
	Set  uint32
	// 0: until the context is full
	MaxTokens        uint32
	TopK             uint32
	Temperature      float32
	TopP             float32
	MinP             float32
	RepeatPenalty    float32
	FrequencyPenalty float32
	PresencePenalty  float32
	PenaltyLastN     uint32
	Flags            uint32
	Seed             uint64
	// address of n_stop realm_bytes
	Stop uint64
	// address of n_bias realm_bias
	Bias    uint64
	NStop   uint32
	NBias   uint32
	Sampler int32
	Grammar int32
	// handles
	Context int32
	// ModeAhead: 1 to 64
	RunAhead uint32
}

var _ = [1]struct{}{}[unsafe.Sizeof(GenerateOptions{})-96]
var _ = [1]struct{}{}[unsafe.Offsetof(GenerateOptions{}.Size)-0]
var _ = [1]struct{}{}[unsafe.Offsetof(GenerateOptions{}.Set)-4]
var _ = [1]struct{}{}[unsafe.Offsetof(GenerateOptions{}.MaxTokens)-8]
var _ = [1]struct{}{}[unsafe.Offsetof(GenerateOptions{}.TopK)-12]
var _ = [1]struct{}{}[unsafe.Offsetof(GenerateOptions{}.Temperature)-16]
var _ = [1]struct{}{}[unsafe.Offsetof(GenerateOptions{}.TopP)-20]
var _ = [1]struct{}{}[unsafe.Offsetof(GenerateOptions{}.MinP)-24]
var _ = [1]struct{}{}[unsafe.Offsetof(GenerateOptions{}.RepeatPenalty)-28]
var _ = [1]struct{}{}[unsafe.Offsetof(GenerateOptions{}.FrequencyPenalty)-32]
var _ = [1]struct{}{}[unsafe.Offsetof(GenerateOptions{}.PresencePenalty)-36]
var _ = [1]struct{}{}[unsafe.Offsetof(GenerateOptions{}.PenaltyLastN)-40]
var _ = [1]struct{}{}[unsafe.Offsetof(GenerateOptions{}.Flags)-44]
var _ = [1]struct{}{}[unsafe.Offsetof(GenerateOptions{}.Seed)-48]
var _ = [1]struct{}{}[unsafe.Offsetof(GenerateOptions{}.Stop)-56]
var _ = [1]struct{}{}[unsafe.Offsetof(GenerateOptions{}.Bias)-64]
var _ = [1]struct{}{}[unsafe.Offsetof(GenerateOptions{}.NStop)-72]
var _ = [1]struct{}{}[unsafe.Offsetof(GenerateOptions{}.NBias)-76]
var _ = [1]struct{}{}[unsafe.Offsetof(GenerateOptions{}.Sampler)-80]
var _ = [1]struct{}{}[unsafe.Offsetof(GenerateOptions{}.Grammar)-84]
var _ = [1]struct{}{}[unsafe.Offsetof(GenerateOptions{}.Context)-88]
var _ = [1]struct{}{}[unsafe.Offsetof(GenerateOptions{}.RunAhead)-92]

type Bytes struct {
	_ structs.HostLayout

	Ptr uint64
	Len uint64
}

var _ = [1]struct{}{}[unsafe.Sizeof(Bytes{})-16]
var _ = [1]struct{}{}[unsafe.Offsetof(Bytes{}.Ptr)-0]
var _ = [1]struct{}{}[unsafe.Offsetof(Bytes{}.Len)-8]

type Bias struct {
	_ structs.HostLayout

	Token int32
	Bias  float32
}

var _ = [1]struct{}{}[unsafe.Sizeof(Bias{})-8]
var _ = [1]struct{}{}[unsafe.Offsetof(Bias{}.Token)-0]
var _ = [1]struct{}{}[unsafe.Offsetof(Bias{}.Bias)-4]

const EventKindToken = 1
const EventKindEnd = 2

// end token or stop string
const EndStop = 1

// max_tokens, or the context is full
const EndLength = 2
const EndCancelled = 3

// see status
const EndError = 4

type GuestEvent struct {
	_ structs.HostLayout

	// of the generation
	Handle int32
	Kind   uint32
	// TOKEN
	Token int32
	// with GenerateLogprobs
	Logprob float32
	// in the text buffer of the same wait(); END may bring text that was held back
	TextAt  uint32
	TextLen uint32
	// END: REALM_END_*
	Finish uint32
	// END: 0, or the negative code of the failure
	Status int32
}

var _ = [1]struct{}{}[unsafe.Sizeof(GuestEvent{})-32]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestEvent{}.Handle)-0]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestEvent{}.Kind)-4]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestEvent{}.Token)-8]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestEvent{}.Logprob)-12]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestEvent{}.TextAt)-16]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestEvent{}.TextLen)-20]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestEvent{}.Finish)-24]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestEvent{}.Status)-28]

// tokens of a generation so far
type GuestUsage struct {
	_ structs.HostLayout

	Prompt     uint32
	Cached     uint32
	Completion uint32
}

var _ = [1]struct{}{}[unsafe.Sizeof(GuestUsage{})-12]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestUsage{}.Prompt)-0]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestUsage{}.Cached)-4]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestUsage{}.Completion)-8]

// ---- contexts, forward passes, logits ----

type GuestContext struct {
	_ structs.HostLayout

	NTokens uint32
	// tokens, and those whose KV is there
	NComputed uint32
	Pages     uint32
	// of KV; shared: with another context, a prefix or a running generation
	SharedPages uint32
	// 1: a generation or forward pass runs on it
	Busy uint32
	// 1: its pages were moved out of the KV memory; they come back when needed
	Suspended uint32
}

var _ = [1]struct{}{}[unsafe.Sizeof(GuestContext{})-24]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestContext{}.NTokens)-0]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestContext{}.NComputed)-4]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestContext{}.Pages)-8]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestContext{}.SharedPages)-12]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestContext{}.Busy)-16]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestContext{}.Suspended)-20]

// keep the final hidden state of the rows
const ForwardHidden = 1

// rows of one forward pass whose logits are kept
const ForwardRowsMax = 64

type GuestToken struct {
	_ structs.HostLayout

	Token   int32
	Logprob float32
}

var _ = [1]struct{}{}[unsafe.Sizeof(GuestToken{})-8]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestToken{}.Token)-0]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestToken{}.Logprob)-4]

type GuestLogitStats struct {
	_ structs.HostLayout

	Best        int32
	BestLogprob float32
	// nats
	Entropy float32
	// of the raw logits
	LogSumExp float32
}

var _ = [1]struct{}{}[unsafe.Sizeof(GuestLogitStats{})-16]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestLogitStats{}.Best)-0]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestLogitStats{}.BestLogprob)-4]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestLogitStats{}.Entropy)-8]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestLogitStats{}.LogSumExp)-12]

// ---- samplers and grammars ----

// n: last_n (0 all); a: repeat, b: frequency, c: presence
const StagePenalties = 1

// n: last_n (0 all); a: multiplier, b: base, m: allowed length
const StageDRY = 2

// data: realm_bias; n: how many
const StageBias = 3

// data: bits as for logits_mask; n: bytes
const StageMask = 4

// handle; its state is copied
const StageGrammar = 5

// a; 0: greedy
const StageTemperature = 6

// n
const StageTopK = 7

// a
const StageTopP = 8

// a
const StageMinP = 9

// a
const StageTypical = 10

// a: probability, b: threshold
const StageXTC = 11

// version 2. a: tau, b: eta; the last stage
const StageMirostat = 12

type SamplerStage struct {
	_ structs.HostLayout

	Kind   uint32
	Handle int32
	N      uint32
	M      uint32
	A      float32
	B      float32
	C      float32
	Zero   uint32
	// address
	Data uint64
}

var _ = [1]struct{}{}[unsafe.Sizeof(SamplerStage{})-40]
var _ = [1]struct{}{}[unsafe.Offsetof(SamplerStage{}.Kind)-0]
var _ = [1]struct{}{}[unsafe.Offsetof(SamplerStage{}.Handle)-4]
var _ = [1]struct{}{}[unsafe.Offsetof(SamplerStage{}.N)-8]
var _ = [1]struct{}{}[unsafe.Offsetof(SamplerStage{}.M)-12]
var _ = [1]struct{}{}[unsafe.Offsetof(SamplerStage{}.A)-16]
var _ = [1]struct{}{}[unsafe.Offsetof(SamplerStage{}.B)-20]
var _ = [1]struct{}{}[unsafe.Offsetof(SamplerStage{}.C)-24]
var _ = [1]struct{}{}[unsafe.Offsetof(SamplerStage{}.Zero)-28]
var _ = [1]struct{}{}[unsafe.Offsetof(SamplerStage{}.Data)-32]

const GrammarJSONSchema = 1
const GrammarRegex = 2
const GrammarLark = 3
const GrammarCanEnd = 1
const GrammarMustEnd = 2

// ---- a ring of events ----

// At the registered address: this header, n_slots events, text_bytes bytes. The program sets n_slots and text_bytes
// before ring_set, and moves `tail` and `text_tail` on over what it has read; the host moves `head` and `text_head`.
// All four count from 0 upwards and wrap at 2^32; slot and byte are taken modulo n_slots and text_bytes, which are
// powers of two. An event's text_at is a count like text_head; a text does not wrap inside the ring (the host skips to
// the start).

type EventRing struct {
	_ structs.HostLayout

	NSlots    uint32
	TextBytes uint32
	Head      uint32
	Tail      uint32
	TextHead  uint32
	TextTail  uint32
}

var _ = [1]struct{}{}[unsafe.Sizeof(EventRing{})-24]
var _ = [1]struct{}{}[unsafe.Offsetof(EventRing{}.NSlots)-0]
var _ = [1]struct{}{}[unsafe.Offsetof(EventRing{}.TextBytes)-4]
var _ = [1]struct{}{}[unsafe.Offsetof(EventRing{}.Head)-8]
var _ = [1]struct{}{}[unsafe.Offsetof(EventRing{}.Tail)-12]
var _ = [1]struct{}{}[unsafe.Offsetof(EventRing{}.TextHead)-16]
var _ = [1]struct{}{}[unsafe.Offsetof(EventRing{}.TextTail)-20]

// ---- tensors ----

type GuestTensor struct {
	_ structs.HostLayout

	// the last used one is contiguous; unused ones, behind it, 1
	Dims  [4]uint64
	NDims uint32
	// ggml's number; 0: float32
	Type uint32
	// 1: of a model, read only
	Weight uint32
	Zero   uint32
}

var _ = [1]struct{}{}[unsafe.Sizeof(GuestTensor{})-48]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensor{}.Dims)-0]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensor{}.NDims)-32]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensor{}.Type)-36]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensor{}.Weight)-40]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensor{}.Zero)-44]

// Operations see a tensor as rows of its last dimension. In place (out the same handle as an operand) is allowed where
// said. `m` 0 works on all rows of a, else on the first m.

// out(m,n) = a(m,k) b(n,k)^T; b a weight or a tensor
const TensorOpMatmul = 1

// out(m,n) = a(m,k) b(k,n); b a tensor
const TensorOpMatmulPlain = 2

// out = rows `ids` of a (a weight or a tensor), times scale (0: 1)
const TensorOpGetRows = 3

// out = a / sqrt(mean(a^2) + eps) * b over groups of b's length; in place
const TensorOpRMSNorm = 4

// out = a + b; b of one row counts for every row; in place
const TensorOpAdd = 5

// out = a * b; likewise
const TensorOpMul = 6

// out = a * scale; in place
const TensorOpScale = 7

// out = silu(a), times b where given; in place
const TensorOpSilu = 8

// the same with gelu, tanh form
const TensorOpGelu = 9

// by row; in place
const TensorOpSoftmax = 10

// rotates heads of head_dim; row i at position first + i; b: frequency factors or 0; \ in place
const TensorOpRope = 11

// out = softmax(scale q k^T) v; a q, b k, c v, d an additive mask (m,t) or 0; \ row i sees the first + i + 1 first
// positions
const TensorOpAttention = 12

// out(m,1) = index of the greatest value of each row
const TensorOpArgmax = 13

// n_rows rows of a from `row` on, to rows from `out_row` on of out
const TensorOpCopy = 14

// Flags.

// rotates (i, i + d/2), else neighbours
const TensorRopeHalves = 1

// every row sees all t positions
const TensorAttentionFull = 2

type GuestTensorOp struct {
	_ structs.HostLayout

	Kind  uint32
	Flags uint32
	Out   int32
	A     int32
	B     int32
	C     int32
	// tensor handles; 0 where there is none
	D       int32
	NHead   uint32
	NKVHead uint32
	HeadDim uint32
	// ROPE: values of a head that turn; 0: head_dim
	RopeDims uint32
	// ROPE: position of row 0; ATTENTION: positions before row 0
	First uint32
	// ATTENTION: rows of k and v that count; 0: all
	T uint32
	// ATTENTION: only the last so many positions; 0: all
	Window uint32
	Scale  float32
	Eps    float32
	Base   float32
	// ROPE; freq_scale 0: 1
	FreqScale float32
	// ATTENTION; 0: none
	Softcap float32
	NIds    uint32
	// GET_ROWS: address of n_ids i32
	Ids   uint64
	M     uint64
	Row   uint64
	NRows uint64
	// COPY
	OutRow uint64
}

var _ = [1]struct{}{}[unsafe.Sizeof(GuestTensorOp{})-120]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensorOp{}.Kind)-0]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensorOp{}.Flags)-4]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensorOp{}.Out)-8]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensorOp{}.A)-12]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensorOp{}.B)-16]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensorOp{}.C)-20]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensorOp{}.D)-24]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensorOp{}.NHead)-28]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensorOp{}.NKVHead)-32]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensorOp{}.HeadDim)-36]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensorOp{}.RopeDims)-40]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensorOp{}.First)-44]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensorOp{}.T)-48]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensorOp{}.Window)-52]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensorOp{}.Scale)-56]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensorOp{}.Eps)-60]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensorOp{}.Base)-64]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensorOp{}.FreqScale)-68]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensorOp{}.Softcap)-72]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensorOp{}.NIds)-76]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensorOp{}.Ids)-80]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensorOp{}.M)-88]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensorOp{}.Row)-96]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensorOp{}.NRows)-104]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestTensorOp{}.OutRow)-112]

type StreamStats struct {
	_ structs.HostLayout

	Hits          uint64
	Misses        uint64
	Evictions     uint64
	BytesResident uint64
	BytesRead     uint64
	BytesBudget   uint64
	Prefetched    uint64
}

var _ = [1]struct{}{}[unsafe.Sizeof(StreamStats{})-56]
var _ = [1]struct{}{}[unsafe.Offsetof(StreamStats{}.Hits)-0]
var _ = [1]struct{}{}[unsafe.Offsetof(StreamStats{}.Misses)-8]
var _ = [1]struct{}{}[unsafe.Offsetof(StreamStats{}.Evictions)-16]
var _ = [1]struct{}{}[unsafe.Offsetof(StreamStats{}.BytesResident)-24]
var _ = [1]struct{}{}[unsafe.Offsetof(StreamStats{}.BytesRead)-32]
var _ = [1]struct{}{}[unsafe.Offsetof(StreamStats{}.BytesBudget)-40]
var _ = [1]struct{}{}[unsafe.Offsetof(StreamStats{}.Prefetched)-48]

type GuestLimits struct {
	_ structs.HostLayout

	// of this structure, as the host knows it
	Size     uint32
	ABIMajor uint32
	ABIMinor uint32
	// longest prompt and answer together
	ContextTokens uint32
	// linear memory of an instance
	MemoryBytes uint64
	// CPU time between two waits
	CPUMsPerWake uint64
	// of the tenant, in flight; 0: no limit
	Generations uint32
	// open at once in an instance
	Handles uint32
	// of one emit
	EmitBytes uint32
	// token ids are below
	Vocabulary uint32
	// of logits, hidden states and tensors that this instance may read back
	ReadBytes uint64
	// of tensors at once
	TensorBytes uint64
	// of the tenant's store and stored models
	StorageBytes uint64
	// of the tenant's contexts and generations; 0: no limit
	KVTokens uint64
	// of this instance; 0: no limit
	WallMs uint64
}

var _ = [1]struct{}{}[unsafe.Sizeof(GuestLimits{})-88]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestLimits{}.Size)-0]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestLimits{}.ABIMajor)-4]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestLimits{}.ABIMinor)-8]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestLimits{}.ContextTokens)-12]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestLimits{}.MemoryBytes)-16]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestLimits{}.CPUMsPerWake)-24]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestLimits{}.Generations)-32]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestLimits{}.Handles)-36]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestLimits{}.EmitBytes)-40]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestLimits{}.Vocabulary)-44]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestLimits{}.ReadBytes)-48]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestLimits{}.TensorBytes)-56]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestLimits{}.StorageBytes)-64]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestLimits{}.KVTokens)-72]
var _ = [1]struct{}{}[unsafe.Offsetof(GuestLimits{}.WallMs)-80]

// Clocks of clock_ms.

// since some moment before the instance started
const ClockMonotonic = 0

// since 1970, UTC
const ClockWall = 1

// ---- Result codes ----

const OK = 0                 // success
const EInvalid = -1          // invalid argument
const EFormat = -2           // malformed data
const EUnsupported = -3      // not supported
const ENomem = -4            // out of memory
const EIO = -5               // input or output failed
const ENotFound = -6         // not found
const EExists = -7           // already exists
const ELimit = -8            // a limit was reached
const ERange = -9            // out of range or buffer too small
const EAgain = -10           // would block
const ECancelled = -11       // cancelled
const ETimeout = -12         // timed out
const EDenied = -13          // not permitted
const EUnauthenticated = -14 // no valid key
const EProgram = -15         // the program failed
const EClosed = -16          // closed
const EDevice = -17          // the compute device failed
const EInternal = -18        // internal error
const EBusy = -19            // overloaded
const ERate = -20            // too many in this time
const EQuota = -21           // more than the quota holds
const ECrowded = -22         // too many at the same time
const EContext = -23         // longer than the context
const ETooLarge = -24        // more than is taken
const EGrammar = -25         // the grammar cannot be kept to

// CodeText says what a result code means.
func CodeText(code int32) string {
	switch code {
	case 0:
		return "success"
	case -1:
		return "invalid argument"
	case -2:
		return "malformed data"
	case -3:
		return "not supported"
	case -4:
		return "out of memory"
	case -5:
		return "input or output failed"
	case -6:
		return "not found"
	case -7:
		return "already exists"
	case -8:
		return "a limit was reached"
	case -9:
		return "out of range or buffer too small"
	case -10:
		return "would block"
	case -11:
		return "cancelled"
	case -12:
		return "timed out"
	case -13:
		return "not permitted"
	case -14:
		return "no valid key"
	case -15:
		return "the program failed"
	case -16:
		return "closed"
	case -17:
		return "the compute device failed"
	case -18:
		return "internal error"
	case -19:
		return "overloaded"
	case -20:
		return "too many in this time"
	case -21:
		return "more than the quota holds"
	case -22:
		return "too many at the same time"
	case -23:
		return "longer than the context"
	case -24:
		return "more than is taken"
	case -25:
		return "the grammar cannot be kept to"
	}
	return "unknown failure"
}

// ---- About the host ----

// Major version << 16 | minor version.
//
//go:wasmimport realm abi_version
func ABIVersion() int32

// What this instance may use; writes as much as fits and returns the structure's size.
//
//go:wasmimport realm limits_get
func LimitsGet(out *GuestLimits, max uint32) int32

// Text of the last call that failed, cut to fit; returns its length.
//
//go:wasmimport realm last_error
func LastError(out *byte, max uint32) int32

// A line in the server's log; level 0 (debug) to 3 (error). Lines and bytes are bounded, what is too much is dropped
// and counted.
//
//go:wasmimport realm log
func Log(level int32, text *byte, len uint32) int32

// Milliseconds of ClockMonotonic or ClockWall.
//
//go:wasmimport realm clock_ms
func ClockMs(clock uint32, out *int64) int32

// Random bytes, at most 64 KiB a call.
//
//go:wasmimport realm random
func Random(out unsafe.Pointer, len uint32) int32

// ---- Input and output ----

// The request as JSON (name_len 0), or a top-level field of it: a string as its text, anything else as JSON. ENotFound
// when it is absent.
//
//go:wasmimport realm input
func Input(name *byte, nameLen uint32, out *byte, max uint32) int32

// Hands well-formed UTF-8 to the client; waits while the client is slow.
//
//go:wasmimport realm emit
func Emit(text *byte, len uint32) int32

// The same for one token, or -1 for text that is none.
//
//go:wasmimport realm realm_stream_token
func RealmStreamToken(token int32, text *byte, len uint32) int32

// How the answer ends (EndStop, EndLength), where that is not how the last generation did.
//
//go:wasmimport realm finish
func Finish(reason uint32) int32

// ---- Models ----

// The id of a model that the server offers under this name, or that the tenant stored under this number. Id 0 is always
// the request's own model.
//
//go:wasmimport realm model_find
func ModelFind(name *byte, len uint32) int32

// The model that text, prompts, grammars and new contexts belong to from now on; waits while it is loaded. Returns the
// id that was used before.
//
//go:wasmimport realm model_use
func ModelUse(model int32) int32

// Stores a GGUF image for this tenant alone, under the given id, or with 0 under one derived from its hash. The same
// image under two ids is stored once; an id that names another image is refused. Counts against storage_bytes. Returns
// the id.
//
//go:wasmimport realm realm_store_model
func RealmStoreModel(image unsafe.Pointer, len uint32, model int32) int32

// JSON: architecture, shapes, types, context, tokenizer, whether there is a template.
//
//go:wasmimport realm realm_get_model_info
func RealmGetModelInfo(model int32, out *byte, max uint32) int32

// A tensor's values as float32, `max` in bytes; ERange with the size needed in last_error when that is too small. Needs
// read_weights for models that are not the tenant's own.
//
//go:wasmimport realm realm_get_tensor
func RealmGetTensor(model int32, name *byte, nameLen uint32, out *float32, max uint32) int32

// Drops this tenant's reference to a stored model.
//
//go:wasmimport realm realm_remove_model
func RealmRemoveModel(model int32) int32

// ---- Text ----

// Token ids of a text. Flags TextAddSpecial, _PARSE_SPECIAL, _CONTINUES.
//
//go:wasmimport realm encode
func Encode(text *byte, len uint32, flags uint32, out *int32, max uint32) int32

// Text of tokens; flag TextSpecial shows control tokens.
//
//go:wasmimport realm decode
func Decode(tokens *int32, n uint32, flags uint32, out *byte, max uint32) int32

// The bytes that one token stands for.
//
//go:wasmimport realm token_piece
func TokenPiece(token int32, flags uint32, out *byte, max uint32) int32

// ---- Prompts ----

// Handle of the request's own prompt, for the request's own model.
//
//go:wasmimport realm prompt_own
func PromptOwn() int32

// The model's chat template over JSON messages (and tools, or length 0). What messages spell never becomes a control
// token. Flag ChatAnswer ends with the header of an answer.
//
//go:wasmimport realm prompt_chat
func PromptChat(messages *byte, messagesLen uint32, tools *byte, toolsLen uint32, flags uint32) int32

// A prompt from text; flags as for encode.
//
//go:wasmimport realm prompt_text
func PromptText(text *byte, len uint32, flags uint32) int32

// A prompt from token ids.
//
//go:wasmimport realm prompt_tokens
func PromptTokens(tokens *int32, n uint32) int32

// A prompt's text.
//
//go:wasmimport realm prompt_get_text
func PromptGetText(prompt int32, out *byte, max uint32) int32

// A prompt's token ids.
//
//go:wasmimport realm prompt_get_tokens
func PromptGetTokens(prompt int32, out *int32, max uint32) int32

// ---- Contexts ----

// An empty context: a token sequence and, once computed, its KV pages.
//
//go:wasmimport realm context_new
func ContextNew() int32

// Adds tokens; they are computed with the next forward pass or generation. Returns the new length. EBusy while one of
// these runs.
//
//go:wasmimport realm context_append
func ContextAppend(context int32, tokens *int32, n uint32) int32

// The same with the tokens of a prompt.
//
//go:wasmimport realm context_append_prompt
func ContextAppendPrompt(context int32, prompt int32) int32

// A second context with the same tokens. Pages are shared until one of the two writes to them.
//
//go:wasmimport realm context_fork
func ContextFork(context int32) int32

// Keeps the first n_tokens.
//
//go:wasmimport realm context_truncate
func ContextTruncate(context int32, nTokens uint32) int32

// Length, how much is computed, pages held and shared.
//
//go:wasmimport realm context_stat
func ContextStat(context int32, out *GuestContext) int32

// Its token ids from a position on, at most `max`; returns how many were written.
//
//go:wasmimport realm context_get_tokens
func ContextGetTokens(context int32, from uint32, out *int32, max uint32) int32

// Keeps a copy (pages shared) under a name of this tenant, for later requests; replaces an older one.
//
//go:wasmimport realm context_save
func ContextSave(context int32, name *byte, len uint32) int32

// A context forked from the saved one. ENotFound.
//
//go:wasmimport realm context_open
func ContextOpen(name *byte, len uint32) int32

// Forgets a saved context.
//
//go:wasmimport realm context_drop
func ContextDrop(name *byte, len uint32) int32

// ---- Generations ----

// Starts a generation and returns its handle. Options 0: the request's own parameters; else those whose bit is in `set`
// replace them. With a context in the options the prompt (or 0) is added to it, and the answer after that.
//
//go:wasmimport realm generate
func Generate(prompt int32, options *GenerateOptions, mode uint32) int32

// Events of one generation or forward pass, or of any (0), since the last time, with their texts one after the other in
// `text`; waits until there is one, at most timeout_ms (-1: for ever). 0 when the time is up; EClosed after the end was
// given, ENotFound when nothing runs, ECancelled when the client has gone.
//
//go:wasmimport realm wait
func Wait(handle int32, events *GuestEvent, maxEvents uint32, text *byte, maxText uint32, timeoutMs int32) int32

// Tokens that a generation or forward pass was charged so far.
//
//go:wasmimport realm usage
func Usage(generation int32, out *GuestUsage) int32

// Ends it; its end comes as an event.
//
//go:wasmimport realm cancel
func Cancel(generation int32) int32

// Gives back any handle; what still runs is cancelled, and has ended when the call returns where it runs on a context.
//
//go:wasmimport realm close
func Close(handle int32) int32

// Prompt in, text out: a whole generation, batched with everybody's; returns the bytes of text, cut between characters
// at `max`.
//
//go:wasmimport realm realm_host_generate
func RealmHostGenerate(model int32, prompt *byte, promptLen uint32, options *GenerateOptions, out *byte, max uint32) int32

// ---- Events in the program's own memory ----

// Registers a ring in the program's memory, len bytes with its header; 0, 0 takes it away. The host writes only while
// the program is inside ring_wait.
//
//go:wasmimport realm ring_set
func RingSet(ring *EventRing, len uint32) int32

// Fills the registered ring with events of all generations as far as there is room; waits as wait does when the ring is
// empty. Returns how many were added.
//
//go:wasmimport realm ring_wait
func RingWait(timeoutMs int32) int32

// ---- Running ahead ----

// In run-ahead mode: the first n generated tokens are accepted, the engine may go on. Once its end was given,
// confirming all of them makes that final.
//
//go:wasmimport realm confirm
func Confirm(generation int32, n uint32) int32

// In run-ahead mode: drops what was generated after the first n_keep tokens, puts the given tokens there instead (n may
// be 0) and goes on. Dropped tokens are counted as generated.
//
//go:wasmimport realm rewind
func Rewind(generation int32, nKeep uint32, tokens *int32, n uint32) int32

// ---- Forward passes ----

// Appends tokens to a context and computes them, batched with everybody's; returns a handle whose END event comes
// through wait. It then holds the logits (flag ForwardHidden: the final hidden state too) of the last n_rows tokens.
//
//go:wasmimport realm forward
func Forward(context int32, tokens *int32, n uint32, nRows uint32, flags uint32) int32

// The hidden state of a row after the final norm, as float32; the embedding of its text. Metered (read_bytes).
//
//go:wasmimport realm hidden_read
func HiddenRead(handle int32, row uint32, out *float32, max uint32) int32

// ---- Logits ----

// Draws a token with a sampler (0: greedy) and tells its log-probability where logprob is not 0. The sampler takes note
// of the token.
//
//go:wasmimport realm logits_sample
func LogitsSample(handle int32, row uint32, sampler int32, logprob *float32) int32

// The k most likely tokens with their log-probabilities, at most 256.
//
//go:wasmimport realm logits_top
func LogitsTop(handle int32, row uint32, k uint32, out *GuestToken, max uint32) int32

// Log-probabilities of given tokens, at most 4096.
//
//go:wasmimport realm logits_gather
func LogitsGather(handle int32, row uint32, tokens *int32, n uint32, logprobs *float32) int32

// Best token, its log-probability, entropy, log of the sum of exponentials.
//
//go:wasmimport realm logits_stats
func LogitsStats(handle int32, row uint32, out *GuestLogitStats) int32

// Adds to the logits of given tokens, in place.
//
//go:wasmimport realm logits_bias
func LogitsBias(handle int32, row uint32, bias *Bias, n uint32) int32

// Keeps the tokens whose bit is set (bit t % 8 of byte t / 8, vocabulary / 8 bytes rounded up), in place.
//
//go:wasmimport realm logits_mask
func LogitsMask(handle int32, row uint32, bits unsafe.Pointer, len uint32) int32

// The whole row as float32, `max` in values. Metered (read_bytes).
//
//go:wasmimport realm logits_read
func LogitsRead(handle int32, row uint32, out *float32, max uint32) int32

// A logits handle over a copy of a (rows, vocabulary) tensor, for the calls of that group.
//
//go:wasmimport realm tensor_logits
func TensorLogits(tensor int32) int32

// ---- Samplers ----

// A chain of stages in the given order, run on the host: penalties, DRY, bias, mask, grammar, temperature, top-k,
// top-p, min-p, typical, XTC, mirostat. Without a stage it is greedy.
//
//go:wasmimport realm sampler_new
func SamplerNew(stages *SamplerStage, n uint32, seed uint64) int32

// A copy with the same history.
//
//go:wasmimport realm sampler_fork
func SamplerFork(sampler int32) int32

// Takes note of tokens that were put into the answer without being drawn: the history that penalties, DRY and the
// grammar look at. The next draw is that of the token after them.
//
//go:wasmimport realm sampler_accept
func SamplerAccept(sampler int32, tokens *int32, n uint32) int32

// Takes note of the tokens of a prompt: what the repeat penalty and DRY look at as well. Whoever samples with
// logits_sample calls it first to get what a generation draws, which does it by itself.
//
//go:wasmimport realm sampler_prompt
func SamplerPrompt(sampler int32, tokens *int32, n uint32) int32

// ---- Grammars ----

// Compiles a JSON Schema, a regular expression or a Lark grammar for the model in use, within limits of size, depth and
// time.
//
//go:wasmimport realm grammar_compile
func GrammarCompile(kind uint32, text *byte, len uint32) int32

// A copy in the same state.
//
//go:wasmimport realm grammar_fork
func GrammarFork(grammar int32) int32

// Goes on by as many of the tokens as the grammar allows; returns how many.
//
//go:wasmimport realm grammar_accept
func GrammarAccept(grammar int32, tokens *int32, n uint32) int32

// Takes back the last n tokens.
//
//go:wasmimport realm grammar_rollback
func GrammarRollback(grammar int32, n uint32) int32

// The tokens that may come next, as for logits_mask.
//
//go:wasmimport realm grammar_mask
func GrammarMask(grammar int32, bits unsafe.Pointer, len uint32) int32

// Bits GrammarCanEnd (the text so far is complete) and GrammarMustEnd (nothing more may come).
//
//go:wasmimport realm grammar_state
func GrammarState(grammar int32) int32

// ---- The tenant's store ----

// A value of the tenant's store, which all its requests share. ENotFound.
//
//go:wasmimport realm store_get
func StoreGet(key *byte, keyLen uint32, out unsafe.Pointer, max uint32) int32

// Sets a value, durably. ELimit when storage_bytes is used up.
//
//go:wasmimport realm store_put
func StorePut(key *byte, keyLen uint32, value unsafe.Pointer, valueLen uint32) int32

// Removes a key. ENotFound.
//
//go:wasmimport realm store_delete
func StoreDelete(key *byte, keyLen uint32) int32

// Keys with a prefix, in order, behind `after`, each followed by a NUL, as many as fit; returns the bytes.
//
//go:wasmimport realm store_list
func StoreList(prefix *byte, prefixLen uint32, after *byte, afterLen uint32, out *byte, max uint32) int32

// ---- Tensors ----

// A float32 tensor of zeros, up to 4 dimensions, the last one contiguous. Counts against tensor_bytes.
//
//go:wasmimport realm tensor_new
func TensorNew(dims *uint64, nDims uint32) int32

// A weight of a model by its name in the file; no copy. Reading it needs read_weights; that keeps nobody from computing
// values out of it.
//
//go:wasmimport realm tensor_weight
func TensorWeight(model int32, name *byte, len uint32) int32

// Dimensions and type.
//
//go:wasmimport realm tensor_info
func TensorInfo(tensor int32, out *GuestTensor) int32

// Writes values from the given element on.
//
//go:wasmimport realm tensor_write
func TensorWrite(tensor int32, at uint64, values *float32, n uint32) int32

// Reads values, of a weight whole rows. Metered (read_bytes).
//
//go:wasmimport realm tensor_read
func TensorRead(tensor int32, at uint64, out *float32, n uint32) int32

// Runs a list of operations in order on the shared device, all checked before the first runs; waits for them.
// last_error names the operation and operand at fault.
//
//go:wasmimport realm tensor_run
func TensorRun(ops *GuestTensorOp, n uint32) int32

// float32 [m,k] x [k,n] from and to the program's memory; lengths in bytes.
//
//go:wasmimport realm candle_matmul
func CandleMatmul(a *float32, aLen uint32, b *float32, bLen uint32, m uint32, k uint32, n uint32, out *float32) int32

// Attention over tensor handles, causal (mask 0: the last row sees all) or with an additive (rows, positions) mask;
// scale_bits are the bits of the float32 scale.
//
//go:wasmimport realm attention_forward
func AttentionForward(q int32, k int32, v int32, mask int32, out int32, nHead uint32, nKVHead uint32, headDim uint32, scaleBits uint32) int32

// ---- Models larger than their memory budget ----

// The layer's tensors as in the file, in the file's order, into the program's memory (needs read_weights); with out 0
// brings the layer in and pins it, no copy. Returns bytes.
//
//go:wasmimport realm memory64_load_layer
func Memory64LoadLayer(model int32, layer uint32, out unsafe.Pointer, max uint32) int32

// A tensor handle by layer and name (`attn_q.weight`); no copy.
//
//go:wasmimport realm memory64_load_tensor
func Memory64LoadTensor(model int32, layer uint32, name *byte, len uint32) int32

// Unpins.
//
//go:wasmimport realm memory64_unload_layer
func Memory64UnloadLayer(model int32, layer uint32) int32

// Hits, misses, evictions and bytes of the model in use.
//
//go:wasmimport realm memory64_get_stats
func Memory64GetStats(out *StreamStats, max uint32) int32
