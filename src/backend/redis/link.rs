//! How Redis is reached: one server, the master that Sentinels name, or a Cluster.

use super::SLOW;
use super::lua::{LISTENERS, SLISTENERS};
use crate::config::{self, RedisMode};
use futures_util::future::try_join_all;
use redis::aio::MultiplexedConnection;
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo, SingleNodeRoutingInfo};
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClient, SentinelNodeConnectionInfo, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, FromRedisValue, IntoConnectionInfo,
    ProtocolVersion, PushInfo, RedisError, RedisResult, ServerErrorKind, TlsMode, ToRedisArgs, Value,
};
use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::time::Duration;
use tokio::time::{sleep, timeout};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Sentinels and a Cluster's seeds are asked one after the other.
const REACH_TIMEOUT: Duration = Duration::from_secs(5);
/// Commands that wait to be written; more wait for room.
const COMMANDS_BUFFERED: usize = 1_024;
/// A command that a Cluster's node refused, as its slot is elsewhere or on its way, is tried so often in all.
const CLUSTER_TRIES: u32 = 6;
const CLUSTER_PAUSE: Duration = Duration::from_millis(30);

/// What a server's INFO says of whether it has what it had.
const MEMORY: [&str; 3] = ["run_id:", "cmdstat_flushall:", "cmdstat_flushdb:"];

/// Why Redis isn't usable.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// It answers, and isn't what is needed. Another one might stand there soon.
    #[error("{0}")]
    Unfit(String),
    /// It answers, and never will be what is needed.
    #[error("{0}")]
    Unusable(String),
    #[error("Redis did not answer in time")]
    Slow,
}

/// Where Redis is, and how to talk to it.
pub(super) struct Server {
    place: Place,
    tcp: TcpSettings,
}

enum Place {
    Standalone(ConnectionInfo),
    Sentinel { sentinels: Vec<ConnectionInfo>, master: String, node: SentinelNodeConnectionInfo },
    Cluster(Vec<ConnectionInfo>),
}

/// The connection for commands, cheap to clone. It is never used for waiting, so a slow answer is a failed one.
#[derive(Clone)]
pub(super) enum Link {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// A connection for commands, and from where a subscription is to be sought.
pub(super) struct Reached {
    pub link: Link,
    near: Vec<ConnectionInfo>,
}

impl Server {
    pub fn new(config: &config::Redis) -> Result<Self, LinkError> {
        let unusable = |why: &str| LinkError::Unusable(why.to_owned());
        let url = config.url.as_ref().ok_or_else(|| unusable("`redis.url` isn't set"))?;
        let tcp = TcpSettings::default().set_nodelay(true);
        let given = url.expose().into_connection_info()?;
        let settings = given.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let given = given.set_tcp_settings(tcp.clone()).set_redis_settings(settings.clone());
        let more = config.nodes.iter().map(|node| host_and_port(node));
        let more: Vec<_> = more.collect::<Option<_>>().ok_or_else(|| unusable("`redis.nodes` has no port"))?;
        let place = match config.mode {
            RedisMode::Standalone => Place::Standalone(given),
            RedisMode::Sentinel => {
                let (host, port, is_tls) = parts_of(given.addr())?;
                let sentinels = [(host, port)].into_iter().chain(more);
                let sentinels = sentinels.map(|(host, port)| {
                    Ok(address(host, port, is_tls).into_connection_info()?.set_tcp_settings(tcp.clone()))
                });
                let node = SentinelNodeConnectionInfo::default()
                    .set_redis_connection_info(settings)
                    .set_tcp_settings(tcp.clone());
                Place::Sentinel {
                    sentinels: sentinels.collect::<RedisResult<_>>()?,
                    master: config.sentinel_master.clone().unwrap_or_default(),
                    node: if is_tls { node.set_tls_mode(TlsMode::Secure) } else { node },
                }
            }
            RedisMode::Cluster => {
                if settings.db() != 0 {
                    return Err(unusable("a Redis Cluster has the database 0 only"));
                }
                let others = more.into_iter().map(|(host, port)| at(&given, host, port));
                let others = others.collect::<Result<Vec<_>, _>>()?;
                Place::Cluster([given].into_iter().chain(others).collect())
            }
        };
        Ok(Self { place, tcp })
    }

    pub fn is_cluster(&self) -> bool {
        matches!(self.place, Place::Cluster(_))
    }

