//! What a key holds: its kind, its bounds, and the field of [`Config`] that it fills.

use super::given::Given;
use super::levels::level_rules;
use super::sections::{Config, LogFormat, OnFailure, RedisMode, Secret};
use crate::domain::seat::NodeId;
use ipnet::IpNet;
use reqwest::Url;
use std::fmt::{Debug, Display};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// Finds a key's field.
pub(super) type Field<T> = fn(&mut Config) -> &mut T;

type Bounds = RangeInclusive<u64>;

/// A rule for each secret of a list. What it says must not hold the secret.
pub(super) type SecretRule = fn(&str) -> Result<(), &'static str>;

/// A key's kind with its bounds and its field.
pub(super) enum Slot {
    Path(Field<PathBuf>),
    PathOrNone(Field<Option<PathBuf>>),
    Paths(Field<Vec<PathBuf>>),
    Address(Field<SocketAddr>),
    AddressOrOff(Field<Option<SocketAddr>>),
    Count(Bounds, Field<usize>),
    Count64(Bounds, Field<u64>),
    Seconds(Bounds, Field<Duration>),
    /// 0 is off.
    SecondsOrOff(Bounds, Field<Option<Duration>>),
    Millis(Bounds, Field<Duration>),
    /// Per second; 0 is off.
    RateOrOff(Field<Option<NonZeroU32>>),
    /// From 0 to 1.
    Ratio(Field<f64>),
    OnFailure(Field<OnFailure>),
    Switch(Field<bool>),
    Node(Field<NodeId>),
    TextOrNone(Field<Option<String>>),
    UrlOrNone(Field<Option<Url>>),
    /// A URL of one of these schemes, which may hold a password.
    AnyUrlOrNone(&'static [&'static str], Field<Option<Secret>>),
    Mode(Field<RedisMode>),
    /// `host:port` each.
    Nodes(Field<Vec<String>>),
    Prefix(Field<String>),
    Origins(Field<Vec<String>>),
    Networks(Field<Vec<IpNet>>),
    Secrets(SecretRule, Field<Vec<Secret>>),
    Level(Field<String>),
    Format(Field<LogFormat>),
}

/// With the field of a slot, whatever its type.
macro_rules! with_field {
    ($slot:expr, $field:ident => $do:expr) => {
        match $slot {
            Self::Path($field) => $do,
            Self::PathOrNone($field) => $do,
            Self::Paths($field) => $do,
            Self::Address($field) => $do,
            Self::AddressOrOff($field) => $do,
            Self::Count(_, $field) => $do,
            Self::Count64(_, $field) => $do,
            Self::Seconds(_, $field) | Self::Millis(_, $field) => $do,
            Self::SecondsOrOff(_, $field) => $do,
            Self::RateOrOff($field) => $do,
            Self::Ratio($field) => $do,
            Self::OnFailure($field) => $do,
            Self::Switch($field) => $do,
            Self::Node($field) => $do,
            Self::TextOrNone($field) => $do,
            Self::UrlOrNone($field) => $do,
            Self::AnyUrlOrNone(_, $field) => $do,
            Self::Mode($field) => $do,
            Self::Nodes($field) | Self::Origins($field) => $do,
            Self::Prefix($field) | Self::Level($field) => $do,
            Self::Networks($field) => $do,
            Self::Secrets(_, $field) => $do,
            Self::Format($field) => $do,
        }
    };
}

impl Slot {
    /// Whether two configurations say the same here. (A field is found in one that may be changed; neither is.)
    #[expect(clippy::float_cmp, reason = "the same text gives the same number")]
    pub(super) fn is_same(&self, a: &mut Config, b: &mut Config) -> bool {
        with_field!(self, field => field(a) == field(b))
    }

    /// Takes this field over from another configuration.
    pub(super) fn copy(&self, from: &mut Config, to: &mut Config) {
        with_field!(self, field => field(to).clone_from(field(from)));
    }

