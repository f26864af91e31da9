//! For programs in Rust: what a tenant's program calls on its host.
//!
//! A program exports `realm_main` with [`entry!`]; it reads the request with [`input`], starts generations from a
//! [`Prompt`], hands text out with [`emit`] or lets tokens go straight to the client ([`Mode::Pipe`]). Everything that
//! can fail returns [`Result`]; handles are closed when they are dropped; buffers are the caller's, so that nothing here
//! allocates. `std` is not needed: with `#![no_std]`, [`no_std!`] brings the panic handler.
//!
//! [`abi`] is the whole interface as it is, for what has no wrapper.
#![no_std]

#[rustfmt::skip]
pub mod abi;
mod context;

pub use context::{Context, Grammar, Pass, PendingPass, Sampler};
use core::fmt::{self, Write};
use core::marker::PhantomData;

/// What the host answered instead of a result: one of `abi::E_*`. [`Error::text`] has the line of text that goes with
/// the last call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    pub code: i32,
}

pub type Result<T> = core::result::Result<T, Error>;

impl Error {
    pub const fn new(code: i32) -> Error {
        Error { code }
    }

    /// What the host says of the last call that failed, in the caller's buffer; cut to fit.
    pub fn text<'a>(&self, buffer: &'a mut [u8]) -> &'a str {
        let n = unsafe { abi::last_error(buffer.as_mut_ptr(), buffer.len()) };
        let n = if n < 0 { 0 } else { (n as usize).min(buffer.len()) };
        match core::str::from_utf8(&buffer[..n]) {
            Ok(text) => text,
            Err(e) => core::str::from_utf8(&buffer[..e.valid_up_to()]).unwrap_or(""),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", abi::code_text(self.code), self.code)
    }
}

fn check(result: i32) -> Result<usize> {
    if result < 0 {
        Err(Error::new(result))
    } else {
        Ok(result as usize)
    }
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    core::str::from_utf8(bytes).map_err(|_| Error::new(abi::E_FORMAT))
}

/// The part of a buffer that a call filled, which says how much it needed: more than there was is `E_RANGE`.
fn filled(buffer: &[u8], needed: i32) -> Result<&str> {
    let n = check(needed)?;
    utf8(buffer.get(..n).ok_or(Error::new(abi::E_RANGE))?)
}

/// Exports a function `fn() -> Result<()>` as the program's `realm_main`.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[no_mangle]
        pub extern "C" fn realm_main() -> i32 {
            let main: fn() -> $crate::Result<()> = $main;
            match main() {
                Ok(()) => 0,
                Err(e) => e.code,
            }
        }
        /// The version of the interface that this was built for, which the host reads before it runs anything.
        #[used]
        #[link_section = "realm.abi"]
        pub static REALM_ABI_VERSION: [u8; 4] = [
            $crate::abi::ABI_MINOR as u8,
            ($crate::abi::ABI_MINOR >> 8) as u8,
            $crate::abi::ABI_MAJOR as u8,
            ($crate::abi::ABI_MAJOR >> 8) as u8,
        ];
    };
}

/// The panic handler of a program without `std`: the message goes to the server's log, the program ends. And on WASI,
/// where nobody else brings them without `std`, the functions on memory that the compiler calls.
#[macro_export]
macro_rules! no_std {
    () => {
        #[cfg(target_os = "wasi")]
        mod realm_memory {
            // Volatile, so that no compiler takes a loop for the function that it is.
            #[no_mangle]
            unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
                (0..n).for_each(|i| to.add(i).write_volatile(*from.add(i)));
                to
            }
            #[no_mangle]
            unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
                if (to as usize) <= from as usize {
                    return memcpy(to, from, n);
                }
                (0..n).rev().for_each(|i| to.add(i).write_volatile(*from.add(i)));
                to
            }
            #[no_mangle]
            unsafe extern "C" fn memset(to: *mut u8, value: i32, n: usize) -> *mut u8 {
                (0..n).for_each(|i| to.add(i).write_volatile(value as u8));
                to
            }
            #[no_mangle]
            unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
                let differ = (0..n).find(|&i| *a.add(i) != *b.add(i));
                differ.map_or(0, |i| *a.add(i) as i32 - *b.add(i) as i32)
            }
            #[no_mangle]
            unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
                memcmp(a, b, n)
            }
        }
        #[panic_handler]
        fn panic(info: &core::panic::PanicInfo) -> ! {
            $crate::log_panic(info);
            core::arch::wasm32::unreachable()
        }
    };
}

