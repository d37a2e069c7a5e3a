//! The certificate and the key of `server.tls.*`: what would keep herenow from starting, and what would keep clients away.

use super::named;
use crate::config::Tls;
use crate::domain::finding::Finding;
use crate::domain::time::Timestamp;
use crate::http::Certificate;
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::time::Time;

const ABOUT: &str = "server.tls";
const DAY: Duration = Duration::from_hours(24);
/// With less than this left, who renews it should know.
const RENEW_WITHIN: Duration = DAY.saturating_mul(30);
/// With less than this left, nobody seems to renew it.
const URGENT_WITHIN: Duration = DAY.saturating_mul(7);

pub(super) fn examine(tls: &Tls, now: Timestamp) -> Vec<Finding> {
    let certificate = match Certificate::load(tls) {
        Ok(None) => return vec![],
        Ok(Some(certificate)) => certificate,
        Err(error) => {
            return vec![Finding::error(ABOUT, error.to_string(), "herenow does not start before this is mended")];
        }
    };
    let ders = certificate.chain();
    let chain: Result<Vec<_>, _> = ders.iter().map(|der| x509_cert::Certificate::from_der(der)).collect();
    let mut findings = match chain {
        Ok(chain) => of_chain(&chain, &ders, now),
        Err(error) => {
            let found = format!("a certificate of the chain can't be read: {error}");
            vec![Finding::error(ABOUT, found, "have it issued anew: clients would not take it")]
        }
    };
    findings.extend(tls.key.as_deref().and_then(permissions));
    findings
}

fn of_chain(chain: &[x509_cert::Certificate], ders: &[CertificateDer<'_>], now: Timestamp) -> Vec<Finding> {
    let Some(own) = chain.first() else { return vec![] };
    let mut findings = vec![];
    let names = names(own);
    if names.is_empty() {
        let advice = "have it issued with the names that clients connect to: the common name alone counts for nothing";
        findings.push(Finding::error(ABOUT, "the certificate is for no name (subjectAltName)", advice));
    }
    // The chain is good for as long as each part of it is.
    let begins = chain.iter().map(|one| time(one.tbs_certificate.validity.not_before)).max().unwrap_or(now);
    let ends = chain.iter().map(|one| time(one.tbs_certificate.validity.not_after)).min().unwrap_or(now);
    let is_broken = |pair: &[x509_cert::Certificate]| pair[0].tbs_certificate.issuer != pair[1].tbs_certificate.subject;
    if let Some(i) = chain.windows(2).position(is_broken) {
        let found = format!("certificate {} of the chain was not issued by the one that follows it", i + 1);
        let advice = "put the server's own first, then each one's issuer, in this order";
        findings.push(Finding::warning(ABOUT, found, advice));
    } else if let Err(error) = signed(ders, begins) {
        let found = format!("the certificates of the chain have the right names, but don't hold together: {error}");
        let advice = "put in the very certificates that came with the server's own: another of the same name may have another key";
        findings.push(Finding::error(ABOUT, found, advice));
    }
    let renew = "renew it: new files are taken up within a second, without a restart";
    let told = |when: &str| format!("the certificate {when}");
    findings.push(if now < begins {
        Finding::error(ABOUT, told(&format!("is good only from {begins} on")), "is this machine's clock right?")
    } else if ends <= now {
        Finding::error(ABOUT, told(&format!("has expired on {ends}")), renew)
    } else if ends.since(now) < URGENT_WITHIN {
        Finding::error(ABOUT, told(&format!("expires within 7 days, on {ends}")), renew)
    } else if ends.since(now) < RENEW_WITHIN {
        Finding::warning(ABOUT, told(&format!("expires within 30 days, on {ends}")), renew)
    } else {
        let found = format!("a chain of {}, good until {ends}, for {}", chain.len(), names.join(", "));
        Finding::well(ABOUT, found)
    });
    findings
}

/// Whether each is signed by the one that follows it and may be, for a server, if the last is trusted. `at` is a time when all were good:
/// when they are is told apart from this.
fn signed(chain: &[CertificateDer<'_>], at: Timestamp) -> Result<(), rustls::Error> {
    let [own, between @ .., last] = chain else { return Ok(()) };
    let mut trusted = RootCertStore::empty();
    trusted.add(last.clone().into_owned())?;
    let at = UnixTime::since_unix_epoch(Duration::from_secs(at.as_s().unsigned_abs()));
    let known = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&ParsedCertificate::try_from(own)?, &trusted, between, at, known)
}

fn time(time: Time) -> Timestamp {
    Timestamp::from_ms(i64::try_from(time.to_unix_duration().as_millis()).unwrap_or(i64::MAX))
}

/// What clients may know this server by.
fn names(certificate: &x509_cert::Certificate) -> Vec<String> {
    let names = certificate.tbs_certificate.get::<SubjectAltName>().ok().flatten();
    let name = |name: &GeneralName| {
        if let GeneralName::DnsName(name) = name {
            return Some(name.to_string());
        }
        let GeneralName::IpAddress(bytes) = name else { return None };
        address(bytes.as_bytes()).map(|ip| ip.to_string())
    };
    names.iter().flat_map(|(_, names)| &names.0).filter_map(name).collect()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn permissions(key: &Path) -> Option<Finding> {
    let mode = fs::metadata(key).ok()?.permissions().mode();
    let shown = named(key);
    let open =
        || Finding::warning(ABOUT, format!("{shown} can be read by everybody"), format!("run `chmod o= {shown}`"));
    (mode & 0o007 != 0).then(open)
}
