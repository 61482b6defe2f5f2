//! The only crate that touches the kernel: programs, maps, links, netlink, namespaces.