#[doc(hidden)]
pub fn log_panic(info: &dyn fmt::Display) {
    let mut line = Text::<512>::new();
    let _ = write!(line, "{}", info);
    let _ = log(Level::Error, line.as_str());
}

// ---- input and output ----

/// The whole request as JSON, in the caller's buffer.
pub fn request(buffer: &mut [u8]) -> Result<&str> {
    let n = unsafe { abi::input(core::ptr::null(), 0, buffer.as_mut_ptr(), buffer.len()) };
    filled(buffer, n)
}

/// A top-level field of the request: a string as its text, anything else as JSON; `None` when there is no such field.
pub fn input<'a>(name: &str, buffer: &'a mut [u8]) -> Result<Option<&'a str>> {
    match unsafe { abi::input(name.as_ptr(), name.len(), buffer.as_mut_ptr(), buffer.len()) } {
        abi::E_NOT_FOUND => Ok(None),
        n => filled(buffer, n).map(Some),
    }
}

/// Hands text to the client; waits while the client is slow.
pub fn emit(text: &str) -> Result<()> {
    check(unsafe { abi::emit(text.as_ptr(), text.len()) }).map(drop)
}

/// How the answer ends (`abi::END_STOP`, `abi::END_LENGTH`), where that is not how the last generation did.
pub fn finish(reason: u32) -> Result<()> {
    check(unsafe { abi::finish(reason) }).map(drop)
}

#[derive(Clone, Copy, Debug)]
pub enum Level {
    Debug,
    Info,
    Warning,
    Error,
}

/// A line in the server's log.
pub fn log(level: Level, text: &str) -> Result<()> {
    check(unsafe { abi::log(level as i32, text.as_ptr(), text.len()) }).map(drop)
}

/// `write!` to the client, or to a buffer with [`Text`].
pub struct Client;

impl Write for Client {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        emit(text).map_err(|_| fmt::Error)
    }
}

/// A text of at most N bytes, for `write!`; what does not fit is an error and nothing is cut in silence.
pub struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    pub const fn new() -> Self {
        Text { bytes: [0; N], len: 0 }
    }

    /// Adds a text; `E_RANGE` when it does not fit.
    pub fn push(&mut self, text: &str) -> Result<()> {
        self.write_str(text).map_err(|_| Error::new(abi::E_RANGE))
    }

    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Keeps the first `len` bytes, where a character ends there.
    pub fn truncate(&mut self, len: usize) {
        if len <= self.len && self.as_str().is_char_boundary(len) {
            self.len = len;
        }
    }

    pub fn make_ascii_uppercase(&mut self) {
        self.bytes[..self.len].make_ascii_uppercase();
    }

    pub fn as_str(&self) -> &str {
        // Only whole strings were written, and ASCII letters changed.
        unsafe { core::str::from_utf8_unchecked(&self.bytes[..self.len]) }
    }
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Write for Text<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let to = self.bytes.get_mut(self.len..self.len + text.len()).ok_or(fmt::Error)?;
        to.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

// ---- about the host ----

/// What this instance may use.
pub fn limits() -> Result<abi::GuestLimits> {
    let mut limits = abi::GuestLimits::default();
    check(unsafe { abi::limits_get(&mut limits, core::mem::size_of_val(&limits)) })?;
    Ok(limits)
}

