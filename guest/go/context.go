package realm

import (
	"runtime"
	"strings"
	"unsafe"

	"realm/abi"
)

// Context is a token sequence and, once computed, its KV pages.
type Context struct{ handle int32 }

func newContext(handle int32) (*Context, error) {
	if _, err := check(handle); err != nil {
		return nil, err
	}
	return &Context{handle}, nil
}

// NewContext is an empty one.
func NewContext() (*Context, error) { return newContext(abi.ContextNew()) }

// OpenContext is a fork of one that was saved under a name, by this request or an earlier one of the tenant.
func OpenContext(name string) (*Context, error) { return newContext(abi.ContextOpen(str(name))) }

// ForgetContext drops a saved one.
func ForgetContext(name string) error {
	_, err := check(abi.ContextDrop(str(name)))
	return err
}

// Save keeps a copy under a name, for later requests of the tenant.
func (c *Context) Save(name string) error {
	at, n := str(name)
	_, err := check(abi.ContextSave(c.handle, at, n))
	return err
}

// Append adds tokens, to be computed with the next pass or generation, and gives the new length.
func (c *Context) Append(tokens ...int32) (int, error) {
	return check(abi.ContextAppend(c.handle, unsafe.SliceData(tokens), uint32(len(tokens))))
}

// AppendPrompt adds a prompt's tokens.
func (c *Context) AppendPrompt(p *Prompt) (int, error) {
	return check(abi.ContextAppendPrompt(c.handle, p.handle))
}

// Fork is a second one with the same tokens; pages are shared until one of the two writes to them.
func (c *Context) Fork() (*Context, error) { return newContext(abi.ContextFork(c.handle)) }

// Truncate keeps the first n tokens.
func (c *Context) Truncate(n int) error {
	_, err := check(abi.ContextTruncate(c.handle, uint32(n)))
	return err
}

// Stat says how long it is, how much is computed, and what it holds.
func (c *Context) Stat() (abi.GuestContext, error) {
	var out abi.GuestContext
	_, err := check(abi.ContextStat(c.handle, &out))
	return out, err
}

// Tokens gives its token ids from a position on.
func (c *Context) Tokens(from int) ([]int32, error) {
	stat, err := c.Stat()
	if err != nil || from >= int(stat.NTokens) {
		return nil, err
	}
	out := make([]int32, int(stat.NTokens)-from)
	n, err := check(abi.ContextGetTokens(c.handle, uint32(from), unsafe.SliceData(out), uint32(len(out))))
	return out[:n], err
}

// Forward adds tokens, computes what is not computed yet and waits for it: the logits of the last rows tokens.
func (c *Context) Forward(tokens []int32, rows int, flags uint32) (*Pass, error) {
	pending, err := c.StartForward(tokens, rows, flags)
	if err != nil {
		return nil, err
	}
	return pending.Wait()
}

// StartForward begins what Forward does: what the program does until it waits is done while the pass is computed, and
// passes that are under way at the same time are one batch. The context is busy until then.
func (c *Context) StartForward(tokens []int32, rows int, flags uint32) (*PendingPass, error) {
	handle, err := check(abi.Forward(c.handle, unsafe.SliceData(tokens), uint32(len(tokens)), uint32(rows), flags))
	if err != nil {
		return nil, err
	}
	return &PendingPass{int32(handle)}, nil
}

// Generate goes on from here; what is generated becomes part of the context.
func (c *Context) Generate(mode uint32, list ...Option) (*Generation, error) {
	o := optionsOf(list)
	o.raw.Context = c.handle
	o.raw.Set |= abi.SetContext
	handle, err := check(abi.Generate(0, &o.raw, mode))
	runtime.KeepAlive(o)
	if err != nil {
		return nil, err
	}
	return &Generation{handle: int32(handle)}, nil
}

// Handle is for calls of package abi.
func (c *Context) Handle() int32 { return c.handle }

// Close gives the handle back.
func (c *Context) Close() error {
	_, err := check(abi.Close(c.handle))
	return err
}

// PendingPass is a forward pass that was begun: to be waited for, or closed.
type PendingPass struct{ handle int32 }

