//! Bearer tokens: who may speak to the server.
//!
//! `http::dispatch` asks it for every request. Invariant: the time a comparison takes tells nothing of any token.

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// The known users by the digests of their tokens; the tokens themselves are not kept.
pub(crate) struct Tokens(Vec<([u8; 32], String)>);

impl Tokens {
    /// From (token, user) pairs. Empty tokens are left out: they would let in whoever sends none.
    pub(crate) fn new(tokens: Vec<(String, String)>) -> Self {
        let given = tokens.into_iter().filter(|(token, _)| !token.is_empty());
        Self(given.map(|(token, user)| (digest(&token), user)).collect())
    }

    /// Whose token an `Authorization` header carries.
    pub(crate) fn user(&self, authorization: &str) -> Option<&str> {
        let (scheme, token) = authorization.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let sent = digest(token.trim());
        // All of them, always: no early exit.
        self.0.iter().fold(
            None,
            |found, (known, user)| {
                if bool::from(known.ct_eq(&sent)) { Some(user.as_str()) } else { found }
            },
        )
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_bearer_tokens_pass() {
        let pairs = [("one", "first"), ("two", "second"), ("", "nobody")];
        let tokens = Tokens::new(pairs.map(|(token, user)| (token.to_owned(), user.to_owned())).into());
        for (header, user) in [
            ("Bearer one", Some("first")),
            ("bearer two", Some("second")),
            ("Bearer three", None),
            ("Bearer ", None),
            ("Bearer", None),
            ("Basic one", None),
            ("", None),
        ] {
            assert_eq!(tokens.user(header), user, "{header:?}");
        }
    }
}
