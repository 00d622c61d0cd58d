//! From tokens to the tree, by descent; macros become comprehensions on the way.
//! Follows cel-go `parser/parser.go`.

use super::{
    ast::{Entry, Expr, Id, Issue, Item, Kind},
    decl::KEYWORDS,
    lex::{Placed, Token, tokens},
    macros::{self, Expansion},
    value::Val,
};

/// How deep an expression may be nested. Upstream's `maxRecursionDepth` is 250; here the walks go by recursion on stacks of 2 MB.
const DEPTH_MAX: usize = 100;
/// How high the tree may be: macros put more nodes into it than are written.
const HEIGHT_MAX: usize = 150;
/// The longest expression (`expressionSizeCodePointLimit`).
const LENGTH_MAX: usize = 100_000;
const OPERAND: &str = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";
const OPERAND_OR_END: &str = "{'[', '{', '(', ')', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";
/// Binary operators by how tightly they bind, loosest first.
const LEVELS: [&[(&str, &str)]; 5] = [
    &[("||", "_||_")],
    &[("&&", "_&&_")],
    &[("<", "_<_"), ("<=", "_<=_"), (">=", "_>=_"), (">", "_>_"), ("==", "_==_"), ("!=", "_!=_"), ("in", "@in")],
    &[("+", "_+_"), ("-", "_-_")],
    &[("*", "_*_"), ("/", "_/_"), ("%", "_%_")],
];

/// The tree of an expression and the position of every node, or what is wrong.
pub fn parse(text: &str) -> Result<(Expr, Vec<usize>), Vec<Issue>> {
    let length = text.chars().count();
    if length > LENGTH_MAX {
        let message = format!("expression code point size exceeds limit: size: {length}, limit {LENGTH_MAX}");
        return Err(vec![Issue { offset: 0, message }]);
    }
    let (tokens, issues) = tokens(text);
    let mut parser = Parser { tokens, at: 0, depth: 0, offsets: Vec::new(), issues, parts: Vec::new() };
    match parser.whole() {
        Ok(expr) if parser.issues.is_empty() => Ok((expr, parser.offsets)),
        _ => Err(parser.issues),
    }
}

/// The rest of the text makes no sense any more; the issue is noted.
pub struct Halt;
type Read<T> = Result<T, Halt>;

