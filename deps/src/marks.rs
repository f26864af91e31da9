//! Which control tokens of a rendered text were written by the template (template.h says why).
//!
//! Literals of the template are marked when it is compiled: a character of theirs is replaced by a Unicode
//! noncharacter that stands for it. Noncharacters are not for interchange; those in the source, in the data and in
//! other constants become U+FFFD first, so a mark in the result can only come from a literal.

use std::collections::{BTreeSet, HashMap, HashSet};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// First character of a control token that stands whole in a literal.
    Whole,
    /// First character of the beginning of a control token with which a literal ends: '<|' + role + '|>'.
    Opens,
    /// Last character of the end of a control token with which a literal begins.
    Closes,
}

/// The names between the two parts of a token that a template puts together.
const ROLES: &[&str] =
    &["system", "developer", "user", "assistant", "tool", "function", "model", "bot", "ipython", "observation"];
/// Longest beginning or end of a token that is looked for at the edge of a literal, in bytes.
const EDGE_MAX: usize = 8;

pub fn is_noncharacter(c: char) -> bool {
    let u = c as u32;
    (0xFDD0..=0xFDEF).contains(&u) || u & 0xFFFE == 0xFFFE
}

/// All 66 of them, those of the Basic Multilingual Plane first.
fn noncharacters() -> impl Iterator<Item = char> {
    let high = (0..=16u32).flat_map(|plane| [plane << 16 | 0xFFFE, plane << 16 | 0xFFFF]);
    (0xFDD0..=0xFDEF).chain(high).filter_map(char::from_u32)
}

pub fn clean(text: &str) -> String {
    text.chars().map(|c| if is_noncharacter(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

pub fn needs_cleaning(text: &str) -> bool {
    // Noncharacters begin with EF B7, EF BF or a byte from F0 on.
    text.bytes().any(|b| b >= 0xEF) && text.chars().any(is_noncharacter)
}

#[derive(Debug, PartialEq, Eq)]
pub struct Span {
    pub start: usize,
    pub len: usize,
    pub special: bool,
}

/// No more noncharacters to give out: tokens begin with too many different characters.
#[derive(Debug)]
pub struct OutOfMarks;

#[derive(Default)]
pub struct Marks {
    tokens: HashSet<String>,
    /// Lengths that occur, longest first.
    lengths: Vec<usize>,
    heads: HashSet<String>,
    tails: HashSet<String>,
    mark_of: HashMap<(Kind, char), char>,
    meaning: HashMap<char, (Kind, char)>,
}

impl Marks {
    pub fn new(tokens: impl Iterator<Item = String>) -> Marks {
        let mut m = Marks::default();
        let mut lengths = BTreeSet::new();
        for token in tokens.filter(|t| !t.is_empty()) {
            lengths.insert(token.len());
            // Proper parts of at least two characters: a single '<' before a client's text must not count.
            for (at, _) in token.char_indices().skip(2).take_while(|(at, _)| *at <= EDGE_MAX) {
                m.heads.insert(token[..at].to_string());
            }
            for (at, _) in token.char_indices().rev().skip(1).take_while(|(at, _)| token.len() - at <= EDGE_MAX) {
                if at > 0 {
                    m.tails.insert(token[at..].to_string());
                }
            }
            m.tokens.insert(token);
        }
        m.lengths = lengths.into_iter().rev().collect();
        m
    }

    /// Length of the longest token that `text` begins with.
    fn token_at(&self, text: &str) -> Option<usize> {
        self.lengths.iter().copied().find(|&n| text.get(..n).is_some_and(|t| self.tokens.contains(t)))
    }

    fn mark(&mut self, kind: Kind, c: char) -> Result<char, OutOfMarks> {
        if let Some(mark) = self.mark_of.get(&(kind, c)) {
            return Ok(*mark);
        }
        let mark = noncharacters().nth(self.mark_of.len()).ok_or(OutOfMarks)?;
        self.mark_of.insert((kind, c), mark);
        self.meaning.insert(mark, (kind, c));
        Ok(mark)
    }

    /// Marks the control tokens of one literal, which holds no noncharacters.
    pub fn apply(&mut self, literal: &str) -> Result<String, OutOfMarks> {
        if self.tokens.is_empty() {
            return Ok(literal.to_string());
        }
        let mut out = String::with_capacity(literal.len() + 8);
        let mut at = 0;

        // The end of a token that an earlier piece began.
        if self.token_at(literal).is_none() {
            let tail = (2..=EDGE_MAX.min(literal.len()))
                .rev()
                .find(|&n| literal.get(..n).is_some_and(|t| self.tails.contains(t)));
            if let Some(n) = tail {
                let last = literal[..n].chars().next_back().unwrap_or_default();
                out.push_str(&literal[..n - last.len_utf8()]);
                out.push(self.mark(Kind::Closes, last)?);
                at = n;
            }
        }
        while let Some(c) = literal[at..].chars().next() {
            let rest = &literal[at..];
            if let Some(n) = self.token_at(rest) {
                out.push(self.mark(Kind::Whole, c)?);
                out.push_str(&rest[c.len_utf8()..n]);
                at += n;
            } else if rest.len() <= EDGE_MAX && self.heads.contains(rest) {
                out.push(self.mark(Kind::Opens, c)?);
                out.push_str(&rest[c.len_utf8()..]);
                at = literal.len();
            } else {
                out.push(c);
                at += c.len_utf8();
            }
        }
        Ok(out)
    }

    /// The text without its marks.
    pub fn remove(&self, text: &str) -> String {
        text.chars().map(|c| self.meaning.get(&c).map_or(c, |(_, original)| *original)).collect()
    }

    /// The text without its marks, and its pieces, in order and without gaps.
    pub fn resolve(&self, rendered: &str) -> (String, Vec<Span>) {
        let mut text = String::with_capacity(rendered.len());
        let mut marks = Vec::new();
        for c in rendered.chars() {
            match self.meaning.get(&c) {
                Some(&(kind, original)) if is_noncharacter(c) => {
                    marks.push((text.len(), kind));
                    text.push(original);
                }
                _ => text.push(c),
            }
        }

        let mut spans = Vec::new();
        let mut done = 0;
        for (i, &(at, kind)) in marks.iter().enumerate() {
            if at < done {
                continue;
            }
            let len = match kind {
                Kind::Whole => self.token_at(&text[at..]),
                Kind::Opens => match marks.get(i + 1) {
                    Some(&(end, Kind::Closes)) => self.composed(&text, at, end),
                    _ => None,
                },
                Kind::Closes => None,
            };
            let Some(len) = len else { continue };
            if at > done {
                spans.push(Span { start: done, len: at - done, special: false });
            }
            spans.push(Span { start: at, len, special: true });
            done = at + len;
        }
        if done < text.len() {
            spans.push(Span { start: done, len: text.len() - done, special: false });
        }
        (text, spans)
    }

    /// A token whose first character is at `start` and whose last is at `end`, if between its punctuation stands a
    /// role and nothing else.
    fn composed(&self, text: &str, start: usize, end: usize) -> Option<usize> {
        let len = end - start + text[end..].chars().next()?.len_utf8();
        let token = &text[start..start + len];
        let name = token.trim_matches(|c: char| !c.is_alphanumeric());
        (self.tokens.contains(token) && ROLES.contains(&name)).then_some(len)
    }
}
