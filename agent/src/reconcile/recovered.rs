//! Whether what a previous run left in the kernel is whole.
//!
//! Asked once, at start. If it is, no snapshot on disk may overrule it: the maps are newer than any file.

use std::sync::Arc;

use quilla_abi::map;
use quilla_datapath::Opened;
use quilla_plan::Tables;

/// The maps that say what the cluster is.
const CLUSTER: [&str; 14] = [
    map::SERVICES_V4,
    map::SERVICES_V6,
    map::SOURCE_RANGES_V4,
    map::SOURCE_RANGES_V6,
    map::AFFINITY_MEMBERS,
    map::SLOTS,
    map::BACKENDS_V4,
    map::BACKENDS_V6,
    map::BACKEND_IDS_V4,
    map::BACKEND_IDS_V6,
    map::NODES,
    map::NODE_SLOTS,
    map::ROUTES_V4,
    map::ROUTES_V6,
];

/// The tables of a previous run, if all their maps were found again and at least one round was completed: a round
/// writes the node's row last.
pub(super) fn whole(opened: &Opened, tables: &Arc<Tables>) -> Option<Arc<Tables>> {
    let found = CLUSTER.iter().all(|map| opened.recovered.contains(map));
    let completed = tables.config.hash_seed != 0;
    (found && completed).then(|| Arc::clone(tables))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use quilla_abi::config::Config;
    use quilla_datapath::Opened;
    use quilla_plan::Tables;

    use super::{CLUSTER, whole};

    #[test]
    fn maps_are_whole_when_all_were_found_and_a_round_was_completed() {
        let completed = Config { hash_seed: 1, ..Config::default() };
        let tables = Arc::new(Tables { config: completed, ..Tables::default() });
        let all = Opened { recovered: CLUSTER.to_vec(), replaced: vec!["flows_v4"] };
        assert!(whole(&all, &tables).is_some(), "flows say nothing about the cluster");
        assert!(whole(&all, &Arc::default()).is_none(), "died in its first round");
        let lacking = Opened { recovered: CLUSTER[1..].to_vec(), replaced: vec![CLUSTER[0]] };
        assert!(whole(&lacking, &tables).is_none(), "one map is new and empty");
    }
}