    /// Reads `given` into the field, or says what is wrong with it; then the field stays as it was.
    pub(super) fn fill(&self, config: &mut Config, given: Given<'_>) -> Result<(), String> {
        self.try_fill(config, given).map_err(|why| format!("must be {}, but {why}", self.expected()))
    }

    fn try_fill(&self, config: &mut Config, given: Given<'_>) -> Result<(), String> {
        match self {
            Self::Path(field) => *field(config) = some_text(given)?.into(),
            Self::PathOrNone(field) => *field(config) = unless_empty(given, path)?,
            Self::Paths(field) => *field(config) = each(given, path)?,
            Self::Address(field) => *field(config) = parse(&given.text()?)?,
            Self::AddressOrOff(field) => *field(config) = unless_empty(given, parse)?,
            Self::Count(bounds, field) => *field(config) = to_usize(given.number(bounds)?)?,
            Self::Count64(bounds, field) => *field(config) = given.number(bounds)?,
            Self::Seconds(bounds, field) => *field(config) = Duration::from_secs(given.number(bounds)?),
            Self::SecondsOrOff(bounds, field) => {
                let seconds = given.number(bounds)?;
                *field(config) = (seconds > 0).then_some(Duration::from_secs(seconds));
            }
            Self::Millis(bounds, field) => *field(config) = Duration::from_millis(given.number(bounds)?),
            Self::RateOrOff(field) => {
                *field(config) = u32::try_from(given.number(&RATES)?).ok().and_then(NonZeroU32::new);
            }
            Self::Ratio(field) => *field(config) = given.ratio()?,
            Self::OnFailure(field) => *field(config) = word(&given.text()?, &ON_FAILURE)?,
            Self::Switch(field) => *field(config) = given.switch()?,
            Self::Node(field) => *field(config) = NodeId::parse(&given.text()?).map_err(|e| e.to_string())?,
            Self::TextOrNone(field) => *field(config) = unless_empty(given, |text| Ok(text.to_owned()))?,
            Self::UrlOrNone(field) => *field(config) = unless_empty(given, url)?,
            Self::AnyUrlOrNone(schemes, field) => {
                *field(config) = unless_empty(given, |text| url_of_scheme(text, schemes))?;
            }
            Self::Mode(field) => *field(config) = word(&given.text()?, &MODES)?,
            Self::Nodes(field) => *field(config) = each(given, node_address)?,
            Self::Prefix(field) => *field(config) = prefix(&given.text()?)?,
            Self::Origins(field) => *field(config) = each(given, origin)?,
            Self::Networks(field) => *field(config) = each(given, network)?,
            Self::Secrets(rule, field) => *field(config) = secrets(given, *rule)?,
            Self::Level(field) => *field(config) = level(given.text()?)?,
            Self::Format(field) => *field(config) = word(&given.text()?, &FORMATS)?,
        }
        Ok(())
    }

    /// What may be given, in words that follow "must be".
    pub(super) fn expected(&self) -> String {
        let number = |bounds: &Bounds| format!("a whole number from {} to {}", bounds.start(), bounds.end());
        match self {
            Self::Path(_) => "a path".into(),
            Self::PathOrNone(_) => "a path, or empty (none)".into(),
            Self::Paths(_) => "a list of paths".into(),
            Self::Address(_) => "an IP address with a port, such as `127.0.0.1:8080`".into(),
            Self::AddressOrOff(_) => "an IP address with a port, or empty (off)".into(),
            Self::Count(bounds, _) | Self::Count64(bounds, _) | Self::Seconds(bounds, _) | Self::Millis(bounds, _) => {
                number(bounds)
            }
            Self::SecondsOrOff(bounds, _) => number(bounds) + " (0: off)",
            Self::RateOrOff(_) => number(&RATES) + " (0: no limit)",
            Self::Ratio(_) => "a number from 0 to 1".into(),
            Self::OnFailure(_) => "`allow` or `reject`".into(),
            Self::Switch(_) => "`true` or `false`".into(),
            Self::Node(_) => "a name of 1 to 128 characters".into(),
            Self::TextOrNone(_) => "a text, or empty (none)".into(),
            Self::UrlOrNone(_) => "an `http://` or `https://` URL, or empty (none)".into(),
            Self::AnyUrlOrNone(schemes, _) => format!("a `{}://` URL, or empty (none)", schemes.join("://` or `")),
            Self::Mode(_) => "`standalone`, `cluster` or `sentinel`".into(),
            Self::Nodes(_) => "a list of addresses, such as `redis-2:6379`".into(),
            Self::Prefix(_) => "1 to 64 letters, digits, `-`, `_`, `.` or `:`".into(),
            Self::Origins(_) => "a list of origins, such as `https://app.example.com`".into(),
            Self::Networks(_) => "a list of networks, such as `10.0.0.0/8`".into(),
            Self::Secrets(..) => "a list of texts".into(),
            Self::Level(_) => "`off`, `error`, `warn`, `info`, `debug` or `trace`, with parts such as `herenow::relay=debug` after a comma".into(),
            Self::Format(_) => "`text` or `json`".into(),
        }
    }

