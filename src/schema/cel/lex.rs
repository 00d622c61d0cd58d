//! CEL's tokens. Follows cel-go `parser/gen/CEL.g4` and `parser/unescape.go`.

use super::ast::Issue;

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    Ident(String),
    Int(String),
    Uint(String),
    Double(String),
    String(String),
    Bytes(Vec<u8>),
    /// Operators, brackets, `true`, `false`, `null`, `in`.
    Sign(&'static str),
    /// A name between backquotes, which Kubernetes does not allow.
    Quoted(String),
    End,
}

#[derive(Clone, Debug)]
pub struct Placed {
    pub token: Token,
    pub offset: usize,
    /// As it was written, for messages.
    pub text: String,
}

/// Longer ones first, so that `<=` is not taken for `<`.
const SIGNS: [&str; 25] =
    ["==", "!=", "<=", ">=", "&&", "||", "[", "]", "{", "}", "(", ")", ".", ",", "-", "!", "?", ":", "+", "*", "/", "%", "<", ">", "\u{0}"];
const WORDS: [&str; 4] = ["true", "false", "null", "in"];

/// All tokens, the last one [`Token::End`], and the characters that begin none.
pub fn tokens(text: &str) -> (Vec<Placed>, Vec<Issue>) {
    let mut lexer = Lexer { chars: text.chars().collect(), at: 0, issues: Vec::new() };
    let mut list = Vec::new();
    loop {
        lexer.skip_blank();
        let offset = lexer.at;
        if offset >= lexer.chars.len() {
            list.push(Placed { token: Token::End, offset, text: "<EOF>".to_owned() });
            return (list, lexer.issues);
        }
        if let Some(token) = lexer.next() {
            let text = lexer.chars[offset..lexer.at].iter().collect();
            list.push(Placed { token, offset, text });
        }
    }
}

struct Lexer {
    chars: Vec<char>,
    at: usize,
    issues: Vec<Issue>,
}

impl Lexer {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn starts_with(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(at, it)| self.chars.get(self.at + at) == Some(&it))
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> String {
        let start = self.at;
        while self.at < self.chars.len() && accept(self.chars[self.at]) {
            self.at += 1;
        }
        self.chars[start..self.at].iter().collect()
    }

    fn skip_blank(&mut self) {
        loop {
            self.take_while(|it| matches!(it, ' ' | '\t' | '\r' | '\n' | '\u{c}'));
            if !self.starts_with("//") {
                return;
            }
            self.take_while(|it| it != '\n');
        }
    }

    fn next(&mut self) -> Option<Token> {
        let first = self.peek(0);
        if first.is_ascii_digit() || (first == '.' && self.peek(1).is_ascii_digit()) {
            return Some(self.number());
        }
        if let Some(prefix) = ["", "r", "b", "br", "rb"].iter().find(|it| self.is_quote_after(it)) {
            return self.text(prefix.len());
        }
        if first == '_' || first.is_ascii_alphabetic() {
            let name = self.take_while(|it| it == '_' || it.is_ascii_alphanumeric());
            return Some(WORDS.iter().find(|it| **it == name).map_or(Token::Ident(name), |it| Token::Sign(it)));
        }
        if first == '`' && let Some(length) = self.chars[self.at + 1..].iter().position(|it| *it == '`').filter(|it| *it > 0) {
            let name = self.chars[self.at + 1..self.at + 1 + length].iter().collect();
            self.at += length + 2;
            return Some(Token::Quoted(name));
        }
        if let Some(sign) = SIGNS.iter().find(|it| self.starts_with(it)) {
            self.at += sign.len();
            return Some(Token::Sign(sign));
        }
        // ANTLR takes the character after a half operator along.
        let length = if matches!(first, '=' | '&' | '|') && self.at + 1 < self.chars.len() { 2 } else { 1 };
        self.unknown(length)
    }

    fn unknown(&mut self, length: usize) -> Option<Token> {
        let end = (self.at + length).min(self.chars.len());
        let shown: String = self.chars[self.at..end].iter().collect();
        self.issues.push(Issue { offset: self.at, message: format!("Syntax error: token recognition error at: '{}'", shown.replace('\n', "\\n")) });
        self.at = end;
        None
    }

    fn is_quote_after(&self, prefix: &str) -> bool {
        let is_prefix = prefix.chars().enumerate().all(|(at, it)| self.peek(at).eq_ignore_ascii_case(&it));
        is_prefix && matches!(self.peek(prefix.len()), '"' | '\'')
    }

