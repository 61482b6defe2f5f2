//! Named points at which a build with the feature `failpoints` can be made to die or to fail: every step of plugin and
//! agent after which the world looks different.
//!
//! Reached through [`failpoint!`](crate::failpoint!), which is nothing at all without the feature; `tests/cni/faults.rs`
//! walks all of them. Not one of the crates that offer this: they can panic and return, and what is to be survived here
//! is a process that ends without another instruction. Invariant: a product build holds none of it.

#[cfg(feature = "failpoints")]
use std::{env, fs, io, path::Path};

/// Where a build with fail-points is told what to do: a directory, in the environment.
pub const DIRECTORY: &str = "QUILLA_FAILPOINTS";

/// In it, what is to happen: `POINT MODE SKIP` on each line, used up from the first line on.
pub const ARMED: &str = "armed";

/// In it, a line for everything that did happen.
pub const HIT: &str = "hit";

macro_rules! points {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// A fail-point.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Point {
            $($(#[$doc])* $name,)+
        }

        impl Point {
            /// All of them, in the order in which an ADD, a DEL, a GC and a start come by.
            pub const ALL: &[Self] = &[$(Self::$name,)+];
        }
    };
}

points! {
    /// Plugin, ADD: before the agent is asked anything.
    AddStarted,
    /// Plugin, ADD: connected to the agent.
    AddConnected,
    /// Plugin, ADD: has a reservation, and nothing is made.
    AddReserved,
    /// Plugin, ADD: what an earlier ADD may have left is gone.
    LeftoverDeleted,
    /// Plugin, ADD: the pair exists.
    PairCreated,
    /// Plugin, ADD: the Pod's settings are written.
    PodSettings,
    /// Plugin, ADD: the Pod's side is up, with its addresses and routes.
    PodRoutes,
    /// Plugin, ADD: the host side's settings are written.
    HostSettings,
    /// Plugin, ADD: the host side is up, with routes and neighbours; the agent does not know the interface.
    HostRoutes,
    /// Plugin, ADD: the agent has made the endpoint effective; nothing is printed.
    AddAttached,
    /// Plugin, DEL: nothing is done.
    DelStarted,
    /// Plugin, DEL and undo: the pair is gone.
    DelLinkDeleted,
    /// Plugin, DEL and undo: the agent has released the attachment.
    DelReleased,
    /// Plugin, DEL: the record's text is on disk under another name.
    RecordWritten,
    /// Plugin, DEL: the record has its name.
    RecordRenamed,
    /// Plugin, GC: knows what the agent has on record.
    GcListed,
    /// Agent: an attachment is to be reserved and locked.
    Reserving,
    /// Agent: a line is about to be added to the journal.
    JournalAppending,
    /// Agent: a line is in the journal, perhaps not on disk.
    JournalAppended,
    /// Agent: lines are on disk, and nobody was told.
    JournalSynced,
    /// Agent: an answer is about to be given.
    Answering,
    /// Agent: an endpoint is to be attached.
    Attaching,
    /// Agent: programs are attached and have no rows.
    ProgramsAttached,
    /// Agent: programs and rows are there, the round is over.
    RowsWritten,
    /// Agent: the endpoint is effective, and the journal does not say so.
    EndpointEffective,
    /// Agent: an attachment is to be released.
    Releasing,
    /// Agent: the endpoint's rows are gone, its programs are attached.
    RowsRemoved,
    /// Agent: the endpoint is detached, and the journal does not say so.
    EndpointDetached,
    /// Agent: a DEL on record is carried out, and the record is there.
    RecordCarriedOut,
    /// Agent, start: the journal is read.
    JournalRead,
    /// Agent, start and now and then: the journal is written anew under another name.
    JournalRewritten,
    /// Agent, start and now and then: the new journal has its name.
    JournalReplaced,
    /// Agent, start: plugins can connect.
    Listening,
}

/// Comes by a point: returns, fails or ends the process, as the directory says.
#[cfg(feature = "failpoints")]
pub fn reach(point: Point) -> io::Result<()> {
    let Some(directory) = env::var_os(DIRECTORY) else { return Ok(()) };
    let directory = Path::new(&directory);
    let armed = fs::read_to_string(directory.join(ARMED)).unwrap_or_default();
    let Some((line, rest)) = armed.split_once('\n') else { return Ok(()) };
    let words: Vec<&str> = line.split(' ').collect();
    let [name, mode, skip] = words.as_slice() else { return Err(io::Error::other(armed)) };
    if *name != format!("{point:?}") {
        return Ok(());
    }
    match skip.parse().map_err(io::Error::other)? {
        0_u32 => {}
        more => return fs::write(directory.join(ARMED), format!("{name} {mode} {}\n{rest}", more - 1)),
    }
    fs::write(directory.join(ARMED), rest)?;
    let hits = fs::read_to_string(directory.join(HIT)).unwrap_or_default();
    fs::write(directory.join(HIT), format!("{hits}{name} {mode}\n"))?;
    match *mode {
        "kill" => std::process::abort(),
        _ => Err(io::Error::other(format!("fail-point {name}"))),
    }
}

#[cfg(feature = "failpoints")]
impl From<io::Error> for crate::CniError {
    fn from(error: io::Error) -> Self {
        Self::new(crate::ErrorCode::IO_FAILURE, "fail-point", error.to_string())
    }
}

/// A point of [`Point`](crate::failpoint::Point). What it fails with becomes the caller's error by `From`, or by the
/// function given.
#[cfg(feature = "failpoints")]
#[macro_export]
macro_rules! failpoint {
    ($point:ident) => {
        $crate::failpoint::reach($crate::failpoint::Point::$point)?
    };
    ($point:ident, $into:expr) => {
        $crate::failpoint::reach($crate::failpoint::Point::$point).map_err($into)?
    };
}

/// Nothing, in a product build.
#[cfg(not(feature = "failpoints"))]
#[macro_export]
macro_rules! failpoint {
    ($point:ident) => {};
    ($point:ident, $into:expr) => {};
}
