//! Whose endpoints a failed round costs, and how many rounds it takes to find out.

use std::collections::BTreeSet;

use tokio::sync::oneshot::Receiver;

use super::{ReconcileError, Rounds, Wish, fulfil};
use crate::cni::AttachedEndpoint;
use crate::reconcile::Answer;

fn endpoint(id: &str) -> Box<AttachedEndpoint> {
    Box::new(AttachedEndpoint { container_id: id.into(), ..AttachedEndpoint::numbered(1) })
}

/// A reconciler whose rounds fail with certain endpoints, or whatever it has.
#[derive(Default)]
struct Kernel {
    endpoints: BTreeSet<String>,
    poison: BTreeSet<String>,
    broken: bool,
    rounds: usize,
}

impl Rounds for Kernel {
    fn take(&mut self, wish: &Wish) {
        let id = wish.endpoint().container_id.clone();
        match wish {
            Wish::Attach(..) => self.endpoints.insert(id),
            Wish::Detach(..) => self.endpoints.remove(&id),
        };
    }

    fn take_back(&mut self, arrival: &Wish) {
        self.endpoints.remove(&arrival.endpoint().container_id);
    }

    fn round(&mut self) -> Result<(), ReconcileError> {
        self.rounds += 1;
        if self.broken || self.endpoints.iter().any(|id| self.poison.contains(id)) {
            return Err(ReconcileError::Missing { what: "kernel".into() });
        }
        Ok(())
    }

    fn arrived(&self, endpoint: &AttachedEndpoint) -> Result<(), ReconcileError> {
        assert!(self.endpoints.contains(&endpoint.container_id), "answered without its round");
        Ok(())
    }
}

type Waiting = (String, Receiver<Result<(), ReconcileError>>);

fn wish(id: &str, make: fn(Box<AttachedEndpoint>, Answer) -> Wish) -> (Wish, Waiting) {
    let (answer, waiting) = Answer::channel();
    (make(endpoint(id), answer), (id.to_owned(), waiting))
}

/// All at once; who was refused.
fn refused(kernel: &mut Kernel, wishes: Vec<(Wish, Waiting)>) -> Vec<String> {
    let (wishes, waiting): (Vec<_>, Vec<_>) = wishes.into_iter().unzip();
    fulfil(kernel, wishes);
    let answered =
        |(id, mut waiting): Waiting| waiting.try_recv().expect("everybody is answered").err().map(|_| id);
    waiting.into_iter().filter_map(answered).collect()
}

fn pods() -> impl Iterator<Item = String> {
    (0..64).map(|number| format!("c{number:02}"))
}

/// CNI-16: all who come together share a round.
#[test]
fn one_round_for_all() {
    let mut kernel = Kernel::default();
    assert!(refused(&mut kernel, pods().map(|id| wish(&id, Wish::Attach)).collect()).is_empty());
    assert_eq!((kernel.rounds, kernel.endpoints.len()), (1, 64));
}

/// A failure that has nothing to do with them costs one more round, however many they are, and takes nobody in.
#[test]
fn an_unrelated_failure_costs_one_round_more() {
    let mut kernel = Kernel { broken: true, endpoints: ["old".to_owned()].into(), ..Kernel::default() };
    let come = pods().map(|id| wish(&id, Wish::Attach)).chain([wish("old", Wish::Detach)]).collect();
    assert_eq!(refused(&mut kernel, come).len(), 65);
    assert_eq!((kernel.rounds, kernel.endpoints.len()), (2, 0));
}

/// The one to blame is found by halves; nobody else is refused, and who goes is not kept.
#[test]
fn one_to_blame_is_the_only_one_refused() {
    let mut kernel = Kernel {
        poison: ["c17".to_owned()].into(),
        endpoints: ["old".to_owned()].into(),
        ..Kernel::default()
    };
    let wishes = pods().map(|id| wish(&id, Wish::Attach)).chain([wish("old", Wish::Detach)]).collect();
    assert_eq!(refused(&mut kernel, wishes), ["c17"]);
    assert_eq!(kernel.endpoints, pods().filter(|id| id != "c17").collect());
    assert!(kernel.rounds <= 2 + 2 * 6, "{} rounds", kernel.rounds);
}

/// Alone, nobody else can be to blame; who goes while nothing works is told so.
#[test]
fn alone() {
    let mut kernel = Kernel { broken: true, ..Kernel::default() };
    assert_eq!(refused(&mut kernel, vec![wish("c", Wish::Attach)]), ["c"]);
    assert_eq!(refused(&mut kernel, vec![wish("c", Wish::Detach)]), ["c"]);
    assert_eq!(kernel.rounds, 2);
}
