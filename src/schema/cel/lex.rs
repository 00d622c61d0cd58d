//! CEL's tokens. Follows cel-go `parser/gen/CEL.g4` and `parser/unescape.go`.

use std::sync::LazyLock;

use regex::Regex;

use super::ast::Issue;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    Ident,
    Int,
    Uint,
    Double,
    /// Operators, brackets, `true`, `false`, `null`, `in`.
    Sign,
    /// A name between backquotes, which Kubernetes does not allow.
    Quoted,
    String(String),
    Bytes(Vec<u8>),
    End,
}

#[derive(Clone, Debug)]
pub struct Placed<'a> {
    pub token: Token,
    pub offset: usize,
    /// As it was written.
    pub text: &'a str,
}

impl Placed<'_> {
    pub fn is(&self, sign: &str) -> bool {
        self.token == Token::Sign && self.text == sign
    }
}

/// Go's escapes and CEL's: the letter after the backslash, and what it stands for.
pub const ESCAPES: [(char, char); 9] =
    [('a', '\u{7}'), ('b', '\u{8}'), ('f', '\u{c}'), ('n', '\n'), ('r', '\r'), ('t', '\t'), ('v', '\u{b}'), ('\\', '\\'), ('"', '"')];

static TOKEN: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = r#"(?x)^(?:
        (?<blank> (?: [\ \t\r\n\x0c] | //[^\n]* )+ )
        | (?<double> [0-9]*\.[0-9]+ (?:[eE][-+]?[0-9]+)? | [0-9]+[eE][-+]?[0-9]+ )
        | (?: 0x[0-9a-fA-F]+ | [0-9]+ ) (?: (?<uint> [uU] ) | (?<int> ) )
        | (?<prefix> (?i: r | b | br | rb | ) ) (?<quote> """ | ''' | " | ' )
        | (?<sign> (?: true | false | null | in ) (?-u:\b) | == | != | <= | >= | && | \|\| | [\[\]{}().,\-!?:+*/%<>] )
        | (?<name> [_a-zA-Z][_a-zA-Z0-9]* )
        | (?<quoted> `[^`]+` )
    )"#;
    Regex::new(pattern).expect("a constant pattern")
});

/// All tokens, the last one [`Token::End`], and the characters that begin none.
pub fn tokens(text: &str) -> (Vec<Placed<'_>>, Vec<Issue>) {
    let mut lexer = Lexer { rest: text, offset: 0, issues: Vec::new() };
    let mut list = Vec::new();
    while !lexer.rest.is_empty() {
        let (rest, offset) = (lexer.rest, lexer.offset);
        if let Some(token) = lexer.next() {
            list.push(Placed { token, offset, text: &rest[..rest.len() - lexer.rest.len()] });
        }
    }
    list.push(Placed { token: Token::End, offset: lexer.offset, text: "<EOF>" });
    (list, lexer.issues)
}

struct Lexer<'a> {
    rest: &'a str,
    /// How many characters are read.
    offset: usize,
    issues: Vec<Issue>,
}

impl<'a> Lexer<'a> {
    /// Reads on by so many bytes.
    fn skip(&mut self, length: usize) -> &'a str {
        let (read, rest) = self.rest.split_at(length);
        self.offset += read.chars().count();
        self.rest = rest;
        read
    }

    /// Reads a token, or what is none.
    fn next(&mut self) -> Option<Token> {
        let Some(found) = TOKEN.captures(self.rest) else {
            // ANTLR takes the character after a half operator along.
            return self.unknown(if self.rest.starts_with(['=', '&', '|']) { 2 } else { 1 });
        };
        if let Some(quote) = found.name("quote") {
            return self.text(&found["prefix"].to_ascii_lowercase(), quote.as_str());
        }
        self.skip(found[0].len());
        let kinds = [
            ("double", Token::Double), ("uint", Token::Uint), ("int", Token::Int), ("sign", Token::Sign), ("name", Token::Ident), ("quoted", Token::Quoted),
        ];
        kinds.into_iter().find(|it| found.name(it.0).is_some()).map(|it| it.1)
    }

    /// So many characters that are no token.
    fn unknown(&mut self, count: usize) -> Option<Token> {
        let end = self.rest.char_indices().nth(count).map_or(self.rest.len(), |it| it.0);
        let offset = self.offset;
        let shown = self.skip(end).replace('\n', "\\n");
        self.issues.push(Issue { offset, message: format!("Syntax error: token recognition error at: '{shown}'") });
        None
    }

    /// A string or bytes.
    fn text(&mut self, prefix: &str, quote: &str) -> Option<Token> {
        let (is_raw, is_bytes, is_long) = (prefix.contains('r'), prefix.contains('b'), quote.len() == 3);
        let whole = self.rest;
        let (mut rest, mut bytes) = (&whole[prefix.len() + quote.len()..], Vec::new());
        while !rest.starts_with(quote) {
            let is_over = rest.is_empty() || (!is_long && rest.starts_with(['\n', '\r']));
            let after = match rest.strip_prefix('\\') {
                _ if is_over => None,
                Some(after) if !is_raw => self.escape(after, is_bytes, &mut bytes),
                _ => Some(plain(rest, &mut bytes)),
            };
            let Some(after) = after else {
                let length = whole[..whole.len() - rest.len()].chars().count();
                return self.unknown(if is_over { length } else { length + 2 });
            };
            rest = after;
        }
        self.skip(whole.len() - rest.len() + quote.len());
        Some(if is_bytes { Token::Bytes(bytes) } else { Token::String(String::from_utf8_lossy(&bytes).into_owned()) })
    }

    /// Reads what follows a backslash and returns the rest; nothing when it is no escape.
    fn escape<'t>(&mut self, text: &'t str, is_bytes: bool, into: &mut Vec<u8>) -> Option<&'t str> {
        let kind = text.chars().next()?;
        if is_bytes && matches!(kind, 'u' | 'U') {
            self.issues.push(Issue { offset: self.offset, message: "unable to unescape string".to_owned() });
        }
        let simple = ESCAPES.iter().find(|it| it.0 == kind).map(|it| it.1);
        if let Some(letter) = simple.or(Some(kind).filter(|it| "'`?".contains(*it))) {
            into.push(letter as u8);
            return Some(&text[1..]);
        }
        let (skip, count, base) = match kind {
            'x' | 'X' => (1, 2, 16),
            'u' => (1, 4, 16),
            'U' => (1, 8, 16),
            '0'..='3' => (0, 3, 8),
            _ => return None,
        };
        let digits = text.get(skip..skip + count).filter(|it| it.chars().all(|it| it.is_digit(base)))?;
        let code = u32::from_str_radix(digits, base).ok()?;
        match char::from_u32(code) {
            _ if is_bytes => into.push(code as u8),
            letter => into.extend(letter?.encode_utf8(&mut [0; 4]).as_bytes()),
        }
        Some(&text[skip + count..])
    }
}

/// Reads one character; every end of a line is `\n`.
fn plain<'t>(text: &'t str, into: &mut Vec<u8>) -> &'t str {
    if let Some(rest) = text.strip_prefix("\r\n").or_else(|| text.strip_prefix('\r')) {
        into.push(b'\n');
        return rest;
    }
    let (letter, rest) = text.split_at(text.chars().next().map_or(0, char::len_utf8));
    into.extend(letter.as_bytes());
    rest
}
