//! The static check: every node gets its type, every call its overloads. Follows cel-go `checker/checker.go`, `cel/validator.go`.

use std::collections::BTreeMap;

use super::{
    Environment,
    ast::{Call, Entry, Expr, Fold, Id, Issue, Item, Kind},
    format,
    functions::{Function, Overload, function},
    strings,
    types::{Mapping, Type},
    value::Val,
};

/// Checks the tree and writes into it what names and calls mean. Returns the type of every node.
pub fn check(expr: &mut Expr, environment: &Environment, offsets: &[usize]) -> Result<Vec<Type>, Vec<Issue>> {
    let types = vec![Type::ERROR; offsets.len()];
    let mut checker = Checker { environment, offsets, types, scopes: Vec::new(), mapping: Mapping::default(), variables: 0, issues: Vec::new() };
    checker.check(expr);
    if checker.issues.is_empty() {
        checker.types = checker.types.iter().map(|it| checker.mapping.substitute(it, true)).collect();
        checker.literals(expr);
        checker.aggregates(expr);
    }
    if checker.issues.is_empty() { Ok(checker.types) } else { Err(checker.issues) }
}

struct Checker<'a> {
    environment: &'a Environment,
    offsets: &'a [usize],
    types: Vec<Type>,
    /// Variables of macros, the innermost last.
    scopes: Vec<(String, Type)>,
    mapping: Mapping,
    variables: usize,
    issues: Vec<Issue>,
}

