//! What a chat template finds: the filters, tests, functions and methods that Hugging Face's transformers gives to
//! Python's jinja2, each charged for its work (bounds.rs), and nothing that reaches outside.

use crate::bounds::{self, charge, charge_len, charge_read, check_storable, fail, now_unix, own, Failure, VALUE_COST};
use crate::digits;
use crate::python::{show, Json};
use minijinja::value::{from_args, Kwargs, Rest, Value, ValueKind};
use minijinja::{format_filter, Environment, Error, ErrorKind, FormatStyle, State};

/// Filters of minijinja that multiply their input, show internals or are not jinja2's.
const REMOVED_FILTERS: &[&str] = &["batch", "slice", "groupby", "sum", "pprint", "chain", "zip", "lines", "split"];

/// Filters whose cost does not depend on the size of what they are applied to.
pub const CONSTANT_FILTERS: &[&str] = &["first", "default", "d", "safe", "tojson", "string", "join", "replace", "list"];
/// Filters that make a value of every character of a string.
pub const EXPLODING_FILTERS: &[&str] =
    &["sort", "unique", "map", "select", "reject", "selectattr", "rejectattr", "reverse", "min", "max"];
/// Tests whose cost does not depend on the size of what is tested.
pub const CONSTANT_TESTS: &[&str] = &[
    "defined",
    "undefined",
    "none",
    "boolean",
    "true",
    "false",
    "odd",
    "even",
    "divisibleby",
    "number",
    "integer",
    "int",
    "float",
    "string",
    "mapping",
    "sequence",
    "iterable",
    "safe",
    "escaped",
    "callable",
    "filter",
    "test",
];

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, text.into())
}

fn wrong_types(op: &str, a: &Value, b: &Value) -> Error {
    invalid(format!("unsupported operand types for {op}: {} and {}", a.kind(), b.kind()))
}

fn string_of(v: &Value) -> Result<String, Error> {
    let mut s = String::new();
    show(&mut s, v)?;
    Ok(s)
}

fn text_of(v: &Value) -> Result<std::borrow::Cow<'_, str>, Error> {
    Ok(match v.as_str() {
        Some(s) => s.into(),
        None => string_of(v)?.into(),
    })
}

fn items_of(v: &Value) -> Result<Vec<Value>, Error> {
    let per_item = if v.kind() == ValueKind::String { 1 } else { 2 };
    charge_len(v.as_str().map_or(0, str::len))?;
    let mut items = Vec::new();
    for item in v.try_iter()? {
        charge(VALUE_COST * per_item)?;
        items.push(item);
    }
    Ok(items)
}

// --- operators --------------------------------------------------------------------------------------------------

fn is_list(v: &Value) -> bool {
    matches!(v.kind(), ValueKind::Seq | ValueKind::Iterable)
}

fn as_int(v: &Value) -> Option<i128> {
    match v.kind() {
        ValueKind::Bool => Some(v.is_true() as i128),
        ValueKind::Number if v.is_integer() => i128::try_from(v.clone()).ok(),
        _ => None,
    }
}

fn int_value(v: i128) -> Value {
    i64::try_from(v).map_or_else(|_| Value::from(v), Value::from)
}

fn as_float(v: &Value) -> Option<f64> {
    as_int(v).map(|i| i as f64).or_else(|| if v.is_number() { f64::try_from(v.clone()).ok() } else { None })
}

fn add(a: Value, b: Value) -> Result<Value, Error> {
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
        charge_len(x.len() + y.len() + VALUE_COST as usize)?;
        return Ok(Value::from([x, y].concat()));
    }
    if is_list(&a) && is_list(&b) {
        let mut items = items_of(&a)?;
        items.extend(items_of(&b)?);
        return own(Value::from(items));
    }
    if let (Some(x), Some(y)) = (as_int(&a), as_int(&b)) {
        return x.checked_add(y).map(int_value).ok_or_else(|| invalid("integer overflow"));
    }
    match (as_float(&a), as_float(&b)) {
        (Some(x), Some(y)) => Ok(Value::from(x + y)),
        _ => Err(wrong_types("+", &a, &b)),
    }
}

