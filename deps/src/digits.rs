//! What Python takes for digits and numbers: str.isdecimal, isdigit and isnumeric, which go by Numeric_Type of Unicode.
//!
//! Decimal is the category Nd, of which regex-syntax has the table. Digit is besides a closed list: no character has
//! been given that type since Unicode 6.3 (UAX #44, "Numeric_Type"). Numeric are the categories Nd, Nl and No, and the
//! ideographs below.

use regex_syntax::hir::{Class, HirKind};
use std::sync::OnceLock;

/// Numeric_Type=Digit: superscripts, subscripts, digits in circles and the like.
const DIGITS: [(char, char); 20] = [
    ('\u{b2}', '\u{b3}'),
    ('\u{b9}', '\u{b9}'),
    ('\u{1369}', '\u{1371}'),
    ('\u{19da}', '\u{19da}'),
    ('\u{2070}', '\u{2070}'),
    ('\u{2074}', '\u{2079}'),
    ('\u{2080}', '\u{2089}'),
    ('\u{2460}', '\u{2468}'),
    ('\u{2474}', '\u{247c}'),
    ('\u{2488}', '\u{2490}'),
    ('\u{24ea}', '\u{24ea}'),
    ('\u{24f5}', '\u{24fd}'),
    ('\u{24ff}', '\u{24ff}'),
    ('\u{2776}', '\u{277e}'),
    ('\u{2780}', '\u{2788}'),
    ('\u{278a}', '\u{2792}'),
    ('\u{10a40}', '\u{10a43}'),
    ('\u{10e60}', '\u{10e68}'),
    ('\u{11052}', '\u{1105a}'),
    ('\u{1f100}', '\u{1f10a}'),
];

/// Ideographs that are numerals: kPrimaryNumeric, kAccountingNumeric and kOtherNumeric of Unicode 14, and their
/// compatibility forms. Categories do not tell them from others.
const NUMERALS: &str = concat!(
    "㐅㒃㠪㭍一七万三九二五亖亿什仟仨伍佰億兆兩八六十千卄卅卌叁参參叄四壱壹幺廾廿弌弍弎弐",
    "拾捌柒漆玖百肆萬貮貳贰阡陆陌陸零參拾兩零六陸什𠀁𠁤𠃢𠄡𠤪𠦃𠦌𠦜𠫪𠫽𠬙𢎐𢦘𣬛𦉭廾",
);

fn within(ranges: &[(char, char)], c: char) -> bool {
    let after = ranges.partition_point(|r| r.0 <= c);
    after > 0 && c <= ranges[after - 1].1
}

fn is_decimal(c: char) -> bool {
    static DECIMALS: OnceLock<Vec<(char, char)>> = OnceLock::new();
    let table = DECIMALS.get_or_init(|| match regex_syntax::parse(r"\d").map(|hir| hir.into_kind()) {
        Ok(HirKind::Class(Class::Unicode(class))) => class.iter().map(|r| (r.start(), r.end())).collect(),
        _ => vec![('0', '9')],
    });
    within(table, c)
}

fn is_digit(c: char) -> bool {
    is_decimal(c) || within(&DIGITS, c)
}

fn is_numeric(c: char) -> bool {
    c.is_numeric() || NUMERALS.contains(c)
}

/// Whether `text` is of such characters alone, and of one at least: what the three methods answer.
pub fn is(method: &str, text: &str) -> bool {
    let kind = match method {
        "isdecimal" => is_decimal,
        "isdigit" => is_digit,
        _ => is_numeric,
    };
    !text.is_empty() && text.chars().all(kind)
}
