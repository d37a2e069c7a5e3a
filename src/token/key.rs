//! Keys that device tokens are verified by. Each is for one algorithm, so that none can be used in the way of another (RFC 8725, 3.1).

use crate::config::Secret;
use crate::domain::seat::KeyId;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// RS256 with less is not worth its name (RFC 7518, 3.3), and the library refuses it when it comes to verifying.
const RSA_MODULUS_MIN: usize = 2048 / 8;
/// More keys than this of one set are passed over: each may be tried for a token.
const SET_MAX: usize = 64;

const NAMELESS: &str = "without kid";

/// Why a file gives no public key.
#[derive(Debug, thiserror::Error)]
#[error("auth.device_public_keys: {}: {problem}", path.display())]
pub struct KeyFileError {
    path: PathBuf,
    problem: KeyFileProblem,
}

#[derive(Debug, thiserror::Error)]
enum KeyFileProblem {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("holds a private key: only its public half may be here, as `openssl pkey -pubout` gives it")]
    Private,
    #[error("holds no `PUBLIC KEY` in PEM, as `openssl pkey -pubout` gives it")]
    NoKey,
    #[error("holds a key that is neither RSA of 2048 bits or more, nor EC on P-256, nor Ed25519")]
    Kind,
}

/// A document that is no set of keys, or one without any key that could be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SetError {
    #[error("what came is no JSON Web Key Set")]
    NoSet,
    #[error("none of the {0} keys in the set is for RS256, ES256 or EdDSA")]
    NoKey(usize),
}

/// One key.
#[derive(Clone, Debug)]
pub struct VerifyingKey {
    /// What streams remember of it.
    pub(super) id: KeyId,
    /// Its name in a set.
    pub(super) kid: Option<String>,
    /// The one that it is for.
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
}

impl VerifyingKey {
    fn new(kid: Option<String>, algorithm: Algorithm, key: DecodingKey, material: &[&[u8]]) -> Self {
        Self { id: key_id(algorithm, material), kid, algorithm, key }
    }

    /// For HS256.
    pub(super) fn of_secret(secret: &Secret) -> Self {
        let bytes = secret.expose().as_bytes();
        Self::new(None, Algorithm::HS256, DecodingKey::from_secret(bytes), &[bytes])
    }

    /// The public keys in a PEM file, at least one.
    pub fn of_file(path: &Path) -> Result<Vec<Self>, KeyFileError> {
        let read = || of_pem(&fs::read(path)?);
        read().map_err(|problem| KeyFileError { path: path.to_owned(), problem })
    }

    /// Those keys of a set that can be used here (RFC 7517); others are passed over, as sets serve several purposes.
    pub(super) fn of_set(document: &[u8]) -> Result<Vec<Self>, SetError> {
        let set: Set = serde_json::from_slice(document).map_err(|_| SetError::NoSet)?;
        let usable = set.keys.iter().filter_map(|key| Jwk::deserialize(key).ok()?.into_key());
        let keys: Vec<_> = usable.take(SET_MAX).collect();
        if keys.is_empty() { Err(SetError::NoKey(set.keys.len())) } else { Ok(keys) }
    }

    /// The names of those keys of a set that [`VerifyingKey::of_set`] passes over.
    pub(super) fn passed_over(document: &[u8]) -> Result<Vec<String>, SetError> {
        let set: Set = serde_json::from_slice(document).map_err(|_| SetError::NoSet)?;
        let is_usable = |key: &serde_json::Value| Jwk::deserialize(key).ok().and_then(Jwk::into_key).is_some();
        let (usable, others): (Vec<_>, Vec<_>) = set.keys.iter().partition(|key| is_usable(key));
        let name = |key: &serde_json::Value| key["kid"].as_str().unwrap_or(NAMELESS).to_owned();
        Ok(others.into_iter().chain(usable.into_iter().skip(SET_MAX)).map(name).collect())
    }

    /// Its name, for an operator.
    pub fn name(&self) -> &str {
        self.kid.as_deref().unwrap_or(NAMELESS)
    }

    /// What it is for, as tokens say it.
    pub fn algorithm(&self) -> String {
        format!("{:?}", self.algorithm)
    }
}

