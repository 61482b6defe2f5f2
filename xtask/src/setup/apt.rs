//! Debian packages: those of the machine's own release through `apt-get install`, and single packages of another
//! suite, unpacked beside the build and never installed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::process::{read, run};
use crate::workspace::Workspace;

/// The command that tests or demos run, found in the path or by its own, and the package that brings it.
const COMMANDS: [(&str, &str); 18] = [
    ("/usr/lib/cni/host-local", "containernetworking-plugins"),
    ("busybox", "busybox-static"),
    ("containerd", "containerd"),
    ("curl", "curl"),
    ("dig", "bind9-dnsutils"),
    ("dnsmasq", "dnsmasq-base"),
    ("ethtool", "ethtool"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("jq", "jq"),
    ("ncat", "ncat"),
    ("nft", "nftables"),
    ("ping", "iputils-ping"),
    ("pip3", "python3-pip"),
    ("podman", "podman"),
    ("runc", "runc"),
    ("tc", "iproute2"),
    ("tcpdump", "tcpdump"),
];

/// Packages whose commands are not on this machine.
pub(crate) fn missing(workspace: &Workspace) -> Vec<&'static str> {
    let absent = COMMANDS.iter().filter(|(command, _)| workspace.which(command).is_none());
    let packages: BTreeSet<&str> = absent.map(|(_, package)| *package).collect();
    packages.into_iter().collect()
}

pub(super) fn ensure(workspace: &Workspace) -> Result<()> {
    let packages = missing(workspace);
    if packages.is_empty() {
        return Ok(());
    }
    println!("installing Debian packages: {}", packages.join(" "));
    run(workspace.command("apt-get").args(["update", "-qq"]))?;
    let mut install = workspace.command("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive").args(["install", "-qq", "--no-install-recommends"]);
    // Its errors are on the other stream; a line for each step of each package hides them.
    run(install.args(packages).stdout(Stdio::null()))
}

/// bookworm's kubectl is of 2020 and cannot talk to a present apiserver; trixie's is one static file.
pub(super) fn ensure_kubectl(workspace: &Workspace) -> Result<()> {
    if workspace.which("kubectl").is_some() {
        return Ok(());
    }
    println!("unpacking kubectl from Debian trixie into {}", workspace.debian().display());
    unpack(workspace, "trixie", "kubectl", "", &workspace.debian())
}

/// Only the program: installed, the package would start a server on the machine.
pub(super) fn ensure_nginx(workspace: &Workspace) -> Result<()> {
    if workspace.which("nginx").is_some() {
        return Ok(());
    }
    println!("unpacking nginx into {}", workspace.debian().display());
    run(workspace.command("apt-get").args(["update", "-qq"]))?;
    let (home, into) = (workspace.tools(), workspace.debian());
    fs::create_dir_all(&into).with_context(|| format!("create {}", into.display()))?;
    run(workspace.command("apt-get").args(["download", "-qq", "nginx"]).current_dir(&home))?;
    extract(workspace, &downloaded(&home, "nginx")?, &into)
}

/// Downloads one package of `suite` whose version starts with `version`, and unpacks it into `into`. A private apt
/// configuration leaves the machine's own alone; apt checks the suite's signature and the package's hash.
pub(super) fn unpack(
    workspace: &Workspace,
    suite: &str,
    package: &str,
    version: &str,
    into: &Path,
) -> Result<()> {
    let home = workspace.tools().join("apt").join(suite);
    let config = configure(&home, suite)?;
    let apt = |program: &str| -> Command {
        let mut command = workspace.command(program);
        command.env("APT_CONFIG", &config).current_dir(&home);
        command
    };
    run(apt("apt-get").args(["update", "-qq"]))?;
    let candidates = read(apt("apt-cache").args(["madison", package]))?;
    let Some(chosen) = candidates
        .lines()
        .filter_map(|line| line.split('|').nth(1))
        .map(str::trim)
        .find(|candidate| candidate.starts_with(version))
    else {
        bail!("Debian {suite} has no {package} of version {version}");
    };
    run(apt("apt-get").args(["download", "-qq", &format!("{package}={chosen}")]))?;
    let archive = downloaded(&home, package)?;
    fs::create_dir_all(into).with_context(|| format!("create {}", into.display()))?;
    extract(workspace, &archive, into)
}

fn extract(workspace: &Workspace, archive: &Path, into: &Path) -> Result<()> {
    run(workspace.command("dpkg-deb").arg("--extract").arg(archive).arg(into))?;
    fs::remove_file(archive).with_context(|| format!("remove {}", archive.display()))
}

fn configure(home: &Path, suite: &str) -> Result<std::path::PathBuf> {
    for folder in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(home.join(folder)).with_context(|| format!("create {folder} for apt"))?;
    }
    let source = format!(
        "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian {suite} main\n"
    );
    fs::write(home.join("sources.list"), source).context("write sources.list for apt")?;
    let home = home.display();
    let settings = format!(
        "Dir::State::Lists \"{home}/lists\";\nDir::State::status \"/dev/null\";\nDir::Cache \"{home}/cache\";\n\
         Dir::Etc::sourcelist \"{home}/sources.list\";\nDir::Etc::sourceparts \"-\";\n\
         Acquire::Languages \"none\";\nAPT::Sandbox::User \"root\";\n"
    );
    let config = format!("{home}/apt.conf");
    fs::write(&config, settings).context("write apt.conf")?;
    Ok(config.into())
}

fn downloaded(home: &Path, package: &str) -> Result<std::path::PathBuf> {
    for entry in fs::read_dir(home).context("list downloads")? {
        let path = entry.context("list downloads")?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(&format!("{package}_")) && path.extension().is_some_and(|end| end == "deb") {
            return Ok(path);
        }
    }
    bail!("apt-get downloaded no {package}")
}
