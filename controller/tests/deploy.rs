//! The settings of `deploy/controller.env` are variables that the controller reads, in both of its forms.

use std::collections::BTreeSet;
use std::ffi::OsStr;

use clap::{CommandFactory, Parser};
use quilla_controller::config::Config;

const SETTINGS: &str = include_str!("../../deploy/controller.env");

/// Names and values, with whether the line is commented out.
fn settings() -> impl Iterator<Item = (&'static str, &'static str, bool)> {
    SETTINGS.lines().filter_map(|line| {
        let (name, value) = line.trim_start_matches('#').split_once('=')?;
        Some((name, value, line.starts_with('#')))
    })
}

#[test]
fn settings_are_variables_with_values_that_parse() {
    let command = Config::command();
    let option = |variable: &str| {
        let found = command.get_arguments().find(|option| option.get_env() == Some(OsStr::new(variable)));
        found.and_then(clap::Arg::get_long).map(|long| format!("--{long}"))
    };
    let forms: BTreeSet<bool> = settings().map(|(.., off)| off).collect();
    assert_eq!(forms.len(), 2, "one form of settings is commented out");
    for embedded in [false, true] {
        // The ranges of Pods belong to both.
        let own = settings().filter(|(name, _, off)| *off == embedded || name.ends_with("CLUSTER_CIDRS"));
        let mut line = vec!["quilla-controller".to_owned()];
        for (name, value, _) in own {
            line.push(format!("{}={value}", option(name).unwrap_or_else(|| panic!("{name} is no variable"))));
        }
        let config = Config::try_parse_from(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
        assert_eq!(config.kubeconfig.is_none(), embedded, "{line:?}");
        assert_eq!(config.cluster_cidrs.len(), 2);
    }
}
