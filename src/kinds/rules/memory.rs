//! What a walk over one object keeps, so that no item of a list is compared with all others: what its expressions may still cost, which of them
//! hold wherever they are asked, and where the items of a list stand.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::{HashMap, HashSet},
    rc::Rc,
};

use super::{Site, When, is_zero};
use crate::{
    kinds::{expr::Expr, expressions::Seen},
    meta::{FieldError, Path, Value},
    schema::cel::{BUDGET, Budget, EvalError, Val},
};

/// By what is asked of the items of a list: where the first and the last of those stand that are alike.
pub type Places = HashMap<Vec<String>, (usize, usize)>;

pub struct Memory {
    budget: Cell<Budget>,
    exhausted: Cell<bool>,
    /// By a list and what is asked of its items. The object stays where it is for as long as the walk takes.
    places: RefCell<HashMap<(usize, &'static str), Rc<Places>>>,
    /// Texts that stand in a value once.
    seen: RefCell<HashSet<(usize, String)>>,
    /// By an expression and the values that it names: whether it holds.
    held: RefCell<HashMap<(usize, Vec<usize>), bool>>,
    /// What the expressions of an admission policy see.
    policy: OnceCell<Seen>,
}

impl Default for Memory {
    fn default() -> Self {
        Self::with(BUDGET)
    }
}

impl Memory {
    /// Of a walk whose expressions may cost `units` all together.
    pub fn with(units: u64) -> Self {
        Self { budget: Cell::new(Budget::new(units)), exhausted: Cell::default(), places: RefCell::default(), seen: RefCell::default(), held: RefCell::default(), policy: OnceCell::default() }
    }

    /// Evaluates at the cost of all expressions of this object. One that fails has no value.
    pub fn spend<'a>(&self, evaluate: impl FnOnce(&mut Budget) -> Result<Val<'a>, EvalError>) -> Option<Val<'a>> {
        if self.exhausted.get() {
            return None;
        }
        let mut budget = self.budget.get();
        let value = evaluate(&mut budget);
        self.budget.set(budget);
        self.exhausted.set(matches!(value, Err(EvalError::TooCostly | EvalError::OutOfBudget)));
        value.ok()
    }

    /// What the expressions have cost.
    #[cfg(test)]
    pub fn spent(&self) -> u64 {
        u64::MAX - self.budget.get().left()
    }

    /// In the words that custom resources get.
    pub fn exhausted(&self) -> Option<FieldError> {
        self.exhausted.get().then(|| FieldError::invalid(&Path::root(), "", EvalError::OutOfBudget.to_string()))
    }

    /// Where the items of a list stand, by what `question` asks of them; those of which `key` makes nothing are left out.
    pub fn places(&self, list: &[Value], question: &'static str, mut key: impl FnMut(&Value) -> Option<Vec<String>>) -> Rc<Places> {
        let asked = (list.as_ptr().addr(), question);
        if let Some(known) = self.places.borrow().get(&asked) {
            return known.clone();
        }
        let mut places = Places::new();
        for (at, item) in list.iter().enumerate() {
            key(item).into_iter().for_each(|it| places.entry(it).or_insert((at, at)).1 = at);
        }
        let places = Rc::new(places);
        self.places.borrow_mut().insert(asked, places.clone());
        places
    }

    /// Whether a text has not been met within a value before.
    pub fn is_first(&self, within: &Value, text: &str) -> bool {
        self.seen.borrow_mut().insert((std::ptr::from_ref(within).addr(), text.to_owned()))
    }
}

/// A guard: a list has an item that is like this one, or the value.
pub struct Alike {
    side: Side,
    /// What is compared: all, or these fields.
    fields: &'static str,
    /// What is looked for in place of what the item has.
    wanted: Option<Expr>,
}

