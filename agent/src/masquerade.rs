//! Under whose address Pods leave the cluster: the agent's options, and a file in the format of ip-masq-agent, which is read
//! again every few seconds. Read by the reconciler, which puts it into the plan.
//!
//! A file that cannot be understood changes nothing: what held before goes on, and a problem says why.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use quilla_plan::facts::Masquerade;
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::reconcile::{Command, Handle};

/// Between two looks at the file.
const INTERVAL: Duration = Duration::from_secs(2);

/// What holds, and what is wrong with what was to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// For the planner.
    pub masquerade: Masquerade,
    /// Why the file is not followed.
    pub problem: Option<String>,
}

/// The file, as ip-masq-agent has it: JSON or YAML.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Config {
    #[serde(rename = "nonMasqueradeCIDRs")]
    non_masquerade_cidrs: Vec<String>,
    masq_link_local: Option<bool>,
    #[serde(rename = "masqLinkLocalIPv6")]
    masq_link_local_ipv6: Option<bool>,
    /// Ours is fixed.
    #[serde(rename = "resyncInterval")]
    _resync_interval: Option<serde::de::IgnoredAny>,
}

/// Why the file is not followed.
#[derive(Debug, thiserror::Error)]
enum ConfigError {
    #[error("read")]
    Read(#[from] std::io::Error),
    #[error("parse: {0}")]
    Parse(#[from] serde_saphyr::Error),
    #[error("nonMasqueradeCIDRs: {0}")]
    Range(String),
}

/// A range as ip-masq-agent takes it: nothing may be set beyond the prefix.
pub fn range(text: &str) -> Result<IpNet, String> {
    let range: IpNet = text.trim().parse().map_err(|_| format!("{text:?} is no range of addresses"))?;
    let whole = range.trunc();
    if whole == range { Ok(range) } else { Err(format!("{text:?} is not aligned with its prefix: {whole}?")) }
}

/// What the options say, with what the file adds and replaces. No file is as good as an empty one.
fn read(options: &Masquerade, file: &Path) -> Result<Masquerade, ConfigError> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(options.clone()),
        Err(error) => return Err(error.into()),
    };
    let config: Config =
        if text.trim().is_empty() { Config::default() } else { serde_saphyr::from_str(&text)? };
    let Config { non_masquerade_cidrs, masq_link_local, masq_link_local_ipv6, _resync_interval: _ } = config;
    let mut masquerade = options.clone();
    for text in non_masquerade_cidrs {
        let range = range(&text).map_err(ConfigError::Range)?;
        if !masquerade.except.contains(&range) {
            masquerade.except.push(range);
        }
    }
    masquerade.link_local = masq_link_local.or(masquerade.link_local);
    masquerade.link_local_ipv6 = masq_link_local_ipv6.or(masquerade.link_local_ipv6);
    Ok(masquerade)
}

/// What follows from the file as it is now, after `before`.
fn choose(options: &Masquerade, file: &Path, before: &Chosen) -> Chosen {
    match read(options, file) {
        Ok(masquerade) => Chosen { masquerade, problem: None },
        Err(error) => {
            let mut problem = format!("masquerade configuration {}: {error}", file.display());
            if let ConfigError::Read(source) = &error {
                problem = format!("{problem}: {source}");
            }
            Chosen { masquerade: before.masquerade.clone(), problem: Some(problem) }
        }
    }
}

/// What holds when the agent starts.
pub fn first(options: &Masquerade, file: Option<&Path>) -> Chosen {
    let before = Chosen { masquerade: options.clone(), problem: None };
    file.map_or_else(|| before.clone(), |file| choose(options, file, &before))
}

/// Follows the file.
pub async fn follow(
    options: Masquerade,
    file: PathBuf,
    chosen: watch::Sender<Chosen>,
    reconciler: Handle,
    drain: CancellationToken,
) {
    while drain.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
        let now = choose(&options, &file, &chosen.borrow());
        let changed = chosen.send_if_modified(|chosen| {
            let changed = *chosen != now;
            *chosen = now;
            changed
        });
        if changed {
            let Chosen { masquerade, problem } = &*chosen.borrow();
            tracing::info!(except = ?masquerade.except, problem, "masquerade configuration");
            reconciler.tell(Command::SnapshotChanged);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use quilla_plan::facts::Masquerade;

    use super::{Chosen, choose, first, range};

    #[test]
    fn ranges_are_those_that_ip_masq_agent_takes() {
        for good in ["10.0.0.0/8", " 0.0.0.0/0", "192.0.2.1/32", "2001:db8::/32"] {
            range(good).unwrap_or_else(|error| panic!("{error}"));
        }
        for (bad, why) in [("10.0.0.1/8", "10.0.0.0/8?"), ("10.0.0.0", "no range"), ("all", "no range")] {
            let error = range(bad).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn the_file_is_read_as_yaml_and_json_and_a_wrong_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ip-masq-agent");
        let options = Masquerade { except: vec!["192.0.2.0/24".parse().unwrap()], ..Masquerade::default() };
        let none = first(&options, Some(&file));
        assert_eq!(none, Chosen { masquerade: options.clone(), problem: None }, "no file yet");

        fs::write(
            &file,
            "nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- fd00::/8\nmasqLinkLocal: false\nresyncInterval: 60s\n",
        )
        .unwrap();
        let yaml = choose(&options, &file, &none);
        let ranges = ["192.0.2.0/24", "10.0.0.0/8", "fd00::/8"].map(|range| range.parse().unwrap());
        assert_eq!(
            (yaml.masquerade.except.as_slice(), yaml.masquerade.link_local),
            (&ranges[..], Some(false))
        );
        assert_eq!((yaml.masquerade.link_local_ipv6, &yaml.problem), (None, &None));

        for (wrong, why) in [
            ("nonMasqueradeCIDRs: [10.0.0.1/8]", "not aligned"),
            ("nonMasqueradeCIDR: [10.0.0.0/8]", "nonMasqueradeCIDR"),
            ("masqLinkLocal: perhaps", "parse"),
        ] {
            fs::write(&file, wrong).unwrap();
            let chosen = choose(&options, &file, &yaml);
            assert_eq!(chosen.masquerade, yaml.masquerade, "{wrong}");
            let problem = chosen.problem.unwrap();
            assert!(problem.contains(why), "{wrong}: {problem}");
        }
        fs::write(&file, r#"{"nonMasqueradeCIDRs": ["10.0.0.0/8"], "masqLinkLocalIPv6": true}"#).unwrap();
        let json = choose(&options, &file, &yaml);
        assert_eq!((json.masquerade.except.len(), json.masquerade.link_local_ipv6), (2, Some(true)));
        fs::write(&file, "").unwrap();
        assert_eq!(choose(&options, &file, &yaml).masquerade, options);
    }
}