impl Checker<'_> {
    fn issue(&mut self, id: Id, message: String) {
        self.issues.push(Issue { offset: self.offsets[id], message });
    }

    fn check(&mut self, expr: &mut Expr) -> Type {
        let id = expr.id;
        let ty = match &mut expr.kind {
            Kind::Literal(literal) => Type::named(literal.type_name()).unwrap_or(Type::ERROR),
            Kind::Broken => Type::ERROR,
            Kind::Ident(name) => self.ident(id, name),
            Kind::Select { .. } => self.select(expr),
            Kind::Call(call) if call.function == "_?._" => self.optional_select(id, call),
            Kind::Call(call) => self.call(id, call),
            Kind::List(items) => self.list(items),
            Kind::Map(entries) => self.map(entries),
            Kind::Struct(name, fields) => self.structure(id, name, fields),
            Kind::Fold(fold) => self.fold(fold),
        };
        self.types[id] = ty.clone();
        ty
    }

    fn lookup(&self, name: &str) -> Option<Type> {
        let name = name.strip_prefix('.').unwrap_or(name);
        let local = self.scopes.iter().rev().find(|(it, _)| it == name).map(|(_, ty)| ty.clone());
        local.or_else(|| self.environment.lookup(name)).or_else(|| Type::named(name).map(Type::of_type))
    }

    fn ident(&mut self, id: Id, name: &str) -> Type {
        self.lookup(name).unwrap_or_else(|| self.undeclared(id, name))
    }

    fn undeclared(&mut self, id: Id, name: &str) -> Type {
        self.issue(id, format!("undeclared reference to '{name}' (in container '')"));
        Type::ERROR
    }

    fn select(&mut self, expr: &mut Expr) -> Type {
        // `net.IP` may be one name.
        if let Some(name) = expr.qualified_name()
            && let Some(ty) = self.lookup(&name)
        {
            expr.kind = Kind::Ident(name);
            return ty;
        }
        let Kind::Select { operand, field, is_test } = &mut expr.kind else { return Type::ERROR };
        let result = self.field(expr.id, operand, field, false);
        if *is_test { Type::BOOL } else { self.mapping.substitute(&result, false) }
    }

    fn optional_select(&mut self, id: Id, call: &mut Call) -> Type {
        call.overloads = vec!["select_optional_field"];
        let [operand, field] = &mut call.args[..] else { return Type::ERROR };
        let Some(Val::String(name)) = field.literal().cloned() else { return Type::ERROR };
        self.types[field.id] = Type::STRING;
        let result = self.field(id, operand, &name, true);
        self.mapping.substitute(&result, false)
    }

    fn field(&mut self, id: Id, operand: &mut Expr, field: &str, is_optional: bool) -> Type {
        let own = self.check(operand);
        let own = self.mapping.substitute(&own, false);
        let (target, was_optional) = unwrap_optional(&own);
        let result = match target {
            Type::Of("map", of) => of[1].clone(),
            Type::Object(object) => object.field(field).unwrap_or_else(|| {
                self.issue(id, format!("undefined field '{field}'"));
                Type::ERROR
            }),
            Type::Param(_) => {
                self.mapping.assign(&Type::DYN, target);
                Type::DYN
            }
            Type::Of("dyn" | "error", _) => Type::DYN,
            other => {
                let is_struct = other.name().starts_with("kubernetes.");
                self.issue(id, if is_struct { format!("undefined field '{field}'") } else { format!("type '{other}' does not support field selection") });
                Type::DYN
            }
        };
        if was_optional || is_optional { Type::optional(result) } else { result }
    }

    fn call(&mut self, id: Id, call: &mut Call) -> Type {
        let mut args: Vec<Type> = call.args.iter_mut().map(|it| self.check(it)).collect();
        let name = call.function.strip_prefix('.').unwrap_or(&call.function).to_owned();
        // `sets.contains(a, b)` is a function with a long name, not a method of `sets`.
        let whole = call.target.as_ref().and_then(Expr::qualified_name).and_then(|it| self.function(&format!("{it}.{name}")));
        if whole.is_some() {
            call.target = None;
        }
        if let Some(target) = &mut call.target {
            args.insert(0, self.check(target));
        }
        let Some(found) = whole.or_else(|| self.function(&name)) else { return self.undeclared(id, &name) };
        call.function = found.name.to_owned();
        self.resolve(id, call, found, args)
    }

    fn function(&self, name: &str) -> Option<&'static Function> {
        function(name).filter(|it| it.name != "jsonpatch.escapeKey" || self.environment.makes_objects)
    }

    fn resolve(&mut self, id: Id, call: &mut Call, found: &'static Function, args: Vec<Type>) -> Type {
        let is_member = call.target.is_some();
        call.native = Some(found);
        if matches!(found.name, "_&&_" | "_||_") {
            call.overloads = vec![found.overloads[0].id];
            let fits = call.args.iter().fold(true, |fits, it| self.assert(it, &Type::BOOL) && fits);
            return if fits { Type::BOOL } else { Type::ERROR };
        }
        let mut result: Option<Type> = None;
        for overload in found.overloads.iter().filter(|it| it.is_member == is_member) {
            let Some(ty) = self.matches(overload, &args) else { continue };
            call.overloads.push(overload.id);
            result = Some(match result {
                None => ty,
                Some(known) if known.is_dyn() || known == ty => known,
                Some(_) => Type::DYN,
            });
        }
        result.unwrap_or_else(|| {
            let shown: Vec<String> = args.iter().map(|it| self.mapping.substitute(it, true).to_string()).collect();
            let signature = match (is_member, shown.split_first()) {
                (true, Some((target, rest))) => format!("{target}.({})", rest.join(", ")),
                _ => format!("({})", shown.join(", ")),
            };
            self.issue(id, format!("found no matching overload for '{}' applied to '{signature}'", found.name));
            Type::ERROR
        })
    }

    /// The result's type when the overload takes the arguments; its type variables are made new for every call.
    fn matches(&mut self, overload: &Overload, args: &[Type]) -> Option<Type> {
        let mut fresh: BTreeMap<String, Type> = BTreeMap::new();
        let mut renamed = |ty: &Type| ty.replaced(&mut |name| Some(fresh.entry(name.to_owned()).or_insert_with(|| self.new_variable()).clone()));
        let (wanted, result): (Vec<Type>, Type) = (overload.args.iter().map(&mut renamed).collect(), renamed(&overload.result));
        self.mapping.assign_all(args, &wanted).then(|| self.mapping.substitute(&result, false))
    }

    fn new_variable(&mut self) -> Type {
        self.variables += 1;
        Type::Param(format!("_var{}", self.variables - 1))
    }

    /// The type of a part of a literal; an optional part gives what it may hold.
    fn part(&mut self, expr: &mut Expr, is_optional: bool) -> Type {
        let ty = self.check(expr);
        if !is_optional {
            return ty;
        }
        let (inner, was_optional) = unwrap_optional(&ty);
        if !was_optional && !inner.is_dyn() {
            self.issue(expr.id, format!("expected type '{}' but found '{inner}'", Type::optional(inner.clone())));
        }
        inner.clone()
    }

    fn join(&mut self, previous: Option<Type>, current: Type) -> Option<Type> {
        Some(match previous {
            None => current,
            Some(previous) if self.mapping.assign(&previous, &current) => previous.most_general(&current),
            Some(_) => Type::DYN,
        })
    }

    fn list(&mut self, items: &mut [Item]) -> Type {
        let mut of = None;
        for item in items {
            let ty = self.part(&mut item.value, item.is_optional);
            of = self.join(of, ty);
        }
        let of = of.unwrap_or_else(|| self.new_variable());
        Type::list(of)
    }

    fn map(&mut self, entries: &mut [Entry]) -> Type {
        let (mut keys, mut values) = (None, None);
        for entry in entries {
            let key = self.check(&mut entry.key);
            keys = self.join(keys, key);
            let value = self.part(&mut entry.value, entry.is_optional);
            values = self.join(values, value);
        }
        let (keys, values) = (keys.unwrap_or_else(|| self.new_variable()), values.unwrap_or_else(|| self.new_variable()));
        Type::map(keys, values)
    }

    fn structure(&mut self, id: Id, name: &str, fields: &mut [Entry]) -> Type {
        let object = match self.lookup(name) {
            None => return self.undeclared(id, name),
            Some(Type::Of("type", of)) => match &of[0] {
                Type::Object(object) => Ok(object.clone()),
                other => Err(format!("'{}' is not a message type", other.name())),
            },
            Some(other) => Err(format!("'{}' is not a type", other.name())),
        };
        let object = object.map_err(|why| self.issue(id, why)).ok();
        for field in fields {
            let ty = self.part(&mut field.value, field.is_optional);
            let (Some(object), Some(Val::String(name))) = (&object, field.key.literal()) else { continue };
            match object.field(name) {
                None => self.issue(field.id, format!("undefined field '{name}'")),
                Some(wanted) if !self.mapping.assign(&wanted, &ty) => self.issue(field.id, format!("expected type of field '{name}' is '{wanted}' but provided type is '{ty}'")),
                Some(_) => (),
            }
        }
        object.map_or(Type::ERROR, Type::Object)
    }

    fn fold(&mut self, fold: &mut Fold) -> Type {
        let range = self.check(&mut fold.range);
        let accu = self.check(&mut fold.init);
        let range = self.mapping.substitute(&range, false);
        let (var, var2) = match &range {
            Type::Of("list", of) if fold.var2.is_some() => (Type::INT, of[0].clone()),
            Type::Of("list", of) => (of[0].clone(), Type::ERROR),
            Type::Of("map", of) => (of[0].clone(), of[1].clone()),
            Type::Of("dyn" | "error", _) | Type::Param(_) => {
                self.mapping.assign(&Type::DYN, &range);
                (Type::DYN, Type::DYN)
            }
            other => {
                self.issue(fold.range.id, format!("expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"));
                (Type::ERROR, Type::ERROR)
            }
        };
        let depth = self.scopes.len();
        self.scopes.push((fold.accu.clone(), accu.clone()));
        self.scopes.push((fold.var.clone(), var));
        self.scopes.extend(fold.var2.clone().map(|it| (it, var2)));
        self.check(&mut fold.condition);
        self.assert(&fold.condition, &Type::BOOL);
        self.check(&mut fold.step);
        self.assert(&fold.step, &accu);
        self.scopes.truncate(depth + 1);
        let result = self.check(&mut fold.result);
        self.scopes.truncate(depth);
        self.mapping.substitute(&result, false)
    }

    fn assert(&mut self, expr: &Expr, wanted: &Type) -> bool {
        let found = self.types[expr.id].clone();
        let fits = self.mapping.assign(wanted, &found);
        if !fits {
            self.issue(expr.id, format!("expected type '{wanted}' but found '{found}'"));
        }
        fits
    }
}

