//! A small Kubernetes-compatible apiserver that knows nothing of networking.
