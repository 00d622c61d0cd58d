//! A JSON text and where its values stand in it. One pass finds them; nothing is copied, and no tree is made.
//!
//! For texts that this program wrote: what is not JSON may pass as something, or is an error, and is never a panic.

use std::{borrow::Cow, str::FromStr};

use crate::meta::{Result, Status};

pub struct Tape<'a> {
    text: &'a str,
    /// In the order of the text: a container stands before what is in it, a name before its value.
    spans: Vec<Span>,
}

struct Span {
    start: u32,
    end: u32,
    /// The place of the next span that is not inside of this one.
    next: u32,
}

impl<'a> Tape<'a> {
    pub fn read(json: &'a [u8]) -> Result<Self> {
        let text = std::str::from_utf8(json).map_err(Status::internal)?;
        u32::try_from(text.len()).map_err(Status::internal)?;
        let mut tape = Self { text, spans: Vec::with_capacity(text.len() / 16) };
        let mut open = Vec::new();
        let mut at = 0;
        while let Some(byte) = json.get(at) {
            let start = at;
            at += 1;
            match byte {
                b'{' | b'[' => {
                    open.push(tape.spans.len());
                    tape.push(start, at);
                }
                b'}' | b']' => tape.close(open.pop().ok_or_else(unfinished)?, at),
                b'"' => {
                    at = after_string(json, at).ok_or_else(unfinished)?;
                    tape.push(start, at);
                }
                b',' | b':' | b' ' | b'\n' | b'\r' | b'\t' => (),
                _ => {
                    at += json[at..].iter().take_while(|it| !matches!(it, b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t')).count();
                    tape.push(start, at);
                }
            }
        }
        if open.is_empty() && !tape.spans.is_empty() { Ok(tape) } else { Err(unfinished()) }
    }

    fn push(&mut self, start: usize, end: usize) {
        self.spans.push(Span { start: start as u32, end: end as u32, next: self.spans.len() as u32 + 1 });
    }

    fn close(&mut self, place: usize, end: usize) {
        let next = self.spans.len() as u32;
        self.spans[place] = Span { end: end as u32, next, ..self.spans[place] };
    }

    pub fn root(&self) -> Json<'_> {
        Json { tape: self, place: 0 }
    }
}

fn unfinished() -> Status {
    Status::internal("a JSON text ends too early")
}

/// Where the string ends whose first byte is at `at`.
fn after_string(json: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at += json.get(at..)?.iter().position(|it| matches!(it, b'"' | b'\\'))?;
        match json[at] {
            b'"' => return Some(at + 1),
            _ => at += 2,
        }
    }
}

/// One value of a tape.
#[derive(Clone, Copy)]
pub struct Json<'a> {
    tape: &'a Tape<'a>,
    place: u32,
}

impl<'a> Json<'a> {
    fn span(&self) -> &'a Span {
        &self.tape.spans[self.place as usize]
    }

    /// The value's own JSON.
    pub fn text(&self) -> &'a str {
        &self.tape.text[self.span().start as usize..self.span().end as usize]
    }

    /// Tells what it is.
    fn first(&self) -> u8 {
        self.tape.text.as_bytes()[self.span().start as usize]
    }

    pub fn is_null(&self) -> bool {
        self.first() == b'n'
    }

    pub fn is_object(&self) -> bool {
        self.first() == b'{'
    }

    pub fn is_array(&self) -> bool {
        self.first() == b'['
    }

    /// A boolean or a number.
    pub fn parse<T: FromStr>(&self) -> Option<T> {
        self.text().parse().ok()
    }

    pub fn as_str(&self) -> Option<Cow<'a, str>> {
        let text = self.text();
        let inside = text.strip_prefix('"')?.strip_suffix('"')?;
        if inside.contains('\\') { serde_json::from_str(text).ok().map(Cow::Owned) } else { Some(Cow::Borrowed(inside)) }
    }

    /// What is in a list; of an object the names and values in turn.
    pub fn items(self) -> impl Iterator<Item = Json<'a>> {
        let end = self.span().next;
        let at = move |place| (place < end).then_some(Json { tape: self.tape, place });
        std::iter::successors(at(self.place + 1), move |it| at(it.span().next))
    }

    /// The members of an object.
    pub fn members(self) -> impl Iterator<Item = (Cow<'a, str>, Json<'a>)> {
        let mut items = self.items();
        std::iter::from_fn(move || Some((items.next()?.as_str()?, items.next()?)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn tree(json: Json<'_>) -> Value {
        match () {
            () if json.is_object() => Value::Object(json.members().map(|(name, value)| (name.into_owned(), tree(value))).collect()),
            () if json.is_array() => json.items().map(tree).collect(),
            () => serde_json::from_str(json.text()).expect("a scalar"),
        }
    }

    #[test]
    fn every_value_is_found_and_nothing_panics() {
        let text = r#"{"a": [1, -2.5e3, true, null, "x\"\\y\u00e9", [], {}], "b\n": {"c": {"d": ["é", {"e": ""}]}}, "f": 18446744073709551615}"#;
        let tape = Tape::read(text.as_bytes()).expect("JSON");
        assert_eq!(tree(tape.root()), serde_json::from_str::<Value>(text).expect("JSON"));
        for (at, _) in text.char_indices().skip(1) {
            assert!(Tape::read(&text.as_bytes()[..at]).is_err(), "{at}");
        }
        for text in ["", "}", "{]", "\"", "[\"\\", "{\"a\"}", "\u{fffd}", ":"] {
            let _ = Tape::read(text.as_bytes()).map(|it| it.root().members().count());
        }
    }
}
