//! What a walk over one object keeps: what its expressions may still cost, and which items of a list repeat others.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    rc::Rc,
};

use super::{Site, When, is_zero};
use crate::{
    meta::{FieldError, Path, Value},
    schema::cel::{BUDGET, Budget, EvalError, Val},
};

pub struct Memory {
    budget: Cell<Budget>,
    exhausted: Cell<bool>,
    /// By the places of a list and of the guard: whether each item repeats another. The object stays where it is for as long as the walk takes.
    repeats: RefCell<HashMap<(usize, usize), Rc<[bool]>>>,
}

impl Default for Memory {
    fn default() -> Self {
        Self::with(BUDGET)
    }
}

impl Memory {
    /// Of a walk whose expressions may cost `units` all together.
    pub fn with(units: u64) -> Self {
        Self { budget: Cell::new(Budget::new(units)), exhausted: Cell::default(), repeats: RefCell::default() }
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

    /// In the words that custom resources get.
    pub fn exhausted(&self) -> Option<FieldError> {
        self.exhausted.get().then(|| FieldError::invalid(&Path::root(), "", EvalError::OutOfBudget.to_string()))
    }
}

/// A guard: another item of the list has the same fields, or without fields is the same.
pub struct Repeats {
    is_before: bool,
    fields: Vec<&'static str>,
}

impl Repeats {
    pub fn read(word: &'static str) -> Option<Self> {
        let (side, fields) = word.split_once('=').unwrap_or((word, ""));
        let is_before = side == "before";
        (is_before || side == "after").then(|| Self { is_before, fields: fields.split(',').filter(|it| !it.is_empty()).collect() })
    }

    /// For each item whether one before it, or after it, is like it.
    fn of(&self, list: &[Value]) -> Rc<[bool]> {
        let mut seen = HashSet::new();
        let mut is_seen = |it: &Value| !seen.insert(self.key(it));
        match self.is_before {
            true => list.iter().map(is_seen).collect(),
            false => {
                let mut backwards: Vec<bool> = list.iter().rev().map(&mut is_seen).collect();
                backwards.reverse();
                backwards.into()
            }
        }
    }

    /// What two items that are alike have in common; what is absent is like what is empty.
    fn key(&self, item: &Value) -> Vec<String> {
        let text = |it: &Value| if is_zero(it) { String::new() } else { it.to_string() };
        match self.fields.as_slice() {
            [] => vec![text(item)],
            fields => fields.iter().map(|it| item.get(*it).map(text).unwrap_or_default()).collect(),
        }
    }
}

impl Site<'_> {
    pub(super) fn meets(&self, when: &When) -> bool {
        match when {
            When::Holds(expr) => self.holds(expr),
            When::Repeats(guard) => !self.value.is_null() && self.repeats(guard),
        }
    }

    fn repeats(&self, guard: &Repeats) -> bool {
        let Some(list) = self.item.of.as_array() else { return false };
        let place = (list.as_ptr().addr(), std::ptr::from_ref(guard).addr());
        let mut known = self.memory.repeats.borrow_mut();
        known.entry(place).or_insert_with(|| guard.of(list)).get(self.item.at).copied().unwrap_or_default()
    }
}