fn multiply(a: Value, b: Value) -> Result<Value, Error> {
    let (a, b) = if b.as_str().is_some() || is_list(&b) { (b, a) } else { (a, b) };
    if a.as_str().is_some() || is_list(&a) {
        let n = as_int(&b).ok_or_else(|| wrong_types("*", &a, &b))?.clamp(0, u32::MAX as i128) as u64;
        let Some(s) = a.as_str() else {
            let items = items_of(&a)?;
            charge(VALUE_COST.saturating_mul(n).saturating_mul(items.len() as u64))?;
            let len = items.len() * n as usize;
            return own(Value::from(items.into_iter().cycle().take(len).collect::<Vec<_>>()));
        };
        charge(n.saturating_mul(s.len() as u64) + VALUE_COST)?;
        return Ok(Value::from(s.repeat(n as usize)));
    }
    if let (Some(x), Some(y)) = (as_int(&a), as_int(&b)) {
        return x.checked_mul(y).map(int_value).ok_or_else(|| invalid("integer overflow"));
    }
    match (as_float(&a), as_float(&b)) {
        (Some(x), Some(y)) => Ok(Value::from(x * y)),
        _ => Err(wrong_types("*", &a, &b)),
    }
}

/// `v[start:stop:step]`, each of the three an integer or none.
fn slice(v: Value, start: Value, stop: Value, step: Value) -> Result<Value, Error> {
    let bound = |b: &Value| match b.kind() {
        ValueKind::None | ValueKind::Undefined => Ok(None),
        _ => as_int(b).map(Some).ok_or_else(|| invalid("the bounds of a slice must be integers")),
    };
    let (start, stop, step) = (bound(&start)?, bound(&stop)?, bound(&step)?.unwrap_or(1));
    if step == 0 {
        return Err(invalid("the step of a slice is 0"));
    }
    let chosen = |n: usize| {
        let n = n as i128;
        let (least, most) = if step > 0 { (0, n) } else { (-1, n - 1) };
        let clamp = |i: i128| if i < 0 { i.saturating_add(n) } else { i }.clamp(least, most);
        let (first, end) = if step > 0 { (least, most) } else { (most, least) };
        let (first, end) = (start.map_or(first, clamp), stop.map_or(end, clamp));
        std::iter::successors(Some(first), move |i| Some(i.saturating_add(step)))
            .take_while(move |&i| if step > 0 { i < end } else { i > end })
            .map(|i| i as usize)
    };
    match v.kind() {
        ValueKind::None | ValueKind::Undefined => Ok(Value::UNDEFINED),
        ValueKind::String => {
            let text = v.as_str().unwrap_or_default();
            charge_len(text.len())?;
            let chars: Vec<char> = text.chars().collect();
            Ok(Value::from(chosen(chars.len()).map(|i| chars[i]).collect::<String>()))
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items = items_of(&v)?;
            own(Value::from(chosen(items.len()).map(|i| items[i].clone()).collect::<Vec<_>>()))
        }
        kind => Err(invalid(format!("a value of type {kind} cannot be sliced"))),
    }
}

fn concatenate(a: Value, b: Value) -> Result<Value, Error> {
    let mut s = String::new();
    show(&mut s, &a)?;
    show(&mut s, &b)?;
    Ok(Value::from(s))
}

/// `text % values`: printf formatting of strings, the remainder of numbers.
fn remainder(a: Value, b: Value) -> Result<Value, Error> {
    if let Some(s) = a.as_str() {
        let values = if is_list(&b) { items_of(&b)? } else { vec![b.clone()] };
        return format_checked(FormatStyle::Printf, s, &values);
    }
    Ok(divide("%", &a, &b)?.1)
}

