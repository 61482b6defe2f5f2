//! Network policies, of which nothing is enforced: each is a problem, so that nobody relies on one. They decide nothing, so nothing
//! waits for them.

use k8s_openapi::api::networking::v1::NetworkPolicy;
use quilla_model::{ObjectRef, Problem, Reason};

use super::driver::{Notes, Watch};
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

/// What an operator should know where the agent has not the right to see policies.
pub fn unlisted() -> Problem {
    let detail =
        "NetworkPolicies may not be listed, see deploy/rbac.yaml: those that there are restrict no traffic";
    Problem::new(ObjectRef::cluster("Agent", "rights"), Reason::Missing, detail)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Watched;
    use crate::watch::driver::tests::read;

    #[test]
    fn a_policy_is_a_problem_and_nothing_else() {
        let policy = json!({"metadata": {"namespace": "shop", "name": "deny"}, "spec": {"podSelector": {}}});
        let known = read::<Watched>(policy);
        assert_eq!(known.value, None);
        assert_eq!(
            known.problems[0].to_string(),
            "NetworkPolicy shop/deny: unsupported: stored and not enforced: it restricts no traffic"
        );
    }
}
