//! The uplinks as they are: by the names that the operator gave, and where a device has another name by now, by its number.

use std::collections::BTreeMap;

use quilla_datapath::{DatapathError, Device, Netlink};

/// Those that are there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Uplinks {
    devices: Vec<Device>,
    /// The device that last had each of the operator's names.
    seen: BTreeMap<String, u32>,
}

impl Uplinks {
    /// Those that are there, in the operator's order.
    pub(super) fn present(&self) -> &[Device] {
        &self.devices
    }

    /// Those that are there now. A name that no device has any more stands for the device that had it, if that is still
    /// there.
    pub(super) fn look(&self, netlink: &Netlink, names: &[String]) -> Result<Self, DatapathError> {
        let mut found = Vec::new();
        for name in names {
            let renamed = || match self.seen.get(name) {
                Some(ifindex) => netlink.device_by_index(*ifindex),
                None => Ok(None),
            };
            found.push((name, netlink.device(name)?.map_or_else(renamed, |device| Ok(Some(device)))?));
        }
        Ok(self.with(&found))
    }

    fn with(&self, found: &[(&String, Option<Device>)]) -> Self {
        let mut now = Self { devices: Vec::new(), seen: self.seen.clone() };
        let named = |device: &Device| found.iter().any(|(name, _)| **name == device.name);
        for (name, device) in found {
            // What has another of the names is that uplink.
            let Some(device) = device.as_ref().filter(|device| device.name == **name || !named(device))
            else {
                continue;
            };
            now.seen.insert((*name).clone(), device.ifindex);
            if !now.devices.contains(device) {
                now.devices.push(device.clone());
            }
        }
        now
    }

    /// An error if the first one is not there.
    pub(super) fn require_first(&self, names: &[String]) -> Result<(), DatapathError> {
        let first = self.devices.first().filter(|device| self.seen.get(&names[0]) == Some(&device.ifindex));
        if first.is_some() { Ok(()) } else { Err(DatapathError::NoDevice { name: names[0].clone() }) }
    }

    /// What an operator should know of them.
    pub(super) fn faults(&self, names: &[String]) -> Vec<String> {
        let fault = |name: &String| {
            if self.devices.iter().any(|device| device.name == *name) {
                return None;
            }
            let is_it = |device: &&Device| self.seen.get(name) == Some(&device.ifindex);
            let renamed = self.devices.iter().find(is_it).filter(|device| !names.contains(&device.name));
            Some(match renamed {
                Some(device) => format!("uplink {name}, which is called {} now", device.name),
                None => format!("uplink {name}"),
            })
        };
        names.iter().filter_map(fault).collect()
    }
}

#[cfg(test)]
mod tests {
    use quilla_datapath::Device;

    use super::Uplinks;

    /// With the device of each name: its number, 0 for none, and what it is called.
    fn look(before: &Uplinks, found: &[(&String, u32, &str)]) -> Uplinks {
        let device = |ifindex, name: &str| Device { ifindex, name: name.into(), ..Device::default() };
        let found = found
            .iter()
            .map(|&(wanted, ifindex, name)| (wanted, (ifindex > 0).then(|| device(ifindex, name))));
        before.with(&found.collect::<Vec<_>>())
    }

    fn numbers(uplinks: &Uplinks) -> Vec<u32> {
        uplinks.present().iter().map(|device| device.ifindex).collect()
    }

    #[test]
    fn e15_an_uplink_is_followed_until_another_device_has_its_name() {
        let names = ["eth0", "eth1"].map(str::to_owned);
        let [eth0, eth1] = &names;
        let both = look(&Uplinks::default(), &[(eth0, 2, "eth0"), (eth1, 3, "eth1")]);
        assert_eq!(numbers(&both), [2, 3]);
        assert!(both.require_first(&names).is_ok() && both.faults(&names).is_empty());

        let renamed = look(&both, &[(eth0, 2, "wan"), (eth1, 3, "eth1")]);
        assert_eq!(numbers(&renamed), [2, 3]);
        assert_eq!(renamed.faults(&names), ["uplink eth0, which is called wan now"]);
        assert!(renamed.require_first(&names).is_ok());

        let anew = look(&renamed, &[(eth0, 9, "eth0"), (eth1, 3, "eth1")]);
        assert_eq!((numbers(&anew), anew.faults(&names).len()), (vec![9, 3], 0));

        let swapped = look(&both, &[(eth0, 3, "eth0"), (eth1, 2, "eth1")]);
        assert_eq!(numbers(&swapped), [3, 2]);
        let taken = look(&both, &[(eth0, 2, "eth1"), (eth1, 2, "eth1")]);
        assert_eq!(numbers(&taken), [2], "one device is one uplink");
        assert_eq!(taken.faults(&names), ["uplink eth0"]);

        let twice = look(&Uplinks::default(), &[(eth0, 2, "eth0"), (eth0, 2, "eth0")]);
        assert_eq!(numbers(&twice), [2]);
        let gone = look(&both, &[(eth0, 0, ""), (eth1, 3, "eth1")]);
        assert_eq!((numbers(&gone), gone.faults(&names)), (vec![3], vec!["uplink eth0".to_owned()]));
        assert!(gone.require_first(&names).is_err());
    }
}