/// `//` and `%` of numbers, as Python's divmod: the quotient is rounded down, the remainder has the divisor's sign.
fn divide(op: &str, a: &Value, b: &Value) -> Result<(Value, Value), Error> {
    if let (Some(x), Some(y)) = (as_int(a), as_int(b)) {
        if y == 0 {
            return Err(invalid(format!("{op}: division by zero")));
        }
        let quotient = x.checked_div(y).ok_or_else(|| invalid("integer overflow"))?;
        let rest = x % y;
        let down = rest != 0 && (rest < 0) != (y < 0);
        return Ok((int_value(quotient - down as i128), int_value(if down { rest + y } else { rest })));
    }
    let (Some(x), Some(y)) = (as_float(a), as_float(b)) else { return Err(wrong_types(op, a, b)) };
    if y == 0.0 {
        return Err(invalid(format!("{op}: division by zero")));
    }
    let mut rest = x % y;
    let mut quotient = (x - rest) / y; // whole, but for the error of the division
    if rest == 0.0 {
        rest = 0f64.copysign(y);
    } else if (rest < 0.0) != (y < 0.0) {
        rest += y;
        quotient -= 1.0;
    }
    quotient = if quotient == 0.0 { 0f64.copysign(x / y) } else { quotient.round() };
    Ok((Value::from(quotient), Value::from(rest)))
}

// --- numbers ------------------------------------------------------------------------------------------------------

/// int(text, base): an optional sign, a prefix that goes with the base, digits.
fn parse_int(text: &str, base: u32) -> Option<i128> {
    let text = text.trim();
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let prefixed = [("0x", 16), ("0o", 8), ("0b", 2)].into_iter().find(|(prefix, _)| lower.starts_with(prefix));
    let (digits, base) = match prefixed {
        Some((_, of)) if base == 0 || base == of => (&digits[2..], of),
        _ => (digits, if base == 0 { 10 } else { base }),
    };
    if !(2..=36).contains(&base) || !digits.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    i128::from_str_radix(digits, base).ok().map(|v| if negative { -v } else { v })
}

/// round(number, places): to the nearest, of two as near to the even one. Exact: of all digits that the number has (767 at
/// most), not of its product with a power of ten.
fn round_float(v: f64, places: i64) -> f64 {
    if !v.is_finite() || v == 0.0 || places > 323 {
        return v;
    }
    let text = format!("{:.766e}", v.abs());
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i64 = exponent.parse().unwrap_or(0);
    let mut digits = mantissa.replace('.', "").into_bytes();
    let Ok(kept) = usize::try_from(exponent.saturating_add(places).saturating_add(1)) else {
        return 0f64.copysign(v);
    };
    if kept >= digits.len() {
        return v;
    }
    let rest = digits.split_off(kept);
    let more = rest[1..].iter().any(|&d| d != b'0');
    let odd = digits.last().is_some_and(|d| d % 2 == 1);
    if rest[0] > b'5' || rest[0] == b'5' && (more || odd) {
        let nines = digits.iter().rev().take_while(|&&d| d == b'9').count();
        digits.truncate(kept - nines);
        match digits.last_mut() {
            Some(last) => *last += 1,
            None => digits.push(b'1'),
        }
        digits.resize(digits.len() + nines, b'0');
    }
    let whole = String::from_utf8(digits).unwrap_or_default();
    format!("0{whole}e{}", -places).parse::<f64>().unwrap_or(v).copysign(v)
}

fn round_int(v: i128, digits: i64) -> Option<i128> {
    if digits >= 0 {
        return Some(v);
    }
    let Some(unit) = u32::try_from(-digits.max(-99)).ok().and_then(|n| 10i128.checked_pow(n)) else { return Some(0) };
    let (down, rest) = (v.div_euclid(unit), v.rem_euclid(unit));
    let up = rest > unit - rest || (rest == unit - rest && down % 2 != 0);
    (down + up as i128).checked_mul(unit)
}

fn round(v: &Value, digits: i64, method: &str) -> Result<Value, Error> {
    let number = as_float(v).ok_or_else(|| invalid(format!("round: a value of type {} is no number", v.kind())))?;
    let whole: fn(f64) -> f64 = match method {
        "common" => {
            return match as_int(v) {
                Some(i) => round_int(i, digits).map(int_value).ok_or_else(|| invalid("integer overflow")),
                None => Ok(Value::from(round_float(number, digits))),
            }
        }
        "ceil" => f64::ceil,
        "floor" => f64::floor,
        _ => return Err(invalid("round: the method must be common, ceil or floor")),
    };
    let scale: f64 = format!("1e{}", digits.clamp(-999, 999)).parse().unwrap_or(f64::NAN);
    let result = whole(number * scale) / scale;
    if !result.is_finite() {
        return Err(invalid("round: out of range"));
    }
    Ok(Value::from(result))
}

