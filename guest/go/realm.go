// Package realm is for programs in Go: what a tenant's program calls on its host.
//
// A program is a WASI command (`GOOS=wasip1 GOARCH=wasm go build`) whose main function calls [Main], or a reactor
// (-buildmode=c-shared) that exports realm_main and returns [Run]'s result. It reads the request with [Input], starts
// generations from a [Prompt], hands text out with [Emit] or lets tokens go straight to the client ([ModePipe]).
// Package abi beside it is the whole interface as it is, for what has no wrapper.
package realm

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"runtime"
	"unsafe"

	"realm/abi"
)

// Error is what the host answered instead of a result.
type Error struct {
	Code int32  // one of abi.E...
	Text string // the host's line about it
}

func (e *Error) Error() string {
	if e.Text == "" {
		return abi.CodeText(e.Code)
	}
	return fmt.Sprintf("%s: %s", abi.CodeText(e.Code), e.Text)
}

// Is makes errors.Is(err, realm.ErrNotFound) and its like work: errors are the same when their codes are.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

var (
	ErrNotFound  = &Error{Code: abi.ENotFound}
	ErrLimit     = &Error{Code: abi.ELimit}
	ErrRange     = &Error{Code: abi.ERange}
	ErrBusy      = &Error{Code: abi.EBusy}
	ErrCancelled = &Error{Code: abi.ECancelled}
)

func check(result int32) (int, error) {
	if result >= 0 {
		return int(result), nil
	}
	text := make([]byte, 512)
	n := abi.LastError(unsafe.SliceData(text), uint32(len(text)))
	return 0, &Error{result, string(text[:min(max(int(n), 0), len(text))])}
}

// Run runs the program and returns what realm_main is to return.
func Run(program func() error) int32 {
	err := program()
	if err == nil {
		return abi.OK
	}
	Log(LevelError, err.Error())
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return abi.EProgram
}

// Main runs the program as a command: it does not return.
func Main(program func() error) {
	os.Exit(int(Run(program)))
}

// Calls that give bytes say how many there are and write them only when all fit: asked twice, the second time with room.
func whole[T any](call func(out *T, max uint32) int32) ([]T, error) {
	buffer := make([]T, 256)
	for {
		n, err := check(call(unsafe.SliceData(buffer), uint32(len(buffer))))
		if err != nil {
			return nil, err
		}
		if n <= len(buffer) {
			return buffer[:n], nil
		}
		buffer = make([]T, n)
	}
}

func text(bytes []byte, err error) (string, error) { return string(bytes), err }

func str(s string) (*byte, uint32) { return unsafe.StringData(s), uint32(len(s)) }

// ---- input and output ----

// Input is a top-level field of the request, or with "" all of it: a string as its text, anything else as JSON.
// ErrNotFound when there is no such field.
func Input(name string) (string, error) {
	at, n := str(name)
	return text(whole(func(out *byte, max uint32) int32 { return abi.Input(at, n, out, max) }))
}

// Emit hands text to the client; it waits while the client is slow.
func Emit(text string) error {
	_, err := check(abi.Emit(str(text)))
	return err
}

// Client writes to the client: fmt.Fprintf(realm.Client, ...). Each write must be whole characters.
var Client client

type client struct{}

