//! The vocabulary of Kubernetes objects, without IO and without a clock: metadata, `Status`, field errors,
//! selectors, names, quantities, request options.

pub mod cidr;
pub mod cron;
pub mod duration;
pub mod field;
pub mod json;
pub mod names;
pub mod object;
pub mod options;
pub mod pattern;
pub mod quantity;
pub mod selector;
pub mod status;

pub use cidr::Cidr;
pub use field::{FieldError, FieldErrors, Path};
pub use json::Json;
pub use object::{GroupVersionKind, Meta};
pub use quantity::Quantity;
pub use selector::{FieldSelector, LabelSelector};
pub use status::{Cause, Details, Result, Status};

pub use serde_json::{Map, Value};
