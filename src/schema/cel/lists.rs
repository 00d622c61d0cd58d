//! Functions over lists, sets and optional values. Follows apiserver `pkg/cel/library/lists.go` and cel-go `ext/{lists,sets}.go`, `cel/library.go`.

use std::cmp::Ordering;

use super::{
    functions::{Native, add, contains},
    value::{Eval, List, Val, fail, no_overload},
};

/// The longest list that `lists.range` makes: what an evaluation's budget can pay for.
const RANGE_MAX: i64 = 1_000_000;

#[rustfmt::skip]
pub const TABLE: &[(&str, Native)] = &[
    ("isSorted", |a| {
        let all = items(a)?;
        for pair in all.windows(2) {
            if order(&pair[0], &pair[1])? == Ordering::Greater {
                return Ok(Val::Bool(false));
            }
        }
        Ok(Val::Bool(true))
    }),
    // The sum of nothing is the zero of the type, which the checker knows and the value does not.
    ("sum", |a| items(a)?.into_iter().map(Ok).reduce(|sum, it| add(sum?, it?)).unwrap_or(Ok(Val::Int(0)))),
    ("min", |a| best(a, "min", Ordering::Less)),
    ("max", |a| best(a, "max", Ordering::Greater)),
    ("distinct", |a| {
        let mut seen: Vec<Val<'_>> = Vec::new();
        for item in items(a)? {
            if !seen.iter().any(|it| it.equals(&item)) {
                seen.push(item);
            }
        }
        Ok(Val::list(seen))
    }),
    ("first", |a| Ok(items(a)?.into_iter().next().map_or_else(Val::none, Val::some))),
    ("last", |a| Ok(items(a)?.into_iter().next_back().map_or_else(Val::none, Val::some))),
    ("reverse", |a| Ok(Val::list(items(a)?.into_iter().rev().collect()))),
    ("flatten", |a| {
        let depth = match a { [_, Val::Int(depth)] => *depth, _ => 1 };
        if depth < 0 {
            return fail("level must be non-negative");
        }
        let mut flat = Vec::new();
        flatten(&a[0], depth, &mut flat)?;
        Ok(Val::list(flat))
    }),
    ("slice", |a| match a {
        [Val::List(list), Val::Int(start), Val::Int(end)] => slice(list, *start, *end),
        _ => no_overload(),
    }),
    ("sort", |a| sorted(items(a)?, items(a)?)),
    ("@sortByAssociatedKeys", |a| match a {
        [Val::List(list), Val::List(keys)] => sorted(list.to_vec()?, keys.to_vec()?),
        _ => no_overload(),
    }),
    ("lists.range", |a| match a {
        [Val::Int(count)] if *count > RANGE_MAX => fail(format!("lists.range: {count} is too many")),
        [Val::Int(count)] => Ok(Val::list((0..*count).map(Val::Int).collect())),
        _ => no_overload(),
    }),
    ("sets.contains", |a| sets(a, |own, other| all_in(other, own))),
    ("sets.equivalent", |a| sets(a, |own, other| Ok(all_in(own, other)? && all_in(other, own)?))),
    ("sets.intersects", |a| sets(a, |own, other| {
        for item in own.iter() {
            if contains(other, &item?)? {
                return Ok(true);
            }
        }
        Ok(false)
    })),
    ("optional.of", |a| Ok(Val::some(a[0].clone()))),
    ("optional.none", |_| Ok(Val::none())),
    ("optional.ofNonZeroValue", |a| Ok(if is_zero(&a[0]) { Val::none() } else { Val::some(a[0].clone()) })),
    ("optional.unwrap", unwrap),
    ("unwrapOpt", unwrap),
    ("hasValue", |a| match a { [Val::Optional(it)] => Ok(Val::Bool(it.is_some())), _ => no_overload() }),
    ("value", |a| match a {
        [Val::Optional(Some(it))] => Ok(it.as_ref().clone()),
        [Val::Optional(None)] => fail("optional.none() dereference"),
        _ => no_overload(),
    }),
];

