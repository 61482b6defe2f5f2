//! What the cluster intends, as plain values: no I/O, no Kubernetes types.