fn parse_float(v: &Value) -> Option<f64> {
    match v.as_str() {
        Some(text) => text.trim().parse().ok(),
        None => as_float(v),
    }
}

fn to_int(v: &Value, default: Value, base: u32) -> Value {
    let whole = v.as_str().and_then(|text| parse_int(text, base)).or_else(|| as_int(v));
    let cut = || parse_float(v).filter(|f| f.abs() < 1e38).map(|f| f.trunc() as i128);
    whole.or_else(cut).map_or(default, int_value)
}

// --- text -------------------------------------------------------------------------------------------------------

/// Formatting with the field widths and the repetition of arguments bounded beforehand.
fn format_checked(style: FormatStyle, format: &str, args: &[Value]) -> Result<Value, Error> {
    let mut digits = 0;
    let mut fields = 1u64;
    for b in format.bytes() {
        digits = if b.is_ascii_digit() { digits + 1 } else { 0 };
        if digits > 4 {
            return Err(fail(Failure::Limit("a field of a format is too wide")));
        }
        fields += matches!(b, b'%' | b'{') as u64;
    }
    let mut size = 10_000;
    for arg in args {
        charge_read(arg, 8, 0)?;
        size += match arg.as_str() {
            Some(s) => s.len() as u64,
            None => string_of(arg)?.len() as u64,
        };
    }
    // A width given as an argument ("%*d").
    if format.contains('*') && args.iter().any(|a| as_int(a).is_some_and(|n| n.abs() > 9_999)) {
        return Err(fail(Failure::Limit("a field of a format is too wide")));
    }
    charge(format.len() as u64 + if args.is_empty() { 0 } else { fields.saturating_mul(size) / 16 })?;
    let text = format_filter(style, format, args)?;
    charge_len(text.len())?;
    Ok(Value::from(text))
}

fn replace(s: &str, from: &str, to: &str, count: Option<i64>) -> Result<Value, Error> {
    charge_len(s.len())?;
    let limit = count.filter(|&n| n >= 0).map_or(usize::MAX, |n| n as usize);
    let found = s.matches(from).take(limit).count();
    charge(s.len() as u64 + (found as u64).saturating_mul(to.len() as u64) + VALUE_COST)?;
    Ok(Value::from(s.replacen(from, to, limit)))
}

fn split(s: &str, separator: Option<&str>, max: Option<i64>, from_right: bool) -> Result<Value, Error> {
    charge_len(s.len())?;
    if separator == Some("") {
        return Err(invalid("empty separator"));
    }
    let limit = max.filter(|&n| n >= 0).map_or(usize::MAX, |n| (n as usize).saturating_add(1));
    let mut pieces = Vec::new();
    let push = |pieces: &mut Vec<Value>, piece: &str| -> Result<(), Error> {
        charge_len(piece.len() + 2 * VALUE_COST as usize)?;
        pieces.push(Value::from(piece));
        Ok(())
    };
    match separator {
        Some(sep) if from_right => {
            for piece in s.rsplitn(limit, sep) {
                push(&mut pieces, piece)?;
            }
            pieces.reverse();
        }
        Some(sep) => {
            for piece in s.splitn(limit, sep) {
                push(&mut pieces, piece)?;
            }
        }
        // Runs of white space separate; what a limit leaves over keeps that at its far end.
        None => {
            let mut rest = if from_right { s.trim_end() } else { s.trim_start() };
            while !rest.is_empty() {
                let cut = if pieces.len() + 1 >= limit {
                    None
                } else if from_right {
                    let at = rest.char_indices().rev().find(|(_, c)| c.is_whitespace());
                    at.map(|(i, c)| (&rest[i + c.len_utf8()..], rest[..i].trim_end()))
                } else {
                    rest.find(char::is_whitespace).map(|i| (&rest[..i], rest[i..].trim_start()))
                };
                let (piece, next) = cut.unwrap_or((rest, ""));
                push(&mut pieces, piece)?;
                rest = next;
            }
            if from_right {
                pieces.reverse();
            }
        }
    }
    Ok(Value::from(pieces))
}

