//! Connections: how they are made, how many there are, and what their failures mean.

use crate::backend::durable::metrics::Metrics;
use crate::ports::StoreError;
use deadpool_postgres::{
    BuildError, Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime, TimeoutType,
};
use prometheus_client::metrics::histogram::Histogram;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_platform_verifier::BuilderVerifierExt;
use std::collections::BTreeSet;
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::{Client, Config, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;

/// A connection is made within this time, or not at all.
const CONNECT: Duration = Duration::from_secs(5);
/// A call waits so long for a connection that others use.
const WAIT: Duration = Duration::from_secs(5);
/// Calls that may wait for a connection; more are refused.
const WAITING: usize = 2_000;
/// A server that acknowledges nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(15);
/// Nor is one waited for longer that acknowledges all, and answers nothing: a server that is stopped, or a proxy that has lost it.
const ANSWER: Duration = Duration::from_secs(20);

/// Rounds in which two connections say which session of the server they have.
const LOOKS: usize = 4;

/// What each session is set to:
///
/// - A statement that waits or runs for long is ended, and so is a transaction whose node is gone, as others may wait for its locks.
/// - Every join is by a key. The planner can't know that before it has statistics, and would go on with a plan that it made for tables that
///   were small. Where there is no other plan, what these settings add to its cost would have the server compile it
///   (`jit`), which takes a thousand times as long as running it.
/// - A commit has been written to the disk when it returns: an operator may ask for more than `on`, never for less.
const SETTINGS: &str = "SET statement_timeout = '15s'; SET lock_timeout = '10s'; \
     SET idle_in_transaction_session_timeout = '5s'; SET client_min_messages = warning; \
     SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off; \
     SELECT set_config('synchronous_commit', 'on', false) \
     WHERE current_setting('synchronous_commit') IN ('off', 'local', 'remote_write')";

/// Why no connections can be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// `store.url` can't be read.
    #[error("`store.url` is wrong")]
    Url(#[source] tokio_postgres::Error),
    /// It asks for a server whose name isn't looked at.
    #[error("`store.url`: `sslmode=verify-ca` isn't offered; `verify-full` looks at the issuer and the name")]
    IssuerOnly,
    /// TLS can't be set up.
    #[error("TLS can't be set up")]
    Tls(#[from] rustls::Error),
    /// The pool can't be made.
    #[error(transparent)]
    Pool(#[from] BuildError),
}

/// Why something was not done, or isn't known to be done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// There is no connection.
    #[error("no connection: {}", why_none(.0))]
    NoConnection(#[from] PoolError),
    /// A statement failed, or its connection was lost.
    #[error("{}", in_words(.0))]
    Statement(#[from] tokio_postgres::Error),
    /// The server has not answered in time.
    #[error("the server doesn't answer")]
    Silent,
    /// A row can't be read.
    #[error("a damaged row: {0}")]
    Damaged(&'static str),
    /// A commit's answer was lost, and what became of it could not be found out.
    #[error("it isn't known whether it was committed: {0}")]
    InDoubt(Box<Self>),
    /// Another node has taken a send over that this one was writing.
    #[error("another node goes on with it")]
    TakenOver,
    /// Others were faster, so it has to be done again.
    #[error("overtaken by others too often")]
    Overtaken,
}

/// Without what the pool was about to do.
fn why_none(error: &PoolError) -> String {
    match error {
        PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)) => in_words(error),
        PoolError::Timeout(_)
        | PoolError::Closed
        | PoolError::NoRuntimeSpecified
        | PoolError::PostCreateHook(HookError::Message(_)) => error.to_string(),
    }
}

/// The driver's own text of an error from the server is no more than "db error".
fn in_words(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}")),
    }
}

impl Failure {
    /// The connection is of no use any more. What was last sent on it may have been done.
    pub fn is_lost(&self) -> bool {
        let Self::Statement(error) = self else { return matches!(self, Self::Silent) };
        match error.as_db_error() {
            // A server that has become a standby keeps its connections.
            Some(db) => {
                matches!(db.parsed_severity(), Some(Severity::Fatal | Severity::Panic))
                    || *db.code() == SqlState::READ_ONLY_SQL_TRANSACTION
            }
            None => error.is_closed() || error.source().is_some_and(<dyn Error>::is::<io::Error>),
        }
    }

    /// It failed because of what others did at the same time, or of a row or partition that will be there the next time.
    pub fn is_passing(&self) -> bool {
        let Self::Statement(error) = self else { return matches!(self, Self::Overtaken) };
        error.code().is_some_and(|code| {
            [
                SqlState::T_R_SERIALIZATION_FAILURE,
                SqlState::T_R_DEADLOCK_DETECTED,
                SqlState::LOCK_NOT_AVAILABLE,
                SqlState::UNIQUE_VIOLATION,
                SqlState::CHECK_VIOLATION,
                SqlState::UNDEFINED_TABLE,
            ]
            .contains(code)
        })
    }

    /// The fault may lie with one of several things that were written together, and the others can still be written.
    pub fn is_of_one(&self) -> bool {
        let Self::Statement(error) = self else { return false };
        // Data exceptions, violated constraints, program limits.
        error.code().is_some_and(|code| ["22", "23", "54"].iter().any(|class| code.code().starts_with(class)))
    }

    pub fn answer(self) -> StoreError {
        match self {
            Self::NoConnection(PoolError::Timeout(TimeoutType::Wait)) => StoreError::Overloaded,
            Self::NoConnection(_)
            | Self::Statement(_)
            | Self::Silent
            | Self::Damaged(_)
            | Self::InDoubt(_)
            | Self::TakenOver
            | Self::Overtaken => StoreError::Unavailable(Box::new(self)),
        }
    }
}

/// Reads `store.url` and fills in what it doesn't say.
pub(super) fn config(url: &str) -> Result<Config, ConnectError> {
    if url.contains("sslmode=verify-ca") {
        return Err(ConnectError::IssuerOnly);
    }
    // The driver doesn't know the name that libpq has for what `require` means here.
    let url = url.replace("sslmode=verify-full", "sslmode=require");
    let mut config: Config = url.parse().map_err(ConnectError::Url)?;
    if config.get_application_name().is_none() {
        config.application_name("herenow");
    }
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT);
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(SILENCE);
    }
    // The driver's default is two hours; one that was asked for is another.
    if config.get_keepalives_idle() == Duration::from_secs(2 * 60 * 60) {
        config.keepalives_idle(SILENCE).keepalives_interval(CONNECT).keepalives_retries(3);
    }
    // Of several hosts one is the primary, and it may change.
    let hosts = config.get_hosts().len().max(config.get_hostaddrs().len());
    if hosts > 1 && config.get_target_session_attrs() == TargetSessionAttrs::Any {
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    }
    Ok(config)
}

