//! A certificate authority that nobody trusts but who is told to, and the certificates that it signs.

use super::process::directory;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// What servers are to show, as files of their own directory.
pub const CERTIFICATE: &str = "cert.pem";
/// Likewise.
pub const KEY: &str = "key.pem";
/// The authority's own certificate, in the same directory.
pub const ROOT: &str = "root.pem";

/// See the module's text.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        // Of two of one name the wrong one would be tried.
        params.distinguished_name.push(DnType::CommonName, format!("authority {:016x}", rand::random::<u64>()));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { issuer, directory: directory() };
        fs::write(authority.root(), authority.issuer.pem()).unwrap();
        authority
    }

    /// A file for those who are to trust it.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join(ROOT)
    }

    /// Writes a certificate for this name or address, its key, and the authority's own certificate.
    pub fn certify(&self, name: &str, into: &Path) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        for (file, pem) in [(CERTIFICATE, certificate.pem()), (KEY, key.serialize_pem()), (ROOT, self.issuer.pem())] {
            fs::write(into.join(file), pem).unwrap();
        }
        // PostgreSQL insists on it.
        fs::set_permissions(into.join(KEY), Permissions::from_mode(0o600)).unwrap();
    }
}