    fn number(&mut self) -> Token {
        if self.peek(0) == '0' && self.peek(1) == 'x' && self.peek(2).is_ascii_hexdigit() {
            self.at += 2;
            let digits = format!("0x{}", self.take_while(|it| it.is_ascii_hexdigit()));
            return self.integer(digits);
        }
        let mut text = self.take_while(|it| it.is_ascii_digit());
        let mut is_double = false;
        if self.peek(0) == '.' && self.peek(1).is_ascii_digit() {
            self.at += 1;
            text = format!("{text}.{}", self.take_while(|it| it.is_ascii_digit()));
            is_double = true;
        }
        let signed = usize::from(matches!(self.peek(1), '+' | '-'));
        if matches!(self.peek(0), 'e' | 'E') && self.peek(1 + signed).is_ascii_digit() {
            text.extend(&self.chars[self.at..=self.at + signed]);
            self.at += 1 + signed;
            text.push_str(&self.take_while(|it| it.is_ascii_digit()));
            is_double = true;
        }
        if is_double { Token::Double(text) } else { self.integer(text) }
    }

    fn integer(&mut self, digits: String) -> Token {
        if matches!(self.peek(0), 'u' | 'U') {
            self.at += 1;
            return Token::Uint(digits);
        }
        Token::Int(digits)
    }

    /// A string or bytes, with a prefix of that many letters.
    fn text(&mut self, prefix: usize) -> Option<Token> {
        let start = self.at;
        let letters: String = self.chars[start..start + prefix].iter().collect::<String>().to_ascii_lowercase();
        let (is_raw, is_bytes) = (letters.contains('r'), letters.contains('b'));
        self.at += prefix;
        let quote = self.peek(0);
        let is_long = self.peek(1) == quote && self.peek(2) == quote;
        let width = if is_long { 3 } else { 1 };
        self.at += width;
        let mut bytes = Vec::new();
        loop {
            let is_over = self.at >= self.chars.len() || (!is_long && matches!(self.peek(0), '\n' | '\r'));
            if is_over || (self.peek(0) == '\\' && !is_raw && !self.escape(start, is_bytes, &mut bytes)) {
                let length = (self.at - start + usize::from(!is_over) * 2).min(self.chars.len() - start);
                self.at = start;
                return self.unknown(length);
            }
            if (0..width).all(|ahead| self.peek(ahead) == quote) {
                break;
            }
            if self.peek(0) == '\\' && !is_raw {
                continue;
            }
            let next = if self.peek(0) == '\r' { '\n' } else { self.peek(0) };
            self.at += if self.starts_with("\r\n") { 2 } else { 1 };
            bytes.extend(next.encode_utf8(&mut [0; 4]).as_bytes());
        }
        self.at += width;
        Some(if is_bytes { Token::Bytes(bytes) } else { Token::String(String::from_utf8_lossy(&bytes).into_owned()) })
    }

    /// Reads one escape sequence; `false` when it is none, and then nothing was read.
    fn escape(&mut self, start: usize, is_bytes: bool, into: &mut Vec<u8>) -> bool {
        let kind = self.peek(1);
        if is_bytes && matches!(kind, 'u' | 'U') {
            self.issues.push(Issue { offset: start, message: "unable to unescape string".to_owned() });
        }
        let simple = match kind {
            'a' => Some(7),
            'b' => Some(8),
            'f' => Some(12),
            'n' => Some(b'\n'),
            'r' => Some(b'\r'),
            't' => Some(b'\t'),
            'v' => Some(11),
            '\\' | '\'' | '"' | '`' | '?' => Some(kind as u8),
            _ => None,
        };
        if let Some(byte) = simple {
            into.push(byte);
            self.at += 2;
            return true;
        }
        let (skip, count, base) = match kind {
            'x' | 'X' => (2, 2, 16),
            'u' => (2, 4, 16),
            'U' => (2, 8, 16),
            '0'..='3' => (1, 3, 8),
            _ => return false,
        };
        let digits: String = (0..count).map(|ahead| self.peek(skip + ahead)).collect();
        let Some(code) = u32::from_str_radix(&digits, base).ok().filter(|_| digits.chars().all(|it| it.is_digit(base))) else { return false };
        match char::from_u32(code) {
            _ if is_bytes => into.push(code as u8),
            Some(letter) => into.extend(letter.encode_utf8(&mut [0; 4]).as_bytes()),
            None => return false,
        }
        self.at += skip + count;
        true
    }
}