pub struct Parser<'a> {
    pub tokens: Vec<Placed<'a>>,
    pub at: usize,
    pub depth: usize,
    pub offsets: Vec<usize>,
    issues: Vec<Issue>,
    /// While the text of a macro is read: what some of its names stand for.
    pub parts: Vec<(&'static str, Expr)>,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> &Placed<'a> {
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn is(&self, sign: &str) -> bool {
        self.peek().is(sign)
    }

    fn next(&mut self) -> Placed<'a> {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn take(&mut self, sign: &str) -> Option<usize> {
        self.is(sign).then(|| self.next().offset)
    }

    fn new_id(&mut self, offset: usize) -> Id {
        self.offsets.push(offset);
        self.offsets.len() - 1
    }

    pub fn node(&mut self, offset: usize, kind: Kind) -> Expr {
        let id = self.new_id(offset);
        self.placed(id, kind)
    }

    /// The node of that number, unless the tree would become too high.
    fn placed(&mut self, id: Id, kind: Kind) -> Expr {
        let expr = Expr::new(id, kind);
        if expr.height <= HEIGHT_MAX {
            return expr;
        }
        self.issue(self.offsets[id], "max recursion depth exceeded");
        Expr::new(id, Kind::Broken)
    }

    fn issue(&mut self, offset: usize, message: impl Into<String>) {
        self.issues.push(Issue { offset, message: message.into() });
    }

    fn halt<T>(&mut self, offset: usize, message: impl Into<String>) -> Read<T> {
        self.issue(offset, message);
        Err(Halt)
    }

    /// Notes what ANTLR would say of the token that stands here.
    fn syntax<T>(&mut self, what: &str, expecting: &str) -> Read<T> {
        let token = self.peek().clone();
        self.halt(token.offset, format!("Syntax error: {what} '{}' expecting {expecting}", token.text))
    }

    fn expect(&mut self, sign: &str) -> Read<usize> {
        if let Some(offset) = self.take(sign) {
            return Ok(offset);
        }
        let token = self.peek().clone();
        match sign {
            ")" => self.halt(token.offset, format!("Syntax error: missing ')' at '{}'", token.text)),
            _ => self.syntax("mismatched input", &format!("'{sign}'")),
        }
    }

    fn whole(&mut self) -> Read<Expr> {
        let expr = self.expr()?;
        match self.peek().token {
            Token::End => Ok(expr),
            _ => self.syntax("extraneous input", "<EOF>"),
        }
    }

    pub fn expr(&mut self) -> Read<Expr> {
        if self.depth >= DEPTH_MAX {
            return self.halt(self.peek().offset, format!("expression recursion limit exceeded: {DEPTH_MAX}"));
        }
        self.depth += 1;
        let expr = self.conditional();
        self.depth -= 1;
        expr
    }

    fn conditional(&mut self) -> Read<Expr> {
        let condition = self.binary(0)?;
        let Some(offset) = self.take("?") else { return Ok(condition) };
        let id = self.new_id(offset);
        let yes = self.binary(0)?;
        self.expect(":")?;
        let no = self.expr()?;
        Ok(self.call_at(id, "_?_:_", vec![condition, yes, no]))
    }

    /// The level and the function of the operator that stands here, if one does.
    fn operator(&self) -> Option<(usize, &'static str)> {
        LEVELS.iter().enumerate().find_map(|(level, signs)| Some((level, signs.iter().find(|(sign, _)| self.is(sign))?.1)))
    }

    /// Operators that bind at least as tightly as `least`.
    fn binary(&mut self, least: usize) -> Read<Expr> {
        let mut left = self.unary()?;
        let mut count = 0;
        while let Some((level, function)) = self.operator().filter(|it| it.0 >= least) {
            let offset = self.next().offset;
            if level < 2 {
                left = self.chain(left, level, function, offset)?;
                continue;
            }
            count += 1;
            if self.depth + count > DEPTH_MAX {
                return self.halt(offset, "max recursion depth exceeded");
            }
            let id = self.new_id(offset);
            let right = self.binary(level + 1)?;
            left = self.call_at(id, function, vec![left, right]);
        }
        Ok(left)
    }

    /// All terms of a chain of `&&` or `||`, whose first operator was read.
    fn chain(&mut self, first: Expr, level: usize, function: &str, mut offset: usize) -> Read<Expr> {
        let mut terms = Vec::new();
        loop {
            let right = self.binary(level + 1)?;
            terms.push((self.new_id(offset), right));
            match self.take(LEVELS[level][0].0) {
                Some(next) => offset = next,
                None => break,
            }
        }
        let (ids, terms): (Vec<Id>, Vec<Expr>) = terms.into_iter().unzip();
        Ok(self.balanced(function, &ids, &mut std::iter::once(first).chain(terms)))
    }

    /// A chain of `&&` or `||` as a tree of little depth (`balancingLogicManager`).
    fn balanced(&mut self, function: &str, ids: &[Id], terms: &mut dyn Iterator<Item = Expr>) -> Expr {
        let (left, [id, right @ ..]) = ids.split_at(ids.len() / 2) else { return terms.next().unwrap_or_else(|| Expr::new(0, Kind::Broken)) };
        let (left, right) = (self.balanced(function, left, terms), self.balanced(function, right, terms));
        self.call_at(*id, function, vec![left, right])
    }

    fn unary(&mut self) -> Read<Expr> {
        let (sign, function) = match self.peek().text {
            "!" => ("!", "!_"),
            "-" if !self.is_number_after() => ("-", "-_"),
            _ => return self.member(),
        };
        let offset = self.peek().offset;
        let count = std::iter::from_fn(|| self.take(sign)).count();
        let operand = self.member()?;
        if count % 2 == 0 {
            return Ok(operand);
        }
        let id = self.new_id(offset);
        Ok(self.call_at(id, function, vec![operand]))
    }

    fn is_number_after(&self) -> bool {
        self.tokens.get(self.at + 1).is_some_and(|it| matches!(it.token, Token::Int | Token::Double))
    }

    fn member(&mut self) -> Read<Expr> {
        let mut expr = self.primary()?;
        let mut count = 0;
        loop {
            count += 1;
            if self.depth + count > DEPTH_MAX {
                return self.halt(self.peek().offset, "max recursion depth exceeded");
            }
            if let Some(offset) = self.take(".") {
                expr = self.selection(expr, offset)?;
            } else if let Some(offset) = self.take("[") {
                let id = self.new_id(offset);
                let function = if self.take("?").is_some() { "_[?_]" } else { "_[_]" };
                let index = self.expr()?;
                self.expect("]")?;
                expr = self.call_at(id, function, vec![expr, index]);
            } else if self.is("{") && let Some(name) = expr.qualified_name() {
                let offset = self.next().offset;
                let id = self.new_id(offset);
                let fields = self.entries(true)?;
                expr = self.placed(id, Kind::Struct(name, fields));
            } else {
                return Ok(expr);
            }
        }
    }

    /// What follows a dot: a field, an optional one, or the call of a method.
    fn selection(&mut self, operand: Expr, dot: usize) -> Read<Expr> {
        let is_optional = self.take("?").is_some();
        let Placed { token, offset: place, text } = self.next();
        let name = match token {
            Token::Ident => text,
            Token::Quoted => {
                self.issue(place, "unsupported syntax: '`'");
                text.trim_matches('`')
            }
            Token::Sign if text.starts_with(char::is_alphabetic) && text != "in" => {
                return self.halt(place, format!("Syntax error: mismatched input '{text}' expecting IDENTIFIER"));
            }
            token => {
                let shown = if token == Token::End { "" } else { text };
                return self.halt(place, format!("Syntax error: no viable alternative at input '.{shown}'"));
            }
        };
        if is_optional {
            let field = self.node(place, Kind::Literal(Val::text(name)));
            let id = self.new_id(dot);
            return Ok(self.call_at(id, "_?._", vec![operand, field]));
        }
        let Some(open) = self.take("(") else {
            return Ok(self.node(dot, Kind::Select { operand: Box::new(operand), field: name.to_owned(), is_test: false }));
        };
        let id = self.new_id(open);
        let args = self.arguments()?;
        Ok(self.macro_or_call(id, name, Some(operand), args))
    }

    fn arguments(&mut self) -> Read<Vec<Expr>> {
        let mut args = Vec::new();
        if self.take(")").is_some() {
            return Ok(args);
        }
        if self.peek().token == Token::End {
            return self.syntax("mismatched input", OPERAND_OR_END);
        }
        loop {
            args.push(self.expr()?);
            if self.take(",").is_none() {
                self.expect(")")?;
                return Ok(args);
            }
        }
    }

    fn primary(&mut self) -> Read<Expr> {
        let Placed { token, offset, text } = self.peek().clone();
        let literal = match (token, text) {
            (Token::Ident, _) => return self.name(false),
            (Token::Sign, "-") if self.is_number_after() => {
                self.next();
                return Ok(self.number(offset, "-"));
            }
            (Token::Int | Token::Uint | Token::Double, _) => return Ok(self.number(offset, "")),
            (Token::String(text), _) => Val::text(text),
            (Token::Bytes(bytes), _) => Val::Bytes(bytes.into()),
            (Token::Sign, "true") => Val::Bool(true),
            (Token::Sign, "false") => Val::Bool(false),
            (Token::Sign, "null") => Val::Null,
            (Token::Sign, "(") => {
                self.next();
                let inner = self.expr()?;
                self.expect(")")?;
                return Ok(inner);
            }
            (Token::Sign, "[") => return self.list(),
            (Token::Sign, "{") => {
                self.next();
                let id = self.new_id(offset);
                let entries = self.entries(false)?;
                return Ok(self.placed(id, Kind::Map(entries)));
            }
            (Token::Sign, ".") => {
                self.next();
                return if self.peek().token == Token::Ident { self.name(true) } else { self.syntax("mismatched input", "IDENTIFIER") };
            }
            (token, _) => {
                // One token too many before an operand is told as such.
                let is_operand = |it: &Placed<'_>| matches!(it.token, Token::Ident | Token::Int | Token::String(_)) || it.is("(") || it.is("[");
                let is_extra = self.tokens.get(self.at + 1).is_some_and(is_operand) && !matches!(token, Token::End | Token::Quoted);
                return self.syntax(if is_extra { "extraneous input" } else { "mismatched input" }, OPERAND);
            }
        };
        self.next();
        Ok(self.node(offset, Kind::Literal(literal)))
    }

    fn name(&mut self, is_rooted: bool) -> Read<Expr> {
        let Placed { offset, text: name, .. } = self.next();
        if let Some((_, part)) = self.parts.iter().find(|(it, _)| *it == name) {
            return Ok(part.clone());
        }
        if KEYWORDS.contains(&name) {
            self.issue(offset, format!("reserved identifier: {name}"));
        }
        let spelled = format!("{}{name}", if is_rooted { "." } else { "" });
        let Some(open) = self.take("(") else { return Ok(self.node(offset, Kind::Ident(spelled))) };
        let id = self.new_id(open);
        let args = self.arguments()?;
        Ok(self.macro_or_call(id, &spelled, None, args))
    }

    fn number(&mut self, offset: usize, sign: &str) -> Expr {
        let Placed { token, text, .. } = self.next();
        let digits = text.trim_end_matches(['u', 'U']);
        let (digits, radix) = digits.strip_prefix("0x").map_or((digits, 10), |it| (it, 16));
        let digits = format!("{sign}{digits}");
        let (literal, name) = match token {
            Token::Int => (i64::from_str_radix(&digits, radix).ok().map(Val::Int), "int"),
            Token::Uint => (u64::from_str_radix(&digits, radix).ok().map(Val::Uint), "uint"),
            _ => (digits.parse().ok().filter(|it: &f64| it.is_finite()).map(Val::Double), "double"),
        };
        if literal.is_none() {
            self.issue(offset, format!("invalid {name} literal"));
        }
        self.node(offset, literal.map_or(Kind::Broken, Kind::Literal))
    }

    /// Parts between commas up to the closing bracket. A comma may stand behind the last one, and alone.
    fn series<T>(&mut self, close: &'static str, part: impl Fn(&mut Self) -> Read<T>) -> Read<Vec<T>> {
        let mut parts = Vec::new();
        if self.is(",") && self.tokens.get(self.at + 1).is_some_and(|it| it.is(close)) {
            self.next();
        }
        while !self.is(close) {
            parts.push(part(self)?);
            if self.take(",").is_none() {
                break;
            }
        }
        if self.take(close).is_none() {
            return self.syntax("mismatched input", &format!("{{'{close}', ','}}"));
        }
        Ok(parts)
    }

    fn list(&mut self) -> Read<Expr> {
        let offset = self.next().offset;
        let id = self.new_id(offset);
        let items = self.series("]", |it| Ok(Item { is_optional: it.take("?").is_some(), value: it.expr()? }))?;
        Ok(self.placed(id, Kind::List(items)))
    }

    /// The entries of a map or of a struct, whose opening brace was read.
    fn entries(&mut self, is_struct: bool) -> Read<Vec<Entry>> {
        self.series("}", |it| {
            let is_optional = it.take("?").is_some();
            let key = match it.peek().token {
                _ if !is_struct => it.expr()?,
                Token::Ident => {
                    let Placed { offset, text, .. } = it.next();
                    it.node(offset, Kind::Literal(Val::text(text)))
                }
                _ => return it.syntax("mismatched input", "{'}', ',', '?', IDENTIFIER, ESC_IDENTIFIER}"),
            };
            let colon = it.expect(":")?;
            let id = it.new_id(colon);
            Ok(Entry { id, key, value: it.expr()?, is_optional })
        })
    }

    fn call_at(&mut self, id: Id, function: &str, args: Vec<Expr>) -> Expr {
        self.placed(id, Kind::call(function, None, args))
    }

    fn macro_or_call(&mut self, id: Id, function: &str, target: Option<Expr>, args: Vec<Expr>) -> Expr {
        let (offset, function) = (self.offsets[id], if self.parts.is_empty() { function } else { macros::spelled(function) });
        match self.expand(offset, function, target, args) {
            Ok(Expansion::Made(expr)) => expr,
            Ok(Expansion::None(target, args)) => self.placed(id, Kind::call(function, target, args)),
            Err((offset, message)) => {
                self.issue(offset, message);
                self.node(offset, Kind::Broken)
            }
        }
    }
}
