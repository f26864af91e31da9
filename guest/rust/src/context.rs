//! Contexts, forward passes, what their logits say, samplers and grammars: for programs that decide on tokens themselves.

use crate::{abi, check, part, Error, Generation, Handle, Mode, Options, Prompt, Result};

/// A token sequence and, once computed, its KV pages.
#[derive(Debug)]
pub struct Context(Handle);

impl Context {
    pub fn new() -> Result<Context> {
        Handle::new(unsafe { abi::context_new() }).map(Context)
    }

    /// A fork of one that was saved under a name, by this request or an earlier one of the tenant.
    pub fn open(name: &str) -> Result<Context> {
        Handle::new(unsafe { abi::context_open(name.as_ptr(), name.len()) }).map(Context)
    }

    /// Forgets a saved one.
    pub fn forget(name: &str) -> Result<()> {
        check(unsafe { abi::context_drop(name.as_ptr(), name.len()) }).map(drop)
    }

    /// Keeps a copy under a name, for later requests of the tenant.
    pub fn save(&self, name: &str) -> Result<()> {
        check(unsafe { abi::context_save(self.0 .0, name.as_ptr(), name.len()) }).map(drop)
    }

    /// Adds tokens, to be computed with the next pass or generation; the new length.
    pub fn append(&self, tokens: &[i32]) -> Result<usize> {
        check(unsafe { abi::context_append(self.0 .0, tokens.as_ptr(), tokens.len()) })
    }

    pub fn append_prompt(&self, prompt: &Prompt) -> Result<usize> {
        check(unsafe { abi::context_append_prompt(self.0 .0, prompt.0 .0) })
    }

    /// A second one with the same tokens; pages are shared until one of the two writes to them.
    pub fn fork(&self) -> Result<Context> {
        Handle::new(unsafe { abi::context_fork(self.0 .0) }).map(Context)
    }

    /// Keeps the first n tokens.
    pub fn truncate(&self, n: usize) -> Result<()> {
        check(unsafe { abi::context_truncate(self.0 .0, n as u32) }).map(drop)
    }

    pub fn stat(&self) -> Result<abi::GuestContext> {
        let mut out = abi::GuestContext::default();
        check(unsafe { abi::context_stat(self.0 .0, &mut out) })?;
        Ok(out)
    }

    /// Its tokens from a position on, as many as there are and fit.
    pub fn tokens<'a>(&self, from: usize, out: &'a mut [i32]) -> Result<&'a [i32]> {
        let n = unsafe { abi::context_get_tokens(self.0 .0, from as u32, out.as_mut_ptr(), out.len()) };
        part(out, n)
    }

    /// Adds tokens, computes what is not computed yet and waits for it: the logits of the last `rows` tokens.
    pub fn forward(&self, tokens: &[i32], rows: u32, flags: u32) -> Result<Pass> {
        self.start_forward(tokens, rows, flags)?.wait()
    }

    /// Begins what [`Context::forward`] does: what the program does until it waits is done while the pass is computed,
    /// and passes that are under way at the same time are one batch. The context is busy until then.
    pub fn start_forward(&self, tokens: &[i32], rows: u32, flags: u32) -> Result<PendingPass> {
        Handle::new(unsafe { abi::forward(self.0 .0, tokens.as_ptr(), tokens.len(), rows, flags) }).map(PendingPass)
    }

    /// Goes on from here; what is generated becomes part of the context.
    pub fn generate(&self, options: &Options, mode: Mode) -> Result<Generation> {
        let mut raw = options.raw;
        raw.context = self.0 .0;
        raw.set |= abi::SET_CONTEXT;
        Handle::new(unsafe { abi::generate(0, &raw, mode as u32) }).map(Generation)
    }

    /// For calls of [`abi`].
    pub fn handle(&self) -> i32 {
        self.0 .0
    }
}

/// A forward pass that was begun; given up when it is dropped.
#[derive(Debug)]
pub struct PendingPass(Handle);

impl PendingPass {
    /// Waits until it is done.
    pub fn wait(self) -> Result<Pass> {
        let mut end = abi::GuestEvent::default();
        check(unsafe { abi::wait(self.0 .0, &mut end, 1, core::ptr::null_mut(), 0, -1) })?;
        check(end.status)?;
        Ok(Pass(self.0))
    }

    /// For calls of [`abi`].
    pub fn handle(&self) -> i32 {
        self.0 .0
    }
}

/// A forward pass that is done: rows of logits, the last of them for the token that comes next.
#[derive(Debug)]
pub struct Pass(Handle);

impl Pass {
    /// Draws a token with a sampler, or the most likely one, and tells its log-probability.
    pub fn sample(&self, row: u32, sampler: Option<&Sampler>) -> Result<abi::GuestToken> {
        let mut logprob = 0.0;
        let handle = sampler.map_or(0, |s| s.0 .0);
        let token = check(unsafe { abi::logits_sample(self.0 .0, row, handle, &mut logprob) })? as i32;
        Ok(abi::GuestToken { token, logprob })
    }