/// Milliseconds of `abi::CLOCK_MONOTONIC` or `abi::CLOCK_WALL`.
pub fn clock_ms(clock: u32) -> Result<i64> {
    let mut ms = 0;
    check(unsafe { abi::clock_ms(clock, &mut ms) })?;
    Ok(ms)
}

/// Random bytes, at most 64 KiB.
pub fn random(out: &mut [u8]) -> Result<()> {
    check(unsafe { abi::random(out.as_mut_ptr(), out.len()) }).map(drop)
}

// ---- text ----

fn part<T>(buffer: &[T], needed: i32) -> Result<&[T]> {
    buffer.get(..check(needed)?).ok_or(Error::new(abi::E_RANGE))
}

/// Token ids of a text; flags `abi::TEXT_*`.
pub fn encode<'a>(text: &str, flags: u32, out: &'a mut [i32]) -> Result<&'a [i32]> {
    let n = unsafe { abi::encode(text.as_ptr(), text.len(), flags, out.as_mut_ptr(), out.len()) };
    part(out, n)
}

/// Text of tokens; flag `abi::TEXT_SPECIAL` shows control tokens.
pub fn decode<'a>(tokens: &[i32], flags: u32, out: &'a mut [u8]) -> Result<&'a str> {
    let n = unsafe { abi::decode(tokens.as_ptr(), tokens.len(), flags, out.as_mut_ptr(), out.len()) };
    filled(out, n)
}

/// The bytes that one token stands for; flag `abi::TEXT_SPECIAL` as for [`decode`].
pub fn token_piece(token: i32, flags: u32, out: &mut [u8]) -> Result<&[u8]> {
    let n = unsafe { abi::token_piece(token, flags, out.as_mut_ptr(), out.len()) };
    part(out, n)
}

/// A handle of the host; closed when dropped.
#[derive(Debug)]
struct Handle(i32);

impl Handle {
    fn new(result: i32) -> Result<Handle> {
        check(result).map(|_| Handle(result))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        unsafe { abi::close(self.0) };
    }
}

// ---- prompts and generations ----

/// Tokens for a generation to start from.
#[derive(Debug)]
pub struct Prompt(Handle);

impl Prompt {
    /// The request's own.
    pub fn own() -> Result<Prompt> {
        Handle::new(unsafe { abi::prompt_own() }).map(Prompt)
    }

    /// The model's chat template over JSON messages and tools (or ""); flags `abi::CHAT_*`.
    pub fn chat(messages: &str, tools: &str, flags: u32) -> Result<Prompt> {
        Handle::new(unsafe { abi::prompt_chat(messages.as_ptr(), messages.len(), tools.as_ptr(), tools.len(), flags) })
            .map(Prompt)
    }

    /// From text; flags `abi::TEXT_*`.
    pub fn text(text: &str, flags: u32) -> Result<Prompt> {
        Handle::new(unsafe { abi::prompt_text(text.as_ptr(), text.len(), flags) }).map(Prompt)
    }

    pub fn tokens(tokens: &[i32]) -> Result<Prompt> {
        Handle::new(unsafe { abi::prompt_tokens(tokens.as_ptr(), tokens.len()) }).map(Prompt)
    }

    /// How many tokens it has.
    pub fn len(&self) -> Result<usize> {
        check(unsafe { abi::prompt_get_tokens(self.0 .0, core::ptr::null_mut(), 0) })
    }

    pub fn is_empty(&self) -> Result<bool> {
        self.len().map(|n| n == 0)
    }

    pub fn get_tokens<'a>(&self, out: &'a mut [i32]) -> Result<&'a [i32]> {
        let n = unsafe { abi::prompt_get_tokens(self.0 .0, out.as_mut_ptr(), out.len()) };
        part(out, n)
    }

    pub fn get_text<'a>(&self, out: &'a mut [u8]) -> Result<&'a str> {
        let n = unsafe { abi::prompt_get_text(self.0 .0, out.as_mut_ptr(), out.len()) };
        filled(out, n)
    }

    /// For calls of [`abi`].
    pub fn handle(&self) -> i32 {
        self.0 .0
    }

    /// Starts a generation.
    pub fn generate(&self, options: &Options, mode: Mode) -> Result<Generation> {
        Handle::new(unsafe { abi::generate(self.0 .0, &options.raw, mode as u32) }).map(Generation)
    }
}

