//! The node's HTTPS server, as the kubelet's: logs, exec, attach, port-forward, pods, health.

pub mod session;
mod spdy;