/// `sslmode=require` verifies the server by the platform's roots. `prefer` takes what it gets, as everywhere: it would take no TLS, too.
fn tls(mode: SslMode) -> Result<MakeRustlsConnect, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let versions = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let verified = if mode == SslMode::Require {
        versions.with_platform_verifier()?
    } else {
        versions.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
    };
    Ok(MakeRustlsConnect::new(verified.with_no_client_auth()))
}

/// Takes any certificate.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether each of two connections keeps a session of its own. Those of a pooler that lends sessions for a transaction meet in one, or change
/// theirs while others use it; then nobody's [`SETTINGS`] are sure, among them that a commit is on the disk (CONTRACT.md 10.4).
pub(super) async fn keep_sessions(both: [&Client; 2]) -> Result<bool, Failure> {
    let mut seen = [BTreeSet::new(), BTreeSet::new()];
    for _ in 0..LOOKS {
        for (connection, seen) in both.iter().zip(&mut seen) {
            // Not prepared: that alone may take two sessions.
            for said in connection.simple_query("SELECT pg_backend_pid()").await? {
                if let SimpleQueryMessage::Row(row) = said {
                    seen.insert(row.get(0).map(str::to_owned));
                }
            }
        }
    }
    Ok(seen.iter().all(|seen| seen.len() == 1) && seen[0] != seen[1])
}

/// A bounded number of connections, made when they are needed and made anew when they were lost.
#[derive(Clone)]
pub(super) struct Connections {
    pool: Pool,
    metrics: Metrics,
    /// How long calls waited for a connection.
    waits: Histogram,
}

