//! `install-cni`: puts the plugin and its network where container runtimes look, and takes them away again.
//!
//! The plugin comes before the configuration and goes after it, each is written aside and renamed, and nothing is
//! written before the agent is ready: a runtime never finds a network that cannot serve. What somebody else put there is
//! touched only when told so, and kept aside.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// The plugin's file, and its type in configurations.
const PLUGIN: &str = "quilla-cni";

/// What a runtime may ask of the plugin.
const CAPABILITIES: [&str; 6] = ["aliases", "bandwidth", "dns", "ips", "mac", "portMappings"];

/// Runtimes read files that end like a configuration, and so not this.
const KEPT: &str = "before-quilla";

/// How often the agent is asked whether it is ready.
const TICK: Duration = Duration::from_millis(200);

/// Where what goes.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Take the network away, and the plugin once no Pod needs it for its end.
    #[arg(long)]
    remove: bool,
    /// Replace a configuration of somebody else (it is kept aside), or remove a plugin that Pods still need.
    #[arg(long)]
    force: bool,
    /// The plugin to install [default: quilla-cni beside this program].
    #[arg(long)]
    plugin: Option<PathBuf>,
    /// Where the runtime looks for plugins.
    #[arg(long, default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,
    /// Where the runtime looks for networks; it takes the first by name.
    #[arg(long, default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,
    /// The configuration's file.
    #[arg(long, default_value = "05-quilla.conflist")]
    conf_name: String,
    /// The network's name. Runtimes that share a node need one each: GC ends what its runtime does not know of its network.
    #[arg(long, default_value = "quilla")]
    network: String,
    /// The agent's socket for the plugin, where it is not the default one.
    #[arg(long)]
    agent_socket: Option<PathBuf>,
    /// The plugin's records, where they are not in the default folder.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Seconds to wait for the agent to be ready.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=3600))]
    wait: u64,
}

/// What the agent says of itself.
pub(crate) trait Agent {
    /// Fails, with the reason, while it is not ready.
    fn require_ready(&self) -> Result<()>;

    /// How many Pods are attached.
    fn pods(&self) -> Result<usize>;
}

/// Installs or removes; what was done, in lines for people.
pub(crate) fn run(options: &Options, agent: &impl Agent) -> Result<String> {
    if options.remove { remove(options, agent) } else { install(options, agent) }
}

