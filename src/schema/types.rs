//! The built-in types of Kubernetes v1.36, made once from `types.txt` (610 types, 2,277 fields; format: see its head).

use std::{collections::HashMap, sync::LazyLock};

use super::Schema;

pub struct Table {
    pub nodes: Vec<Schema>,
    pub by_name: HashMap<&'static str, usize>,
}

pub fn table() -> &'static Table {
    static TABLE: LazyLock<Table> = LazyLock::new(|| todo!());
    &TABLE
}
