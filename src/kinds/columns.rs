//! The cells of `kubectl get`, as upstream's printers fill them (`pkg/printers/internalversion/printers.go`).