fn install(options: &Options, agent: &impl Agent) -> Result<String> {
    let network = options.conf_dir.join(&options.conf_name);
    let foreign = network.exists() && !is_ours(&network);
    ensure!(!foreign || options.force, "{} is not Quilla's: look at it, then use --force", network.display());
    let source = source(options)?;
    let plugin = fs::read(&source).with_context(|| format!("read {}", source.display()))?;
    wait_ready(options, agent)?;
    for folder in [&options.bin_dir, &options.conf_dir] {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let mut said = Vec::new();
    if foreign {
        let kept = kept(&network);
        fs::rename(&network, &kept).with_context(|| format!("keep {} aside", network.display()))?;
        said.push(format!("kept {}\n", kept.display()));
    }
    let target = options.bin_dir.join(PLUGIN);
    // Whoever runs the old file keeps it open.
    replace(&target, &plugin, 0o755)?;
    replace(&network, format!("{:#}\n", list(options)).as_bytes(), 0o600)?;
    said.extend([&target, &network].map(|path| format!("installed {}\n", path.display())));
    if let Some(earlier) = earlier(options)? {
        said.push(format!("note: runtimes take {} before it\n", earlier.display()));
    }
    Ok(said.concat())
}

/// The configuration first: no new Pod is attached, and those that are still find the plugin for their end.
fn remove(options: &Options, agent: &impl Agent) -> Result<String> {
    let network = options.conf_dir.join(&options.conf_name);
    let mut said = Vec::new();
    if network.exists() {
        ensure!(is_ours(&network), "{} is not Quilla's; it stays", network.display());
        delete(&network)?;
        said.push(format!("removed {}\n", network.display()));
    }
    let kept = kept(&network);
    if kept.exists() {
        fs::rename(&kept, &network).with_context(|| format!("put back {}", network.display()))?;
        said.push(format!("put back {}\n", network.display()));
    }
    let plugin = options.bin_dir.join(PLUGIN);
    if plugin.exists() {
        if !options.force {
            let stays = |why: String| {
                let done = said.concat();
                format!("{done}{} stays: {why} (see --force)", plugin.display())
            };
            let needed =
                agent.pods().with_context(|| stays("nobody knows whether Pods need it".to_owned()))?;
            ensure!(needed == 0, stays(format!("{needed} Pods need it for their end")));
        }
        delete(&plugin)?;
        said.push(format!("removed {}\n", plugin.display()));
    }
    Ok(said.concat())
}

fn wait_ready(options: &Options, agent: &impl Agent) -> Result<()> {
    let (start, patience) = (Instant::now(), Duration::from_secs(options.wait));
    loop {
        match agent.require_ready() {
            Ok(()) => return Ok(()),
            Err(error) if start.elapsed() >= patience => {
                return Err(error).context("the agent is not ready, nothing is installed");
            }
            Err(_) => thread::sleep(TICK),
        }
    }
}

fn source(options: &Options) -> Result<PathBuf> {
    if let Some(plugin) = &options.plugin {
        return Ok(plugin.clone());
    }
    Ok(std::env::current_exe().context("find this program")?.with_file_name(PLUGIN))
}

/// The network. Runtimes that know `cniVersions` take the highest they speak, others the one that all do.
fn list(options: &Options) -> Value {
    let capabilities: Value = CAPABILITIES.iter().map(|name| ((*name).to_owned(), json!(true))).collect();
    let mut plugin = json!({ "type": PLUGIN, "capabilities": capabilities });
    for (key, path) in [("agentSocket", &options.agent_socket), ("dataDir", &options.data_dir)] {
        if let Some(path) = path {
            plugin[key] = json!(path);
        }
    }
    json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": options.network,
        "plugins": [plugin],
    })
}

/// Whether a configuration names our plugin. One that cannot be read is somebody's.
fn is_ours(path: &Path) -> bool {
    let list: Option<Value> = fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let plugins = list.as_ref().and_then(|list| list["plugins"].as_array());
    plugins.is_some_and(|plugins| plugins.iter().any(|plugin| plugin["type"] == PLUGIN))
}

/// A configuration that runtimes prefer to ours.
fn earlier(options: &Options) -> Result<Option<PathBuf>> {
    let entries = fs::read_dir(&options.conf_dir).context("list networks")?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.context("list networks")?.file_name());
    }
    let is_network = |name: &Path| {
        name.extension().is_some_and(|end| ["conf", "conflist", "json"].iter().any(|known| end == *known))
    };
    names.sort();
    let first = names.into_iter().map(PathBuf::from).find(|name| is_network(name));
    Ok(first
        .filter(|name| name.as_os_str() != options.conf_name.as_str())
        .map(|name| options.conf_dir.join(name)))
}

fn kept(network: &Path) -> PathBuf {
    let mut name = network.as_os_str().to_owned();
    name.push(format!(".{KEPT}"));
    name.into()
}

/// Writes aside and renames, so that the file is the old or the new one at any moment, also after a crash.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let aside = path.with_extension(format!("new-{}", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file = File::create(&aside)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        sync_folder(path)
    };
    let written = write().with_context(|| format!("write {}", path.display()));
    if written.is_err() && aside.exists() {
        fs::remove_file(&aside).with_context(|| format!("remove {}", aside.display()))?;
    }
    written
}

fn delete(path: &Path) -> Result<()> {
    fs::remove_file(path)
        .and_then(|()| sync_folder(path))
        .with_context(|| format!("remove {}", path.display()))
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
#[path = "install_tests.rs"]
mod tests;
