pub mod bootstrap;
pub mod pki;
