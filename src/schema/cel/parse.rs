//! From tokens to the tree, by descent; macros become comprehensions on the way.
//! Follows cel-go `parser/parser.go`, `parser/macro.go`, `ext/comprehensions.go`, `ext/lists.go` (sortBy) and `cel/library.go` (optMap).

use super::{
    ast::{ACCUMULATOR, Call, Entry, Expr, Fold, Id, Issue, Item, Kind, Literal},
    lex::{Placed, Token, tokens},
};

/// How deep an expression may be nested. Upstream's `maxRecursionDepth` is 250; here the walks go by recursion on stacks of 2 MB.
const DEPTH_MAX: usize = 100;
/// How high the tree may be: macros put more nodes into it than are written.
const HEIGHT_MAX: usize = 150;
/// The most nodes that `optMap` copies: it evaluates its target twice, and what is nested doubles each time.
const COPIED_MAX: usize = 2000;
/// The longest expression (`expressionSizeCodePointLimit`).
const LENGTH_MAX: usize = 100_000;
const OPERAND: &str = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";
const OPERAND_OR_END: &str = "{'[', '{', '(', ')', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";
const RESERVED: [&str; 17] = [
    "as", "break", "const", "continue", "else", "for", "function", "if", "import", "let", "loop", "package", "namespace", "return", "var", "void", "while",
];
/// Binary operators by how tightly they bind, loosest first.
const LEVELS: [&[(&str, &str)]; 5] = [
    &[("||", "_||_")],
    &[("&&", "_&&_")],
    &[("<", "_<_"), ("<=", "_<=_"), (">=", "_>=_"), (">", "_>_"), ("==", "_==_"), ("!=", "_!=_"), ("in", "@in")],
    &[("+", "_+_"), ("-", "_-_")],
    &[("*", "_*_"), ("/", "_/_"), ("%", "_%_")],
];

/// A parsed expression, the position of every node, and what is wrong.
pub struct Parsed {
    pub expr: Expr,
    pub offsets: Vec<usize>,
    pub issues: Vec<Issue>,
}

pub fn parse(text: &str) -> Parsed {
    let length = text.chars().count();
    if length > LENGTH_MAX {
        let message = format!("expression code point size exceeds limit: size: {length}, limit {LENGTH_MAX}");
        return Parsed { expr: Expr::new(0, Kind::Broken), offsets: vec![0], issues: vec![Issue { offset: 0, message }] };
    }
    let (tokens, issues) = tokens(text);
    let mut parser = Parser { tokens, at: 0, depth: 0, offsets: Vec::new(), issues };
    let expr = parser.whole().unwrap_or_else(|_| parser.node(0, Kind::Broken));
    Parsed { expr, offsets: parser.offsets, issues: parser.issues }
}

/// The rest of the text makes no sense any more; the issue is noted.
struct Halt;
type Read<T> = Result<T, Halt>;

struct Parser {
    tokens: Vec<Placed>,
    at: usize,
    depth: usize,
    offsets: Vec<usize>,
    issues: Vec<Issue>,
}

