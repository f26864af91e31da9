//! The C functions behind src/template: compile, render, free. The contract is in template.h; results are the numbers
//! of realm_status.

use crate::bounds::{self, Failure};
use crate::marks::{clean, is_noncharacter, needs_cleaning, Marks, Span};
use crate::rewrite::{Refused, Rewriter};
use crate::runtime::environment;
use minijinja::machinery::{make_string_output, parse, CodeGenerator, Instructions, Vm, WhitespaceConfig};
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, ErrorKind};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_void};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Once;

const OK: c_int = 0;
const E_INVALID: c_int = -1;
const E_FORMAT: c_int = -2;
const E_UNSUPPORTED: c_int = -3;
const E_NOMEM: c_int = -4;
const E_LIMIT: c_int = -8;
const E_INTERNAL: c_int = -18;

/// The tree of a template can be as deep as its source is long before its depth is looked at; address space only.
const COMPILE_STACK: usize = 256 << 20;

/// Variables that no argument may be called: what Realm sets itself, whether or not the model has it, and what would mean
/// another template.
const RESERVED: &[&str] = &["add_generation_prompt", "bos_token", "chat_template", "eos_token", "messages", "tools"];

type Failed = (c_int, String);

// --- what C sees ------------------------------------------------------------------------------------------------

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Str {
    data: *const u8,
    len: usize,
}

impl Str {
    /// # Safety
    /// `data` points to `len` readable bytes, or `len` is 0.
    unsafe fn bytes<'a>(self) -> &'a [u8] {
        if self.len == 0 {
            return &[];
        }
        std::slice::from_raw_parts(self.data, self.len)
    }
}

#[repr(C)]
pub struct Input {
    messages: Str,
    tools: Str,
    args: Str,
    values: Str,
    add_generation_prompt: bool,
    now_unix: i64,
}

#[repr(C)]
pub struct CSpan {
    start: usize,
    len: usize,
    special: bool,
}

/// Takes the result; what it returns is returned to the caller.
type Take =
    unsafe extern "C" fn(user: *mut c_void, text: *const u8, len: usize, spans: *const CSpan, n: usize) -> c_int;

