//! The files that let people and nodes in: bearer tokens and kubeconfigs. Called by `app` at start. They are readable by
//! their owner only, from the moment they exist.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rand::RngExt;

use crate::error::Error;

const OWNER_ONLY: u32 = 0o600;
const OWNER_ONLY_FOLDER: u32 = 0o700;

/// The (token, user) pairs of a token file; makes the file with one token for `admin` if it is absent.
pub fn tokens(path: &Path) -> Result<Vec<(String, String)>, Error> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let text = format!("{},admin\n", random_token());
            write_private(path, &text)?;
            text
        }
        read => read.map_err(|source| Error::File { operation: "read", path: path.to_owned(), source })?,
    };
    let tokens = parse(&text);
    if tokens.is_empty() {
        let why = format!("{} holds no token", path.display());
        return Err(Error::Option { option: "token-file", why });
    }
    Ok(tokens)
}

/// Makes a folder, and those it is in, if it is absent; what is stored in it may be secret.
pub fn private_folder(path: &Path) -> Result<(), Error> {
    let made = DirBuilder::new().recursive(true).mode(OWNER_ONLY_FOLDER).create(path);
    made.map_err(|source| Error::File { operation: "create folder", path: path.to_owned(), source })
}

/// Replaces a file as a whole.
pub fn write_private(path: &Path, text: &str) -> Result<(), Error> {
    let failed = |operation| move |source| Error::File { operation, path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        private_folder(folder)?;
    }
    let draft = path.with_extension("new");
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed("clear the draft of")(error)),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(OWNER_ONLY)
        .open(&draft)
        .map_err(failed("create"))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed("write"))?;
    fs::rename(&draft, path).map_err(failed("replace"))
}

/// A line is `token,user` and whatever may follow; `#` starts a comment line.
fn parse(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut fields = line.split(',').map(|field| field.trim().to_owned());
            (fields.next().unwrap_or_default(), fields.next().unwrap_or_else(|| "admin".to_owned()))
        })
        .filter(|(token, _)| !token.is_empty())
        .collect()
}

fn random_token() -> String {
    let [high, low]: [u128; 2] = rand::rng().random();
    format!("{high:032x}{low:032x}")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::{parse, tokens, write_private};

    #[test]
    fn a_missing_token_file_is_made_once_and_is_private() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("deep/tokens");
        let made = tokens(&path).expect("made");
        assert_eq!(made.len(), 1);
        assert_eq!((made[0].0.len(), made[0].1.as_str()), (64, "admin"));
        assert_eq!(tokens(&path).expect("read"), made);
        let mode =
            |path: &std::path::Path| std::fs::metadata(path).expect("exists").permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&folder.path().join("deep"))), (0o600, 0o700));
        write_private(&path, "# nobody\n").expect("replaced");
        tokens(&path).expect_err("no token");
    }

    #[test]
    fn lines_are_token_and_user() {
        let found = parse("# comment\n\na,alice,1\n b , bob \nc\n,nobody\n");
        let expected = [("a", "alice"), ("b", "bob"), ("c", "admin")];
        assert_eq!(found, expected.map(|(token, user)| (token.to_owned(), user.to_owned())));
    }
}