// Wait waits until it is done. Its handle is then the pass's, or closed where it failed.
func (p *PendingPass) Wait() (*Pass, error) {
	var end abi.GuestEvent
	_, err := check(abi.Wait(p.handle, &end, 1, nil, 0, -1))
	if err == nil {
		_, err = check(end.Status)
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return &Pass{p.handle}, nil
}

// Handle is for calls of package abi.
func (p *PendingPass) Handle() int32 { return p.handle }

// Close gives the handle back; what is not computed yet is given up.
func (p *PendingPass) Close() error {
	_, err := check(abi.Close(p.handle))
	return err
}

// Pass is a forward pass that is done: rows of logits, the last of them for the token that comes next.
type Pass struct{ handle int32 }

// Sample draws a token with a sampler (nil: the most likely one) and tells its log-probability.
func (p *Pass) Sample(row int, s *Sampler) (abi.GuestToken, error) {
	var handle int32
	if s != nil {
		handle = s.handle
	}
	var out abi.GuestToken
	token, err := check(abi.LogitsSample(p.handle, uint32(row), handle, &out.Logprob))
	out.Token = int32(token)
	return out, err
}

// Top gives the k most likely tokens.
func (p *Pass) Top(row, k int) ([]abi.GuestToken, error) {
	out := make([]abi.GuestToken, k)
	n, err := check(abi.LogitsTop(p.handle, uint32(row), uint32(k), unsafe.SliceData(out), uint32(k)))
	return out[:n], err
}

// Gather gives the log-probabilities of given tokens.
func (p *Pass) Gather(row int, tokens []int32) ([]float32, error) {
	out := make([]float32, len(tokens))
	_, err := check(abi.LogitsGather(p.handle, uint32(row), unsafe.SliceData(tokens), uint32(len(tokens)),
		unsafe.SliceData(out)))
	return out, err
}

// Stats says how sure the model is.
func (p *Pass) Stats(row int) (abi.GuestLogitStats, error) {
	var out abi.GuestLogitStats
	_, err := check(abi.LogitsStats(p.handle, uint32(row), &out))
	return out, err
}

// Logits gives a whole row. Metered (read_bytes).
func (p *Pass) Logits(row int) ([]float32, error) {
	return whole(func(out *float32, max uint32) int32 { return abi.LogitsRead(p.handle, uint32(row), out, max) })
}

// Hidden gives the hidden state of a row after the final norm, the embedding of the text up to there, of a pass with
// abi.ForwardHidden among its flags. Metered (read_bytes).
func (p *Pass) Hidden(row int) ([]float32, error) {
	return whole(func(out *float32, max uint32) int32 { return abi.HiddenRead(p.handle, uint32(row), out, max) })
}

// Bias adds to the logits of given tokens.
func (p *Pass) Bias(row int, bias []abi.Bias) error {
	_, err := check(abi.LogitsBias(p.handle, uint32(row), unsafe.SliceData(bias), uint32(len(bias))))
	return err
}

// Mask keeps the tokens whose bit is set.
func (p *Pass) Mask(row int, bits []byte) error {
	_, err := check(abi.LogitsMask(p.handle, uint32(row), unsafe.Pointer(unsafe.SliceData(bits)), uint32(len(bits))))
	return err
}

// Handle is for calls of package abi.
func (p *Pass) Handle() int32 { return p.handle }

// Close gives the handle back.
func (p *Pass) Close() error {
	_, err := check(abi.Close(p.handle))
	return err
}

// Sampler is a chain of stages (abi.Stage...) that the host runs.
type Sampler struct{ handle int32 }

// NewSampler makes one; without stages it takes the most likely token.
func NewSampler(seed uint64, stages ...abi.SamplerStage) (*Sampler, error) {
	handle, err := check(abi.SamplerNew(unsafe.SliceData(stages), uint32(len(stages)), seed))
	if err != nil {
		return nil, err
	}
	return &Sampler{int32(handle)}, nil
}

// Fork is a copy with the same history.
func (s *Sampler) Fork() (*Sampler, error) {
	handle, err := check(abi.SamplerFork(s.handle))
	if err != nil {
		return nil, err
	}
	return &Sampler{int32(handle)}, nil
}

// Accept takes note of tokens that were not drawn with it.
func (s *Sampler) Accept(tokens ...int32) error {
	_, err := check(abi.SamplerAccept(s.handle, unsafe.SliceData(tokens), uint32(len(tokens))))
	return err
}

// Prompt takes note of the tokens of a prompt.
func (s *Sampler) Prompt(tokens ...int32) error {
	_, err := check(abi.SamplerPrompt(s.handle, unsafe.SliceData(tokens), uint32(len(tokens))))
	return err
}

// Handle is for calls of package abi.
func (s *Sampler) Handle() int32 { return s.handle }

// Close gives the handle back.
func (s *Sampler) Close() error {
	_, err := check(abi.Close(s.handle))
	return err
}

// Grammar is a JSON Schema, a regular expression or a Lark grammar, and how far a text has come in it.
type Grammar struct{ handle int32 }

// NewGrammar compiles one; kind is abi.GrammarJSONSchema, abi.GrammarRegex or abi.GrammarLark.
func NewGrammar(kind uint32, s string) (*Grammar, error) {
	at, n := str(s)
	handle, err := check(abi.GrammarCompile(kind, at, n))
	if err != nil {
		return nil, err
	}
	return &Grammar{int32(handle)}, nil
}

// Fork is a copy in the same state.
func (g *Grammar) Fork() (*Grammar, error) {
	handle, err := check(abi.GrammarFork(g.handle))
	if err != nil {
		return nil, err
	}
	return &Grammar{int32(handle)}, nil
}

// Accept goes on by as many of the tokens as are allowed and says how many.
func (g *Grammar) Accept(tokens ...int32) (int, error) {
	return check(abi.GrammarAccept(g.handle, unsafe.SliceData(tokens), uint32(len(tokens))))
}

// Rollback takes back the last n tokens.
func (g *Grammar) Rollback(n int) error {
	_, err := check(abi.GrammarRollback(g.handle, uint32(n)))
	return err
}

// Mask gives the tokens that may come next, for Pass.Mask.
func (g *Grammar) Mask() ([]byte, error) {
	limits, err := Limits()
	if err != nil {
		return nil, err
	}
	bits := make([]byte, (limits.Vocabulary+7)/8)
	_, err = check(abi.GrammarMask(g.handle, unsafe.Pointer(unsafe.SliceData(bits)), uint32(len(bits))))
	return bits, err
}

// State has the bits abi.GrammarCanEnd and abi.GrammarMustEnd.
func (g *Grammar) State() (int, error) { return check(abi.GrammarState(g.handle)) }

// Handle is for calls of package abi.
func (g *Grammar) Handle() int32 { return g.handle }

// Close gives the handle back.
func (g *Grammar) Close() error {
	_, err := check(abi.Close(g.handle))
	return err
}

// Using lets a generation draw with a sampler, whose state is copied, instead of the other options.
func Using(s *Sampler) Option {
	return set(abi.SetSampler, func(o *abi.GenerateOptions) { o.Sampler = s.handle })
}

// Within lets a generation write only what a grammar allows from where it stands; its state is copied.
func Within(g *Grammar) Option {
	return set(abi.SetGrammar, func(o *abi.GenerateOptions) { o.Grammar = g.handle })
}

// FindModel is the id of a model that the server offers under this name.
func FindModel(name string) (int32, error) {
	id, err := check(abi.ModelFind(str(name)))
	return int32(id), err
}

// UseModel says which model text, prompts, grammars and new contexts belong to from now on (0: the request's own), and
// gives the one before.
func UseModel(id int32) (int32, error) {
	before, err := check(abi.ModelUse(id))
	return int32(before), err
}

// StoreGet gives a value of the tenant's store, which all its requests share. ErrNotFound when there is no such key.
func StoreGet(key string) ([]byte, error) {
	at, n := str(key)
	return whole(func(out *byte, max uint32) int32 { return abi.StoreGet(at, n, unsafe.Pointer(out), max) })
}

// StorePut sets a value, durably.
func StorePut(key string, value []byte) error {
	at, n := str(key)
	_, err := check(abi.StorePut(at, n, unsafe.Pointer(unsafe.SliceData(value)), uint32(len(value))))
	return err
}

// StoreList gives the keys with a prefix, in order.
func StoreList(prefix string) ([]string, error) {
	var keys []string
	at, n := str(prefix)
	buffer := make([]byte, 4096) // a key has at most 256 bytes
	for after := ""; ; after = keys[len(keys)-1] {
		from, length := str(after)
		got, err := check(abi.StoreList(at, n, from, length, unsafe.SliceData(buffer), uint32(len(buffer))))
		if err != nil || got == 0 {
			return keys, err
		}
		keys = append(keys, strings.Split(string(buffer[:got-1]), "\x00")...)
	}
}

// StoreDelete removes a key.
func StoreDelete(key string) error {
	_, err := check(abi.StoreDelete(str(key)))
	return err
}