    /// The value in force, as TOML; secrets masked.
    pub(super) fn shown(&self, config: &mut Config) -> String {
        match self {
            Self::Path(field) => quoted(field(config).display()),
            Self::PathOrNone(field) => field(config).as_ref().map_or_else(nothing, |path| quoted(path.display())),
            Self::Paths(field) => list(field(config).iter().map(|path| path.display().to_string())),
            Self::Address(field) => quoted(*field(config)),
            Self::AddressOrOff(field) => field(config).map_or_else(nothing, quoted),
            Self::Count(_, field) => field(config).to_string(),
            Self::Count64(_, field) => field(config).to_string(),
            Self::Seconds(_, field) => field(config).as_secs().to_string(),
            Self::SecondsOrOff(_, field) => field(config).map_or(0, |d| d.as_secs()).to_string(),
            Self::Millis(_, field) => field(config).as_millis().to_string(),
            Self::RateOrOff(field) => field(config).map_or(0, NonZeroU32::get).to_string(),
            Self::Ratio(field) => field(config).to_string(),
            Self::OnFailure(field) => quoted(name_of(*field(config), &ON_FAILURE)),
            Self::Switch(field) => field(config).to_string(),
            Self::Node(field) => quoted(field(config)),
            Self::TextOrNone(field) => field(config).as_ref().map_or_else(nothing, quoted),
            Self::UrlOrNone(field) => field(config).as_ref().map_or_else(nothing, |url| quoted(masked(url))),
            Self::AnyUrlOrNone(_, field) => {
                field(config).as_ref().map_or_else(nothing, |url| quoted(masked_text(url.expose())))
            }
            Self::Mode(field) => quoted(name_of(*field(config), &MODES)),
            Self::Origins(field) | Self::Nodes(field) => list(field(config)),
            Self::Networks(field) => list(field(config).iter().map(ToString::to_string)),
            Self::Secrets(_, field) => list(field(config).iter().map(|_| MASK)),
            Self::Level(field) | Self::Prefix(field) => quoted(field(config)),
            Self::Format(field) => quoted(name_of(*field(config), &FORMATS)),
        }
    }
}

const MASK: &str = "***";

fn quoted(value: impl Display) -> String {
    format!("{:?}", value.to_string())
}

fn nothing() -> String {
    quoted("")
}

fn list(entries: impl IntoIterator<Item: Debug>) -> String {
    format!("{:?}", entries.into_iter().collect::<Vec<_>>())
}

/// A URL may hold a password, or a token in its query.
fn masked(url: &Url) -> Url {
    let mut url = url.clone();
    if url.password().is_some() || !url.username().is_empty() {
        // Both can only fail on a URL without a host, and such a one was refused.
        let _ = url.set_username(MASK);
        let _ = url.set_password(None);
    }
    if url.query().is_some() {
        url.set_query(Some(MASK));
    }
    url
}

fn some_text(given: Given<'_>) -> Result<String, String> {
    let text = given.text()?;
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text) }
}

fn unless_empty<T>(given: Given<'_>, read: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, String> {
    let text = given.text()?;
    if text.is_empty() { Ok(None) } else { read(&text).map(Some) }
}

