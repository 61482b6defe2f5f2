//! Whether the rows make an endpoint effective. Called for ADD and CHECK, after a round.
//!
//! A round that leaves an endpoint out reports it as a problem and succeeds, because the others must go on; whoever
//! waits for that endpoint must hear of it all the same.

use quilla_plan::family::AddressFamily;
use quilla_plan::{FamilyTables, Tables};

use super::ReconcileError;
use crate::cni::AttachedEndpoint;

/// An error that names the row an endpoint lacks, if it lacks one.
pub(super) fn require(tables: &Tables, endpoint: &AttachedEndpoint) -> Result<(), ReconcileError> {
    let ifindex = endpoint.host_ifindex;
    let missing =
        |what: &str| ReconcileError::Missing { what: format!("{what} of {}", endpoint.host_ifname) };
    if !tables.interfaces.contains_key(&ifindex) {
        return Err(missing("interface row"));
    }
    if endpoint.ipv4.is_some_and(|address| !leads_to(&tables.v4, address.octets(), ifindex)) {
        return Err(missing("ipv4 endpoint row"));
    }
    if endpoint.ipv6.is_some_and(|address| !leads_to(&tables.v6, address.octets(), ifindex)) {
        return Err(missing("ipv6 endpoint row"));
    }
    Ok(())
}

fn leads_to<A: AddressFamily>(tables: &FamilyTables<A>, address: A, ifindex: u32) -> bool {
    tables.endpoints.get(&address).is_some_and(|row| row.ifindex == ifindex)
}

#[cfg(test)]
mod tests {
    use quilla_model::ObjectName;
    use quilla_plan::{Desired, Layout, LocalEndpoint, Tables};

    use super::require;
    use crate::cni::AttachedEndpoint;

    fn endpoint(ifindex: u32, ipv4: u8, ipv6: u16) -> AttachedEndpoint {
        AttachedEndpoint {
            ipv4: Some([10, 244, 1, ipv4].into()),
            ipv6: Some([0xfd, 0, 0, 0, 0, 0, 0, ipv6].into()),
            ..AttachedEndpoint::numbered(ifindex)
        }
    }

    fn tables(endpoints: &[AttachedEndpoint]) -> Tables {
        let local = |endpoint: &AttachedEndpoint| LocalEndpoint {
            pod: ObjectName::new(&endpoint.pod_namespace, &endpoint.pod_name),
            ifindex: endpoint.host_ifindex,
            pod_mac: endpoint.pod_mac,
            host_mac: endpoint.host_mac,
            ipv4: endpoint.ipv4,
            ipv6: endpoint.ipv6,
            host_ports: Vec::new(),
        };
        let endpoints = endpoints.iter().map(|endpoint| (endpoint.host_ifindex, local(endpoint))).collect();
        let (tables, _) = Layout::default().lay_out(&Desired { endpoints, ..Desired::default() });
        tables.as_ref().clone()
    }

    fn refusal(tables: &Tables, endpoint: &AttachedEndpoint) -> Option<String> {
        require(tables, endpoint).err().map(|error| error.to_string())
    }

    /// CNI-18: an ADD whose endpoint found no place is refused with what is lacking.
    #[test]
    fn an_endpoint_without_its_rows_is_not_effective() {
        let (one, two) = (endpoint(1, 2, 2), endpoint(2, 3, 3));
        let whole = tables(&[one.clone(), two.clone()]);
        assert_eq!(refusal(&whole, &one), None);
        assert_eq!(refusal(&whole, &two), None);

        let absent = tables(std::slice::from_ref(&two));
        assert_eq!(refusal(&absent, &one).as_deref(), Some("no interface row of quil1"));

        let thief = endpoint(2, 2, 3);
        let conflict = tables(&[one.clone(), thief.clone()]);
        assert_eq!(refusal(&conflict, &thief), None, "the newer device has the address");
        assert_eq!(refusal(&conflict, &one).as_deref(), Some("no ipv4 endpoint row of quil1"));
        let conflict = tables(&[one.clone(), endpoint(2, 3, 2)]);
        assert_eq!(refusal(&conflict, &one).as_deref(), Some("no ipv6 endpoint row of quil1"));
    }

    /// CNI-18: as many Pods as there are endpoint ids; the next one hears of it.
    #[test]
    fn an_endpoint_without_an_id_is_not_effective() {
        let many: Vec<_> = (1..=quilla_abi::epoch::MAX_ENDPOINTS)
            .map(|number| AttachedEndpoint { ipv4: None, ipv6: None, ..endpoint(number, 0, 0) })
            .collect();
        let full = tables(&many);
        assert_eq!(refusal(&full, &many[0]), None);
        let last = many.last().expect("many");
        assert!(refusal(&full, last).is_some_and(|text| text.starts_with("no interface row")));
    }
}