    /// Connects for commands, to a server that is fit for them.
    pub async fn reach(&self) -> Result<Reached, LinkError> {
        in_time(REACH_TIMEOUT, async {
            match &self.place {
                Place::Standalone(server) => single(server.clone()).await,
                Place::Sentinel { sentinels, master, node } => {
                    let (sentinels, node) = (sentinels.clone(), Some(node.clone()));
                    let mut sentinel = SentinelClient::build(sentinels, master, node, SentinelServerType::Master)?;
                    single(sentinel.async_get_client().await?.get_connection_info().clone()).await
                }
                Place::Cluster(seeds) => {
                    let link = Link::Cluster(self.cluster(seeds)?.get_async_connection().await?);
                    Ok(Reached { link, near: seeds.clone() })
                }
            }
        })
        .await
    }

    /// What failed is tried again here and not by the driver: it would do so too after an answer was lost, and an offer that was
    /// published is not to be published again.
    fn cluster(&self, seeds: &[ConnectionInfo]) -> RedisResult<ClusterClient> {
        ClusterClientBuilder::new(seeds.to_vec())
            .retries(0)
            .tcp_settings(self.tcp.clone())
            .connection_timeout(CONNECT_TIMEOUT)
            .response_timeout(SLOW)
            .build()
    }

    /// A connection that listens on the channel at a master, which is the one that owns the channel's slot. Redis has confirmed it.
    pub async fn subscribe(
        &self,
        reached: &Reached,
        channel: &str,
        push: impl Fn(PushInfo) -> Result<(), ()> + Clone + Send + Sync + 'static,
    ) -> Result<MultiplexedConnection, LinkError> {
        let mut last = LinkError::Slow;
        for server in &reached.near {
            let mut server = server.clone();
            let verb = if self.is_cluster() { "SSUBSCRIBE" } else { "SUBSCRIBE" };
            // The first one asked says which one it is.
            for _ in 0..2 {
                match in_time(REACH_TIMEOUT, subscribe_at(&server, verb, channel, push.clone())).await {
                    Ok(subscription) => return Ok(subscription),
                    Err(LinkError::Redis(error)) if let Some(owner) = moved_to(&server, &error) => server = owner,
                    Err(error) => {
                        last = error;
                        break;
                    }
                }
            }
        }
        Err(last)
    }
}

async fn single(server: ConnectionInfo) -> Result<Reached, LinkError> {
    let mut connection = connect(&server, AsyncConnectionConfig::new()).await?;
    check(&mut connection, false).await?;
    Ok(Reached { link: Link::Single(connection), near: vec![server] })
}

async fn subscribe_at(
    server: &ConnectionInfo,
    verb: &str,
    channel: &str,
    push: impl Fn(PushInfo) -> Result<(), ()> + Send + Sync + 'static,
) -> Result<MultiplexedConnection, LinkError> {
    let mut connection = connect(server, AsyncConnectionConfig::new().set_push_sender(push)).await?;
    // An older one doesn't know SSUBSCRIBE, so this comes first.
    let is_replica = check(&mut connection, verb == "SSUBSCRIBE").await;
    if let Err(error @ LinkError::Unusable(_)) = is_replica {
        return Err(error);
    }
    redis::cmd(verb).arg(channel).query_async::<()>(&mut connection).await?;
    is_replica?;
    Ok(connection)
}

async fn connect(server: &ConnectionInfo, config: AsyncConnectionConfig) -> RedisResult<MultiplexedConnection> {
    let config = config
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(SLOW))
        .set_pipeline_buffer_size(COMMANDS_BUFFERED);
    Client::open(server.clone())?.get_multiplexed_async_connection_with_config(&config).await
}