/// How tokens reach the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Through [`Generation::wait`].
    Events = abi::MODE_EVENTS as isize,
    /// Straight to the client; `wait` brings the end alone. One at a time.
    Pipe = abi::MODE_PIPE as isize,
    /// Through [`Generation::wait`], with the right to take tokens back: see [`Options::run_ahead`].
    Ahead = abi::MODE_AHEAD as isize,
}

/// What differs from the request's own parameters.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    raw: abi::GenerateOptions,
    borrowed: PhantomData<&'a ()>,
}

impl<'a> Options<'a> {
    /// The request's own parameters.
    pub fn new() -> Options<'a> {
        let raw =
            abi::GenerateOptions { size: core::mem::size_of::<abi::GenerateOptions>() as u32, ..Default::default() };
        Options { raw, borrowed: PhantomData }
    }

    pub fn max_tokens(mut self, n: u32) -> Self {
        self.raw.max_tokens = n;
        self.raw.set |= abi::SET_MAX_TOKENS;
        self
    }

    /// 0: the most likely token each time.
    pub fn temperature(mut self, t: f32) -> Self {
        self.raw.temperature = t;
        self.raw.set |= abi::SET_TEMPERATURE;
        self
    }

    pub fn top_k(mut self, k: u32) -> Self {
        self.raw.top_k = k;
        self.raw.set |= abi::SET_TOP_K;
        self
    }

    pub fn top_p(mut self, p: f32) -> Self {
        self.raw.top_p = p;
        self.raw.set |= abi::SET_TOP_P;
        self
    }

    pub fn min_p(mut self, p: f32) -> Self {
        self.raw.min_p = p;
        self.raw.set |= abi::SET_MIN_P;
        self
    }

    /// For tokens among the last `last_n` (0: all): repeat 1, frequency 0 and presence 0 are none.
    pub fn penalties(mut self, repeat: f32, frequency: f32, presence: f32, last_n: u32) -> Self {
        self.raw.repeat_penalty = repeat;
        self.raw.frequency_penalty = frequency;
        self.raw.presence_penalty = presence;
        self.raw.penalty_last_n = last_n;
        self.raw.set |= abi::SET_REPEAT_PENALTY | abi::SET_FREQUENCY_PENALTY;
        self.raw.set |= abi::SET_PRESENCE_PENALTY | abi::SET_PENALTY_LAST_N;
        self
    }

    /// Adds to the logits of tokens.
    pub fn bias(mut self, list: &'a [abi::Bias]) -> Self {
        self.raw.bias = list.as_ptr() as usize as u64;
        self.raw.n_bias = list.len() as u32;
        self.raw.set |= abi::SET_BIAS;
        self
    }

    /// Draws with a sampler, whose state is copied, instead of the other options.
    pub fn sampler(mut self, sampler: &'a Sampler) -> Self {
        self.raw.sampler = sampler.handle();
        self.raw.set |= abi::SET_SAMPLER;
        self
    }

    /// How many tokens (1 to 64) the host may be ahead of [`Generation::confirm`] in [`Mode::Ahead`]; then it waits.
    pub fn run_ahead(mut self, n: u32) -> Self {
        self.raw.run_ahead = n;
        self
    }

    pub fn seed(mut self, seed: u64) -> Self {
        self.raw.seed = seed;
        self.raw.set |= abi::SET_SEED;
        self
    }

    /// Ends the answer in front of any of these strings; see [`bytes`].
    pub fn stop(mut self, strings: &'a [abi::Bytes]) -> Self {
        self.raw.stop = strings.as_ptr() as usize as u64;
        self.raw.n_stop = strings.len() as u32;
        self.raw.set |= abi::SET_STOP;
        self
    }

    /// Only what the grammar allows from where it stands; its state is copied.
    pub fn grammar(mut self, grammar: &'a Grammar) -> Self {
        self.raw.grammar = grammar.handle();
        self.raw.set |= abi::SET_GRAMMAR;
        self
    }

    /// `abi::GENERATE_*`.
    pub fn flags(mut self, flags: u32) -> Self {
        self.raw.flags = flags;
        self.raw.set |= abi::SET_FLAGS;
        self
    }
}

