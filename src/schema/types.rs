//! The built-in types of Kubernetes v1.36, made once from `types.txt` (619 types, 2,306 fields).
//!
//! The format, a line each: `# N package` begins a package; an unindented line is a type with its attributes (`&`: it has
//! apiVersion and kind; `atomic`); an indented one is a field: JSON name, protobuf number, type, attributes. `*N Type` inlines a struct.
//! Types: `s` string, `b` bool, `i`/`l` 32/64-bit integer, `d` float, `y` bytes, `t` Time, `u` MicroTime, `D` Duration, `q` Quantity,
//! `x` IntOrString, `R` and `J` raw JSON, `v` verbs, or a type's name, with its package's number in front when it is another's; `[` a list,
//! `(` a list in a message of its own, `{` a map. Attributes: `?` pointer, `!` written even when zero, `r` required, `k=` keys of a list map, `set`, `atomic`, `granular`,
//! `p=` patch strategy and merge key, `d=` default in JSON, `D=` one that OpenAPI does not tell, `e=` enum.

use std::{
    collections::HashMap,
    mem::{Discriminant, discriminant},
    sync::LazyLock,
};

use super::{Field, ListTopology, PatchStrategy, Schema, SchemaRef, Shape, Struct};

static SOURCE: &str = include_str!("types.txt");

/// All nodes, and the places of the named ones.
pub struct Table {
    pub nodes: Vec<Schema>,
    pub by_name: HashMap<String, usize>,
    scalars: HashMap<Discriminant<Shape>, usize>,
}

/// The node that all scalars of a shape share.
pub fn scalar_node(shape: &Shape) -> Option<SchemaRef> {
    table().scalars.get(&discriminant(shape)).map(|at| SchemaRef::Builtin(*at))
}

pub fn table() -> &'static Table {
    static TABLE: LazyLock<Table> = LazyLock::new(|| Reader::default().read(SOURCE));
    &TABLE
}

/// One line of a type, not yet resolved.
struct Line {
    text: &'static str,
    package: &'static str,
}

#[derive(Default)]
struct Reader {
    packages: HashMap<&'static str, &'static str>,
    enums: HashMap<String, &'static [&'static str]>,
    /// Name, attributes, field lines; in order, so that a type's place is its number.
    types: Vec<(String, &'static str, Vec<Line>)>,
    by_name: HashMap<String, usize>,
    nodes: Vec<Schema>,
    scalars: HashMap<&'static str, usize>,
}

impl Reader {
    fn read(mut self, source: &'static str) -> Table {
        self.split(source);
        self.nodes.resize_with(self.types.len(), Schema::default);
        for at in 0..self.types.len() {
            let mut fields = self.fields(at, &[]);
            // Go's protobuf writes by number, not as declared; inlined structs are messages in their own place.
            fields.sort_by_key(|it| it.within.iter().copied().chain([it.number]).collect::<Vec<_>>());
            let (name, attributes, _) = &self.types[at];
            let by_name = fields.iter().enumerate().map(|(place, field)| (field.name.clone(), place)).collect();
            let has = |word: &str| attributes.split(' ').any(|it| it == word);
            let shape = Struct { fields, by_name, is_atomic: has("atomic"), has_type_meta: has("&"), ..Struct::default() };
            self.nodes[at] = Schema { name: name.clone(), shape: Shape::Object(shape), ..Schema::default() };
        }
        let scalars = self.scalars.values().map(|at| (discriminant(&self.nodes[*at].shape), *at)).collect();
        Table { nodes: self.nodes, by_name: self.by_name, scalars }
    }

    fn split(&mut self, source: &'static str) {
        let mut package = "";
        for line in source.lines() {
            if let Some(rest) = line.strip_prefix("# ") {
                let (number, name) = rest.split_once(' ').unwrap_or((rest, ""));
                self.packages.insert(number, name);
                package = name;
            } else if let Some(rest) = line.strip_prefix("enum ") {
                let (name, values) = rest.split_once(' ').unwrap_or((rest, ""));
                let values: Vec<&str> = values.split('|').collect();
                self.enums.insert(name.to_owned(), values.leak());
            } else if let Some(text) = line.strip_prefix(' ') {
                if let Some((_, _, lines)) = self.types.last_mut() {
                    lines.push(Line { text, package });
                }
            } else if !line.is_empty() {
                let (name, attributes) = line.split_once(' ').unwrap_or((line, ""));
                let name = format!("{package}.{name}");
                self.by_name.insert(name.clone(), self.types.len());
                self.types.push((name, attributes, Vec::new()));
            }
        }
    }

    /// The fields of a type, those of inlined structs in their place.
    fn fields(&mut self, at: usize, within: &[u32]) -> Vec<Field> {
        let lines: Vec<(&str, &str)> = self.types[at].2.iter().map(|it| (it.text, it.package)).collect();
        let mut fields = Vec::with_capacity(lines.len());
        for (text, package) in lines {
            match text.strip_prefix('*').and_then(|it| it.split_once(' ')) {
                None => fields.push(self.field(text, package, within)),
                Some((number, name)) => {
                    let path: Vec<u32> = within.iter().copied().chain(number.parse()).collect();
                    if let Some(inlined) = self.by_name.get(&self.qualified(name, package)).copied() {
                        fields.extend(self.fields(inlined, &path));
                    }
                }
            }
        }
        fields
    }

