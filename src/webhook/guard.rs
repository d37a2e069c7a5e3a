//! Which addresses a callback may go to. The address that is checked is the address that is connected to.

use crate::config;
use ipnet::IpNet;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// A name must be resolved within this time.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a callback may not go somewhere.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// The URL is of no use for a callback.
    #[error("must be a URL with `http://` or `https://` and a host")]
    NoWebUrl,
    /// The address is one of `callbacks.deny_networks`.
    #[error("the address {0} is refused by callbacks.deny_networks")]
    Denied(IpAddr),
    /// The address is not global.
    #[error("the address {0} is not global, and callbacks.public_only is set")]
    NotGlobal(IpAddr),
}

/// `callbacks.deny_networks` and `callbacks.public_only`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Guard {
    deny: Arc<[IpNet]>,
    public_only: bool,
}

impl Guard {
    /// As configured.
    pub fn of(config: &config::Callbacks) -> Self {
        Self::new(config.deny_networks.clone(), config.public_only)
    }

    /// Refuses the networks, and all that is not global if `public_only`.
    pub fn new(deny: impl Into<Arc<[IpNet]>>, public_only: bool) -> Self {
        Self { deny: deny.into(), public_only }
    }

    /// Checks an address, whatever way it is written in.
    pub fn check(&self, ip: IpAddr) -> Result<(), Refused> {
        let inner = embedded_v4(ip).map(IpAddr::V4);
        if self.deny.iter().any(|net| net.contains(&ip) || inner.is_some_and(|v4| net.contains(&v4))) {
            return Err(Refused::Denied(ip));
        }
        if self.public_only && !is_global(ip) {
            return Err(Refused::NotGlobal(ip));
        }
        Ok(())
    }

    /// Checks a URL whose host is an address: the resolver is never asked for those. Names pass, they are checked when resolved.
    pub fn check_url(&self, url: &Url) -> Result<(), Refused> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Refused::NoWebUrl);
        }
        // The parser has brought every spelling of an address (0x7f.1, 2130706433, 127.1, ...) into the usual one.
        let host = url.host_str().ok_or(Refused::NoWebUrl)?;
        match host.trim_start_matches('[').trim_end_matches(']').parse() {
            Ok(ip) => self.check(ip),
            Err(_) => Ok(()),
        }
    }
}

/// The IPv4 address that an IPv6 address leads to: mapped, compatible, NAT64 and 6to4.
fn embedded_v4(ip: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(v6) = ip else { return None };
    let tail = |high: u16, low: u16| Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match v6.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, a, b] | [0x64, 0xff9b, 0, 0, 0, 0, a, b] | [0x2002, a, b, ..] => tail(a, b),
        _ => None,
    }
}

/// Whether an address is reachable from the whole Internet, by IANA's registries of special addresses.
fn is_global(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => is_global_v4(v4),
        IpAddr::V6(v6) => match (v6.segments(), v6.to_ipv4_mapped()) {
            (_, Some(v4)) => is_global_v4(v4),
            // NAT64: refusing it whole would stop every callback on a network that has IPv6 only.
            ([0x64, 0xff9b, 0, 0, 0, 0, ..], _) => embedded_v4(ip).is_some_and(is_global_v4),
            _ => is_global_v6(v6),
        },
    }
}

fn is_global_v4(v4: Ipv4Addr) -> bool {
    !matches!(
        v4.octets(),
        // This network, private, loopback; multicast, reserved and broadcast.
        [0 | 10 | 127 | 224.., ..]
            // Private; shared by carriers; link-local; benchmarks.
            | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] | [169, 254, ..] | [198, 18..=19, ..]
            // Protocol assignments; 6to4 relays; documentation.
            | [192, 0, 0 | 2, _] | [192, 88, 99, _] | [198, 51, 100, _] | [203, 0, 113, _]
    )
}

fn is_global_v6(v6: Ipv6Addr) -> bool {
    match v6.segments() {
        // The global holes of 2001::/23, the protocol assignments.
        [0x2001, 1, 0, 0, 0, 0, 0, 1 | 2] | [0x2001, 3 | 0x20..=0x3f, ..] | [0x2001, 4, 0x112, ..] => true,
        // Those, and documentation; the discard prefix; documentation again.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x100, 0, 0, 0, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // Loopback, IPv4-compatible, local NAT64; 6to4; segment routing; private; link-local, site-local, multicast.
        [first, ..] => !matches!(first, 0..=0xff | 0x2002 | 0x5f00 | 0xfc00..=0xfdff | 0xfe80..),
    }
}

/// How names become addresses; replaced in tests.
type Lookup = dyn Fn(String) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>> + Send + Sync;

/// The resolver of the client: what it returns is what the connection is made to, so a name that changes its mind changes nothing.
#[derive(Clone)]
pub struct GuardedResolver {
    guard: Guard,
    lookup: Arc<Lookup>,
}

impl fmt::Debug for GuardedResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedResolver").field("guard", &self.guard).finish_non_exhaustive()
    }
}

impl GuardedResolver {
    /// Resolves as the system does: `/etc/hosts`, the container's DNS and so on.
    pub fn of_the_system(guard: Guard) -> Self {
        Self::new(guard, |name| async move { Ok(tokio::net::lookup_host((name, 0)).await?.collect()) })
    }

    pub(super) fn new<F>(guard: Guard, lookup: impl Fn(String) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static,
    {
        Self { guard, lookup: Arc::new(move |name| Box::pin(lookup(name))) }
    }
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.guard.clone();
        let found = (self.lookup)(name.as_str().to_owned());
        Box::pin(async move {
            let found = tokio::time::timeout(LOOKUP_TIMEOUT, found).await.map_err(io::Error::from)??;
            let mut refused = None;
            let admitted: Vec<SocketAddr> = found
                .into_iter()
                .filter(|addr| guard.check(addr.ip()).map_err(|why| refused = Some(why)).is_ok())
                .collect();
            match refused {
                Some(why) if admitted.is_empty() => Err(why.into()),
                _ => Ok(Box::new(admitted.into_iter()) as Addrs),
            }
        })
    }
}

#[cfg(test)]
mod tests;
