//! Tests at the boundary of the whole program.

mod cluster;
mod compose;
mod everyday;
mod fixtures;
mod kube_rs;
mod kubectl;
mod lists;
mod nodes;
mod oracle;
mod pods;
mod random;
mod readme;
mod requests;
mod servers;
mod services;
mod tidy;
mod validation;
mod volumes;
mod webhooks;

#[path = "../support/etcd.rs"]
mod etcd;
#[path = "../support/kube_apiserver.rs"]
mod kube_apiserver;
#[path = "../support/dice.rs"]
mod dice;
#[expect(dead_code, reason = "the store's own tests use more of it")]
#[path = "../support/postgres.rs"]
mod postgres;
