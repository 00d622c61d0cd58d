//! A process: roles composed, with their certificates and first objects.

pub mod bootstrap;
pub mod hello;
pub mod pki;
pub mod up;
