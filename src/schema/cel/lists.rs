//! Functions over lists, sets and optional values. Follows apiserver `pkg/cel/library/lists.go` and cel-go `ext/{lists,sets}.go`, `cel/library.go`.

use std::cmp::Ordering;

use super::{
    functions::{add, any, contains},
    value::{Eval, List, Val, fail, no_overload, or_fail},
};

/// The longest list that `lists.range` makes: what an evaluation's budget can pay for.
const RANGE_MAX: i64 = 1_000_000;

pub fn call<'a>(function: &str, args: &[Val<'a>]) -> Eval<Val<'a>> {
    Ok(match (function, args) {
        ("lists.range", [Val::Int(count)]) if *count > RANGE_MAX => return fail(format!("lists.range: {count} is too many")),
        ("lists.range", [Val::Int(count)]) => Val::list((0..*count).map(Val::Int).collect()),
        ("optional.of", [it]) => Val::some(it.clone()),
        ("optional.none", []) => Val::none(),
        ("optional.ofNonZeroValue", [it]) if is_zero(it) => Val::none(),
        ("optional.ofNonZeroValue", [it]) => Val::some(it.clone()),
        ("hasValue", [Val::Optional(it)]) => Val::Bool(it.is_some()),
        ("value", [Val::Optional(it)]) => or_fail(it.as_deref().cloned(), "optional.none() dereference")?,
        (_, [Val::List(list), rest @ ..]) => of_list(function, list, rest)?,
        _ => return no_overload(),
    })
}

fn of_list<'a>(function: &str, list: &List<'a>, rest: &[Val<'a>]) -> Eval<Val<'a>> {
    let items = list.to_vec()?;
    Ok(match (function, rest) {
        ("isSorted", []) => {
            let mut orders = items.windows(2).map(|pair| order(&pair[0], &pair[1]));
            Val::Bool(orders.find(|it| !it.as_ref().is_ok_and(|it| it.is_le())).transpose()?.is_none())
        }
        // The sum of nothing is the zero of the type, which the checker knows and the value does not.
        ("sum", []) => items.into_iter().map(Ok).reduce(|sum, it| add(sum?, it?)).unwrap_or(Ok(Val::Int(0)))?,
        ("min", []) => best(items, "min", Ordering::Less)?,
        ("max", []) => best(items, "max", Ordering::Greater)?,
        ("distinct", []) => Val::list(items.into_iter().fold(Vec::new(), |mut seen: Vec<Val<'a>>, item| {
            if !seen.iter().any(|it| it.equals(&item)) {
                seen.push(item);
            }
            seen
        })),
        ("first", []) => items.into_iter().next().map_or_else(Val::none, Val::some),
        ("last", []) => items.into_iter().next_back().map_or_else(Val::none, Val::some),
        ("reverse", []) => Val::list(items.into_iter().rev().collect()),
        ("flatten", []) => Val::list(flat(items, 1)?),
        ("flatten", [Val::Int(depth)]) if *depth < 0 => return fail("level must be non-negative"),
        ("flatten", [Val::Int(depth)]) => Val::list(flat(items, *depth)?),
        ("slice", [Val::Int(start), Val::Int(end)]) => slice(items, *start, *end)?,
        ("sort", []) => sorted(items.clone(), items)?,
        ("@sortByAssociatedKeys", [Val::List(keys)]) => sorted(items, keys.to_vec()?)?,
        ("sets.contains", [Val::List(other)]) => Val::Bool(all_in(other, list)?),
        ("sets.equivalent", [Val::List(other)]) => Val::Bool(all_in(list, other)? && all_in(other, list)?),
        ("sets.intersects", [Val::List(other)]) => Val::Bool(any(list, |it| contains(other, it))?),
        ("optional.unwrap" | "unwrapOpt", []) => Val::list(unwrap(items)?),
        _ => return no_overload(),
    })
}

fn order(a: &Val<'_>, b: &Val<'_>) -> Eval<Ordering> {
    a.compare(b).map_or_else(no_overload, Ok)
}

fn best<'a>(items: Vec<Val<'a>>, name: &str, wanted: Ordering) -> Eval<Val<'a>> {
    let better = |best: Eval<Val<'a>>, item: Eval<Val<'a>>| {
        let (best, item) = (best?, item?);
        Ok(if order(&item, &best)? == wanted { item } else { best })
    };
    items.into_iter().map(Ok).reduce(better).unwrap_or_else(|| fail(format!("{name} called on empty list")))
}

fn flat(items: Vec<Val<'_>>, depth: i64) -> Eval<Vec<Val<'_>>> {
    let mut all = Vec::new();
    for item in items {
        match item {
            Val::List(list) if depth > 0 => all.extend(flat(list.to_vec()?, depth - 1)?),
            item => all.push(item),
        }
    }
    Ok(all)
}

fn slice<'a>(items: Vec<Val<'a>>, start: i64, end: i64) -> Eval<Val<'a>> {
    let refuse = |why: String| fail(format!("cannot slice({start}, {end}), {why}"));
    match items.len() as i64 {
        _ if start < 0 || end < 0 => refuse("negative indexes not supported".to_owned()),
        _ if start > end => refuse("start index must be less than or equal to end index".to_owned()),
        length if length < end => refuse(format!("list is length {length}")),
        _ => Ok(Val::list(items[start as usize..end as usize].to_vec())),
    }
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

fn all_in(some: &List<'_>, of: &List<'_>) -> Eval<bool> {
    any(some, |it| Ok(!contains(of, it)?)).map(|is_missing| !is_missing)
}

fn unwrap(items: Vec<Val<'_>>) -> Eval<Vec<Val<'_>>> {
    let present = |item| match item {
        Val::Optional(it) => Ok(it.as_deref().cloned()),
        other => fail(format!("value {} is not optional", other.shown())),
    };
    items.into_iter().filter_map(|it| present(it).transpose()).collect()
}

fn is_zero(value: &Val<'_>) -> bool {
    match value {
        Val::Null => true,
        Val::Bool(it) => !it,
        Val::Int(it) | Val::Duration(it) => *it == 0,
        Val::Uint(it) => *it == 0,
        Val::Double(it) => *it == 0.0,
        Val::Optional(it) => it.is_none(),
        Val::String(_) | Val::Bytes(_) | Val::List(_) | Val::Map(_) => value.size() == 0,
        Val::Object(it) => it.1.is_empty(),
        _ => false,
    }
}
