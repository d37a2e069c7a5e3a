//! Signatures as the Standard Webhooks specification says, so that its public libraries verify them unchanged.

use crate::config::Secret;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::fmt;

const PREFIX: &str = "whsec_";
/// The specification's least length of a key, in bytes.
const SHORTEST_KEY: usize = 24;

/// Base64 of secrets, with or without its padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why a text is no secret. It never shows the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SecretError {
    /// There is none at all.
    #[error("no secret is set, so nothing could be signed")]
    Missing,
    /// It begins otherwise.
    #[error("a secret must begin with `whsec_`")]
    Prefix,
    /// What follows the prefix is no base64.
    #[error("a secret must be `whsec_` and then base64")]
    Base64,
    /// It is too easy to guess.
    #[error("a secret must hold at least {SHORTEST_KEY} bytes, this one holds {0}")]
    Short(usize),
}

/// Makes a new secret of 32 random bytes.
pub fn generate_secret() -> Secret {
    Secret::new(format!("{PREFIX}{}", STANDARD.encode(rand::random::<[u8; 32]>())))
}

/// Signs with each of its secrets, so that they can be rotated.
#[derive(Clone)]
pub struct Signer(Vec<Hmac<Sha256>>);

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({} secrets)", self.0.len())
    }
}

impl Signer {
    /// Reads the secrets, of which there must be one at least.
    pub fn new(secrets: &[Secret]) -> Result<Self, SecretError> {
        if secrets.is_empty() {
            return Err(SecretError::Missing);
        }
        secrets.iter().map(|secret| parse(secret.expose())).collect::<Result<_, _>>().map(Self)
    }

    /// The header `webhook-signature`: one signature per secret.
    pub fn sign(&self, id: &str, timestamp_s: i64, body: &[u8]) -> String {
        let signed = |key: &Hmac<Sha256>| {
            let mac = key.clone().chain_update(format!("{id}.{timestamp_s}.")).chain_update(body);
            format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
        };
        self.0.iter().map(signed).collect::<Vec<_>>().join(" ")
    }
}

fn parse(text: &str) -> Result<Hmac<Sha256>, SecretError> {
    let encoded = text.strip_prefix(PREFIX).ok_or(SecretError::Prefix)?;
    let key = LENIENT.decode(encoded).map_err(|_| SecretError::Base64)?;
    if key.len() < SHORTEST_KEY {
        return Err(SecretError::Short(key.len()));
    }
    Hmac::new_from_slice(&key).map_err(|_| SecretError::Base64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn signer(secrets: &[&str]) -> Result<Signer, SecretError> {
        Signer::new(&secrets.iter().copied().map(Secret::new).collect::<Vec<_>>())
    }

    #[test]
    fn signs_as_the_specifications_example_says() {
        let signature =
            signer(&[SECRET]).unwrap().sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn signs_with_every_secret() {
        let other = generate_secret();
        let both = signer(&[SECRET, other.expose()]).unwrap().sign("id", 1, b"{}");
        let each = [SECRET, other.expose()].map(|s| signer(&[s]).unwrap().sign("id", 1, b"{}"));
        assert_eq!(both, each.join(" "));
    }

    #[test]
    fn a_bad_secret_is_refused_and_never_shown() {
        assert_eq!(signer(&[]).unwrap_err(), SecretError::Missing);
        assert_eq!(signer(&["MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]).unwrap_err(), SecretError::Prefix);
        assert_eq!(signer(&["whsec_ü"]).unwrap_err(), SecretError::Base64);
        assert_eq!(signer(&["whsec_"]).unwrap_err(), SecretError::Short(0));
        assert_eq!(signer(&["whsec_c2hvcnQ="]).unwrap_err(), SecretError::Short(5));
        assert_eq!(format!("{:?}", signer(&[SECRET]).unwrap()), "Signer(1 secrets)");
    }

    #[test]
    fn padding_may_be_left_out_and_new_secrets_differ() {
        let padded = generate_secret();
        let bare = padded.expose().trim_end_matches('=');
        assert_ne!(padded.expose(), bare);
        let [a, b] = [padded.expose(), bare].map(|s| signer(&[s]).unwrap().sign("id", 1, b""));
        assert_eq!(a, b);
        assert_ne!(padded, generate_secret());
    }
}