    fn field(&mut self, text: &'static str, package: &'static str, within: &[u32]) -> Field {
        let mut words = text.split(' ');
        let mut word = || words.next().unwrap_or_default();
        let (name, number, code) = (word(), word().parse().unwrap_or(0), word());
        let mut field = Field { name: name.to_owned(), number, within: within.into(), ..Field::default() };
        let mut topology = ListTopology::Atomic;
        for attribute in words {
            match attribute.split_once('=') {
                Some(("k", keys)) => topology = ListTopology::Map(keys.split(',').map(str::to_owned).collect()),
                Some(("p", strategy)) => field.patch = patch_strategy(strategy),
                Some(("d", value)) => field.default = serde_json::from_str(value).ok().map(Box::new),
                Some(("D", value)) => field.implied = serde_json::from_str(value).ok().map(Box::new),
                Some(("e", name)) => field.enumeration = self.enumeration(name, package),
                Some(_) => (),
                None if attribute == "set" => topology = ListTopology::Set,
                None if attribute == "atomic" => field.is_atomic = true,
                None if attribute == "granular" => field.is_granular = true,
                None => {
                    field.is_pointer = attribute.contains('?');
                    field.keeps_zero = attribute.contains('!');
                    field.is_required = attribute.contains('r');
                }
            }
        }
        // What has no type is owned as a whole.
        field.is_atomic |= matches!(code, "R" | "J");
        field.schema = SchemaRef::Builtin(self.node(code, package, topology));
        field
    }

    fn enumeration(&self, name: &str, package: &str) -> Option<&'static [&'static str]> {
        self.enums.get(&self.qualified(name, package)).copied()
    }

    /// The place of the node for a type code.
    fn node(&mut self, code: &'static str, package: &'static str, topology: ListTopology) -> usize {
        if let Some(rest) = code.strip_prefix(['[', '(']) {
            let items = SchemaRef::Builtin(self.node(rest, package, ListTopology::Atomic));
            return self.push(Shape::List { items, topology });
        }
        if let Some(rest) = code.strip_prefix('{') {
            let values = SchemaRef::Builtin(self.node(rest, package, ListTopology::Atomic));
            return self.push(Shape::Map { values, is_atomic: false });
        }
        if let Some(at) = self.by_name.get(&self.qualified(code, package)).filter(|_| scalar(code).is_none()) {
            return *at;
        }
        if code == "v" {
            return self.node("[s", package, topology);
        }
        if let Some(at) = self.scalars.get(code) {
            return *at;
        }
        let at = self.push(scalar(code).unwrap_or(Shape::Any));
        self.scalars.insert(code, at);
        at
    }

    fn push(&mut self, shape: Shape) -> usize {
        self.nodes.push(Schema { shape, ..Schema::default() });
        self.nodes.len() - 1
    }

    /// The full name of a type as a line writes it: `23.ObjectMeta`, or `Container` of the line's own package.
    fn qualified(&self, name: &str, package: &str) -> String {
        match name.split_once('.').and_then(|(number, name)| Some((self.packages.get(number)?, name))) {
            Some((package, name)) => format!("{package}.{name}"),
            None if name.starts_with("io.") => name.to_owned(),
            None => format!("{package}.{name}"),
        }
    }
}

fn scalar(code: &str) -> Option<Shape> {
    Some(match code {
        "s" => Shape::String,
        "b" => Shape::Bool,
        "i" => Shape::Int32,
        "l" => Shape::Int64,
        "d" => Shape::Float,
        "y" => Shape::Bytes,
        "t" => Shape::Time,
        "u" => Shape::MicroTime,
        "D" => Shape::Duration,
        "q" => Shape::Quantity,
        "x" => Shape::IntOrString,
        "R" | "J" | "interface{}" => Shape::Any,
        "JSONSchemaPropsOrArray" => Shape::SchemaOrArray,
        "JSONSchemaPropsOrBool" => Shape::SchemaOrBool,
        "JSONSchemaPropsOrStringArray" => Shape::SchemaOrStrings,
        _ => return None,
    })
}

/// `merge:name`, `replace`, `merge,retainKeys:name`.
fn patch_strategy(text: &str) -> PatchStrategy {
    let (strategies, key) = text.split_once(':').unwrap_or((text, ""));
    let has = |word: &str| strategies.split(',').any(|it| it == word);
    PatchStrategy {
        is_merge: has("merge"),
        is_replace: has("replace"),
        retains_keys: has("retainKeys"),
        merge_key: Some(key).filter(|it| !it.is_empty()).map(Into::into),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_whole() {
        let table = table();
        assert_eq!(table.by_name.len(), 619);
        let unresolved: Vec<String> = SOURCE
            .lines()
            .filter_map(|line| line.strip_prefix(' ')?.split(' ').nth(2))
            .map(|code| code.trim_start_matches(['[', '{', '(']))
            .filter(|code| scalar(code).is_none() && *code != "v")
            .filter(|code| !table.by_name.keys().any(|it| it.ends_with(code.rsplit('.').next().expect("a name"))))
            .map(str::to_owned)
            .collect();
        assert_eq!(unresolved, Vec::<String>::new());
    }

    #[test]
    fn fields_have_their_facts() {
        let pod = super::super::builtin("io.k8s.api.core.v1.PodSpec").expect("PodSpec");
        let containers = pod.field("containers").expect("containers");
        assert_eq!(containers.patch.merge_key.as_deref(), Some("name"));
        let Shape::List { items, topology } = &containers.schema.shape else { panic!("a list") };
        assert_eq!(*topology, ListTopology::Map(vec!["name".to_owned()]));
        assert_eq!(items.name, "io.k8s.api.core.v1.Container");
        let volume = super::super::builtin("io.k8s.api.core.v1.Volume").expect("Volume");
        let empty_dir = volume.field("emptyDir").expect("an inlined field");
        assert_eq!(*empty_dir.within, [2]);
        let port = super::super::builtin("io.k8s.api.core.v1.ContainerPort").expect("ContainerPort");
        assert_eq!(port.field("protocol").and_then(|it| it.default.as_deref()), Some(&"TCP".into()));
    }
}
