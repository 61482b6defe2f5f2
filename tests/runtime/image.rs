//! A container image made on the spot: a static busybox, written as an OCI archive that every runtime loads.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use quilla_tests::command::Run;
use serde_json::{Value, json};

/// The image's name; nobody could fetch it.
pub(crate) const NAME: &str = "quilla.test/busybox:1";

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Makes the archive below `folder`. The image sleeps when nothing else is said, so it serves as the pause image too.
pub(crate) fn archive(folder: &Path) -> Result<PathBuf> {
    let (root, layout) = (folder.join("root"), folder.join("layout"));
    fs::create_dir_all(layout.join("blobs/sha256")).context("make the layout")?;
    root_files(&root)?;
    let layer = layout.join("layer");
    Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&layer).arg(".").text()?;
    let layer = store(&layout, &fs::read(&layer).context("read the layer")?, LAYER)?;
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": { "Cmd": ["/bin/sleep", "1000000"], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
    });
    let config = store(&layout, config.to_string().as_bytes(), CONFIG)?;
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] });
    let mut manifest = store(&layout, manifest.to_string().as_bytes(), MANIFEST)?;
    manifest["annotations"] =
        json!({ "io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": NAME });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), index.to_string()).context("write the index")?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).context("write the layout")?;
    let archive = folder.join("image.tar");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&layout).arg("-cf").arg(&archive).args(["oci-layout", "index.json", "blobs"]).text()?;
    Ok(archive)
}

fn root_files(root: &Path) -> Result<()> {
    for folder in ["bin", "www", "tmp"] {
        fs::create_dir_all(root.join(folder)).with_context(|| format!("create {folder}"))?;
    }
    let busybox = Command::new("sh").args(["-c", "command -v busybox"]).text()?;
    fs::copy(busybox.trim(), root.join("bin/busybox")).context("copy busybox")?;
    for applet in ["sh", "sleep", "httpd", "wget", "ip", "hostname", "cat", "nc"] {
        symlink("busybox", root.join("bin").join(applet)).with_context(|| format!("link {applet}"))?;
    }
    fs::write(root.join("www/name"), "words of the server\n").context("write a page")
}

/// Puts a blob where its digest says, and describes it.
fn store(layout: &Path, bytes: &[u8], media_type: &str) -> Result<Value> {
    let aside = layout.join("blob");
    fs::write(&aside, bytes).context("write a blob")?;
    let sum = Command::new("sha256sum").arg(&aside).text()?;
    let digest = sum.split_whitespace().next().context("digest")?;
    fs::rename(&aside, layout.join("blobs/sha256").join(digest)).context("name a blob")?;
    Ok(json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() }))
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
