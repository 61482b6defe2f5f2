//! Bearer tokens: who may speak to the server.
//!
//! `http::dispatch` asks it for every request. Invariant: the time a comparison takes tells nothing of any token.

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// The digests of the known tokens; the tokens themselves are not kept.
pub(crate) struct Tokens(Vec<[u8; 32]>);

impl Tokens {
    /// Empty tokens are left out: they would let in whoever sends none.
    pub(crate) fn new<'a>(tokens: impl Iterator<Item = &'a str>) -> Self {
        Self(tokens.filter(|token| !token.is_empty()).map(digest).collect())
    }

    /// Whether an `Authorization` header carries a known token.
    pub(crate) fn knows(&self, authorization: &str) -> bool {
        let Some((scheme, token)) = authorization.split_once(' ') else { return false };
        if !scheme.eq_ignore_ascii_case("bearer") {
            return false;
        }
        let sent = digest(token.trim());
        // All of them, always: no early exit.
        let known = self.0.iter().fold(Choice::from(0), |known, token| known | token.ct_eq(&sent));
        known.into()
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
        let tokens = Tokens::new(["one", "two", ""].into_iter());
        for (header, known) in [
            ("Bearer one", true),
            ("bearer two", true),
            ("Bearer three", false),
            ("Bearer ", false),
            ("Bearer", false),
            ("Basic one", false),
            ("", false),
        ] {
            assert_eq!(tokens.knows(header), known, "{header:?}");
        }
    }
}
