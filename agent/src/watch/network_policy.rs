//! Network policies, of which nothing is enforced: each is a problem, so that nobody relies on one.

use k8s_openapi::api::networking::v1::NetworkPolicy;
use quilla_model::{Problem, Reason};

use super::driver::{Notes, Watch, unlisted};
use super::{Kind, Value};

pub(super) struct Watched;

impl Watch for Watched {
    type Object = NetworkPolicy;
    const KIND: Kind = Kind::NetworkPolicy;

    fn read(_object: &NetworkPolicy, notes: &mut Notes) -> Option<Value> {
        notes.add(Reason::Unsupported, "stored and not enforced: it restricts no traffic");
        None
    }
}

/// How many policies there are, and so how many are not enforced; `None` if the agent may not list them.
pub fn unenforced(problems: &[Problem]) -> Option<usize> {
    let policies = problems.iter().filter(|problem| problem.object.kind == Kind::NetworkPolicy.name());
    (!problems.contains(&unlisted())).then(|| policies.count())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Watched, unenforced};
    use crate::watch::driver::tests::read;
    use crate::watch::driver::unlisted;

    #[test]
    fn a_policy_is_a_problem_and_is_counted() {
        let policy = json!({"metadata": {"namespace": "shop", "name": "deny"}, "spec": {"podSelector": {}}});
        let known = read::<Watched>(policy);
        assert_eq!(known.value, None);
        assert_eq!(
            known.problems[0].to_string(),
            "NetworkPolicy shop/deny: unsupported: stored and not enforced: it restricts no traffic"
        );
        assert_eq!((unenforced(&known.problems), unenforced(&[])), (Some(1), Some(0)));
        assert_eq!(unenforced(&[known.problems, vec![unlisted()]].concat()), None, "nobody knows");
    }
}
