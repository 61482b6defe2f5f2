//! Where the product's programs are: beside the running one, as cargo lays them out.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// The program `name` of this build.
pub fn path(name: &str) -> Result<PathBuf> {
    let path = folder()?.join(name);
    ensure!(path.is_file(), "{} is not built: run `cargo xtask build`", path.display());
    Ok(path)
}

/// The program `name` of the build with fail-points, which is beside the product's.
pub fn with_failpoints(name: &str) -> Result<PathBuf> {
    let folder = folder()?;
    let (target, profile) =
        (folder.parent().context("target folder")?, folder.file_name().context("profile")?);
    let path = target.join("failpoints").join(profile).join(name);
    ensure!(path.is_file(), "{} is not built: run `cargo xtask test cni`", path.display());
    Ok(path)
}

/// The folder of all programs of this build.
pub fn folder() -> Result<PathBuf> {
    let program = env::current_exe().context("find this program")?;
    let folder = program.parent().context("folder of this program")?;
    // Test binaries are one level deeper.
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(Path::new("/")) } else { folder };
    Ok(folder.to_owned())
}