/// Whether the server is what is needed: recent enough, of the right mode, and a master.
pub(super) async fn check(connection: &mut MultiplexedConnection, in_cluster: bool) -> Result<(), LinkError> {
    let hello: HashMap<String, Value> = redis::cmd("HELLO").arg(3).query_async(connection).await?;
    let word = |name: &str| match hello.get(name) {
        Some(Value::BulkString(text)) => String::from_utf8_lossy(text).into_owned(),
        Some(Value::SimpleString(text)) => text.clone(),
        _ => String::new(),
    };
    let (version, mode, role) = (word("version"), word("mode"), word("role"));
    let needed = if in_cluster { (7, 0) } else { (6, 2) };
    if version_of(&version).is_none_or(|found| found < needed) {
        let (major, minor) = needed;
        let kind = if in_cluster { "a Cluster" } else { "a server" };
        return Err(LinkError::Unusable(format!(
            "Redis {version} is too old: {kind} must be {major}.{minor} or later"
        )));
    }
    if in_cluster != (mode == "cluster") {
        return Err(LinkError::Unusable(format!("Redis says that it is `{mode}`: that is not what `redis.mode` says")));
    }
    if role != "master" {
        return Err(LinkError::Unfit(format!("Redis says that it is a {role}, not a master")));
    }
    Ok(())
}

fn version_of(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

pub(super) async fn in_time<T>(
    time: Duration,
    work: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    timeout(time, work).await.unwrap_or(Err(LinkError::Slow))
}

/// `[::1]:6379` as `::1` and 6379.
fn host_and_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    Some((host.trim_start_matches('[').trim_end_matches(']').to_owned(), port.parse().ok()?))
}

fn parts_of(address: &ConnectionAddr) -> Result<(String, u16, bool), LinkError> {
    if let ConnectionAddr::Tcp(host, port) = address {
        Ok((host.clone(), *port, false))
    } else if let ConnectionAddr::TcpTls { host, port, .. } = address {
        Ok((host.clone(), *port, true))
    } else {
        Err(LinkError::Unusable("`redis.url` must name a host".to_owned()))
    }
}

fn address(host: String, port: u16, is_tls: bool) -> ConnectionAddr {
    if is_tls {
        ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
    } else {
        ConnectionAddr::Tcp(host, port)
    }
}

/// The same credentials and TLS at another address.
fn at(server: &ConnectionInfo, host: String, port: u16) -> Result<ConnectionInfo, LinkError> {
    let (.., is_tls) = parts_of(server.addr())?;
    Ok(server.clone().set_addr(address(host, port, is_tls)))
}

fn moved_to(asked: &ConnectionInfo, error: &RedisError) -> Option<ConnectionInfo> {
    let (owner, _) = error.redirect_node()?;
    let (host, port) = host_and_port(owner)?;
    // A node that doesn't know its own address leaves it out.
    let host = if host.is_empty() { parts_of(asked.addr()).ok()?.0 } else { host };
    at(asked, host, port).ok()
}

impl Link {
    /// Runs a command. After a failure it may have been run, unless [`was_not_run`] says otherwise.
    pub async fn run<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        match self {
            Self::Single(connection) => command.query_async(&mut connection.clone()).await,
            Self::Cluster(connection) => in_cluster(connection.clone(), command).await,
        }
    }
}

impl Link {
    /// What these hashes hold, in one round trip.
    pub async fn hashes(&self, keys: &[String]) -> RedisResult<Vec<HashMap<String, String>>> {
        self.all(keys.iter().map(|key| redis::cmd("HGETALL").arg(key).clone()).collect()).await
    }

    /// Which of these are members of these sets, in one round trip.
    pub async fn members<T: ToRedisArgs>(&self, sets: &[(String, Vec<T>)]) -> RedisResult<Vec<Vec<bool>>> {
        self.all(sets.iter().map(|(set, wanted)| redis::cmd("SMISMEMBER").arg(set).arg(wanted).clone()).collect()).await
    }

    /// Commands that only read, in one round trip.
    async fn all<T: FromRedisValue>(&self, commands: Vec<Cmd>) -> RedisResult<Vec<T>> {
        match self {
            // An empty pipeline is an error.
            Self::Single(_) if commands.is_empty() => Ok(vec![]),
            Self::Single(connection) => {
                let mut pipeline = redis::pipe();
                for command in commands {
                    pipeline.add_command(command);
                }
                pipeline.query_async(&mut connection.clone()).await
            }
            Self::Cluster(_) => try_join_all(commands.iter().map(|command| self.run(command))).await,
        }
    }

    /// Which processes are the masters of a Cluster, and how often they were emptied. If that has changed, something may have been forgotten, or
    /// all. Where there is one server only, its connection and the lease tell.
    pub async fn masters(&self) -> RedisResult<BTreeSet<String>> {
        let Self::Cluster(_) = self else { return Ok(BTreeSet::new()) };
        let tells = |line: &&str| MEMORY.iter().any(|name| line.starts_with(name));
        let infos = self.info(&["server", "commandstats"]).await?;
        Ok(infos.values().map(|info| info.lines().filter(tells).collect::<Vec<_>>().join("\n")).collect())
    }