impl<'a> Default for Options<'a> {
    fn default() -> Self {
        Self::new()
    }
}

/// A string as [`Options::stop`] takes it. It must outlive the options.
pub fn bytes(text: &'static str) -> abi::Bytes {
    abi::Bytes { ptr: text.as_ptr() as usize as u64, len: text.len() as u64 }
}

/// A running decode; cancelled when dropped before its end.
#[derive(Debug)]
pub struct Generation(Handle);

/// Room for the events of one [`Generation::wait`]: up to N of them with up to BYTES of text.
pub struct Events<const N: usize, const BYTES: usize> {
    events: [abi::GuestEvent; N],
    text: [u8; BYTES],
}

impl<const N: usize, const BYTES: usize> Events<N, BYTES> {
    pub fn new() -> Self {
        Events { events: [abi::GuestEvent::default(); N], text: [0; BYTES] }
    }
}

impl<const N: usize, const BYTES: usize> Default for Events<N, BYTES> {
    fn default() -> Self {
        Self::new()
    }
}

/// What has come since the last wait.
pub struct Batch<'a> {
    events: &'a [abi::GuestEvent],
    text: &'a [u8],
}

impl<'a> Batch<'a> {
    /// The text of all events, one after the other.
    pub fn text(&self) -> Result<&'a str> {
        utf8(self.text)
    }

    pub fn tokens(&self) -> impl Iterator<Item = &'a abi::GuestEvent> {
        self.events.iter().filter(|e| e.kind == abi::EVENT_KIND_TOKEN)
    }

    /// The text of one of its events.
    pub fn text_of(&self, event: &abi::GuestEvent) -> Result<&'a str> {
        let from = event.text_at as usize;
        utf8(self.text.get(from..from + event.text_len as usize).ok_or(Error::new(abi::E_RANGE))?)
    }

    /// `Some` when the generation has ended: how (`abi::END_*`), or with what failure.
    pub fn end(&self) -> Option<Result<u32>> {
        let last = self.events.last().filter(|e| e.kind == abi::EVENT_KIND_END)?;
        Some(check(last.status).map(|_| last.finish))
    }
}

impl Generation {
    /// Waits for events of this generation and takes all that have come.
    pub fn wait<'a, const N: usize, const BYTES: usize>(&self, room: &'a mut Events<N, BYTES>) -> Result<Batch<'a>> {
        let n = check(unsafe { abi::wait(self.0 .0, room.events.as_mut_ptr(), N, room.text.as_mut_ptr(), BYTES, -1) })?;
        let events = &room.events[..n];
        let len = events.last().map_or(0, |e| (e.text_at + e.text_len) as usize);
        Ok(Batch { events, text: room.text.get(..len).ok_or(Error::new(abi::E_RANGE))? })
    }

    /// In [`Mode::Ahead`]: the first n generated tokens stay, so that the host goes on. All that it is ahead must not be
    /// waited for unconfirmed.
    pub fn confirm(&self, n: u32) -> Result<()> {
        check(unsafe { abi::confirm(self.0 .0, n) }).map(drop)
    }

    /// In [`Mode::Ahead`]: drops what was generated behind the first `keep` tokens, puts others there and goes on, also
    /// from the end. The next wait brings what follows them.
    pub fn rewind(&self, keep: u32, tokens: &[i32]) -> Result<()> {
        check(unsafe { abi::rewind(self.0 .0, keep, tokens.as_ptr(), tokens.len()) }).map(drop)
    }

    /// For calls of [`abi`].
    pub fn handle(&self) -> i32 {
        self.0 .0
    }

    /// Tokens charged so far.
    pub fn usage(&self) -> Result<abi::GuestUsage> {
        let mut usage = abi::GuestUsage::default();
        check(unsafe { abi::usage(self.0 .0, &mut usage) })?;
        Ok(usage)
    }

    /// Ends it; its end comes as an event.
    pub fn cancel(&self) -> Result<()> {
        check(unsafe { abi::cancel(self.0 .0) }).map(drop)
    }
}