fn items<'a>(args: &[Val<'a>]) -> Eval<Vec<Val<'a>>> {
    match args.first() {
        Some(Val::List(list)) => list.to_vec(),
        _ => no_overload(),
    }
}

fn order(a: &Val<'_>, b: &Val<'_>) -> Eval<Ordering> {
    a.compare(b).map_or_else(no_overload, Ok)
}

fn best<'a>(args: &[Val<'a>], name: &str, wanted: Ordering) -> Eval<Val<'a>> {
    let mut all = items(args)?.into_iter();
    let Some(mut best) = all.next() else { return fail(format!("{name} called on empty list")) };
    for item in all {
        if order(&item, &best)? == wanted {
            best = item;
        }
    }
    Ok(best)
}

fn flatten<'a>(value: &Val<'a>, depth: i64, into: &mut Vec<Val<'a>>) -> Eval<()> {
    let Val::List(list) = value else { return no_overload() };
    for item in list.iter() {
        let item = item?;
        match &item {
            Val::List(_) if depth > 0 => flatten(&item, depth - 1, into)?,
            _ => into.push(item),
        }
    }
    Ok(())
}

fn slice<'a>(list: &List<'a>, start: i64, end: i64) -> Eval<Val<'a>> {
    let length = list.len() as i64;
    if start < 0 || end < 0 {
        return fail(format!("cannot slice({start}, {end}), negative indexes not supported"));
    }
    if start > end {
        return fail(format!("cannot slice({start}, {end}), start index must be less than or equal to end index"));
    }
    if length < end {
        return fail(format!("cannot slice({start}, {end}), list is length {length}"));
    }
    Ok(Val::list((start..end).map(|at| list.get(at as usize)).collect::<Eval<_>>()?))
}

fn sorted<'a>(list: Vec<Val<'a>>, keys: Vec<Val<'a>>) -> Eval<Val<'a>> {
    if list.len() != keys.len() {
        return fail(format!("@sortByAssociatedKeys() expected a list of the same size as the associated keys list, but got {} and {} elements respectively", list.len(), keys.len()));
    }
    if let Some(first) = keys.first() {
        if first.compare(first).is_none() {
            return fail("list elements must be comparable");
        }
        if keys.iter().any(|it| it.type_name() != first.type_name()) {
            return fail("list elements must have the same type");
        }
    }
    let mut pairs: Vec<(Val<'a>, Val<'a>)> = keys.into_iter().zip(list).collect();
    pairs.sort_by(|(a, _), (b, _)| a.compare(b).unwrap_or(Ordering::Equal));
    Ok(Val::list(pairs.into_iter().map(|(_, it)| it).collect()))
}

fn sets<'a>(args: &[Val<'a>], holds: fn(&List<'a>, &List<'a>) -> Eval<bool>) -> Eval<Val<'a>> {
    match args {
        [Val::List(a), Val::List(b)] => holds(a, b).map(Val::Bool),
        _ => no_overload(),
    }
}

fn all_in(some: &List<'_>, of: &List<'_>) -> Eval<bool> {
    for item in some.iter() {
        if !contains(of, &item?)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn unwrap<'a>(args: &[Val<'a>]) -> Eval<Val<'a>> {
    let mut present = Vec::new();
    for item in items(args)? {
        match item {
            Val::Optional(Some(it)) => present.push(it.as_ref().clone()),
            Val::Optional(None) => (),
            other => return fail(format!("value {} is not optional", other.shown())),
        }
    }
    Ok(Val::list(present))
}

fn is_zero(value: &Val<'_>) -> bool {
    match value {
        Val::Null => true,
        Val::Bool(it) => !it,
        Val::Int(it) => *it == 0,
        Val::Uint(it) => *it == 0,
        Val::Double(it) => *it == 0.0,
        Val::Duration(it) => *it == 0,
        Val::Optional(it) => it.is_none(),
        Val::String(_) | Val::Bytes(_) | Val::List(_) | Val::Map(_) => value.size() == 0,
        Val::Object(it) => it.1.is_empty(),
        _ => false,
    }
}
