//! Cluster-wide reconcilers and the binary that embeds the apiserver.
