//! The same work for many things, on all processors. Used by planner and layout where a whole cluster may come at once.
//!
//! Invariant: the results are in the order of the things, however many processors there are.

use std::num::NonZero;
use std::panic;
use std::thread::{self, Builder};

/// Fewer things than this are not worth a thread.
const OF_A_THREAD: usize = 512;

/// What `work` makes of each.
pub(crate) fn map<T: Sync, R: Send>(things: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let enough = things.len() / OF_A_THREAD;
    // Asked only where it matters: it is read from the control group's files.
    let threads = if enough > 1 { processors().min(enough) } else { 1 };
    if threads == 1 {
        return things.iter().map(work).collect();
    }
    let (first, others) = things.split_at(things.len() / threads);
    let share_of = |share: &[T]| share.iter().map(&work).collect::<Vec<R>>();
    let share_of = &share_of;
    thread::scope(|scope| {
        let shares = others.chunks(others.len().div_ceil(threads - 1));
        let spawn = |share| (Builder::new().spawn_scoped(scope, move || share_of(share)), share);
        let workers: Vec<_> = shares.map(spawn).collect();
        let mut results = share_of(first);
        for (worker, share) in workers {
            results.extend(match worker {
                Ok(worker) => worker.join().unwrap_or_else(|cause| panic::resume_unwind(cause)),
                // There may be as many threads as the control group lets us have.
                Err(_) => share_of(share),
            });
        }
        results
    })
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::{OF_A_THREAD, map};

    #[test]
    fn results_are_in_order() {
        for count in [0, 1, OF_A_THREAD, 5 * OF_A_THREAD + 3] {
            let things: Vec<usize> = (0..count).collect();
            let expected: Vec<usize> = things.iter().map(|thing| 2 * thing).collect();
            assert_eq!(map(&things, |thing| 2 * thing), expected);
        }
    }
}