impl Generation {
    /// Waits for the end and gives what is still to come, in the caller's buffer.
    pub fn text<'a>(&self, out: &'a mut [u8]) -> Result<&'a str> {
        let mut len = 0;
        loop {
            let mut events = [abi::GuestEvent::default(); 32];
            let room = &mut out[len..];
            let n = check(unsafe { abi::wait(self.0 .0, events.as_mut_ptr(), 32, room.as_mut_ptr(), room.len(), -1) })?;
            len += events[..n].iter().map(|e| e.text_len as usize).sum::<usize>();
            if let Some(last) = events[..n].last() {
                if last.kind == abi::EVENT_KIND_END {
                    check(last.status)?;
                    return utf8(&out[..len]);
                }
            }
        }
    }
}

/// One user message in, the answer out, in the caller's buffer: a whole generation.
pub fn ask<'a>(question: &str, options: &Options, out: &'a mut [u8]) -> Result<&'a str> {
    let mut raw = options.raw;
    raw.flags |= abi::GENERATE_CHAT;
    let n =
        unsafe { abi::realm_host_generate(0, question.as_ptr(), question.len(), &raw, out.as_mut_ptr(), out.len()) };
    filled(out, n)
}

// ---- models and the tenant's store ----

/// The id of a model that the server offers under this name.
pub fn find_model(name: &str) -> Result<i32> {
    check(unsafe { abi::model_find(name.as_ptr(), name.len()) }).map(|id| id as i32)
}

/// The model of text, prompts, grammars and new contexts from now on (0: the request's own); the one before.
pub fn use_model(id: i32) -> Result<i32> {
    check(unsafe { abi::model_use(id) }).map(|id| id as i32)
}

/// A value of the tenant's store, which all its requests share; `None` when there is no such key.
pub fn store_get<'a>(key: &str, out: &'a mut [u8]) -> Result<Option<&'a [u8]>> {
    match unsafe { abi::store_get(key.as_ptr(), key.len(), out.as_mut_ptr(), out.len()) } {
        abi::E_NOT_FOUND => Ok(None),
        n => part(out, n).map(Some),
    }
}

/// Sets a value, durably.
pub fn store_put(key: &str, value: &[u8]) -> Result<()> {
    check(unsafe { abi::store_put(key.as_ptr(), key.len(), value.as_ptr(), value.len()) }).map(drop)
}

/// Keys with a prefix, in order, behind `after`: as many as fit into the caller's buffer, none when there are no more.
pub fn store_list<'a>(prefix: &str, after: &str, out: &'a mut [u8]) -> Result<impl Iterator<Item = &'a str>> {
    let (max, to) = (out.len(), out.as_mut_ptr());
    let n = unsafe { abi::store_list(prefix.as_ptr(), prefix.len(), after.as_ptr(), after.len(), to, max) };
    Ok(filled(out, n)?.split_terminator('\0'))
}

/// Removes a key; false when it was not there.
pub fn store_delete(key: &str) -> Result<bool> {
    match unsafe { abi::store_delete(key.as_ptr(), key.len()) } {
        abi::E_NOT_FOUND => Ok(false),
        n => check(n).map(|_| true),
    }
}
