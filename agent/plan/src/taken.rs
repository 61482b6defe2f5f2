//! Services at addresses of Pods: whoever asks the Pod on such a port gets the Service. Those at addresses of nodes are as
//! usual. Called by [`crate::Planner`].
//!
//! Anybody who may write a Service may give it many such addresses, so nothing here costs more for one plan because another
//! has them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use quilla_abi::service::scope;
use quilla_model::{ObjectName, ObjectRef, Problem, Reason};

use crate::desired::Target;
use crate::frontend::ServicePlan;

/// Those of some addresses that are Pods', and in which Pod CIDR.
pub(crate) fn of_pods<'a>(
    addresses: impl IntoIterator<Item = &'a IpAddr>,
    routes: &BTreeMap<IpNet, Target>,
) -> BTreeMap<IpAddr, IpNet> {
    let is_pods = |net: &IpNet| matches!(routes.get(net), Some(Target::LocalPods | Target::RemotePods(_)));
    let around =
        |address: IpAddr| std::iter::successors(Some(IpNet::from(address)), IpNet::supernet).find(is_pods);
    addresses.into_iter().filter_map(|address| Some((*address, around(*address)?))).collect()
}

/// What an operator should know of them. Each address that a plan has for clients outside is looked up once.
pub(crate) fn problems<'a>(
    plans: impl Iterator<Item = (&'a ObjectName, &'a ServicePlan)>,
    pods_around: impl Fn(&IpAddr) -> Option<IpNet>,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, plan) in plans {
        let outside = plan.markers.keys().filter(|marker| marker.scope == scope::EXTERNAL);
        for address in outside.map(|marker| &marker.address) {
            let Some(cidr) = pods_around(address) else { continue };
            let detail = format!(
                "address {address} is a Pod's, of {cidr}: the Service has its ports there, and no other"
            );
            problems.push(Problem::new(ObjectRef::new("Service", name), Reason::Conflict, detail));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeMap;
    use std::net::{IpAddr, Ipv4Addr};

    use ipnet::IpNet;
    use quilla_abi::service::scope;
    use quilla_model::ObjectName;

    use super::{of_pods, problems};
    use crate::desired::{Marker, Target};
    use crate::frontend::ServicePlan;

    const MANY: u16 = 1000;

    fn address(number: u16) -> IpAddr {
        let [high, low] = number.to_be_bytes();
        Ipv4Addr::new(10, 244, high, low).into()
    }

    fn plan_at(addresses: impl Iterator<Item = IpAddr>) -> ServicePlan {
        let mut plan = ServicePlan::default();
        for address in addresses {
            for scope in [scope::INTERNAL, scope::EXTERNAL] {
                plan.markers.insert(Marker { address, scope }, ());
            }
        }
        plan
    }

    /// One Service with a thousand addresses of Pods, beside a thousand others with an address each of their own.
    #[test]
    fn each_service_costs_what_it_has_itself() {
        let greedy = plan_at((0..MANY).map(address));
        let others = (0..MANY).map(|number| plan_at([address(MANY + number)].into_iter()));
        let plans: Vec<_> = others
            .chain([greedy])
            .enumerate()
            .map(|(index, plan)| (ObjectName::new("shop", index.to_string()), plan))
            .collect();
        let pods: IpNet = "10.244.0.0/22".parse().unwrap();
        let asked = Cell::new(0);
        let pods_around = |address: &IpAddr| {
            asked.set(asked.get() + 1);
            of_pods([address], &[(pods, Target::LocalPods)].into()).get(address).copied()
        };
        let found = problems(plans.iter().map(|(name, plan)| (name, plan)), pods_around);
        assert_eq!(asked.get(), 2 * MANY);
        let of_greedy = found.iter().filter(|problem| problem.object.name.as_ref() == "1000").count();
        assert_eq!((of_greedy, found.len()), (1000, 1024), "a /22, in which 24 others are as well");
    }

    #[test]
    fn only_ranges_of_pods_count() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let routes: BTreeMap<IpNet, Target> = [
            (net("10.244.0.0/16"), Target::Services),
            (net("10.244.1.0/24"), Target::RemotePods("there".into())),
            (net("10.244.1.9/32"), Target::Host),
            (net("fd00:244::/64"), Target::LocalPods),
        ]
        .into();
        let addresses = ["10.244.1.9", "10.244.1.10", "10.244.2.1", "fd00:244::7", "fd00:245::7"]
            .map(|text| text.parse::<IpAddr>().unwrap());
        let found = of_pods(&addresses, &routes);
        let expected = [
            (addresses[0], "10.244.1.0/24"),
            (addresses[1], "10.244.1.0/24"),
            (addresses[3], "fd00:244::/64"),
        ];
        assert_eq!(found, expected.map(|(address, range)| (address, net(range))).into());
    }
}
