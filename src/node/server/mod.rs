//! The node's HTTPS server, as the kubelet's: logs, exec, attach, port-forward, pods, health.

mod spdy;