/// What is checked once the types are right: literals that can only fail, and lists of mixed types.
impl Checker<'_> {
    fn literals(&mut self, expr: &Expr) {
        if let Kind::Call(call) = &expr.kind {
            match (call.function.as_str(), call.args.first().map(|it| &it.kind)) {
                (name @ ("duration" | "timestamp"), Some(Kind::Literal(literal))) => {
                    if call.native.is_some_and(|it| it.run(&[literal.clone()]).is_err()) {
                        self.issue(call.args[0].id, format!("invalid {name} argument"));
                    }
                }
                ("matches", Some(Kind::Literal(Val::String(pattern)))) if strings::regex(pattern).is_err() => self.issue(call.args[0].id, "invalid matches argument".to_owned()),
                ("format", Some(Kind::List(items))) => self.format(expr.id, call, items),
                _ => (),
            }
        }
        expr.children().into_iter().for_each(|it| self.literals(it));
    }

    fn format(&mut self, id: Id, call: &Call, items: &[Item]) {
        let Some(Val::String(text)) = call.target.as_ref().and_then(Expr::literal) else { return };
        let types: Vec<Type> = items.iter().map(|it| self.types[it.value.id].clone()).collect();
        match format::check(text, &types) {
            Err((at, message)) => self.issue(at.map_or(id, |at| items[at].value.id), message),
            Ok(used) if used < items.len() => self.issue(id, format!("too many arguments supplied to string.format (expected {used}, got {})", items.len())),
            Ok(_) => (),
        }
    }

    /// All items of a list, all keys and all values of a map are of one type; the arguments of `format` may differ.
    fn aggregates(&mut self, expr: &Expr) {
        match &expr.kind {
            Kind::Call(call) if call.function == "format" => return,
            Kind::List(items) => self.same(items.iter().map(|it| (it.value.id, it.is_optional)), true),
            Kind::Map(entries) => {
                self.same(entries.iter().map(|it| (it.key.id, false)), false);
                self.same(entries.iter().map(|it| (it.value.id, it.is_optional)), false);
            }
            _ => (),
        }
        expr.children().into_iter().for_each(|it| self.aggregates(it));
    }

    fn same(&mut self, parts: impl Iterator<Item = (Id, bool)>, is_once: bool) {
        let mut types = parts.map(|(id, is_optional)| (id, if is_optional { unwrap_optional(&self.types[id]).0 } else { &self.types[id] }));
        let Some((_, wanted)) = types.next() else { return };
        let odd = types.filter(|it| it.1 != wanted).map(|(id, ty)| Issue { offset: self.offsets[id], message: format!("expected type '{wanted}' but found '{ty}'") });
        let odd: Vec<Issue> = odd.take(if is_once { 1 } else { usize::MAX }).collect();
        self.issues.extend(odd);
    }
}

fn unwrap_optional(ty: &Type) -> (&Type, bool) {
    match ty {
        Type::Of("optional_type", of) => (&of[0], true),
        other => (other, false),
    }
}
