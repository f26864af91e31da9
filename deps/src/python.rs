//! Values as Python writes them: chat templates are developed against Python's jinja2, where `{{ true }}` is "True"
//! and a list is shown by repr.

use crate::bounds::{charge_len, is_opaque, too_deep, VALUE_DEPTH};
use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind, Output};

/// Where text goes; every byte is charged before it is copied.
pub trait Sink {
    fn put(&mut self, text: &str) -> Result<(), Error>;
}

impl Sink for String {
    fn put(&mut self, text: &str) -> Result<(), Error> {
        charge_len(text.len())?;
        self.push_str(text);
        Ok(())
    }
}

impl Sink for Output<'_> {
    fn put(&mut self, text: &str) -> Result<(), Error> {
        charge_len(text.len() + 1)?;
        self.write_str(text).map_err(|_| Error::from(ErrorKind::WriteFailure))
    }
}

/// str(float): the shortest digits that read back as the same number.
fn float(v: f64) -> String {
    if v.is_nan() {
        return "nan".into();
    }
    if v.is_infinite() {
        return if v > 0.0 { "inf" } else { "-inf" }.into();
    }
    let scientific = format!("{v:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{v}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

fn number(v: &Value) -> String {
    if v.is_integer() {
        v.to_string()
    } else {
        f64::try_from(v.clone()).map(float).unwrap_or_default()
    }
}

/// str(): a string as it is, everything else as `repr` has it.
pub fn show(out: &mut dyn Sink, v: &Value) -> Result<(), Error> {
    match v.as_str() {
        Some(text) => out.put(text),
        None => repr(out, v, 0),
    }
}

fn repr_str(out: &mut dyn Sink, text: &str) -> Result<(), Error> {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    charge_len(text.len())?;
    let mut s = String::with_capacity(text.len() + 2);
    s.push(quote);
    for c in text.chars() {
        match c {
            '\\' => s.push_str("\\\\"),
            '\n' => s.push_str("\\n"),
            '\r' => s.push_str("\\r"),
            '\t' => s.push_str("\\t"),
            c if c == quote => s.extend(['\\', c]),
            c if c < ' ' || ('\u{7f}'..'\u{a1}').contains(&c) || c == '\u{ad}' => {
                s.push_str(&format!("\\x{:02x}", c as u32))
            }
            c => s.push(c),
        }
    }
    s.push(quote);
    out.put(&s)
}

fn repr(out: &mut dyn Sink, v: &Value, depth: usize) -> Result<(), Error> {
    if depth > VALUE_DEPTH {
        return Err(too_deep());
    }
    match v.kind() {
        ValueKind::Undefined => Ok(()),
        ValueKind::None => out.put("None"),
        ValueKind::Bool => out.put(if v.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.put(&number(v)),
        ValueKind::String => repr_str(out, v.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
            let Some(object) = v.as_object().filter(|o| !is_opaque(o)) else { return out.put("<object>") };
            let map = v.kind() == ValueKind::Map;
            out.put(if map { "{" } else { "[" })?;
            if map {
                for (i, (key, item)) in object.try_iter_pairs().into_iter().flatten().enumerate() {
                    out.put(if i > 0 { ", " } else { "" })?;
                    repr(out, &key, depth + 1)?;
                    out.put(": ")?;
                    repr(out, &item, depth + 1)?;
                }
            } else {
                for (i, item) in object.try_iter().into_iter().flatten().enumerate() {
                    out.put(if i > 0 { ", " } else { "" })?;
                    repr(out, &item, depth + 1)?;
                }
            }
            out.put(if map { "}" } else { "]" })
        }
        _ => out.put("<object>"),
    }
}

/// The arguments of json.dumps that templates use.
pub struct Json {
    pub ensure_ascii: bool,
    pub indent: Option<String>,
    pub item_separator: String,
    pub key_separator: String,
    pub sort_keys: bool,
}

impl Json {
    pub fn write(&self, out: &mut dyn Sink, v: &Value, depth: usize) -> Result<(), Error> {
        if depth > VALUE_DEPTH {
            return Err(too_deep());
        }
        match v.kind() {
            ValueKind::None => out.put("null"),
            ValueKind::Bool => out.put(if v.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.put(&match number(v).as_str() {
                "nan" => "NaN".to_string(),
                "inf" => "Infinity".to_string(),
                "-inf" => "-Infinity".to_string(),
                text => text.to_string(),
            }),
            ValueKind::String => self.string(out, v.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => self.container(out, v, depth),
            kind => Err(Error::new(ErrorKind::BadSerialization, format!("tojson: a value of type {kind} is not JSON"))),
        }
    }

    fn container(&self, out: &mut dyn Sink, v: &Value, depth: usize) -> Result<(), Error> {
        let Some(object) = v.as_object().filter(|o| !is_opaque(o)) else {
            return Err(Error::new(ErrorKind::BadSerialization, "tojson: not JSON"));
        };
        let map = v.kind() == ValueKind::Map;
        let mut empty = true;
        out.put(if map { "{" } else { "[" })?;
        if map {
            charge_len(32 * object.enumerator_len().unwrap_or(0))?;
            let mut pairs: Vec<_> = object.try_iter_pairs().into_iter().flatten().collect();
            if self.sort_keys {
                pairs.sort_by(|a, b| a.0.cmp(&b.0));
            }
            for (key, item) in pairs {
                self.separate(out, &mut empty, depth)?;
                match key.kind() {
                    ValueKind::String => self.string(out, key.as_str().unwrap_or_default())?,
                    ValueKind::Number | ValueKind::Bool | ValueKind::None => {
                        let mut text = String::new();
                        self.write(&mut text, &key, depth + 1)?;
                        self.string(out, &text)?;
                    }
                    _ => return Err(Error::new(ErrorKind::BadSerialization, "tojson: a key must be a string")),
                }
                out.put(&self.key_separator)?;
                self.write(out, &item, depth + 1)?;
            }
        } else {
            for item in object.try_iter().into_iter().flatten() {
                self.separate(out, &mut empty, depth)?;
                self.write(out, &item, depth + 1)?;
            }
        }
        if !empty {
            self.line(out, depth)?;
        }
        out.put(if map { "}" } else { "]" })
    }

    fn separate(&self, out: &mut dyn Sink, empty: &mut bool, depth: usize) -> Result<(), Error> {
        if !std::mem::replace(empty, false) {
            out.put(&self.item_separator)?;
        }
        self.line(out, depth + 1)
    }

    fn line(&self, out: &mut dyn Sink, depth: usize) -> Result<(), Error> {
        let Some(indent) = &self.indent else { return Ok(()) };
        out.put("\n")?;
        (0..depth).try_for_each(|_| out.put(indent))
    }

    fn string(&self, out: &mut dyn Sink, text: &str) -> Result<(), Error> {
        charge_len(text.len())?;
        let mut s = String::with_capacity(text.len() + 2);
        s.push('"');
        for c in text.chars() {
            match c {
                '"' => s.push_str("\\\""),
                '\\' => s.push_str("\\\\"),
                '\n' => s.push_str("\\n"),
                '\r' => s.push_str("\\r"),
                '\t' => s.push_str("\\t"),
                '\u{8}' => s.push_str("\\b"),
                '\u{c}' => s.push_str("\\f"),
                c if c < ' ' => s.push_str(&format!("\\u{:04x}", c as u32)),
                c if self.ensure_ascii && !c.is_ascii() => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        s.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => s.push(c),
            }
        }
        s.push('"');
        out.put(&s)
    }
}
