//! What one rendering may spend, and why it failed.
//!
//! minijinja's fuel counts instructions, and one instruction can be arbitrarily expensive: `x ~ x` doubles a string,
//! `[x, x] == y` compares a graph that unfolds to 2^n values, `list * n` is lazy and endless. So everything that
//! touches more than a constant amount of data is charged here too, in units of about a byte; and nesting is bounded,
//! because values are compared, shown and dropped recursively.

use minijinja::value::{DynObject, Value, ValueKind};
use minijinja::{Error, ErrorKind};
use std::cell::{Cell, RefCell};

/// Instructions of one rendering. A conversation of 1,000 messages takes about 100,000.
pub const FUEL: u64 = 5_000_000;
/// Work of one rendering: a fixed part, and a multiple of the input's bytes.
pub const WORK_BASE: u64 = 256 << 20;
pub const WORK_PER_INPUT_BYTE: u64 = 32;
/// Frames: a loop counts one, a call of a macro four.
pub const RECURSION: usize = 160;
/// Lists in lists. JSON from outside stays within 128.
pub const VALUE_DEPTH: usize = 160;
/// What a value costs beside the bytes of a string.
pub const VALUE_COST: u64 = 32;

/// Why a rendering ended early, where minijinja's own error would not say it.
#[derive(Debug)]
pub enum Failure {
    Limit(&'static str),
    /// The template called raise_exception.
    Raised(String),
}

thread_local! {
    // A rendering never changes its thread and never waits, so it can keep its account here.
    static WORK: Cell<u64> = const { Cell::new(0) };
    static NOW: Cell<i64> = const { Cell::new(0) };
    static FAILURE: RefCell<Option<Failure>> = const { RefCell::new(None) };
}

pub fn begin(work: u64, now_unix: i64) {
    WORK.set(work);
    NOW.set(now_unix);
    FAILURE.take();
}

pub fn take_failure() -> Option<Failure> {
    FAILURE.take()
}

pub fn now_unix() -> i64 {
    NOW.get()
}

pub fn fail(failure: Failure) -> Error {
    let text = match &failure {
        Failure::Limit(what) => format!("limit: {what}"),
        Failure::Raised(text) => text.clone(),
    };
    FAILURE.set(Some(failure));
    Error::new(ErrorKind::InvalidOperation, text)
}

/// Takes `units` off the account.
pub fn charge(units: u64) -> Result<(), Error> {
    match WORK.get().checked_sub(units) {
        Some(rest) => {
            WORK.set(rest);
            Ok(())
        }
        None => {
            WORK.set(0);
            Err(fail(Failure::Limit("the template does too much work")))
        }
    }
}

pub fn charge_len(len: usize) -> Result<(), Error> {
    charge(len as u64)
}

pub fn too_deep() -> Error {
    fail(Failure::Limit("the template nests values too deeply"))
}

/// Objects that hold live state of the interpreter: visited as one value, never entered.
pub fn is_namespace(object: &DynObject) -> bool {
    object.type_name().contains("namespace_object")
}

pub fn is_opaque(object: &DynObject) -> bool {
    is_namespace(object) || object.type_name().contains("::vm::")
}

/// Charges for reading all of a value. `per_byte` is the cost of one byte of its strings, in eighths.
pub fn charge_read(value: &Value, per_byte: u64, depth: usize) -> Result<(), Error> {
    if depth > VALUE_DEPTH {
        return Err(too_deep());
    }
    match value.kind() {
        ValueKind::String => charge(1 + value.as_str().map_or(0, str::len) as u64 * per_byte / 8),
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
            let Some(object) = value.as_object() else { return charge(1) };
            charge(1)?;
            if is_opaque(object) {
                return Ok(());
            }
            if value.kind() == ValueKind::Map {
                for (key, item) in object.try_iter_pairs().into_iter().flatten() {
                    charge(VALUE_COST / 2)?;
                    charge_read(&key, per_byte, depth + 1)?;
                    charge_read(&item, per_byte, depth + 1)?;
                }
            } else {
                for item in object.try_iter().into_iter().flatten() {
                    charge(VALUE_COST / 2)?;
                    charge_read(&item, per_byte, depth + 1)?;
                }
            }
            Ok(())
        }
        _ => charge(1),
    }
}

/// Charges for a new value and makes what is lazy in it real: afterwards its size is what was paid for, and reading it
/// costs no hidden work.
pub fn own(value: Value) -> Result<Value, Error> {
    charge_len(value.as_str().map_or(0, str::len))?;
    Ok(realize(&value, 0)?.unwrap_or(value))
}

/// None where there was nothing lazy in the value.
fn realize(value: &Value, depth: usize) -> Result<Option<Value>, Error> {
    if depth > VALUE_DEPTH {
        return Err(too_deep());
    }
    charge(VALUE_COST)?;
    let Some(object) = value.as_object().filter(|o| !is_opaque(o)) else { return Ok(None) };
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            let mut changed = value.kind() == ValueKind::Iterable;
            let mut items = Vec::new();
            for item in object.try_iter().into_iter().flatten() {
                let new = realize(&item, depth + 1)?;
                changed |= new.is_some();
                items.push(new.unwrap_or(item));
            }
            Ok(changed.then(|| Value::from(items)))
        }
        ValueKind::Map => {
            let mut changed = false;
            let mut pairs = Vec::new();
            for (key, item) in object.try_iter_pairs().into_iter().flatten() {
                charge(VALUE_COST)?;
                let new = realize(&item, depth + 1)?;
                changed |= new.is_some();
                pairs.push((key, new.unwrap_or(item)));
            }
            Ok(changed.then(|| pairs.into_iter().collect()))
        }
        _ => Ok(None),
    }
}

/// Refuses what would tie a namespace to itself: a cycle is never freed, and endless to show.
pub fn check_storable(value: &Value, depth: usize) -> Result<(), Error> {
    if depth > VALUE_DEPTH {
        return Err(too_deep());
    }
    let refused = || Error::new(ErrorKind::InvalidOperation, "a namespace cannot hold namespaces, macros or loops");
    let Some(object) = value.as_object() else { return Ok(()) };
    charge(1)?;
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map if is_opaque(object) => Err(refused()),
        ValueKind::Map => {
            for (_, item) in object.try_iter_pairs().into_iter().flatten() {
                check_storable(&item, depth + 1)?;
            }
            Ok(())
        }
        ValueKind::Seq | ValueKind::Iterable => {
            for item in object.try_iter().into_iter().flatten() {
                check_storable(&item, depth + 1)?;
            }
            Ok(())
        }
        _ => Err(refused()),
    }
}