impl Connections {
    pub fn new(config: &Config, most: usize, (metrics, waits): (Metrics, Histogram)) -> Result<Self, ConnectError> {
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(config.clone(), tls(config.get_ssl_mode())?, recycling);
        let prepare = Hook::async_fn(|client: &mut deadpool_postgres::ClientWrapper, _| {
            Box::pin(async move { client.batch_execute(SETTINGS).await.map_err(HookError::Backend) })
        });
        let pool = Pool::builder(manager)
            .max_size(most)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(WAIT))
            .create_timeout(Some(CONNECT * 2))
            .recycle_timeout(Some(CONNECT))
            .post_create(prepare)
            .build()?;
        Ok(Self { pool, metrics, waits })
    }

    pub async fn get(&self) -> Result<Object, Failure> {
        if self.pool.status().waiting >= WAITING {
            return Err(PoolError::Timeout(TimeoutType::Wait).into());
        }
        let asked = Instant::now();
        let got = self.pool.get().await;
        self.waits.observe(asked.elapsed().as_secs_f64());
        Ok(got?)
    }

    /// For [`run!`].
    pub fn tries(&self) -> Tries<'_> {
        Tries { connections: self, last: false }
    }

    /// Gives up a connection, and with it those that were lost at the same time.
    pub fn discard(&self, client: Object, failure: &Failure) {
        drop(Object::take(client));
        let all = matches!(failure, Failure::Silent);
        self.pool.retain(|other, _| !all && !other.is_closed());
    }

    /// What the caller is told.
    pub fn failed(&self, failure: Failure) -> StoreError {
        self.metrics.errors.inc();
        tracing::debug!(error = %failure, "the store didn't do it");
        failure.answer()
    }

    pub fn close(&self) {
        self.pool.close();
    }
}

/// The connections that something is tried on.
pub(super) struct Tries<'a> {
    connections: &'a Connections,
    last: bool,
}

impl Tries<'_> {
    pub async fn connection(&self) -> Result<Object, StoreError> {
        self.connections.get().await.map_err(|failure| self.connections.failed(failure))
    }

    /// What became of it on this connection, or `None` if it is to be tried on another.
    pub fn judge<T>(&mut self, db: Object, done: Result<T, Failure>) -> Option<Result<T, StoreError>> {
        let failure = match done {
            Ok(done) => return Some(Ok(done)),
            Err(failure) => failure,
        };
        let worth = !self.last && (failure.is_lost() || failure.is_passing());
        if failure.is_lost() {
            self.connections.discard(db, &failure);
        }
        self.last = true;
        (!worth).then(|| Err(self.connections.failed(failure)))
    }
}

/// Does something that does no harm if it is done twice: once more if the connection was lost, as it may have been so for long, or if others
/// were in the way. (A function would need a closure whose future can be sent wherever the borrowed connection can, which can't be said yet.)
macro_rules! run {
    ($connections:expr, |$db:ident| $work:expr) => {{
        let mut tries = $connections.tries();
        loop {
            let $db = match tries.connection().await {
                Ok(db) => db,
                Err(error) => break Err(error),
            };
            let done = $crate::backend::postgres::connect::answered($work).await;
            if let Some(answer) = tries.judge($db, done) {
                break answer;
            }
        }
    }};
}
pub(super) use run;

/// Waits for what is asked of the server, within bounds.
pub(super) async fn answered<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    timeout(ANSWER, work).await.unwrap_or(Err(Failure::Silent))
}

/// Ends a transaction: all or nothing. After a failure the connection is as it was before, or lost.
pub(super) async fn end<T>(db: &Client, done: Result<T, Failure>) -> Result<T, Failure> {
    match done {
        Ok(done) => {
            db.batch_execute("COMMIT").await?;
            Ok(done)
        }
        Err(failure) => {
            if !failure.is_lost() {
                db.batch_execute("ROLLBACK").await?;
            }
            Err(failure)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_filled_in_but_never_overruled() {
        let plain = config("postgres://u@h/d").unwrap();
        assert_eq!(plain.get_application_name(), Some("herenow"));
        assert_eq!(plain.get_connect_timeout(), Some(&CONNECT));
        assert_eq!(plain.get_keepalives_idle(), SILENCE);
        assert_eq!(plain.get_target_session_attrs(), TargetSessionAttrs::Any);
        let several = config("postgres://u@h,i:5433/d").unwrap();
        assert_eq!(several.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
        let chosen = config(
            "postgres://u@h,i/d?application_name=x&connect_timeout=1&keepalives_idle=9&target_session_attrs=read-only",
        )
        .unwrap();
        assert_eq!(chosen.get_application_name(), Some("x"));
        assert_eq!(chosen.get_connect_timeout(), Some(&Duration::from_secs(1)));
        assert_eq!(chosen.get_keepalives_idle(), Duration::from_secs(9));
        assert_eq!(chosen.get_target_session_attrs(), TargetSessionAttrs::ReadOnly);
        assert_eq!(plain.get_ssl_mode(), SslMode::Prefer);
        assert_eq!(config("postgres://u@h/d?sslmode=verify-full").unwrap().get_ssl_mode(), SslMode::Require);
        assert!(matches!(config("postgres://u@h/d?sslmode=verify-ca"), Err(ConnectError::IssuerOnly)));
        assert!(matches!(config("postgres://u@h/d?sslmode=nonsense"), Err(ConnectError::Url(_))));
    }
}
