//! What other nodes have shown of the ways to them, and who is to be asked next. Pure; owned by the probe in [`super`].
//!
//! What one has shown holds for as long as it is reached as it was then.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;

/// How long a node that has shown nothing is left alone.
const INTERVAL: Duration = Duration::from_secs(10);
/// How many nodes are asked at the same time. Each takes a thread until it answers.
pub(super) const AT_ONCE: usize = 32;

/// A node that can be asked, and by what: what it shows holds for no other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    /// Where its stack can be reached through the overlay.
    pub(super) gateway: IpAddr,
    /// The other end of the tunnel.
    pub(super) ipv4: Option<Ipv4Addr>,
    pub(super) ipv6: Option<Ipv6Addr>,
    /// The overlay device and the uplinks of this node.
    pub(super) devices: Vec<u32>,
}

/// What a node has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// It got what the programs encapsulated.
    Works,
    /// It got only what the device encapsulated.
    Broken(String),
    /// It got nothing, or did not say, and why.
    Nothing(String),
}

/// What came of asking a node.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) peer: Peer,
    pub(super) shown: Shown,
    pub(super) at: Instant,
}

/// What all nodes have shown.
#[derive(Debug, Default)]
pub(super) struct Known {
    answers: BTreeMap<String, Answer>,
    /// Who is being asked.
    asking: BTreeSet<String>,
}

impl Known {
    /// Forgets who is gone or changed, and says whether any of them had shown anything.
    pub(super) fn keep(&mut self, peers: &BTreeMap<String, Peer>) -> bool {
        let mut forgotten = false;
        self.answers.retain(|node, Answer { peer, shown, .. }| {
            let same = peers.get(node) == Some(peer);
            forgotten |= !same && !matches!(shown, Shown::Nothing(_));
            same
        });
        forgotten
    }

    /// Whose turn it is, and who is being asked from now on: first who never was, then who has waited longest, as many as there
    /// is room for.
    pub(super) fn take_due(&mut self, peers: &BTreeMap<String, Peer>, now: Instant) -> Vec<(String, Peer)> {
        let mut due: Vec<_> = peers
            .iter()
            .filter(|(node, _)| !self.asking.contains(*node))
            .filter_map(|(node, peer)| match self.answers.get(node) {
                None => Some((None, node, peer)),
                Some(Answer { shown: Shown::Nothing(_), at, .. }) => Some((Some(*at + INTERVAL), node, peer)),
                Some(_) => None,
            })
            .filter(|(from, ..)| *from <= Some(now))
            .collect();
        due.sort_by_key(|(from, ..)| *from);
        due.truncate(AT_ONCE - self.asking.len());
        let due: Vec<_> = due.into_iter().map(|(_, node, peer)| (node.clone(), peer.clone())).collect();
        self.asking.extend(due.iter().map(|(node, _)| node.clone()));
        due
    }