impl Parser {
    fn peek(&self) -> &Placed {
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn is(&self, sign: &str) -> bool {
        matches!(&self.peek().token, Token::Sign(it) if *it == sign)
    }

    fn next(&mut self) -> Placed {
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

    fn node(&mut self, offset: usize, kind: Kind) -> Expr {
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

    /// Notes what ANTLR would say of the token that stands here.
    fn syntax<T>(&mut self, what: &str, expecting: &str) -> Read<T> {
        let token = self.peek().clone();
        self.issue(token.offset, format!("Syntax error: {what} '{}' expecting {expecting}", token.text));
        Err(Halt)
    }

    fn expect(&mut self, sign: &str, alternatives: &str) -> Read<usize> {
        if let Some(offset) = self.take(sign) {
            return Ok(offset);
        }
        if sign == ")" && alternatives.is_empty() {
            let token = self.peek().clone();
            self.issue(token.offset, format!("Syntax error: missing ')' at '{}'", token.text));
            return Err(Halt);
        }
        let expecting = if alternatives.is_empty() { format!("'{sign}'") } else { format!("{{'{sign}', {alternatives}}}") };
        self.syntax("mismatched input", &expecting)
    }

    fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Read<T>) -> Read<T> {
        if self.depth >= DEPTH_MAX {
            self.issue(self.peek().offset, format!("expression recursion limit exceeded: {DEPTH_MAX}"));
            return Err(Halt);
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    fn whole(&mut self) -> Read<Expr> {
        let expr = self.expr()?;
        match self.peek().token {
            Token::End => Ok(expr),
            _ => self.syntax("extraneous input", "<EOF>"),
        }
    }

    fn expr(&mut self) -> Read<Expr> {
        self.deeper(|it| {
            let condition = it.binary(0)?;
            let Some(offset) = it.take("?") else { return Ok(condition) };
            let id = it.new_id(offset);
            let yes = it.binary(0)?;
            it.expect(":", "")?;
            let no = it.expr()?;
            Ok(it.call_at(id, "_?_:_", vec![condition, yes, no]))
        })
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
                self.issue(offset, "max recursion depth exceeded");
                return Err(Halt);
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
                None => return Ok(self.balance(function, first, terms)),
            }
        }
    }

    /// A chain of `&&` or `||` as a tree of little depth (`balancingLogicManager`).
    fn balance(&mut self, function: &str, first: Expr, rest: Vec<(Id, Expr)>) -> Expr {
        let (ids, terms): (Vec<Id>, Vec<Expr>) = rest.into_iter().unzip();
        let mut terms: Vec<Option<Expr>> = std::iter::once(first).chain(terms).map(Some).collect();
        self.balanced(function, &ids, &mut terms, 0, ids.len() - 1)
    }

    fn balanced(&mut self, function: &str, ids: &[Id], terms: &mut [Option<Expr>], low: usize, high: usize) -> Expr {
        let middle = (low + high).div_ceil(2);
        let mut taken = |at: usize| terms[at].take().unwrap_or_else(|| Expr::new(0, Kind::Broken));
        let left = if middle == low { taken(middle) } else { self.balanced(function, ids, terms, low, middle - 1) };
        let mut taken = |at: usize| terms[at].take().unwrap_or_else(|| Expr::new(0, Kind::Broken));
        let right = if middle == high { taken(middle + 1) } else { self.balanced(function, ids, terms, middle + 1, high) };
        self.call_at(ids[middle], function, vec![left, right])
    }

    fn unary(&mut self) -> Read<Expr> {
        for (sign, function) in [("!", "!_"), ("-", "-_")] {
            if !self.is(sign) {
                continue;
            }
            let offset = self.peek().offset;
            if sign == "-" && self.is_number_after() {
                break;
            }
            let mut count = 0;
            while self.take(sign).is_some() {
                count += 1;
            }
            let operand = self.member()?;
            if count % 2 == 0 {
                return Ok(operand);
            }
            let id = self.new_id(offset);
            return Ok(self.call_at(id, function, vec![operand]));
        }
        self.member()
    }

    fn is_number_after(&self) -> bool {
        matches!(self.tokens.get(self.at + 1).map(|it| &it.token), Some(Token::Int(_) | Token::Double(_)))
    }

    fn member(&mut self) -> Read<Expr> {
        let mut expr = self.primary()?;
        let mut count = 0;
        loop {
            count += 1;
            if self.depth + count > DEPTH_MAX {
                self.issue(self.peek().offset, "max recursion depth exceeded");
                return Err(Halt);
            }
            if let Some(offset) = self.take(".") {
                expr = self.selection(expr, offset)?;
            } else if let Some(offset) = self.take("[") {
                let id = self.new_id(offset);
                let function = if self.take("?").is_some() { "_[?_]" } else { "_[_]" };
                let index = self.expr()?;
                self.expect("]", "")?;
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
        let place = self.peek().offset;
        let name = match self.next() {
            Placed { token: Token::Ident(name), .. } => name,
            Placed { token: Token::Quoted(name), .. } => {
                self.issue(place, "unsupported syntax: '`'");
                name
            }
            Placed { token: Token::Sign("true" | "false" | "null"), text, .. } => {
                self.issue(place, format!("Syntax error: mismatched input '{text}' expecting IDENTIFIER"));
                return Err(Halt);
            }
            other => {
                let shown = if other.token == Token::End { String::new() } else { other.text };
                self.issue(place, format!("Syntax error: no viable alternative at input '.{shown}'"));
                return Err(Halt);
            }
        };
        if is_optional {
            let field = self.node(place, Kind::Literal(Literal::String(name)));
            let id = self.new_id(dot);
            return Ok(self.call_at(id, "_?._", vec![operand, field]));
        }
        let Some(open) = self.take("(") else {
            return Ok(self.node(dot, Kind::Select { operand: Box::new(operand), field: name, is_test: false }));
        };
        let id = self.new_id(open);
        let args = self.arguments()?;
        Ok(self.macro_or_call(id, &name, Some(operand), args))
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
                self.expect(")", "")?;
                return Ok(args);
            }
        }
    }

    fn primary(&mut self) -> Read<Expr> {
        let Placed { token, offset, text } = self.peek().clone();
        let literal = match token {
            Token::Ident(name) => return self.name(name, offset, false),
            Token::Sign("-") if self.is_number_after() => {
                self.next();
                return self.number(offset, true);
            }
            Token::Int(_) | Token::Uint(_) | Token::Double(_) => return self.number(offset, false),
            Token::String(text) => Literal::String(text),
            Token::Bytes(bytes) => Literal::Bytes(bytes),
            Token::Sign("true") => Literal::Bool(true),
            Token::Sign("false") => Literal::Bool(false),
            Token::Sign("null") => Literal::Null,
            Token::Sign("(") => {
                self.next();
                let inner = self.expr()?;
                self.expect(")", "")?;
                return Ok(inner);
            }
            Token::Sign("[") => return self.list(),
            Token::Sign("{") => {
                self.next();
                let id = self.new_id(offset);
                let entries = self.entries(false)?;
                return Ok(self.placed(id, Kind::Map(entries)));
            }
            Token::Sign(".") => {
                self.next();
                return match self.peek().clone() {
                    Placed { token: Token::Ident(name), offset, .. } => self.name(name, offset, true),
                    other => {
                        self.issue(other.offset, format!("Syntax error: mismatched input '{}' expecting IDENTIFIER", other.text));
                        Err(Halt)
                    }
                };
            }
            _ => {
                // One token too many before an operand is told as such.
                let is_followed = matches!(self.tokens.get(self.at + 1).map(|it| &it.token), Some(Token::Ident(_) | Token::Int(_) | Token::String(_) | Token::Sign("(" | "[")));
                let is_end = text == "<EOF>" && token == Token::End;
                return self.syntax(if is_followed && !is_end && !matches!(token, Token::Quoted(_)) { "extraneous input" } else { "mismatched input" }, OPERAND);
            }
        };
        self.next();
        Ok(self.node(offset, Kind::Literal(literal)))
    }

    fn name(&mut self, name: String, offset: usize, is_rooted: bool) -> Read<Expr> {
        self.next();
        if RESERVED.contains(&name.as_str()) {
            self.issue(offset, format!("reserved identifier: {name}"));
        }
        let spelled = if is_rooted { format!(".{name}") } else { name };
        let Some(open) = self.take("(") else { return Ok(self.node(offset, Kind::Ident(spelled))) };
        let id = self.new_id(open);
        let args = self.arguments()?;
        Ok(self.macro_or_call(id, &spelled, None, args))
    }

    fn number(&mut self, offset: usize, is_negative: bool) -> Read<Expr> {
        let sign = if is_negative { "-" } else { "" };
        let radix = |text: &str| if text.starts_with("0x") { 16 } else { 10 };
        let digits = |text: &str| format!("{sign}{}", text.trim_start_matches("0x"));
        let (literal, name) = match self.next().token {
            Token::Int(text) => (i64::from_str_radix(&digits(&text), radix(&text)).ok().map(Literal::Int), "int"),
            Token::Uint(text) => (u64::from_str_radix(&digits(&text), radix(&text)).ok().map(Literal::Uint), "uint"),
            Token::Double(text) => (format!("{sign}{text}").parse().ok().filter(|it: &f64| it.is_finite()).map(Literal::Double), "double"),
            _ => (None, "number"),
        };
        Ok(match literal {
            Some(literal) => self.node(offset, Kind::Literal(literal)),
            None => {
                self.issue(offset, format!("invalid {name} literal"));
                self.node(offset, Kind::Broken)
            }
        })
    }

    /// The grammar lets a comma stand in an empty list or map.
    fn lone_comma(&mut self, close: &'static str) {
        if self.is(",") && self.tokens.get(self.at + 1).is_some_and(|it| it.token == Token::Sign(close)) {
            self.next();
        }
    }

    fn list(&mut self) -> Read<Expr> {
        let offset = self.next().offset;
        let id = self.new_id(offset);
        let mut items = Vec::new();
        self.lone_comma("]");
        while !self.is("]") {
            let is_optional = self.take("?").is_some();
            items.push(Item { value: self.expr()?, is_optional });
            if self.take(",").is_none() {
                break;
            }
        }
        self.expect("]", "','")?;
        Ok(self.placed(id, Kind::List(items)))
    }

    /// The entries of a map or of a struct, whose opening brace was read.
    fn entries(&mut self, is_struct: bool) -> Read<Vec<Entry>> {
        let mut entries = Vec::new();
        self.lone_comma("}");
        while !self.is("}") {
            let is_optional = self.take("?").is_some();
            let key = match self.peek().clone() {
                Placed { token: Token::Ident(name), offset, .. } if is_struct => {
                    self.next();
                    self.node(offset, Kind::Literal(Literal::String(name)))
                }
                _ if is_struct => return self.syntax("mismatched input", "{'}', ',', '?', IDENTIFIER, ESC_IDENTIFIER}"),
                _ => self.expr()?,
            };
            let colon = self.expect(":", "")?;
            let id = self.new_id(colon);
            entries.push(Entry { id, key, value: self.expr()?, is_optional });
            if self.take(",").is_none() {
                break;
            }
        }
        self.expect("}", "','")?;
        Ok(entries)
    }

    fn call_at(&mut self, id: Id, function: &str, args: Vec<Expr>) -> Expr {
        self.placed(id, Kind::Call(Box::new(Call::new(function, None, args))))
    }

    fn macro_or_call(&mut self, id: Id, function: &str, target: Option<Expr>, args: Vec<Expr>) -> Expr {
        let maker = Maker { offset: self.offsets[id], parser: self };
        let (target, args) = match maker.expand(function, target, args) {
            Ok(Expansion::Made(expr)) => return expr,
            Ok(Expansion::None(target, args)) => (target, args),
            Err((offset, message)) => {
                self.issue(offset, message);
                return self.node(offset, Kind::Broken);
            }
        };
        self.placed(id, Kind::Call(Box::new(Call::new(function, target, args))))
    }
}

enum Expansion {
    Made(Expr),
    /// It is no macro: target and arguments come back.
    None(Option<Expr>, Vec<Expr>),
}

type Refusal = (usize, &'static str);

/// Makes the nodes of a macro; all of them stand where the macro stands.
struct Maker<'a> {
    parser: &'a mut Parser,
    offset: usize,
}

impl Maker<'_> {
    fn expand(mut self, function: &str, target: Option<Expr>, args: Vec<Expr>) -> Result<Expansion, (usize, String)> {
        let told = |(offset, text): Refusal| (offset, text.to_owned());
        let made = match (function, target, args.len()) {
            ("has", None, 1) => self.has(args).map_err(told)?,
            (_, None, _) => return Ok(Expansion::None(None, args)),
            ("all" | "exists" | "exists_one", Some(target), 2 | 3) | ("existsOne", Some(target), 3) => self.quantifier(function, target, args)?,
            ("map", Some(target), 2 | 3) | ("filter", Some(target), 2) => self.map(function, target, args).map_err(told)?,
            ("transformList" | "transformMap" | "transformMapEntry", Some(target), 3 | 4) => self.transform(function, target, args)?,
            ("optMap" | "optFlatMap", Some(target), 2) => self.optional(function, target, args)?,
            ("sortBy", Some(target), 2) => self.sort_by(target, args).map_err(told)?,
            (_, target, _) => return Ok(Expansion::None(target, args)),
        };
        Ok(Expansion::Made(made))
    }

    fn new(&mut self, kind: Kind) -> Expr {
        self.parser.node(self.offset, kind)
    }

    fn literal(&mut self, literal: Literal) -> Expr {
        self.new(Kind::Literal(literal))
    }

    fn ident(&mut self, name: &str) -> Expr {
        self.new(Kind::Ident(name.to_owned()))
    }

    fn accu(&mut self) -> Expr {
        self.ident(ACCUMULATOR)
    }

    fn call(&mut self, function: &str, args: Vec<Expr>) -> Expr {
        let id = self.parser.new_id(self.offset);
        self.parser.call_at(id, function, args)
    }

    fn method(&mut self, function: &str, target: Expr, args: Vec<Expr>) -> Expr {
        self.new(Kind::Call(Box::new(Call::new(function, Some(target), args))))
    }

    fn place(&self, expr: &Expr) -> usize {
        self.parser.offsets[expr.id]
    }

    fn has(&mut self, args: Vec<Expr>) -> Result<Expr, Refusal> {
        match args.into_iter().next() {
            Some(Expr { kind: Kind::Select { operand, field, is_test: false }, .. }) => Ok(self.new(Kind::Select { operand, field, is_test: true })),
            other => Err((other.map_or(self.offset, |it| self.place(&it)), "invalid argument to has() macro")),
        }
    }

    fn variable(&self, expr: &Expr, complaint: &'static str) -> Result<String, Refusal> {
        match &expr.kind {
            Kind::Ident(name) if name == "__result__" => Err((self.place(expr), "iteration variable overwrites accumulator variable")),
            Kind::Ident(name) => Ok(name.clone()),
            _ => Err((self.place(expr), complaint)),
        }
    }

    /// One or two variables of a loop, and the arguments after them.
    fn variables(&self, mut args: Vec<Expr>, count: usize) -> Result<(String, Option<String>, Vec<Expr>), (usize, String)> {
        const COMPLAINT: &str = "argument must be a simple name";
        let told = |(offset, text): Refusal| (offset, text.to_owned());
        let rest = args.split_off(count);
        let first = self.variable(&args[0], COMPLAINT).map_err(told)?;
        let Some(second) = args.get(1) else { return Ok((first, None, rest)) };
        let name = self.variable(second, COMPLAINT).map_err(told)?;
        if name == first {
            return Err((self.place(second), format!("duplicate variable name: {name}")));
        }
        Ok((first, Some(name), rest))
    }

    fn fold(&mut self, range: Expr, vars: (String, Option<String>), init: Expr, condition: Expr, step: Expr, result: Expr) -> Expr {
        self.new(Kind::Fold(Box::new(Fold { range, var: vars.0, var2: vars.1, accu: ACCUMULATOR.to_owned(), init, condition, step, result })))
    }

    fn quantifier(&mut self, function: &str, target: Expr, args: Vec<Expr>) -> Result<Expr, (usize, String)> {
        let count = args.len() - 1;
        let (var, var2, mut rest) = self.variables(args, count)?;
        let predicate = rest.remove(0);
        let (accu, result) = (self.accu(), self.accu());
        let (init, condition, step, result) = match function {
            "all" => {
                let condition = self.call("@not_strictly_false", vec![accu]);
                let accu = self.accu();
                (self.literal(Literal::Bool(true)), condition, self.call("_&&_", vec![accu, predicate]), result)
            }
            "exists" => {
                let negated = self.call("!_", vec![accu]);
                let accu = self.accu();
                let condition = self.call("@not_strictly_false", vec![negated]);
                (self.literal(Literal::Bool(false)), condition, self.call("_||_", vec![accu, predicate]), result)
            }
            _ => {
                let one = self.literal(Literal::Int(1));
                let more = self.call("_+_", vec![accu, one.clone()]);
                let same = self.accu();
                let step = self.call("_?_:_", vec![predicate, more, same]);
                (self.literal(Literal::Int(0)), self.literal(Literal::Bool(true)), step, self.call("_==_", vec![result, one]))
            }
        };
        Ok(self.fold(target, (var, var2), init, condition, step, result))
    }

    /// The accumulated list and one value more, if the filter lets it.
    fn gather(&mut self, filter: Option<Expr>, function: &str, added: Vec<Expr>) -> Expr {
        let accu = self.accu();
        let step = self.call(function, std::iter::once(accu).chain(added).collect());
        let Some(filter) = filter else { return step };
        let same = self.accu();
        self.call("_?_:_", vec![filter, step, same])
    }

    fn map(&mut self, function: &str, target: Expr, mut args: Vec<Expr>) -> Result<Expr, Refusal> {
        let var = self.variable(&args[0], "argument is not an identifier")?;
        let (filter, value) = match (function, args.len()) {
            ("filter", _) => (Some(args.remove(1)), args.remove(0)),
            (_, 3) => (Some(args.remove(1)), args.remove(1)),
            _ => (None, args.remove(1)),
        };
        let one = self.new(Kind::List(vec![Item { value, is_optional: false }]));
        let step = self.gather(filter, "_+_", vec![one]);
        let (init, condition, result) = (self.new(Kind::List(Vec::new())), self.literal(Literal::Bool(true)), self.accu());
        Ok(self.fold(target, (var, None), init, condition, step, result))
    }

    fn transform(&mut self, function: &str, target: Expr, args: Vec<Expr>) -> Result<Expr, (usize, String)> {
        let (var, var2, mut rest) = self.variables(args, 2)?;
        let value = rest.pop().unwrap_or_else(|| self.new(Kind::Broken));
        let filter = rest.pop();
        let (init, step) = match function {
            "transformList" => {
                let one = self.new(Kind::List(vec![Item { value, is_optional: false }]));
                (Kind::List(Vec::new()), self.gather(filter, "_+_", vec![one]))
            }
            "transformMap" => {
                let key = self.ident(&var);
                (Kind::Map(Vec::new()), self.gather(filter, "cel.@mapInsert", vec![key, value]))
            }
            _ => (Kind::Map(Vec::new()), self.gather(filter, "cel.@mapInsert", vec![value])),
        };
        let (init, condition, result) = (self.new(init), self.literal(Literal::Bool(true)), self.accu());
        Ok(self.fold(target, (var, var2), init, condition, step, result))
    }

    /// Gives `value` a name within `result`.
    fn bind(&mut self, name: &str, value: Expr, result: Expr) -> Expr {
        let (range, condition, step) = (self.new(Kind::List(Vec::new())), self.literal(Literal::Bool(false)), self.ident(name));
        self.new(Kind::Fold(Box::new(Fold { range, var: "#unused".to_owned(), var2: None, accu: name.to_owned(), init: value, condition, step, result })))
    }

    fn optional(&mut self, function: &str, target: Expr, mut args: Vec<Expr>) -> Result<Expr, (usize, String)> {
        let Kind::Ident(name) = &args[0].kind else {
            return Err((self.place(&args[0]), format!("{function}() variable name must be a simple identifier")));
        };
        let name = name.clone();
        if target.count() > COPIED_MAX {
            return Err((self.place(&target), "max recursion depth exceeded".to_owned()));
        }
        let test = self.method("hasValue", target.clone(), Vec::new());
        let value = self.method("value", target, Vec::new());
        let bound = self.bind(&name, value, args.remove(1));
        let some = if function == "optMap" { self.call("optional.of", vec![bound]) } else { bound };
        let none = self.call("optional.none", Vec::new());
        Ok(self.call("_?_:_", vec![test, some, none]))
    }

    fn sort_by(&mut self, target: Expr, args: Vec<Expr>) -> Result<Expr, Refusal> {
        const INPUT: &str = "@__sortBy_input__";
        if matches!(target.kind, Kind::Literal(_) | Kind::Map(_) | Kind::Struct(..)) {
            return Err((self.place(&target), "sortBy can only be applied to a list, identifier, comprehension, call or select expression"));
        }
        let range = self.ident(INPUT);
        let keys = self.map("map", range, args)?;
        let input = self.ident(INPUT);
        let sorted = self.method("@sortByAssociatedKeys", input, vec![keys]);
        Ok(self.bind(INPUT, target, sorted))
    }
}
