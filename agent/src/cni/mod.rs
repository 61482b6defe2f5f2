//! The CNI server: what the plugin asks of the agent.
//!
//! Owns the endpoints of this node and their addresses. `server` listens on the socket, `session` is one conversation
//! with a plugin, `store` decides, `journal` remembers across restarts, `durable` waits for the `disk`, `ipam` chooses
//! addresses. The agent's wiring supplies an `Attacher`; nothing here touches the kernel's network. An address belongs to
//! at most one attachment, whatever crashes.

mod attacher;
mod disk;
mod durable;
mod ipam;
mod journal;
mod lock;
mod server;
mod session;
mod store;

pub use attacher::{AttachError, AttachedEndpoint, Attacher, Origin};
pub use ipam::Pools;
pub use journal::JournalError;
pub use server::{CniServer, CniServerConfig, CniServerError, Ledger, Releaser};
pub use store::{Entry, StoreError};

#[cfg(test)]
mod tests;