fn parse<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("is {text:?}"))
}

fn to_usize(number: u64) -> Result<usize, String> {
    usize::try_from(number).map_err(|_| format!("is {number}, too large for this machine"))
}

fn each<T>(given: Given<'_>, read: fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    given.list()?.iter().map(|entry| read(entry).map_err(|why| format!("its entry {entry:?} {why}"))).collect()
}

fn path(text: &str) -> Result<PathBuf, String> {
    match text {
        "" => Err("is empty".to_owned()),
        text if text.contains('\0') => Err("has a zero byte".to_owned()),
        text => Ok(text.into()),
    }
}

/// Names an entry by its number alone.
fn secrets(given: Given<'_>, rule: SecretRule) -> Result<Vec<Secret>, String> {
    let read = |(i, entry): (usize, String)| match rule(&entry) {
        Ok(()) => Ok(Secret::new(entry)),
        Err(why) => Err(format!("its entry {} {why}", i + 1)),
    };
    given.list()?.into_iter().enumerate().map(read).collect()
}

/// What is wrong is said without the URL: it may hold a password.
fn url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|e| format!("is none ({e})"))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        other => Err(format!("is a `{other}:` one")),
    }
}

/// Such a URL may name several hosts, which the usual parser of URLs doesn't know; whoever connects reads the rest of it.
fn url_of_scheme(text: &str, schemes: &[&str]) -> Result<Secret, String> {
    let (scheme, rest) = text.split_once("://").ok_or("is none")?;
    if !schemes.contains(&scheme) {
        return Err(format!("is a `{scheme}:` one"));
    }
    if rest.is_empty() { Err("names no host".to_owned()) } else { Ok(Secret::new(text)) }
}

/// What stands before the host and after the path may be secret.
fn masked_text(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (rest, query) = rest.split_once('?').map_or((rest, ""), |(rest, _)| (rest, "?***"));
    match rest.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://{MASK}@{host}{query}"),
        None => format!("{scheme}://{rest}{query}"),
    }
}

fn node_address(text: &str) -> Result<String, String> {
    let (host, port) = text.rsplit_once(':').ok_or("has no port")?;
    if host.is_empty() || port.parse::<u16>().is_err() { Err("is none".to_owned()) } else { Ok(text.to_owned()) }
}

/// Braces would be a Cluster's hash tag, and spaces would be hard to type.
fn prefix(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    if (1..=64).contains(&text.len()) && text.chars().all(is_plain) {
        Ok(text.to_owned())
    } else {
        Err(format!("is {text:?}"))
    }
}

const MODES: [(&str, RedisMode); 3] =
    [("standalone", RedisMode::Standalone), ("cluster", RedisMode::Cluster), ("sentinel", RedisMode::Sentinel)];
const FORMATS: [(&str, LogFormat); 2] = [("text", LogFormat::Text), ("json", LogFormat::Json)];
const ON_FAILURE: [(&str, OnFailure); 2] = [("allow", OnFailure::Allow), ("reject", OnFailure::Reject)];
const RATES: Bounds = 0..=1_000_000_000;

/// The value that a word stands for.
fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| format!("is {text:?}"))
}

fn name_of<T: PartialEq + Copy>(value: T, words: &[(&'static str, T)]) -> &'static str {
    words.iter().find(|(_, other)| *other == value).map_or("", |(word, _)| word)
}

fn network(text: &str) -> Result<IpNet, String> {
    let single = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse().or_else(|_| single()).map_err(|_| "is none".to_owned())
}

/// Browsers compare origins byte by byte, so only the one right spelling is of use.
fn origin(text: &str) -> Result<String, String> {
    let url = Url::parse(text).map_err(|_| "is none".to_owned())?;
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or("is none")?;
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let right = format!("{}://{host}{port}", url.scheme());
    if text == right { Ok(right) } else { Err(format!("must be written {right:?}")) }
}

fn level(text: String) -> Result<String, String> {
    if level_rules(&text).is_some() { Ok(text) } else { Err(format!("is {text:?}")) }
}
