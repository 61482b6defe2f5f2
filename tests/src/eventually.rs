//! Waiting for a condition with a deadline; the only place of the harness that waits for the outside world.

use std::fmt::Debug;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How long to wait when nothing else is said: far longer than anything takes, as only failures wait that long.
pub const PATIENCE: Duration = Duration::from_secs(30);

const TICK: Duration = Duration::from_millis(20);

/// Looks until `look` succeeds; the error carries its last complaint.
pub fn succeeds<T>(what: &str, look: impl FnMut() -> Result<T>) -> Result<T> {
    succeeds_while(what, || Ok(()), look)
}

/// The same, but gives up at once when `possible` fails.
pub fn succeeds_while<T>(
    what: &str,
    mut possible: impl FnMut() -> Result<()>,
    mut look: impl FnMut() -> Result<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        possible().with_context(|| what.to_owned())?;
        match look() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > PATIENCE => {
                return Err(error).with_context(|| format!("{what}: not within {PATIENCE:?}"));
            }
            Err(_) => thread::sleep(TICK),
        }
    }
}

/// Looks until the value is as `expected`; the error carries the last one.
pub fn becomes<T: Debug>(
    what: &str,
    mut look: impl FnMut() -> Result<T>,
    expected: impl Fn(&T) -> bool,
) -> Result<T> {
    succeeds(what, || {
        let value = look()?;
        anyhow::ensure!(expected(&value), "last value: {value:?}");
        Ok(value)
    })
}

#[cfg(test)]
mod tests {
    use super::{becomes, succeeds, succeeds_while};

    #[test]
    fn looks_again_after_an_error() {
        let mut looks = 0;
        let value = succeeds("third look", || {
            looks += 1;
            anyhow::ensure!(looks == 3, "only {looks}");
            Ok(looks)
        });
        assert_eq!(value.expect("third look"), 3);
    }

    #[test]
    fn gives_up_on_the_impossible() {
        let error = succeeds_while("never", || anyhow::bail!("dead"), || Ok(())).expect_err("gives up");
        assert_eq!(format!("{error:#}"), "never: dead");
    }

    #[test]
    fn looks_until_the_value_fits() {
        let mut values = [1, 2, 3].into_iter();
        let look = || values.next().ok_or_else(|| anyhow::anyhow!("no more"));
        assert_eq!(becomes("two", look, |value| *value == 2).expect("two"), 2);
    }
}
