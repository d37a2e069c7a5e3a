//! Whether an endpoint can be reached: its name, its address, a connection, TLS. Nothing is sent over it.

use super::guard::{Guard, GuardedResolver, Refused};
use reqwest::Url;
use reqwest::dns::Resolve;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use rustls_platform_verifier::BuilderVerifierExt;
use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A connection, or a step of the TLS handshake, may take this long.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why it can't. None of them tells the URL, which may bear credentials.
#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    /// It may not be connected to.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Its name leads nowhere, or to what is refused.
    #[error("its name could not be resolved: {0}")]
    Name(Box<dyn Error + Send + Sync>),
    /// Nobody takes the connection.
    #[error("no connection to {0}: {1}")]
    Connect(SocketAddr, io::Error),
    /// Somebody does, but is not trusted.
    #[error("TLS with {0} failed: {1}")]
    Tls(SocketAddr, Box<dyn Error + Send + Sync>),
}

impl Unreachable {
    /// What the operator can do.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Refused(_) => "change the URL, `callbacks.deny_networks` or `callbacks.public_only`",
            Self::Name(_) => "is the host in the URL right, and its name known to the resolver of this machine?",
            Self::Connect(..) => "does the receiver run, and does a firewall stand between?",
            Self::Tls(..) => "the receiver needs a certificate for its name that this machine's roots vouch for",
        }
    }
}

/// Connects as a callback would, and hangs up. The address that answered.
pub async fn probe(url: &Url, guard: &Guard) -> Result<SocketAddr, Unreachable> {
    guard.check_url(url)?;
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return Err(Refused::NoWebUrl.into());
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let addresses = match bare.parse::<IpAddr>() {
        Ok(ip) => vec![SocketAddr::new(ip, port)],
        Err(_) => resolve(bare, port, guard).await.map_err(Unreachable::Name)?,
    };
    let (address, stream) = connect(&addresses).await?;
    if url.scheme() == "https" {
        let name = bare.to_owned();
        tokio::task::spawn_blocking(move || shake_hands(name, stream))
            .await
            .unwrap_or_else(|lost| Err(lost.into()))
            .map_err(|error| Unreachable::Tls(address, error))?;
    }
    Ok(address)
}

async fn resolve(name: &str, port: u16, guard: &Guard) -> Result<Vec<SocketAddr>, Box<dyn Error + Send + Sync>> {
    let found = GuardedResolver::of_the_system(guard.clone()).resolve(name.parse()?).await?;
    let addresses: Vec<_> = found.map(|found| SocketAddr::new(found.ip(), port)).collect();
    if addresses.is_empty() { Err("no address".into()) } else { Ok(addresses) }
}

/// To the first that takes it; there is at least one.
async fn connect(addresses: &[SocketAddr]) -> Result<(SocketAddr, TcpStream), Unreachable> {
    let mut last = Unreachable::Name("no address".into());
    for &address in addresses {
        match timeout(PATIENCE, TcpStream::connect(address)).await.unwrap_or_else(|elapsed| Err(elapsed.into())) {
            Ok(stream) => return Ok((address, stream)),
            Err(error) => last = Unreachable::Connect(address, error),
        }
    }
    Err(last)
}

/// With the roots that callbacks are checked by: those of this machine.
fn shake_hands(name: String, stream: TcpStream) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_platform_verifier()?
        .with_no_client_auth();
    let mut tls = ClientConnection::new(Arc::new(config), ServerName::try_from(name)?)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut stream)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn open() -> Guard {
        Guard::new([], false)
    }

    async fn probed(url: &str, guard: &Guard) -> Result<SocketAddr, Unreachable> {
        probe(&Url::parse(url).unwrap(), guard).await
    }

    #[tokio::test]
    async fn who_takes_connections_is_reached_and_sent_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        assert_eq!(probed(&format!("http://{at}/hook"), &open()).await.unwrap(), at);
        let (mut taken, _) = listener.accept().unwrap();
        assert_eq!(io::Read::read(&mut taken, &mut [0; 9]).unwrap(), 0);
        assert_eq!(probed(&format!("http://localhost:{}/", at.port()), &open()).await.unwrap(), at);
    }

    #[tokio::test]
    async fn each_reason_is_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let deny = Guard::new(["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()], false);
        assert!(matches!(probed(&format!("http://{at}"), &deny).await, Err(Unreachable::Refused(_))));
        let told = probed(&format!("http://localhost:{}", at.port()), &deny).await.unwrap_err();
        assert!(matches!(told, Unreachable::Name(_)) && told.to_string().contains("deny_networks"), "{told}");
        assert!(matches!(probed("http://herenow.invalid", &open()).await, Err(Unreachable::Name(_))));
        let hang_up = std::thread::spawn(move || drop(listener.accept().unwrap()));
        assert!(matches!(probed(&format!("https://{at}"), &open()).await, Err(Unreachable::Tls(..))));
        hang_up.join().unwrap();
        assert!(matches!(probed(&format!("http://{at}"), &open()).await, Err(Unreachable::Connect(..))));
    }
}