    /// When the next silent one is to be asked; never, while there is no room for it.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let silent = |(node, answer): &(&String, &Answer)| {
            matches!(answer.shown, Shown::Nothing(_)) && !self.asking.contains(*node)
        };
        let room = self.asking.len() < AT_ONCE;
        self.answers.iter().filter(|_| room).filter(silent).map(|(_, answer)| answer.at + INTERVAL).min()
    }

    /// What was asked of one that is somewhere else by now says nothing.
    pub(super) fn answered(&mut self, peers: &BTreeMap<String, Peer>, node: String, answer: Answer) {
        self.asking.remove(&node);
        if peers.get(&node) == Some(&answer.peer) {
            self.answers.insert(node, answer);
        }
    }

    /// A node that was asked in vain, and what came of it.
    pub(super) fn in_vain(&self, port: u16) -> Option<String> {
        self.answers.iter().find_map(|(node, Answer { peer, shown, .. })| match shown {
            Shown::Nothing(why) => Some(format!("{node} at {}: {why}", SocketAddr::new(peer.gateway, port))),
            Shown::Works | Shown::Broken(_) => None,
        })
    }

    /// What follows; nothing, while nobody has shown anything.
    pub(super) fn judge(&self) -> Option<(bool, String)> {
        let broken = self.answers.iter().find_map(|(node, answer)| match &answer.shown {
            Shown::Broken(why) => Some((node, why)),
            _ => None,
        });
        if let Some((node, why)) = broken {
            return Some((false, format!("{node} gets only what the device encapsulates: {why}")));
        }
        let works = self.answers.iter().find(|(_, answer)| answer.shown == Shown::Works);
        works.map(|(node, _)| (true, format!("{node} gets what the programs encapsulate")))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{AT_ONCE, Answer, INTERVAL, Known, Peer, Shown};

    fn peer(end: u8, devices: &[u32]) -> Peer {
        let gateway = IpAddr::from([10, 244, end, 1]);
        Peer { gateway, ipv4: Some([192, 0, 2, end].into()), ipv6: None, devices: devices.into() }
    }

    fn known(list: &[(&str, Shown)]) -> Known {
        let at = Instant::now();
        let answer = |(node, shown): &(&str, Shown)| {
            ((*node).to_owned(), Answer { peer: peer(1, &[2, 3]), shown: shown.clone(), at })
        };
        Known { answers: list.iter().map(answer).collect(), ..Known::default() }
    }

    fn silent() -> Shown {
        Shown::Nothing("refused".into())
    }

    #[test]
    fn one_broken_way_leaves_everything_to_the_device() {
        assert_eq!(known(&[]).judge(), None);
        assert_eq!(known(&[("a", silent())]).judge(), None, "nothing is known");
        let (direct, reason) = known(&[("a", silent()), ("b", Shown::Works)]).judge().unwrap();
        assert!(direct && reason.starts_with("b gets"), "{reason}");
        let broken = Shown::Broken("timed out".into());
        let (direct, reason) = known(&[("a", Shown::Works), ("b", broken)]).judge().unwrap();
        assert!(!direct && reason.starts_with("b gets only") && reason.ends_with("timed out"), "{reason}");
    }

    /// A node that is gone says nothing any more; one at another address, or behind another uplink of ours, is to be asked.
    #[test]
    fn what_was_shown_holds_for_where_it_was_shown() {
        let broken = Shown::Broken("timed out".into());
        let shown = [("a", broken), ("b", Shown::Works), ("c", silent())];
        let here = |list: &[(&str, Peer)]| {
            list.iter().map(|(node, peer)| ((*node).to_owned(), peer.clone())).collect()
        };
        let same = || peer(1, &[2, 3]);
        let all = here(&[("a", same()), ("b", same()), ("c", same())]);
        let mut nodes = known(&shown);
        let due = |nodes: &mut Known, present: &BTreeMap<_, _>| {
            let due = nodes.take_due(present, Instant::now() + INTERVAL);
            due.into_iter().map(|(node, _)| node).collect::<Vec<_>>()
        };
        assert!(!nodes.keep(&all) && due(&mut nodes, &all) == ["c"]);
        assert!(nodes.keep(&here(&[("b", same()), ("c", same())])));
        assert!(nodes.judge().unwrap().0, "the broken one is gone");
        assert!(!nodes.keep(&here(&[("b", same())])), "it had shown nothing");
        for other in [peer(2, &[2, 3]), peer(1, &[2, 4]), peer(1, &[2])] {
            let mut nodes = known(&shown[..2]);
            let moved = here(&[("a", same()), ("b", other)]);
            assert!(nodes.keep(&moved) && due(&mut nodes, &moved) == ["b"]);
            nodes.answered(
                &moved,
                "b".into(),
                Answer { peer: same(), shown: Shown::Works, at: Instant::now() },
            );
            assert_eq!(due(&mut nodes, &moved), ["b"], "the answer is of where it was");
        }
        assert!(nodes.keep(&here(&[])) && nodes.judge().is_none());
    }

    /// Who never was asked comes first, then who has waited longest; nobody twice at once, nor too soon, nor too many.
    #[test]
    fn nodes_are_asked_in_turn() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut nodes = known(&[("a", silent()), ("b", silent()), ("c", silent()), ("d", Shown::Works)]);
        for (answer, seconds) in nodes.answers.values_mut().zip([2, 1, 3, 0]) {
            answer.at = at(seconds);
        }
        let mut here: BTreeMap<_, _> =
            ["a", "b", "c", "d", "e"].map(|node| (node.to_owned(), peer(1, &[2, 3]))).into();
        let due = |nodes: &mut Known, here: &_, seconds| {
            let due = nodes.take_due(here, at(seconds));
            due.into_iter().map(|(node, _)| node).collect::<Vec<_>>()
        };
        assert_eq!(nodes.next_due(), Some(at(11)));
        assert_eq!(due(&mut nodes, &here, 12), ["e", "b", "a"]);
        assert_eq!(nodes.next_due(), Some(at(13)));
        assert_eq!(due(&mut nodes, &here, 13), ["c"]);
        assert_eq!((due(&mut nodes, &here, 60).len(), nodes.next_due()), (0, None), "all are being asked");
        here.extend((0..AT_ONCE).map(|number| (format!("new-{number:02}"), peer(2, &[2, 3]))));
        assert_eq!(due(&mut nodes, &here, 60).len(), AT_ONCE - 4);
        nodes.answered(&here, "b".into(), Answer { peer: peer(1, &[2, 3]), shown: silent(), at: at(60) });
        assert_eq!(nodes.next_due(), Some(at(70)));
        assert_eq!(due(&mut nodes, &here, 70), [format!("new-{:02}", AT_ONCE - 4)], "before b");
        assert_eq!(nodes.next_due(), None, "there is no room");
    }

    #[test]
    fn one_that_was_asked_in_vain_is_named() {
        let nodes = known(&[("a", Shown::Nothing("connection refused".into())), ("b", silent())]);
        let who = nodes.in_vain(10256).unwrap();
        assert_eq!(who, "a at 10.244.1.1:10256: connection refused");
        assert_eq!(known(&[("a", Shown::Works)]).in_vain(10256), None);
    }
}