pub struct Template {
    // Borrows `env` and `source`, which are dropped after it and never move: the order of these fields matters.
    instructions: Instructions<'static>,
    env: Box<Environment<'static>>,
    source: Box<str>,
    marks: Marks,
    bos: String,
    eos: String,
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`; a panic becomes an error, and is not printed.
fn guarded(error: *mut c_char, cap: usize, f: impl FnOnce() -> Result<(), Failed>) -> c_int {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                previous(info);
            }
        }));
    });
    let was = QUIET.replace(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    QUIET.set(was);
    let (code, text) = match result {
        Ok(Ok(())) => return OK,
        Ok(Err(failed)) => failed,
        Err(_) => (E_INTERNAL, "the template engine failed".to_string()),
    };
    if cap > 0 {
        let mut n = text.len().min(cap - 1);
        while !text.is_char_boundary(n) {
            n -= 1;
        }
        // SAFETY: the caller gives `cap` writable bytes at `error`, and n < cap.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr().cast(), error, n);
            *error.add(n) = 0;
        }
    }
    code
}

/// # Safety
/// As src/template/template.c calls it: every pointer valid for its length, `out` writable.
#[no_mangle]
pub unsafe extern "C" fn rdeps_template_open(
    source: Str,
    bos: Str,
    eos: Str,
    control: *const Str,
    n_control: usize,
    out: *mut *mut Template,
    error: *mut c_char,
    error_cap: usize,
) -> c_int {
    *out = std::ptr::null_mut();
    guarded(error, error_cap, || {
        let Ok(source) = std::str::from_utf8(source.bytes()) else {
            return Err((E_FORMAT, "the template is not UTF-8".into()));
        };
        let text = |s: Str| String::from_utf8(s.bytes().to_vec()).unwrap_or_default();
        let (bos, eos) = (text(bos), text(eos));
        let control = if n_control > 0 { std::slice::from_raw_parts(control, n_control) } else { &[] };
        let tokens: Vec<String> = control.iter().map(|s| text(*s)).chain([bos.clone(), eos.clone()]).collect();
        // Bytes that are not UTF-8, and noncharacters, cannot be in a literal.
        let usable = tokens.into_iter().filter(|t| !t.is_empty() && !t.chars().any(is_noncharacter));
        let marks = Marks::new(usable);

        let compiled = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("template".into())
                .stack_size(COMPILE_STACK)
                .spawn_scoped(scope, || {
                    QUIET.set(true);
                    compile(source, marks, &bos, &eos)
                })
                .map_err(|_| (E_NOMEM, "no thread to compile the template".to_string()))?;
            thread.join().unwrap_or_else(|_| Err((E_INTERNAL, "the template compiler failed".into())))
        })?;
        *out = Box::into_raw(compiled);
        Ok(())
    })
}

/// # Safety
/// `t` is NULL or from rdeps_template_open, and not in use.
#[no_mangle]
pub unsafe extern "C" fn rdeps_template_close(t: *mut Template) {
    if !t.is_null() {
        drop(Box::from_raw(t));
    }
}

/// # Safety
/// `t` is from rdeps_template_open; the pointers of `input` are valid for their lengths; `take` does not unwind.
#[no_mangle]
pub unsafe extern "C" fn rdeps_template_render(
    t: *const Template,
    input: *const Input,
    max_output: usize,
    take: Take,
    user: *mut c_void,
    error: *mut c_char,
    error_cap: usize,
) -> c_int {
    let mut taken = OK;
    let code = guarded(error, error_cap, || {
        let (text, spans) = render(&*t, &*input)?;
        if text.len() > max_output {
            return Err((E_LIMIT, format!("the result is longer than {max_output} bytes")));
        }
        let spans: Vec<CSpan> =
            spans.iter().map(|s| CSpan { start: s.start, len: s.len, special: s.special }).collect();
        taken = take(user, text.as_ptr(), text.len(), spans.as_ptr(), spans.len());
        Ok(())
    });
    if code == OK {
        taken
    } else {
        code
    }
}

/// # Safety
/// `t` is from rdeps_template_open; `take` does not unwind.
#[no_mangle]
pub unsafe extern "C" fn rdeps_template_names(
    t: *const Template,
    take: unsafe extern "C" fn(user: *mut c_void, name: *const u8, len: usize),
    user: *mut c_void,
    error: *mut c_char,
    error_cap: usize,
) -> c_int {
    guarded(error, error_cap, || {
        let t = &*t;
        let found = std::thread::scope(|scope| {
            let source: &str = &t.source;
            let thread = std::thread::Builder::new()
                .name("template".into())
                .stack_size(COMPILE_STACK)
                .spawn_scoped(scope, move || {
                    QUIET.set(true);
                    let env = environment();
                    let parsed = env.template_from_str(source).map_err(|e| (E_FORMAT, e.to_string()))?;
                    let known: Vec<&str> = env.globals().map(|(name, _)| name).collect();
                    let all = parsed.undeclared_variables(true).into_iter();
                    Ok(all.filter(|n| !known.contains(&n.split('.').next().unwrap_or(n))).collect::<Vec<String>>())
                })
                .map_err(|_| (E_NOMEM, "no thread to read the template".to_string()))?;
            thread.join().unwrap_or_else(|_| Err((E_INTERNAL, "the template compiler failed".into())))
        });
        let mut names = found?;
        names.sort();
        for name in names {
            take(user, name.as_ptr(), name.len());
        }
        Ok(())
    })
}

/// # Safety
/// The pointer is valid for its length.
#[no_mangle]
pub unsafe extern "C" fn rdeps_template_arg_reserved(name: Str) -> bool {
    RESERVED.iter().any(|r| r.as_bytes() == name.bytes())
}

// --- compile ----------------------------------------------------------------------------------------------------

/// `{% generation %}` marks for training what the assistant says; here it is a block without effect.
fn without_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let open = if tag[2..].starts_with(['-', '+']) { 3 } else { 2 };
        let inner = tag[open..].trim_start();
        let skipped = tag[open..].len() - inner.len();
        let word_len = inner.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(inner.len());
        let (word, after) = inner.split_at(word_len);
        let ends = after.trim_start().trim_start_matches(['-', '+']).starts_with("%}");
        let plain = match word {
            "generation" if ends => Some("if true"),
            "endgeneration" if ends => Some("endif"),
            _ => None,
        };
        let consumed = match plain {
            Some(plain) => {
                out.push_str(&tag[..open + skipped]);
                out.push_str(plain);
                open + skipped + word_len
            }
            None => {
                out.push_str("{%");
                2
            }
        };
        rest = &tag[consumed..];
    }
    out.push_str(rest);
    out
}

fn compile(source: &str, mut marks: Marks, bos: &str, eos: &str) -> Result<Box<Template>, Failed> {
    let source: Box<str> = without_generation(&clean(source)).into_boxed_str();
    // SAFETY: the bytes of a Box<str> do not move with it, and the instructions that borrow them are dropped first.
    let borrowed: &'static str = unsafe { &*(&*source as *const str) };

    let whitespace = WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true };
    let tree = parse(borrowed, "template", Default::default(), whitespace).map_err(|e| {
        let what = e.detail().map_or_else(|| e.kind().to_string(), str::to_string);
        (E_FORMAT, format!("line {}: {what}", e.line().unwrap_or(1)))
    })?;
    let tree = Rewriter::new(&mut marks).template(&tree).map_err(|refused| match refused {
        Refused::TooDeep(0) => (E_LIMIT, "the template is nested too deeply".to_string()),
        Refused::TooDeep(line) => (E_LIMIT, format!("line {line}: nested too deeply")),
        Refused::TooManyMarks => {
            (E_UNSUPPORTED, "its control tokens begin with too many different characters".to_string())
        }
        Refused::Unsupported(line, what) => (E_UNSUPPORTED, format!("line {line}: {what} is not supported")),
    })?;
    let mut generator = CodeGenerator::new("template", borrowed);
    generator.compile_stmt(&tree);
    let (instructions, _) = generator.finish();

    let many = |_| (E_UNSUPPORTED, "its control tokens begin with too many different characters".to_string());
    let (bos, eos) = (marks.apply(&clean(bos)).map_err(many)?, marks.apply(&clean(eos)).map_err(many)?);
    Ok(Box::new(Template { instructions, env: Box::new(environment()), source, marks, bos, eos }))
}

// --- render -----------------------------------------------------------------------------------------------------

fn import_str(text: String) -> Value {
    if needs_cleaning(&text) {
        Value::from(clean(&text))
    } else {
        Value::from(text)
    }
}

fn import(json: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Value::from(i),
            (None, Some(u)) => Value::from(u),
            _ => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => import_str(s),
        Json::Array(items) => Value::from(items.into_iter().map(import).collect::<Vec<_>>()),
        Json::Object(map) => map.into_iter().map(|(k, v)| (import_str(k), import(v))).collect(),
    }
}

fn parse_json(what: &str, bytes: &[u8]) -> Result<serde_json::Value, Failed> {
    serde_json::from_slice(bytes).map_err(|e| (E_INVALID, format!("{what}: {e}")))
}

fn context(t: &Template, input: &Input) -> Result<Value, Failed> {
    // SAFETY: rdeps_template_render's caller promises it.
    let (messages, tools, args, values) =
        unsafe { (input.messages.bytes(), input.tools.bytes(), input.args.bytes(), input.values.bytes()) };
    if !values.is_empty() {
        return match parse_json("values", values)? {
            serde_json::Value::Object(map) => Ok(import(serde_json::Value::Object(map))),
            _ => Err((E_INVALID, "values: not an object".into())),
        };
    }
    let messages = parse_json("messages", messages)?;
    if !messages.as_array().is_some_and(|m| m.iter().all(|m| m.is_object())) {
        return Err((E_INVALID, "messages: not an array of objects".into()));
    }
    let tools = if tools.is_empty() { serde_json::Value::Null } else { parse_json("tools", tools)? };
    if !(tools.is_array() || tools.is_null()) {
        return Err((E_INVALID, "tools: not an array".into()));
    }
    let mut pairs: Vec<(Value, Value)> = vec![(Value::from("documents"), Value::from(()))];
    if !args.is_empty() {
        let serde_json::Value::Object(map) = parse_json("template arguments", args)? else {
            return Err((E_INVALID, "template arguments: not an object".into()));
        };
        for (name, value) in map {
            if RESERVED.contains(&name.as_str()) {
                return Err((E_INVALID, format!("template arguments: '{name}' is not for an argument to set")));
            }
            pairs.push((import_str(name), import(value)));
        }
    }
    pairs.extend([
        (Value::from("messages"), import(messages)),
        (Value::from("tools"), import(tools)),
        (Value::from("add_generation_prompt"), Value::from(input.add_generation_prompt)),
    ]);
    // A model without the token has no variable, as in transformers.
    for (name, text) in [("bos_token", &t.bos), ("eos_token", &t.eos)] {
        if !text.is_empty() {
            pairs.push((Value::from(name), Value::from(text.as_str())));
        }
    }
    Ok(pairs.into_iter().collect())
}

fn render(t: &Template, input: &Input) -> Result<(String, Vec<Span>), Failed> {
    let size = input.messages.len + input.tools.len + input.args.len + input.values.len;
    let context = context(t, input)?;
    bounds::begin(bounds::WORK_BASE + bounds::WORK_PER_INPUT_BYTE * size as u64, input.now_unix);

    // SAFETY: the machine's lifetime is that of the environment, which the template keeps alive and in place; nothing
    // that borrows from it leaves this function.
    let env: &'static Environment<'static> = unsafe { &*(&*t.env as *const Environment<'static>) };
    let blocks = BTreeMap::new();
    let mut text = String::new();
    let result = {
        let mut output = make_string_output(&mut text);
        Vm::new(env).eval(&t.instructions, context, &blocks, &mut output, AutoEscape::None).map(|_| ())
    };
    let failure = bounds::take_failure();
    if let Err(e) = result {
        let line = e.line().unwrap_or(0);
        return Err(match (failure, e.kind()) {
            (Some(Failure::Raised(text)), _) => (E_INVALID, t.marks.remove(&text)),
            (Some(Failure::Limit(what)), _) => (E_LIMIT, format!("line {line}: {what}")),
            (None, ErrorKind::OutOfFuel) => (E_LIMIT, format!("line {line}: the template runs too long")),
            (None, kind) => {
                let what = e.detail().map_or_else(|| kind.to_string(), |d| format!("{kind}: {d}"));
                let code = match kind {
                    ErrorKind::UnknownFilter
                    | ErrorKind::UnknownTest
                    | ErrorKind::UnknownFunction
                    | ErrorKind::UnknownMethod => E_UNSUPPORTED,
                    _ if what.contains("recursion limit") => E_LIMIT,
                    _ => E_INVALID,
                };
                (code, t.marks.remove(&format!("line {line} of the template: {what}")))
            }
        });
    }
    Ok(t.marks.resolve(&text))
}
