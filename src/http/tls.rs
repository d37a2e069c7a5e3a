//! The certificate of `server.tls.*`: read anew when its files change, for the connections to come. Those that are open stay.

use crate::config;
use parking_lot::RwLock;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

/// How often the files are looked at. Whole, not their times: what is mounted may change under a time that stays.
const INTERVAL: Duration = Duration::from_secs(1);

/// Why there can be no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Its words.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{} holds no {what} in PEM", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// The two don't go together, or can't be used.
    #[error("{} and {}: {source}", cert.display(), key.display())]
    Pair {
        /// `server.tls.cert`
        cert: PathBuf,
        /// `server.tls.key`
        key: PathBuf,
        /// In words.
        source: rustls::Error,
    },
}

/// See the module's text.
#[derive(Debug)]
pub struct Certificate {
    cert: PathBuf,
    key: PathBuf,
    in_force: RwLock<InForce>,
}

#[derive(Debug)]
struct InForce {
    certified: Arc<CertifiedKey>,
    files: Files,
}

/// What the files hold. `Debug` shows none of it.
#[derive(PartialEq, Eq)]
struct Files {
    cert: Vec<u8>,
    key: Vec<u8>,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Files(***)")
    }
}

impl Certificate {
    /// The one that is configured, if any is.
    pub fn load(tls: &config::Tls) -> Result<Option<Arc<Self>>, TlsError> {
        let Some((cert, key)) = tls.cert.clone().zip(tls.key.clone()) else { return Ok(None) };
        let files = Files::read(&cert, &key)?;
        let certified = Arc::new(files.certified(&cert, &key)?);
        Ok(Some(Arc::new(Self { cert, key, in_force: RwLock::new(InForce { certified, files }) })))
    }

    /// The certificates in DER: that of this server first.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.in_force.read().certified.cert.clone()
    }

    /// Speaks TLS by it, with HTTP/2 for who prefers that.
    pub fn acceptor(self: &Arc<Self>) -> Result<TlsAcceptor, rustls::Error> {
        let config = ServerConfig::builder_with_provider(Arc::new(provider())).with_safe_default_protocol_versions()?;
        let mut config = config.with_no_client_auth().with_cert_resolver(Arc::clone(self) as _);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config).into())
    }

    /// Looks at the files for as long as it is polled. What is wrong with new ones is told once, and the old certificate stays.
    pub async fn keep_fresh(self: Arc<Self>) {
        let mut told = None;
        loop {
            sleep(INTERVAL).await;
            let this = Arc::clone(&self);
            match spawn_blocking(move || this.read_anew()).await {
                Ok(Ok(false)) => told = None,
                Ok(Ok(true)) => tracing::info!("the TLS certificate was read anew"),
                Ok(Err(error)) => {
                    let error = error.to_string();
                    if told.as_ref() != Some(&error) {
                        tracing::warn!(error, "the TLS certificate can't be read anew: the old one stays");
                        told = Some(error);
                    }
                }
                // The runtime is ending.
                Err(_) => return,
            }
        }
    }

    /// Whether there was something new.
    fn read_anew(&self) -> Result<bool, TlsError> {
        let files = Files::read(&self.cert, &self.key)?;
        if files == self.in_force.read().files {
            return Ok(false);
        }
        let certified = Arc::new(files.certified(&self.cert, &self.key)?);
        *self.in_force.write() = InForce { certified, files };
        Ok(true)
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.in_force.read().certified))
    }
}

impl Files {
    fn read(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let read = |path: &Path| fs::read(path).map_err(|source| TlsError::Io { path: path.to_owned(), source });
        Ok(Self { cert: read(cert)?, key: read(key)? })
    }

    fn certified(&self, cert: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
        let no = |path: &Path, what| TlsError::Pem { path: path.to_owned(), what };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.cert).collect();
        let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(|| no(cert, "certificate"))?;
        let private = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| no(key, "private key"))?;
        let pair = |source| TlsError::Pair { cert: cert.to_owned(), key: key.to_owned(), source };
        CertifiedKey::from_der(chain, private, &provider()).map_err(pair)
    }
}

fn provider() -> CryptoProvider {
    aws_lc_rs::default_provider()
}