    /// The most likely tokens, as many as there is room for.
    pub fn top<'a>(&self, row: u32, out: &'a mut [abi::GuestToken]) -> Result<&'a [abi::GuestToken]> {
        let n = unsafe { abi::logits_top(self.0 .0, row, out.len() as u32, out.as_mut_ptr(), out.len()) };
        part(out, n)
    }

    /// Log-probabilities of given tokens; both slices have one length.
    pub fn gather(&self, row: u32, tokens: &[i32], logprobs: &mut [f32]) -> Result<()> {
        if tokens.len() != logprobs.len() {
            return Err(Error::new(abi::E_INVALID));
        }
        check(unsafe { abi::logits_gather(self.0 .0, row, tokens.as_ptr(), tokens.len(), logprobs.as_mut_ptr()) })
            .map(drop)
    }

    pub fn stats(&self, row: u32) -> Result<abi::GuestLogitStats> {
        let mut out = abi::GuestLogitStats::default();
        check(unsafe { abi::logits_stats(self.0 .0, row, &mut out) })?;
        Ok(out)
    }

    /// A whole row, as many values as the vocabulary has. Metered (`read_bytes`).
    pub fn logits<'a>(&self, row: u32, out: &'a mut [f32]) -> Result<&'a [f32]> {
        let n = unsafe { abi::logits_read(self.0 .0, row, out.as_mut_ptr(), out.len()) };
        part(out, n)
    }

    /// The hidden state of a row after the final norm, the embedding of the text up to there, of a pass with
    /// `abi::FORWARD_HIDDEN` among its flags. Metered (`read_bytes`).
    pub fn hidden<'a>(&self, row: u32, out: &'a mut [f32]) -> Result<&'a [f32]> {
        let n = unsafe { abi::hidden_read(self.0 .0, row, out.as_mut_ptr(), out.len()) };
        part(out, n)
    }

    /// Adds to the logits of given tokens.
    pub fn bias(&self, row: u32, bias: &[abi::Bias]) -> Result<()> {
        check(unsafe { abi::logits_bias(self.0 .0, row, bias.as_ptr(), bias.len()) }).map(drop)
    }

    /// Keeps the tokens whose bit is set.
    pub fn mask(&self, row: u32, bits: &[u8]) -> Result<()> {
        check(unsafe { abi::logits_mask(self.0 .0, row, bits.as_ptr(), bits.len()) }).map(drop)
    }

    /// For calls of [`abi`].
    pub fn handle(&self) -> i32 {
        self.0 .0
    }
}

/// A chain of stages that the host runs; see `abi::STAGE_*`.
#[derive(Debug)]
pub struct Sampler(Handle);

impl Sampler {
    pub fn new(stages: &[abi::SamplerStage], seed: u64) -> Result<Sampler> {
        Handle::new(unsafe { abi::sampler_new(stages.as_ptr(), stages.len(), seed) }).map(Sampler)
    }

    /// A copy with the same history.
    pub fn fork(&self) -> Result<Sampler> {
        Handle::new(unsafe { abi::sampler_fork(self.0 .0) }).map(Sampler)
    }

    /// Takes note of tokens that were not drawn with it.
    pub fn accept(&self, tokens: &[i32]) -> Result<()> {
        check(unsafe { abi::sampler_accept(self.0 .0, tokens.as_ptr(), tokens.len()) }).map(drop)
    }

    /// Takes note of the tokens of a prompt.
    pub fn prompt(&self, tokens: &[i32]) -> Result<()> {
        check(unsafe { abi::sampler_prompt(self.0 .0, tokens.as_ptr(), tokens.len()) }).map(drop)
    }

    /// For calls of [`abi`].
    pub fn handle(&self) -> i32 {
        self.0 .0
    }
}

/// A JSON Schema, a regular expression or a Lark grammar, and how far a text has come in it.
#[derive(Debug)]
pub struct Grammar(Handle);

impl Grammar {
    /// kind: `abi::GRAMMAR_JSON_SCHEMA`, `GRAMMAR_REGEX` or `GRAMMAR_LARK`.
    pub fn new(kind: u32, text: &str) -> Result<Grammar> {
        Handle::new(unsafe { abi::grammar_compile(kind, text.as_ptr(), text.len()) }).map(Grammar)
    }

    /// A copy in the same state.
    pub fn fork(&self) -> Result<Grammar> {
        Handle::new(unsafe { abi::grammar_fork(self.0 .0) }).map(Grammar)
    }

    /// Goes on by as many of the tokens as are allowed; how many.
    pub fn accept(&self, tokens: &[i32]) -> Result<usize> {
        check(unsafe { abi::grammar_accept(self.0 .0, tokens.as_ptr(), tokens.len()) })
    }

    pub fn rollback(&self, n: u32) -> Result<()> {
        check(unsafe { abi::grammar_rollback(self.0 .0, n) }).map(drop)
    }

    /// The tokens that may come next, for [`Pass::mask`].
    pub fn mask(&self, bits: &mut [u8]) -> Result<()> {
        check(unsafe { abi::grammar_mask(self.0 .0, bits.as_mut_ptr(), bits.len()) }).map(drop)
    }

    /// Bits `abi::GRAMMAR_CAN_END` and `GRAMMAR_MUST_END`.
    pub fn state(&self) -> Result<usize> {
        check(unsafe { abi::grammar_state(self.0 .0) })
    }

    /// For calls of [`abi`].
    pub fn handle(&self) -> i32 {
        self.0 .0
    }
}