func (client) Write(p []byte) (int, error) {
	_, err := check(abi.Emit(unsafe.SliceData(p), uint32(len(p))))
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// Finish says how the answer ends (abi.EndStop, abi.EndLength), where that is not how the last generation did.
func Finish(reason uint32) error {
	_, err := check(abi.Finish(reason))
	return err
}

const (
	LevelDebug = iota
	LevelInfo
	LevelWarning
	LevelError
)

// Log writes a line to the server's log. What is printed goes there too.
func Log(level int, text string) {
	at, n := str(text)
	abi.Log(int32(level), at, n)
}

// Limits says what this instance may use.
func Limits() (abi.GuestLimits, error) {
	var out abi.GuestLimits
	_, err := check(abi.LimitsGet(&out, uint32(unsafe.Sizeof(out))))
	return out, err
}

// ---- text ----

// Encode gives the token ids of a text; flags abi.Text...
func Encode(s string, flags uint32) ([]int32, error) {
	at, n := str(s)
	return whole(func(out *int32, max uint32) int32 { return abi.Encode(at, n, flags, out, max) })
}

// Piece gives the bytes that one token stands for; flag abi.TextSpecial as for Decode.
func Piece(token int32, flags uint32) ([]byte, error) {
	return whole(func(out *byte, max uint32) int32 { return abi.TokenPiece(token, flags, out, max) })
}

// Decode gives the text of tokens; flag abi.TextSpecial shows control tokens.
func Decode(tokens []int32, flags uint32) (string, error) {
	return text(whole(func(out *byte, max uint32) int32 {
		return abi.Decode(unsafe.SliceData(tokens), uint32(len(tokens)), flags, out, max)
	}))
}

// ---- prompts ----

// Prompt is tokens for a generation to start from. Close gives its handle back; at the program's end that is done anyway.
type Prompt struct{ handle int32 }

func newPrompt(handle int32) (*Prompt, error) {
	if _, err := check(handle); err != nil {
		return nil, err
	}
	return &Prompt{handle}, nil
}

// OwnPrompt is the request's own.
func OwnPrompt() (*Prompt, error) { return newPrompt(abi.PromptOwn()) }

// ChatPrompt is the model's chat template over JSON messages and tools (or ""); flags abi.Chat...
func ChatPrompt(messages, tools string, flags uint32) (*Prompt, error) {
	m, nm := str(messages)
	t, nt := str(tools)
	return newPrompt(abi.PromptChat(m, nm, t, nt, flags))
}

// TextPrompt is a prompt from text; flags abi.Text...
func TextPrompt(s string, flags uint32) (*Prompt, error) {
	at, n := str(s)
	return newPrompt(abi.PromptText(at, n, flags))
}

// TokensPrompt is a prompt from token ids.
func TokensPrompt(tokens []int32) (*Prompt, error) {
	return newPrompt(abi.PromptTokens(unsafe.SliceData(tokens), uint32(len(tokens))))
}

// Tokens gives the prompt's token ids.
func (p *Prompt) Tokens() ([]int32, error) {
	return whole(func(out *int32, max uint32) int32 { return abi.PromptGetTokens(p.handle, out, max) })
}

// Handle is for calls of package abi.
func (p *Prompt) Handle() int32 { return p.handle }

// Text gives the prompt's text.
func (p *Prompt) Text() (string, error) {
	return text(whole(func(out *byte, max uint32) int32 { return abi.PromptGetText(p.handle, out, max) }))
}

// Close gives the handle back.
func (p *Prompt) Close() error {
	_, err := check(abi.Close(p.handle))
	return err
}

// ---- generations ----

// How tokens reach the world: through Generation.Events, straight to the client, or through Events with the right to take
// them back (see RunAhead).
const (
	ModeEvents = abi.ModeEvents
	ModePipe   = abi.ModePipe
	ModeAhead  = abi.ModeAhead
)

// An Option is what differs from the request's own parameters.
type Option func(*options)

type options struct {
	raw    abi.GenerateOptions
	stops  []abi.Bytes
	biases []abi.Bias
	keep   []string
}

func set(bit uint32, change func(*abi.GenerateOptions)) Option {
	return func(o *options) {
		o.raw.Set |= bit
		change(&o.raw)
	}
}

func MaxTokens(n int) Option {
	return set(abi.SetMaxTokens, func(o *abi.GenerateOptions) { o.MaxTokens = uint32(n) })
}

// Temperature 0 takes the most likely token each time.
func Temperature(t float32) Option {
	return set(abi.SetTemperature, func(o *abi.GenerateOptions) { o.Temperature = t })
}

func TopK(k int) Option {
	return set(abi.SetTopK, func(o *abi.GenerateOptions) { o.TopK = uint32(k) })
}

func TopP(p float32) Option {
	return set(abi.SetTopP, func(o *abi.GenerateOptions) { o.TopP = p })
}

func MinP(p float32) Option {
	return set(abi.SetMinP, func(o *abi.GenerateOptions) { o.MinP = p })
}

// Penalties are for tokens among the last lastN (0: all): repeat 1, frequency 0 and presence 0 are none.
func Penalties(repeat, frequency, presence float32, lastN int) Option {
	const bits = abi.SetRepeatPenalty | abi.SetFrequencyPenalty | abi.SetPresencePenalty | abi.SetPenaltyLastN
	return set(bits, func(o *abi.GenerateOptions) {
		o.RepeatPenalty, o.FrequencyPenalty, o.PresencePenalty, o.PenaltyLastN = repeat, frequency, presence, uint32(lastN)
	})
}

// Biased adds to the logits of tokens.
func Biased(list ...abi.Bias) Option {
	return func(o *options) {
		o.biases = append(o.biases, list...)
		o.raw.Set |= abi.SetBias
		o.raw.Bias = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(o.biases))))
		o.raw.NBias = uint32(len(o.biases))
	}
}

// RunAhead says how many tokens (1 to 64) the host may be ahead of Generation.Confirm in ModeAhead; then it waits.
func RunAhead(n int) Option {
	return func(o *options) { o.raw.RunAhead = uint32(n) }
}

