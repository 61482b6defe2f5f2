//! Where things are. Every path of the other modules comes from here, so none depends on the current directory.

use std::env;
use std::path::{Path, PathBuf};

pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    pub(crate) fn find() -> Self {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        Self { root: here.parent().unwrap_or(here).to_owned() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    pub(crate) fn target(&self) -> PathBuf {
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| self.path("target"), |dir| self.root.join(dir))
    }

    /// What `setup` downloads and nothing else needs: gone with the target directory.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target().join("tools")
    }

    pub(crate) fn wheels(&self) -> PathBuf {
        self.tools().join("wheels")
    }

    pub(crate) fn debian(&self) -> PathBuf {
        self.tools().join("debian")
    }

    /// `PATH` for every child: the tools of `setup` come after the machine's own.
    pub(crate) fn search_path(&self) -> Vec<PathBuf> {
        let machine = env::var_os("PATH").unwrap_or_default();
        let mut path: Vec<PathBuf> = env::split_paths(&machine).collect();
        path.extend(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
        path.extend([cargo_home().join("bin"), self.wheels().join("bin")]);
        path.extend(["usr/bin", "usr/sbin"].map(|folder| self.debian().join(folder)));
        path
    }

    /// The file that a command of this name would run.
    pub(crate) fn which(&self, command: &str) -> Option<PathBuf> {
        self.search_path().into_iter().map(|dir| dir.join(command)).find(|file| file.is_file())
    }
}

pub(crate) fn cargo_home() -> PathBuf {
    env::var_os("CARGO_HOME").map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/".into())).join(".cargo"),
        PathBuf::from,
    )
}