enum Side {
    Before,
    After,
    /// In the list as it was.
    Was,
    /// In the list that the value is, twice.
    Repeats,
    /// In one of these lists: so many objects further up, at that path.
    In(Vec<(usize, &'static str)>),
}

impl Alike {
    pub fn read(word: &'static str) -> Option<Self> {
        let (side, fields) = word.split_once('=').unwrap_or((word, ""));
        let place = |it: &'static str| (it.len() - it.trim_start_matches('^').len(), it.trim_start_matches('^'));
        let (side, fields) = match side {
            "before" => (Side::Before, fields),
            "after" => (Side::After, fields),
            "was" => (Side::Was, fields),
            "repeats" => (Side::Repeats, fields),
            "in" => (Side::In(fields.split(',').map(place).collect()), ""),
            _ => return None,
        };
        let wanted = super::braced(fields);
        Some(Self { side, fields: if wanted.is_some() { "" } else { fields }, wanted: wanted.map(super::expr) })
    }

    #[cfg(test)]
    pub fn compile(&self) {
        self.wanted.iter().for_each(Expr::compile);
    }
}

/// What two items that are alike have in common; what is absent is like what is empty.
fn key(item: &Value, fields: &str) -> Vec<String> {
    let text = |it: &Value| if is_zero(it) { String::new() } else { it.to_string() };
    fields.split(',').map(|field| follow(item, field).map(text).unwrap_or_default()).collect()
}

fn follow<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').filter(|it| !it.is_empty()).try_fold(value, |value, field| value.get(field))
}

/// The list that a path leads to or through, and the rest of the path.
fn list<'a, 'p>(value: &'a Value, path: &'p str) -> Option<(&'a [Value], &'p str)> {
    let (field, rest) = path.split_once('.').unwrap_or((path, ""));
    match value {
        Value::Array(list) => Some((list, path)),
        _ if path.is_empty() => None,
        _ => list(value.get(field)?, rest),
    }
}

impl<'a> Site<'a> {
    /// What is wrong with the expression of a policy or a webhook that stands here, by what it is for.
    pub(super) fn complaint(&self, purpose: &str) -> Option<String> {
        let seen = self.memory.policy.get_or_init(|| Seen::by_policy(&self.root["spec"]));
        match purpose {
            "variable" => seen.variables[self.item.at].1.as_ref().err().cloned(),
            purpose => seen.scope.compile_for(purpose, self.value.as_str().unwrap_or_default()).err(),
        }
    }

    pub(super) fn meets(&self, when: &When) -> bool {
        match when {
            When::Holds(expr) => self.holds(expr),
            When::Alike(guard) => !self.value.is_null() && self.is_alike(guard).unwrap_or_default(),
        }
    }

    fn is_alike(&self, guard: &Alike) -> Option<bool> {
        let own = || match &guard.wanted {
            Some(expr) => Some(key(&self.ask(expr)?.to_json().ok()?, "")),
            None => Some(key(self.item.of.get(self.item.at)?, guard.fields)),
        };
        let places = |list: &[Value]| self.memory.places(list, guard.fields, |it| Some(key(it, guard.fields)));
        Some(match &guard.side {
            Side::Before => places(self.item.of.as_array()?).get(&own()?).is_some_and(|it| it.0 < self.item.at),
            Side::After => places(self.item.of.as_array()?).get(&own()?).is_some_and(|it| it.1 > self.item.at),
            Side::Was => places(self.item.old?.as_array()?).contains_key(&own()?),
            Side::Repeats => places(self.value.as_array()?).len() < self.value.as_array()?.len(),
            Side::In(lists) => lists.iter().any(|(up, path)| self.found_in(*up, path).is_some()),
        })
    }

    /// The item of a list further up that is the value, or whose field is.
    fn found_in(&self, up: usize, path: &'static str) -> Option<&'a Value> {
        let mut owners = std::iter::successors(Some(self.owner), |it| it.above.copied());
        let (list, field) = list(owners.nth(up)?.value, path)?;
        let places = self.memory.places(list, field, |it| Some(key(it, field)));
        let found = list.get(places.get(&key(self.value, ""))?.0);
        self.found.set(found.unwrap_or(&Value::Null));
        found
    }

    /// Whether an expression holds. What does not depend on the item of a list is asked once for all of them.
    pub fn holds(&self, expr: &Expr) -> bool {
        let ask = || matches!(self.ask(expr), Some(Val::Bool(true)));
        let Some(named) = expr.names().iter().map(|it| self.lasting(it)).collect() else { return ask() };
        let asked = (std::ptr::from_ref(expr).addr(), named);
        let known = self.memory.held.borrow().get(&asked).copied();
        known.unwrap_or_else(|| {
            let holds = ask();
            self.memory.held.borrow_mut().insert(asked, holds);
            holds
        })
    }

    /// Where a value is that other items see too. Keys of maps that own rules are made for the moment.
    fn lasting(&self, name: &str) -> Option<usize> {
        let value = match name {
            "owner" => Some(self.object),
            "oldOwner" => self.old_object,
            "parent" => Some(self.owner.parent()),
            "root" | "oldRoot" => return Some(0),
            "list" => Some(self.item.of),
            _ => return None,
        };
        value.map_or(Some(0), |it| (!it.is_string()).then(|| std::ptr::from_ref(it).addr()))
    }
}