func Seed(seed uint64) Option {
	return set(abi.SetSeed, func(o *abi.GenerateOptions) { o.Seed = seed })
}

// Stop ends the answer in front of any of these strings.
func Stop(strings ...string) Option {
	return func(o *options) {
		o.raw.Set |= abi.SetStop
		for _, s := range strings {
			o.keep = append(o.keep, s)
			o.stops = append(o.stops, abi.Bytes{Ptr: uint64(uintptr(unsafe.Pointer(unsafe.StringData(s)))), Len: uint64(len(s))})
		}
		o.raw.Stop = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(o.stops))))
		o.raw.NStop = uint32(len(o.stops))
	}
}

// Flags are abi.Generate...
func Flags(flags uint32) Option {
	return set(abi.SetFlags, func(o *abi.GenerateOptions) { o.Flags = flags })
}

func optionsOf(list []Option) *options {
	o := &options{}
	o.raw.Size = uint32(unsafe.Sizeof(o.raw))
	for _, option := range list {
		option(o)
	}
	return o
}

// Generation is a running decode.
type Generation struct {
	handle  int32
	done    bool
	finish  uint32
	pending []Event // taken from the host, not from Events yet
	failure error   // behind them
}

// Generate starts one; what the options do not set is the request's own.
func (p *Prompt) Generate(mode uint32, list ...Option) (*Generation, error) {
	o := optionsOf(list)
	handle, err := check(abi.Generate(p.handle, &o.raw, mode))
	runtime.KeepAlive(o)
	if err != nil {
		return nil, err
	}
	return &Generation{handle: int32(handle)}, nil
}

// Event is one token: its id and the text that it completes, which may be empty.
type Event struct {
	Token   int32 // -1 for text that was held back until the end
	Logprob float32
	Text    string
}

func (g *Generation) fetch() {
	events := make([]abi.GuestEvent, 64)
	buffer := make([]byte, 16384)
	var n int
	n, g.failure = check(abi.Wait(g.handle, unsafe.SliceData(events), uint32(len(events)), unsafe.SliceData(buffer),
		uint32(len(buffer)), -1))
	for _, e := range events[:n] {
		if e.Kind == abi.EventKindEnd {
			g.done, g.finish = true, e.Finish
			_, g.failure = check(e.Status)
		}
		if e.Kind == abi.EventKindToken || e.TextLen > 0 {
			g.pending = append(g.pending, Event{e.Token, e.Logprob, string(buffer[e.TextAt : e.TextAt+e.TextLen])})
		}
	}
}

// Events gives tokens as they come, until the generation's end or its failure. A loop that was left goes on with the
// next one.
func (g *Generation) Events() iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for {
			for len(g.pending) > 0 {
				next := g.pending[0]
				g.pending = g.pending[1:]
				if !yield(next, nil) {
					return
				}
			}
			if g.failure != nil {
				yield(Event{}, g.failure)
				return
			}
			if g.done {
				return
			}
			g.fetch()
		}
	}
}

// Finish says how it ended (abi.End...), 0 before that.
func (g *Generation) Finish() uint32 { return g.finish }

// Text waits for the end and gives the text of what was still to come.
func (g *Generation) Text() (string, error) {
	var all []byte
	for e, err := range g.Events() {
		if err != nil {
			return string(all), err
		}
		all = append(all, e.Text...)
	}
	return string(all), nil
}

// Confirm says, in ModeAhead, that the first n generated tokens stay, so that the host goes on: all that it is ahead must
// not be waited for unconfirmed.
func (g *Generation) Confirm(n int) error {
	_, err := check(abi.Confirm(g.handle, uint32(n)))
	return err
}

// Rewind, in ModeAhead, drops what was generated behind the first keep tokens, puts others there and goes on, also from
// the end. A loop over Events goes on with what follows them.
func (g *Generation) Rewind(keep int, tokens ...int32) error {
	_, err := check(abi.Rewind(g.handle, uint32(keep), unsafe.SliceData(tokens), uint32(len(tokens))))
	if err == nil {
		g.pending, g.failure, g.done, g.finish = nil, nil, false, 0
	}
	return err
}

// Handle is for calls of package abi.
func (g *Generation) Handle() int32 { return g.handle }

// Usage says how many tokens it was charged so far.
func (g *Generation) Usage() (abi.GuestUsage, error) {
	var out abi.GuestUsage
	_, err := check(abi.Usage(g.handle, &out))
	return out, err
}

// Cancel ends it; its events end.
func (g *Generation) Cancel() error {
	_, err := check(abi.Cancel(g.handle))
	return err
}

// Close gives the handle back; a generation that still runs is cancelled.
func (g *Generation) Close() error {
	_, err := check(abi.Close(g.handle))
	return err
}