    /// What each master says of itself, by its address; where there is one server only, that is empty. Before 7.0 Redis takes one section only.
    pub async fn info(&self, sections: &[&str]) -> RedisResult<HashMap<String, String>> {
        let command = redis::cmd("INFO").arg(sections).clone();
        match self {
            Self::Single(_) => Ok(HashMap::from([(String::new(), self.run(&command).await?)])),
            Self::Cluster(connection) => {
                let everywhere = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
                value(connection.clone().route_command(command, everywhere).await)
            }
        }
    }

    /// Asks the master at an address of [`Self::info`].
    pub async fn ask<T: FromRedisValue>(&self, address: &str, command: &Cmd) -> RedisResult<T> {
        match (self, host_and_port(address)) {
            (Self::Cluster(connection), Some((host, port))) => {
                let to = RoutingInfo::SingleNode(SingleNodeRoutingInfo::ByAddress { host, port });
                value(connection.clone().route_command(command.clone(), to).await)
            }
            _ => self.run(command).await,
        }
    }

    /// How many are subscribed to the channel, where its master is asked.
    pub async fn listeners(&self, channel: &str) -> RedisResult<u64> {
        let script = if matches!(self, Self::Cluster(_)) { &SLISTENERS } else { &LISTENERS };
        script.on(channel.to_owned()).run(self).await
    }
}

/// Follows the Cluster's redirections. Only what a node refused to run is tried again.
async fn in_cluster<T: FromRedisValue>(mut connection: ClusterConnection, command: &Cmd) -> RedisResult<T> {
    let mut tries = 0;
    let mut result = command.query_async(&mut connection).await;
    loop {
        tries += 1;
        let error = match result {
            Err(error) if tries < CLUSTER_TRIES => error,
            done => return done,
        };
        let owner = error.redirect_node().and_then(|(node, _)| host_and_port(node));
        result = match (error.kind(), owner) {
            (ErrorKind::Server(ServerErrorKind::Moved), Some((host, port))) => {
                let to = RoutingInfo::SingleNode(SingleNodeRoutingInfo::ByAddress { host, port });
                value(connection.route_command(command.clone(), to).await)
            }
            (ErrorKind::Server(ServerErrorKind::Ask), Some((host, port))) => {
                let mut pipeline = redis::pipe();
                pipeline.cmd("ASKING").add_command(command.clone());
                let to = SingleNodeRoutingInfo::ByAddress { host, port };
                let answers = connection.route_pipeline(pipeline, 1, 1, to).await;
                value(answers.map(|answers| answers.into_iter().next().unwrap_or_default()))
            }
            (
                ErrorKind::ClusterConnectionNotFound
                | ErrorKind::Server(
                    ServerErrorKind::ClusterDown
                    | ServerErrorKind::MasterDown
                    | ServerErrorKind::BusyLoading
                    | ServerErrorKind::ReadOnly,
                ),
                _,
            ) => {
                sleep(CLUSTER_PAUSE).await;
                command.query_async(&mut connection).await
            }
            _ => return Err(error),
        };
    }
}

fn value<T: FromRedisValue>(answer: RedisResult<Value>) -> RedisResult<T> {
    Ok(redis::from_redis_value(answer?.extract_error()?)?)
}

/// The server refused to run it, or it never left: not that an answer was lost.
pub(super) fn was_not_run(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::Client | ErrorKind::ClusterConnectionNotFound
    ) || error.is_connection_refusal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_redis_writes_them() {
        assert_eq!(host_and_port("[::1]:7000"), Some(("::1".into(), 7000)));
        assert_eq!(host_and_port("redis-2:6379"), Some(("redis-2".into(), 6379)));
        assert_eq!(host_and_port(":7001"), Some((String::new(), 7001)));
        assert_eq!(host_and_port("redis-2"), None);
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(version_of("7.0.15"), Some((7, 0)));
        assert!(version_of("6.2.14") >= Some((6, 2)) && version_of("6.0.16") < Some((6, 2)));
        assert!(version_of("10.1") > Some((7, 0)));
        assert_eq!(version_of("?"), None);
    }
}
