use std::time::{Duration, Instant};

use super::{Grace, PERIOD};
use crate::desired::{BackendKey, Desired};
use crate::layout::Layout;

const ALMOST: Duration = Duration::from_millis(199);

fn backend(host: u8) -> BackendKey {
    BackendKey { address: [10, 0, 0, host].into(), port: 8080, protocol: 6 }
}

fn planned(hosts: &[u8]) -> Desired {
    Desired { backends: hosts.iter().map(|&host| (backend(host), 1)).collect(), ..Desired::default() }
}

/// The hosts that stay, and the first end, after a round with these.
fn round(grace: &mut Grace, hosts: &[u8], now: Instant) -> (Vec<u8>, Option<Instant>) {
    let mut desired = planned(hosts);
    let next = grace.extend(&mut desired, now);
    let stays = |host: &u8| desired.backends.contains_key(&backend(*host));
    ((1..10).filter(stays).collect(), next)
}

#[test]
fn what_went_stays_for_the_period_and_counts_as_nobody_s() {
    let (mut grace, start) = (Grace::default(), Instant::now());
    assert_eq!(round(&mut grace, &[1, 2], start), (vec![1, 2], None));
    let end = Some(start + PERIOD);
    assert_eq!(round(&mut grace, &[1], start), (vec![1, 2], end));
    let mut desired = planned(&[1]);
    grace.extend(&mut desired, start + PERIOD / 2);
    assert_eq!((desired.backends[&backend(1)], desired.backends[&backend(2)]), (1, 0));
    assert_eq!(round(&mut grace, &[1], start + ALMOST), (vec![1, 2], end), "counted from the first miss");
    assert_eq!(round(&mut grace, &[1], start + PERIOD), (vec![1], None));
}

#[test]
fn what_is_back_in_time_has_a_whole_period_again() {
    let (mut grace, start) = (Grace::default(), Instant::now());
    round(&mut grace, &[1, 2], start);
    round(&mut grace, &[], start);
    let back = start + ALMOST;
    assert_eq!(round(&mut grace, &[2], back), (vec![1, 2], Some(start + PERIOD)));
    assert_eq!(round(&mut grace, &[], start + PERIOD), (vec![2], Some(start + 2 * PERIOD)));
    assert_eq!(round(&mut grace, &[], start + 2 * PERIOD), (vec![], None));
}

/// A restart in between: what a previous run left has the period from the first round on.
#[test]
fn what_a_previous_run_left_goes_after_the_period() {
    let six = BackendKey { address: [0xfd, 0, 0, 0, 0, 0, 0, 9].into(), ..backend(1) };
    let mut before = planned(&[1, 2]);
    before.backends.insert(six, 1);
    let (tables, _) = Layout::default().lay_out(&before);
    let (mut grace, start) = (Grace::recover(&tables), Instant::now());
    let mut desired = planned(&[2, 3]);
    assert_eq!(grace.extend(&mut desired, start), Some(start + PERIOD));
    assert!(desired.backends.contains_key(&six));
    let (again, _) = Layout::recover(&tables).lay_out(&desired);
    for (row, id) in tables.v4.backend_ids.iter() {
        assert_eq!(again.v4.backend_ids.get(row), Some(id));
    }
    assert_eq!(round(&mut grace, &[2, 3], start + PERIOD), (vec![2, 3], None));
}
