//! What a kind does beyond its schema, as facts and pure functions: upstream's REST strategies.

use crate::meta::{FieldErrors, Value, names::Problems};

/// The hooks of a kind. A row names one; most kinds share [`Strategy::PLAIN`].
#[derive(Clone, Copy, Debug)]
pub struct Strategy {
    /// Fills in defaults that depend on more than the field itself (`SetDefaults_*`), in the stored version. Also run on objects read back.
    pub default: fn(&mut Value),
    /// Drops what a client may not set and normalises (`PrepareForCreate`, `PrepareForUpdate`).
    pub prepare: fn(&mut Value, Change<'_>),
    /// Checks the object (`Validate`, `ValidateUpdate`), in upstream's words and order.
    pub validate: fn(&Value, Change<'_>) -> FieldErrors,
    /// What a name must be.
    pub name: fn(&str) -> Problems,
    /// `metadata.generation` counts the changes of everything but metadata and status.
    pub has_generation: bool,
    /// The main resource cannot write `status`, nor `/status` anything else but metadata; a create starts without status.
    pub resets_status: bool,
    /// A PUT may create.
    pub creates_on_update: bool,
    /// A PUT without a resourceVersion is accepted.
    pub updates_unconditionally: bool,
    /// Seconds between the request to delete and the removal, given those that the client asks for; `None` deletes at once.
    pub grace: Option<fn(&Value, Option<i64>) -> i64>,
    /// It goes when it has been emptied: finalizers of its spec hold it, and meanwhile it is `Terminating` (namespaces).
    pub is_emptied: bool,
    /// Deleting it leaves its dependents when the client says nothing (`DefaultGarbageCollectionPolicy`).
    pub orphans_by_default: bool,
}

/// What is about to happen to an object.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    Create,
    /// An update of the main resource.
    Update(&'a Value),
    /// An update through a subresource: its name and the old object.
    Part(&'a str, &'a Value),
}

impl<'a> Change<'a> {
    /// The object as it was; `None` on create.
    pub fn old(self) -> Option<&'a Value> {
        match self {
            Self::Create => None,
            Self::Update(old) | Self::Part(_, old) => Some(old),
        }
    }

    /// "" for the main resource.
    pub fn subresource(self) -> &'a str {
        match self {
            Self::Part(name, _) => name,
            _ => "",
        }
    }
}
impl Strategy {
    pub const PLAIN: Self = Self {
        default: |_| (),
        prepare: |_, _| (),
        validate: |_, _| FieldErrors::new(),
        name: crate::meta::names::dns1123_subdomain,
        has_generation: false,
        resets_status: false,
        creates_on_update: false,
        updates_unconditionally: true,
        grace: None,
        is_emptied: false,
        orphans_by_default: false,
    };
}
