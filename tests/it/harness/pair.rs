//! A pair of keys, as whoever makes device tokens has it. Unit tests of tokens use it too.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::KeyPair;
use serde_json::{Value, json};

/// The algorithms that public keys are for.
pub const PUBLIC: [Algorithm; 3] = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];

pub struct Pair {
    pub keys: KeyPair,
    pub algorithm: Algorithm,
}

impl Pair {
    pub fn new(algorithm: Algorithm) -> Self {
        let kinds = [&rcgen::PKCS_RSA_SHA256, &rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519];
        let kind = kinds[PUBLIC.iter().position(|public| *public == algorithm).unwrap()];
        Self { keys: KeyPair::generate_for(kind).unwrap(), algorithm }
    }

    pub fn signing(&self) -> EncodingKey {
        let pkcs8 = self.keys.serialized_der();
        // Of RSA's, the library wants what lies within.
        let inner = if self.algorithm == Algorithm::RS256 { &pkcs8[26..] } else { pkcs8 };
        [EncodingKey::from_rsa_der, EncodingKey::from_ec_der, EncodingKey::from_ed_der]
            .into_iter()
            .map(|read| read(inner))
            .find(|key| key.family() == self.algorithm.family())
            .unwrap()
    }

    pub fn sign(&self, kid: Option<&str>, claims: &Value) -> String {
        let header = Header { kid: kid.map(Into::into), ..Header::new(self.algorithm) };
        jsonwebtoken::encode(&header, claims, &self.signing()).unwrap()
    }

    /// The public half, as in `auth.device_public_keys`.
    pub fn public_pem(&self) -> String {
        self.keys.public_key_pem()
    }

    /// The public half as a member of a set.
    pub fn jwk(&self, kid: Option<&str>) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let raw = self.keys.public_key_raw();
        if self.algorithm == Algorithm::ES256 {
            json!({"kty": "EC", "kid": kid, "crv": "P-256", "x": text(&raw[1..33]), "y": text(&raw[33..])})
        } else if self.algorithm == Algorithm::EdDSA {
            json!({"kty": "OKP", "kid": kid, "crv": "Ed25519", "x": text(raw)})
        } else {
            // A 2048 bit modulus within its DER, and the exponent at the end.
            json!({"kty": "RSA", "kid": kid, "alg": "RS256", "n": text(&raw[9..265]), "e": text(&raw[267..])})
        }
    }
}