fn join(values: &Value, separator: &str, attribute: Option<&str>) -> Result<Value, Error> {
    let mut out = String::new();
    for (i, item) in items_of(values)?.into_iter().enumerate() {
        if i > 0 {
            crate::python::Sink::put(&mut out, separator)?;
        }
        match attribute {
            Some(name) => show(&mut out, &item.get_attr(name)?)?,
            None => show(&mut out, &item)?,
        }
    }
    Ok(Value::from(out))
}

fn indent(s: &str, width: &str, first: bool, blank: bool) -> Result<Value, Error> {
    let lines = s.matches('\n').count() as u64 + 1;
    charge(s.len() as u64 * 2 + lines.saturating_mul(width.len() as u64))?;
    let mut out = String::new();
    for (i, line) in s.split_inclusive('\n').enumerate() {
        if (i > 0 || first) && (blank || !line.trim_end_matches(['\n', '\r']).is_empty()) {
            out.push_str(width);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

fn width_of(v: Option<Value>, default: usize) -> Result<String, Error> {
    let spaces = match &v {
        None => default,
        Some(v) => match (v.as_str(), v.as_usize()) {
            (Some(s), _) => return Ok(s.to_string()),
            (None, Some(n)) => n,
            _ => return Err(invalid("the width must be a number or a string")),
        },
    };
    if spaces > 64 {
        return Err(fail(Failure::Limit("an indentation is too wide")));
    }
    Ok(" ".repeat(spaces))
}

fn tojson(value: Value, rest: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let indent = match kwargs.get::<Option<Value>>("indent")?.or_else(|| rest.first().cloned()) {
        Some(v) if !v.is_none() => Some(width_of(Some(v), 0)?),
        _ => None,
    };
    let separators = kwargs.get::<Option<Value>>("separators")?.filter(|v| !v.is_none());
    let (item, key) = match separators {
        Some(pair) => {
            let part = |i| pair.get_item_by_index(i).and_then(|v| text_of(&v).map(|s| s.into_owned()));
            (part(0)?, part(1)?)
        }
        None => ((if indent.is_some() { "," } else { ", " }).to_string(), ": ".to_string()),
    };
    let json = Json {
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        indent,
        item_separator: item,
        key_separator: key,
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    json.write(&mut out, &value, 0)?;
    Ok(Value::from(out))
}

// --- methods ----------------------------------------------------------------------------------------------------

fn call_method(state: &State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(s) = value.as_str() {
        charge_len(s.len() / 8 + 1)?;
        for arg in args {
            charge_read(arg, 1, 0)?;
        }
        return string_method(state, value, s, method, args);
    }
    match (value.kind(), method) {
        (ValueKind::Map, "copy") | (ValueKind::Seq, "copy") => from_args(args).map(|()| value.clone()),
        (ValueKind::Map, "get") => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
        (ValueKind::Seq, "index") => {
            let (what,): (&Value,) = from_args(args)?;
            charge_read(value, 1, 0)?;
            let at = value.try_iter()?.position(|item| item == *what);
            at.map(Value::from).ok_or_else(|| invalid("the list does not hold the value"))
        }
        _ => {
            charge_read(value, 1, 0)?;
            minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
        }
    }
}

fn string_method(state: &State, value: &Value, s: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    match method {
        "replace" => {
            let (from, to, count): (&str, &str, Option<i64>) = from_args(args)?;
            replace(s, from, to, count)
        }
        "split" | "rsplit" => {
            let (sep, max, kwargs): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
            let max = kwargs.get::<Option<i64>>("maxsplit")?.or(max);
            split(s, sep, max, method == "rsplit")
        }
        "splitlines" => {
            charge_len(s.len() + s.matches('\n').count() * 2 * VALUE_COST as usize)?;
            minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
        }
        "join" => {
            let (values,): (&Value,) = from_args(args)?;
            join(values, s, None)
        }
        "format" => format_checked(FormatStyle::StrFormat, s, args),
        "count" => {
            let (what,): (&str,) = from_args(args)?;
            charge_len(s.len())?;
            Ok(Value::from(if what.is_empty() { s.chars().count() + 1 } else { s.matches(what).count() }))
        }
        // Python counts characters, not bytes.
        "find" | "rfind" | "index" | "rindex" => {
            let (what,): (&str,) = from_args(args)?;
            charge_len(s.len())?;
            let at = if method.starts_with('r') { s.rfind(what) } else { s.find(what) };
            match at {
                Some(at) => Ok(Value::from(s[..at].chars().count())),
                None if method.ends_with("find") => Ok(Value::from(-1)),
                None => Err(invalid("substring not found")),
            }
        }
        // Of nothing Python says no, and of letters without case that they are neither.
        "isalnum" | "isalpha" | "isspace" if s.is_empty() => from_args::<()>(args).map(|()| Value::from(false)),
        "isdecimal" | "isdigit" | "isnumeric" => {
            let () = from_args(args)?;
            charge_len(s.len())?;
            Ok(Value::from(digits::is(method, s)))
        }
        "islower" | "isupper" => {
            let () = from_args(args)?;
            charge_len(s.len())?;
            let (lower, upper) = (s.chars().any(char::is_lowercase), s.chars().any(char::is_uppercase));
            Ok(Value::from(if method == "islower" { lower && !upper } else { upper && !lower }))
        }
        "removeprefix" | "removesuffix" => {
            let (part,): (&str,) = from_args(args)?;
            let cut = if method == "removeprefix" { s.strip_prefix(part) } else { s.strip_suffix(part) };
            Ok(Value::from(cut.unwrap_or(s)))
        }
        _ => {
            charge_len(s.len())?;
            minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
        }
    }
}

// --- the clock --------------------------------------------------------------------------------------------------

/// strftime for a time in UTC, with the C locale's names.
pub fn strftime(format: &str, unix: i64) -> String {
    const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let unix = unix.clamp(-62_135_596_800, 253_402_300_799); // the years 1 to 9999
    let (day, second) = (unix.div_euclid(86_400), unix.rem_euclid(86_400));
    // Civil date from the day number: https://howardhinnant.github.io/date_algorithms.html#civil_from_days
    let z = day + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let d = doy - (153 * mp + 2) / 5 + 1;
    let m = if mp < 10 { mp + 3 } else { mp - 9 };
    let y = yoe + era * 400 + (m <= 2) as i64;
    let leap = y % 4 == 0 && (y % 100 != 0 || y % 400 == 0);
    let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][(m - 1) as usize];
    let yday = before + d + (leap && m > 2) as i64;
    let (hh, mm, ss) = (second / 3600, second / 60 % 60, second % 60);
    let wday = (day + 4).rem_euclid(7);
    let h12 = if hh % 12 == 0 { 12 } else { hh % 12 };

    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        let bare = directive == Some('-');
        if bare {
            directive = chars.next();
        }
        let two = |v: i64| if bare { v.to_string() } else { format!("{v:02}") };
        match directive {
            Some('Y') => out.push_str(&y.to_string()),
            Some('y') => out.push_str(&two(y.rem_euclid(100))),
            Some('m') => out.push_str(&two(m)),
            Some('d') => out.push_str(&two(d)),
            Some('e') => out.push_str(&format!("{d:2}")),
            Some('H') => out.push_str(&two(hh)),
            Some('I') => out.push_str(&two(h12)),
            Some('M') => out.push_str(&two(mm)),
            Some('S') => out.push_str(&two(ss)),
            Some('p') => out.push_str(if hh < 12 { "AM" } else { "PM" }),
            Some('j') => out.push_str(&if bare { yday.to_string() } else { format!("{yday:03}") }),
            Some('B') => out.push_str(MONTHS[(m - 1) as usize]),
            Some('b' | 'h') => out.push_str(&MONTHS[(m - 1) as usize][..3]),
            Some('A') => out.push_str(DAYS[wday as usize]),
            Some('a') => out.push_str(&DAYS[wday as usize][..3]),
            Some('w') => out.push_str(&wday.to_string()),
            Some('F') => out.push_str(&format!("{y}-{m:02}-{d:02}")),
            Some('T') => out.push_str(&format!("{hh:02}:{mm:02}:{ss:02}")),
            Some('D') => out.push_str(&format!("{m:02}/{d:02}/{:02}", y.rem_euclid(100))),
            Some('R') => out.push_str(&format!("{hh:02}:{mm:02}")),
            Some('Z') => out.push_str("UTC"),
            Some('z') => out.push_str("+0000"),
            Some('s') => out.push_str(&unix.to_string()),
            Some('f') => out.push_str("000000"),
            Some('%') => out.push('%'),
            other => {
                out.push('%');
                out.extend(bare.then_some('-'));
                out.extend(other);
            }
        }
    }
    out
}

// --- the environment --------------------------------------------------------------------------------------------

pub fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_fuel(Some(bounds::FUEL));
    env.set_recursion_limit(bounds::RECURSION);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_unknown_method_callback(call_method);
    env.set_formatter(|out, _, value| show(out, value));

    for name in REMOVED_FILTERS {
        env.remove_filter(name);
    }
    // What rewrite.rs puts in the place of operators and around values.
    env.add_filter("__add", add);
    env.add_filter("__mul", multiply);
    env.add_filter("__rem", remainder);
    env.add_filter("__div", |a: Value, b: Value| divide("//", &a, &b).map(|(quotient, _)| quotient));
    env.add_filter("__cat", concatenate);
    env.add_filter("__own", own);
    env.add_filter("__cost", |v: Value| charge_read(&v, 1, 0).map(|()| v));
    env.add_filter("__cost_chars", |v: Value| charge_read(&v, 8 * VALUE_COST, 0).map(|()| v));
    env.add_filter("__set", |v: Value| check_storable(&v, 0).map(|()| v));
    env.add_filter("__at", |v: Value| charge_len(v.as_str().map_or(0, str::len) / 4).map(|()| v));
    env.add_filter("__each", |v: Value| {
        let n = v.as_str().map(str::len).or_else(|| v.as_object().and_then(|o| o.enumerator_len())).unwrap_or(0);
        charge(n as u64 * if v.kind() == ValueKind::Map { VALUE_COST } else { 2 }).map(|()| v)
    });

    env.add_filter("string", |v: Value| -> Result<Value, Error> {
        if v.as_str().is_some() {
            Ok(v)
        } else {
            string_of(&v).map(Value::from)
        }
    });
    env.add_filter("list", |v: Value| items_of(&v).map(Value::from));
    env.add_filter("tojson", tojson);
    env.add_filter("__slice", slice);
    // A value that is no text is one as Python shows it.
    env.add_filter("upper", |v: Value| Ok::<_, Error>(text_of(&v)?.to_uppercase()));
    env.add_filter("lower", |v: Value| Ok::<_, Error>(text_of(&v)?.to_lowercase()));
    env.add_filter("title", |v: Value| Ok::<_, Error>(minijinja::filters::title(text_of(&v)?)));
    env.add_filter("capitalize", |v: Value| -> Result<String, Error> {
        let text = text_of(&v)?;
        let mut chars = text.chars();
        let first = chars.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
        Ok(first + &chars.as_str().to_lowercase())
    });
    env.add_filter("trim", |v: Value, chars: Option<String>| -> Result<String, Error> {
        let text = text_of(&v)?;
        Ok(match chars {
            Some(chars) => text.trim_matches(|c| chars.contains(c)).to_string(),
            None => text.trim().to_string(),
        })
    });
    // What is not defined is empty.
    for name in ["length", "count"] {
        env.add_filter(name, |v: &Value| match v.is_undefined() {
            true => Ok(0),
            false => minijinja::filters::length(v),
        });
    }
    env.add_filter("first", |v: &Value| match v.is_undefined() {
        true => Ok(Value::UNDEFINED),
        false => minijinja::filters::first(v),
    });
    env.add_filter("last", |v: Value| match v.is_undefined() {
        true => Ok(v),
        false => minijinja::filters::last(v),
    });
    env.add_filter("items", |v: &Value| match v.is_undefined() {
        true => Ok(Value::from(Vec::<Value>::new())),
        false => minijinja::filters::items(v),
    });
    // What is no number is the default.
    env.add_filter("int", |v: Value, default: Option<Value>, base: Option<u32>, kw: Kwargs| {
        let default = kw.get::<Option<Value>>("default")?.or(default).unwrap_or_else(|| Value::from(0));
        let base = kw.get::<Option<u32>>("base")?.or(base).unwrap_or(10);
        kw.assert_all_used()?;
        Ok::<_, Error>(to_int(&v, default, base))
    });
    env.add_filter("float", |v: Value, default: Option<Value>, kw: Kwargs| {
        let default = kw.get::<Option<Value>>("default")?.or(default).unwrap_or_else(|| Value::from(0.0));
        kw.assert_all_used()?;
        Ok::<_, Error>(parse_float(&v).map_or(default, Value::from))
    });
    env.add_filter("round", |v: Value, precision: Option<i64>, method: Option<String>, kw: Kwargs| {
        let precision = kw.get::<Option<i64>>("precision")?.or(precision).unwrap_or(0);
        let method = kw.get::<Option<String>>("method")?.or(method);
        kw.assert_all_used()?;
        charge_len(1 << 10)?;
        round(&v, precision, method.as_deref().unwrap_or("common"))
    });
    env.add_filter("format", |f: Value, args: Rest<Value>| format_checked(FormatStyle::Printf, &text_of(&f)?, &args));
    env.add_filter("replace", |v: Value, from: Value, to: Value, count: Option<i64>| {
        replace(&text_of(&v)?, &text_of(&from)?, &text_of(&to)?, count)
    });
    env.add_filter("join", |v: Value, sep: Option<Value>, attr: Option<Value>, kwargs: Kwargs| {
        let sep = kwargs.get::<Option<Value>>("d")?.or(sep).unwrap_or_else(|| Value::from(""));
        let attr = kwargs.get::<Option<Value>>("attribute")?.or(attr);
        kwargs.assert_all_used()?;
        join(&v, &text_of(&sep)?, attr.as_ref().and_then(|a| a.as_str()))
    });
    env.add_filter("indent", |v: Value, width: Option<Value>, first: Option<bool>, blank: Option<bool>, kw: Kwargs| {
        let width = kw.get::<Option<Value>>("width")?.or(width);
        let first = kw.get::<Option<bool>>("first")?.or(first).unwrap_or(false);
        let blank = kw.get::<Option<bool>>("blank")?.or(blank).unwrap_or(false);
        kw.assert_all_used()?;
        indent(&text_of(&v)?, &width_of(width, 4)?, first, blank)
    });
    env.add_filter("sum", |v: Value| -> Result<Value, Error> {
        items_of(&v)?.into_iter().try_fold(Value::from(0), |sum, item| match item.is_number() {
            true => add(sum, item),
            false => Err(invalid("sum: not a number")),
        })
    });

    env.add_test("sequence", |v: &Value| {
        matches!(v.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map | ValueKind::String)
    });
    env.add_test("iterable", |v: &Value| !v.is_none() && v.try_iter().is_ok());
    env.add_test("number", |v: &Value| matches!(v.kind(), ValueKind::Number | ValueKind::Bool));
    env.add_test("callable", |v: &Value| v.as_object().is_some_and(|o| o.type_name().contains("unction")));

    env.remove_global("debug");
    env.add_function("raise_exception", |text: Value| -> Result<Value, Error> {
        Err(fail(Failure::Raised(string_of(&text)?)))
    });
    env.add_function("strftime_now", |format: &str| -> Result<Value, Error> {
        charge_len(format.len() * 16)?;
        Ok(Value::from(strftime(format, now_unix())))
    });
    env.add_function("namespace", |args: Option<Value>| -> Result<Value, Error> {
        if let Some(args) = &args {
            charge_read(args, 1, 0)?;
            for (_, item) in args.as_object().and_then(|o| o.try_iter_pairs()).into_iter().flatten() {
                check_storable(&item, 0)?;
            }
        }
        minijinja::functions::namespace(args)
    });
    env
}
