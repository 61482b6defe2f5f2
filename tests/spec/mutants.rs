//! Deliberately broken programs and planners, each of which the specification must notice.
//!
//! A mutant is a textual change to the sources, built from a copy of the tree. A change whose text is no longer found
//! exactly once fails a test of its own, in no time: mutants do not rot in silence. `SPEC_MUTANT` sets a part of the
//! names of those to try.

pub(crate) mod data_path;
pub(crate) mod planner;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::coverage::Coverage;
use crate::explore::Disagreement;

struct Mutant {
    name: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
}

impl Mutant {
    /// Makes this of an original.
    fn of(&self, original: &str) -> Result<String> {
        let found = original.matches(self.from).count();
        ensure!(found == 1, "{}: `{}` is {found} times in {}", self.name, self.from, self.file);
        Ok(original.replace(self.from, self.to))
    }
}

/// Of programs that should agree, to show that they do.
const CONTROL_PACKETS: u64 = 200_000;
/// Enough for every mutant to be noticed: most are within some thousands, the rarest within a million.
const PACKETS: u64 = 3_000_000;

fn all() -> impl Iterator<Item = &'static Mutant> {
    data_path::MUTANTS.iter().chain(planner::MUTANTS)
}

/// The texts that the mutants change are in the sources.
pub(crate) fn each_is_found() -> Result<()> {
    for mutant in all() {
        let original = fs::read_to_string(Sources::root().join(mutant.file));
        mutant.of(&original.with_context(|| format!("read {}", mutant.file))?)?;
    }
    Ok(())
}

/// A part of the tree, as a workspace of its own.
struct Sources {
    copy: TempDir,
    /// Where the results of all builds are kept.
    target: PathBuf,
}

impl Sources {
    /// Copies `parts` of the tree; `members` are the packages among them.
    fn copy(parts: &[&str], members: &[&str]) -> Result<Self> {
        let sources = Self {
            copy: tempfile::tempdir().context("make a folder for the mutants")?,
            target: PathBuf::new(),
        };
        let target =
            Self::root().join("target/mutants").join(members.last().unwrap_or(&"").replace('/', "-"));
        for part in parts.iter().chain(&["Cargo.lock"]) {
            let to = sources.folder().join(part);
            let folder = to.parent().context("a part of the tree")?;
            fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
            let copied = Command::new("cp").arg("-r").arg(Self::root().join(part)).arg(&to).status();
            ensure!(copied.context("start cp")?.success(), "cp {part} failed");
        }
        let manifest = fs::read_to_string(Self::root().join("Cargo.toml")).context("read Cargo.toml")?;
        let settings = manifest.find("[workspace.package]").context("[workspace.package] in Cargo.toml")?;
        let workspace = format!("[workspace]\nresolver = \"3\"\nmembers = {members:?}\n\n");
        fs::write(sources.folder().join("Cargo.toml"), workspace + &manifest[settings..])
            .context("write Cargo.toml")?;
        Ok(Self { target, ..sources })
    }

    /// The tree.
    fn root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
    }

    fn folder(&self) -> &Path {
        self.copy.path()
    }

    /// Tries all of them. `disagrees` builds what is in the copy, and runs it under a name for so
    /// many packets.
    fn each_is_caught(
        &self,
        mutants: &[Mutant],
        disagrees: impl Fn(&Self, &str, u64) -> Result<Option<String>>,
    ) -> Result<()> {
        // The same recipe without a change must agree: it is the change that is caught, and not the recipe.
        if let Some(story) = disagrees(self, "control", CONTROL_PACKETS).context("control")? {
            bail!("the control disagrees: {story}");
        }
        let mut survivors = Vec::new();
        let wanted = env::var("SPEC_MUTANT").unwrap_or_default();
        let is_wanted = |mutant: &Mutant| mutant.name.contains(&wanted);
        ensure!(all().any(is_wanted), "no mutant has SPEC_MUTANT={wanted} in its name");
        for (number, mutant) in mutants.iter().enumerate().filter(|(_, mutant)| is_wanted(mutant)) {
            let original = self.mutate(mutant)?;
            let name = format!("mutant-{number}");
            let story = disagrees(self, &name, PACKETS).with_context(|| mutant.name)?;
            fs::write(self.folder().join(mutant.file), original).context("restore the source")?;
            match story {
                Some(story) => println!("caught: {}: {story}", mutant.name),
                None => survivors.push(mutant.name),
            }
        }
        ensure!(survivors.is_empty(), "not noticed: {survivors:?}");
        Ok(())
    }

    /// Writes a mutant; what was there before.
    fn mutate(&self, mutant: &Mutant) -> Result<String> {
        let file = self.folder().join(mutant.file);
        let original = fs::read_to_string(&file).with_context(|| format!("read {}", mutant.file))?;
        fs::write(&file, mutant.of(&original)?).context("write the mutant")?;
        Ok(original)
    }

    /// Builds what is in the copy; the file that comes of it.
    fn build(&self, mut cargo: Command, result: &Path) -> Result<PathBuf> {
        cargo.arg("--target-dir").arg(&self.target);
        cargo.current_dir(self.folder()).env_remove("CARGO_ENCODED_RUSTFLAGS");
        let output = cargo.output().context("start cargo")?;
        if !output.status.success() {
            bail!("it does not build: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(self.target.join(result))
    }
}

/// The first line of the first disagreement. An object that does not load, say, is an error and no disagreement.
fn told(explored: Result<Coverage>) -> Result<Option<String>> {
    match explored {
        Ok(_) => Ok(None),
        Err(error) if error.downcast_ref::<Disagreement>().is_some() => {
            Ok(Some(format!("{error:#}").lines().next().unwrap_or_default().to_owned()))
        }
        Err(error) => Err(error),
    }
}