/// The same on every node, and of no use for finding the key but by trying.
fn key_id(algorithm: Algorithm, material: &[&[u8]]) -> KeyId {
    let mut hash = Sha256::new_with_prefix(format!("herenow {algorithm:?}"));
    for part in material {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    KeyId::new(digest.iter().take(8).fold(0, |id, byte| (id << 8) | u64::from(*byte)))
}

fn of_pem(pem: &[u8]) -> Result<Vec<VerifyingKey>, KeyFileProblem> {
    if memchr::memmem::find(pem, b"PRIVATE KEY-----").is_some() {
        return Err(KeyFileProblem::Private);
    }
    let found: Result<Vec<_>, _> = SubjectPublicKeyInfoDer::pem_slice_iter(pem).collect();
    let found = found.ok().filter(|found| !found.is_empty()).ok_or(KeyFileProblem::NoKey)?;
    found.iter().map(|der| of_spki(der).ok_or(KeyFileProblem::Kind)).collect()
}

/// What stands before the key itself in each kind of SubjectPublicKeyInfo (RFC 5280, 4.1): these are all that there are in DER.
const P256: &[u8] =
    b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
const ED25519: &[u8] = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";
/// Between two lengths, each of which takes two bytes for keys from 2048 bits on.
const RSA: &[u8] = b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00\x03\x82";

fn of_spki(der: &[u8]) -> Option<VerifyingKey> {
    let (algorithm, key, bytes, fits) = if let Some(point) = der.strip_prefix(P256) {
        (Algorithm::ES256, DecodingKey::from_ec_der(point), point, is_point(point))
    } else if let Some(point) = der.strip_prefix(ED25519) {
        (Algorithm::EdDSA, DecodingKey::from_ed_der(point), point, point.len() == 32)
    } else {
        let rest = der.strip_prefix(b"\x30\x82")?.get(2..)?.strip_prefix(RSA)?;
        let pkcs1 = rest.get(2..)?.strip_prefix(b"\0")?;
        (Algorithm::RS256, DecodingKey::from_rsa_der(pkcs1), pkcs1, pkcs1.len() > RSA_MODULUS_MIN)
    };
    fits.then(|| VerifyingKey::new(None, algorithm, key, &[bytes]))
}

/// On P-256, not compressed.
fn is_point(bytes: &[u8]) -> bool {
    bytes.len() == 65 && bytes[0] == 4
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

/// What is read of a JSON Web Key (RFC 7517, 7518, 8037).
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    r#use: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Jwk {
    /// `None` if it is for something else than verifying by one of our algorithms. A symmetric key has no business in a public document.
    fn into_key(self) -> Option<VerifyingKey> {
        let is_for = |algorithm: &str| self.alg.as_deref().is_none_or(|alg| alg == algorithm);
        let may_verify = self.r#use.as_deref().is_none_or(|usage| usage == "sig")
            && self.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        let part = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_deref()?.trim_end_matches('=')).ok();
        let (algorithm, key, material) = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) if is_for("RS256") => {
                let (n, e) = (part(&self.n)?, part(&self.e)?);
                let length = n.len() - n.iter().take_while(|byte| **byte == 0).count();
                (length >= RSA_MODULUS_MIN).then_some(())?;
                (Algorithm::RS256, DecodingKey::from_rsa_raw_components(&n, &e), vec![n, e])
            }
            ("EC", Some("P-256")) if is_for("ES256") => {
                let point = [&[4], &part(&self.x)?[..], &part(&self.y)?[..]].concat();
                is_point(&point).then_some(())?;
                (Algorithm::ES256, DecodingKey::from_ec_der(&point), vec![point])
            }
            ("OKP", Some("Ed25519")) if is_for("EdDSA") || is_for("Ed25519") => {
                let point = part(&self.x)?;
                (point.len() == 32).then_some(())?;
                (Algorithm::EdDSA, DecodingKey::from_ed_der(&point), vec![point])
            }
            _ => return None,
        };
        let material: Vec<&[u8]> = material.iter().map(Vec::as_slice).collect();
        may_verify.then(|| VerifyingKey::new(self.kid, algorithm, key, &material))
    }
}
