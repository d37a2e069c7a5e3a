//! What Redis is, and what it contains, held against what should be there (`herenow doctor`). It only reads.

use super::lease::Roll;
use super::link::{Link, LinkError, Server};
use super::names::Names;
use super::seats::{Fields, decode, holder};
use super::session::leases;
use crate::config;
use crate::domain::finding::{Finding, Level};
use crate::domain::seat::{DeviceId, NodeId, SeatInfo, UserId};
use redis::RedisResult;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

const ABOUT: &str = "redis";
/// All of it takes no longer than this.
const PATIENCE: Duration = Duration::from_secs(60);
/// Seats come and go, and when a lease is over the nodes put right what a crash has left: what is amiss counts if it still is then.
const SETTLING: Duration = Duration::from_secs(1);
/// A longer lease isn't waited for.
const LONG_LEASE: Duration = Duration::from_secs(20);
/// Redis is asked for so much at a time.
const BITE: usize = 256;
/// So many users are looked at, and so much that is amiss is remembered.
const USERS: usize = 200_000;
const AMISS: usize = 10_000;
/// The default; a node that is busy for a moment has more than less than that waiting for it.
const PUBSUB_BUFFER: u64 = 32 << 20;

/// Looks at the Redis of this configuration, in which nodes have leases of this length.
pub async fn examine(redis: &config::Redis, lease: Duration) -> Vec<Finding> {
    let mut findings = Vec::new();
    match timeout(PATIENCE, look(redis, lease.min(LONG_LEASE) + SETTLING, &mut findings)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            let advice = "without it herenow does not start, and a node that runs refuses online-only messages";
            findings.push(Finding::error(ABOUT, format!("it can't be used: {error}"), advice));
        }
        Err(_) => {
            let found = format!("not all could be looked at within {} s", PATIENCE.as_secs());
            findings.push(Finding::warning(ABOUT, found, "is it slow, or very full?"));
        }
    }
    findings
}

async fn look(redis: &config::Redis, settling: Duration, findings: &mut Vec<Finding>) -> Result<(), LinkError> {
    // It refuses what is too old, of another mode, or no master.
    let link = Server::new(redis)?.reach().await?.link;
    for (address, info) in link.info(&["everything"]).await? {
        findings.extend(server(&address, &info));
        // Hosted ones may not allow the question.
        if let Ok(settings) = link.ask(&address, &setting("client-output-buffer-limit")).await {
            findings.extend(pubsub_buffer(&settings));
        }
    }
    let names = Names::new(&redis.prefix);
    let mut survey = Survey::make(&link, &names).await?;
    if !survey.amiss.is_empty() {
        sleep(settling).await;
        let again = Survey::make(&link, &names).await?;
        survey.amiss = again.amiss.intersection(&survey.amiss).cloned().collect();
    }
    findings.extend(survey.findings());
    Ok(())
}

fn setting(name: &str) -> redis::Cmd {
    let mut command = redis::cmd("CONFIG");
    command.arg("GET").arg(name);
    command
}

fn server(address: &str, info: &str) -> Vec<Finding> {
    let fields: HashMap<_, _> = info.lines().filter_map(|line| line.split_once(':')).collect();
    let field = |name: &str| fields.get(name).copied().unwrap_or_default();
    let number = |name: &str| field(name).parse::<u64>().unwrap_or_default();
    let version = if field("valkey_version").is_empty() { "redis_version" } else { "valkey_version" };
    let at = if address.is_empty() { String::new() } else { format!("{address}: ") };
    let mut findings = vec![Finding::well(ABOUT, format!("{at}version {}, a master", field(version)))];
    let (used, most, policy) = (number("used_memory"), number("maxmemory"), field("maxmemory_policy"));
    if most > 0 && policy != "noeviction" {
        let found = format!("{at}when it is full it forgets what it likes: maxmemory-policy is {policy}");
        findings.push(Finding::error(ABOUT, found, "set `maxmemory-policy noeviction`"));
    }
    if most > 0 && used > most / 10 * 9 {
        let found = format!("{at}{} of {} MiB are used", used >> 20, most >> 20);
        findings.push(Finding::warning(ABOUT, found, "raise `maxmemory`: when it is full no stream can be opened"));
    }
    findings
}

/// `normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60`
fn pubsub_buffer(settings: &HashMap<String, String>) -> Option<Finding> {
    let words: Vec<_> = settings.values().next()?.split(' ').collect();
    let at = words.iter().position(|word| *word == "pubsub")?;
    let hard: u64 = words.get(at + 1)?.parse().ok()?;
    let found = format!("it cuts off a node for which {hard} bytes wait (client-output-buffer-limit pubsub)");
    let advice = "set `client-output-buffer-limit pubsub 32mb 8mb 60`, the default, or more";
    (1..PUBSUB_BUFFER).contains(&hard).then(|| Finding::warning(ABOUT, found, advice))
}

/// In what way something is amiss.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    /// A seat of a node whose lease has run out.
    Lapsed,
    /// A seat of a node that is not known at all.
    Unknown,
    /// A seat that is not on the list of its node, which lives.
    Unlisted,
    /// An entry of a node's list without its seat.
    Surplus,
    /// A seat of a living node, of a user who is not in the set of who is online.
    Unseen,
    /// A user without a seat in the set of who is online.
    Away,
    /// A living node that nobody listens for.
    Deaf,
    /// A living node that several listen for.
    Twice,
}

impl Kind {
    fn finding(self, node: &str, count: usize) -> Finding {
        let (level, found, advice) = match self {
            Self::Lapsed => (
                Level::Warning,
                format!("{count} seats are of node `{node}`, whose lease has run out"),
                "another node withdraws them within seconds; if none runs, the next one that starts",
            ),
            Self::Unknown => (
                Level::Error,
                format!("{count} seats are of node `{node}`, which has no lease: nobody withdraws them"),
                "start a node of that name once (`cluster.node`): it withdraws what an earlier one has left",
            ),
            Self::Unlisted => (
                Level::Error,
                format!("{count} seats of node `{node}` are not on its list: nobody withdraws them if it dies"),
                "restart that node, whose devices are then seated anew",
            ),
            Self::Surplus => (
                Level::Warning,
                format!("{count} entries of the list of node `{node}` lead to no seat"),
                "they do no harm, and go when that node has been away from Redis, or starts",
            ),
            Self::Unseen => (
                Level::Error,
                format!("{count} seats of node `{node}` are of users whom messages to large groups don't find"),
                "restart that node, whose devices are then seated anew",
            ),
            Self::Away => (
                Level::Warning,
                format!("{count} users who are looked for in messages to large groups have no seat"),
                "they do no harm, and each goes when the user has been here",
            ),
            Self::Deaf => (
                Level::Error,
                format!("node `{node}` has a lease, but does not listen on its channel"),
                "look at its log; restart it if that lasts",
            ),
            Self::Twice => (
                Level::Error,
                format!("several processes listen as node `{node}`"),
                "give each its own `cluster.node`, or none, so that each draws one",
            ),
        };
        Finding { level, ..Finding::warning(ABOUT, found, advice) }
    }
}

/// One thing that is amiss.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Amiss {
    kind: Kind,
    /// Empty if it is of none.
    node: String,
    /// Of a seat, its key, device and connection; of a user without one, the key alone.
    seat: Option<(String, String, u64)>,
}

/// What Redis holds at about one time.
struct Survey<'a> {
    link: &'a Link,
    names: &'a Names,
    roll: Roll,
    nodes: usize,
    seats: usize,
    users: usize,
    /// Members of the sets of who is online.
    online: usize,
    amiss: BTreeSet<Amiss>,
}

impl<'a> Survey<'a> {
    async fn make(link: &'a Link, names: &'a Names) -> RedisResult<Self> {
        let (_, now_ms, leases) = leases(link, names, "", 0).await?;
        let nodes: BTreeSet<_> = leases.iter().map(|(run, _)| run.node.to_string()).collect();
        let roll = Roll::new(leases.clone(), now_ms, Instant::now(), 0);
        let mut survey = Self { link, names, roll, nodes: 0, seats: 0, users: 0, online: 0, amiss: BTreeSet::new() };
        for node in nodes.iter().filter_map(|node| NodeId::parse(node).ok()) {
            survey.listen_for(&node).await?;
        }
        for shard in link.info(&["server"]).await?.into_keys() {
            survey.scan_lists(&shard).await?;
            survey.scan_users(&shard).await?;
            survey.scan_online(&shard).await?;
        }
        Ok(survey)
    }

    fn note(&mut self, kind: Kind, node: &NodeId, seat: Option<(String, String, u64)>) {
        self.remember(Amiss { kind, node: node.to_string(), seat });
    }

    fn remember(&mut self, amiss: Amiss) {
        if self.amiss.len() < AMISS {
            self.amiss.insert(amiss);
        }
    }

    async fn listen_for(&mut self, node: &NodeId) -> RedisResult<()> {
        if !self.roll.is_live(node) {
            return Ok(());
        }
        self.nodes += 1;
        match self.link.listeners(&self.names.channel(node)).await? {
            0 => self.note(Kind::Deaf, node, None),
            1 => {}
            _ => self.note(Kind::Twice, node, None),
        }
        Ok(())
    }

    /// The keys of a shard that match, from a cursor on, and the cursor where the next ones begin.
    async fn scan(&self, shard: &str, pattern: &str, cursor: u64) -> RedisResult<(u64, Vec<String>)> {
        let mut command = redis::cmd("SCAN");
        command.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(BITE);
        self.link.ask(shard, &command).await
    }

    /// Every seat has its node, is on its list, and its user is known to be online.
    async fn scan_users(&mut self, shard: &str) -> RedisResult<()> {
        let mut cursor = 0;
        loop {
            let (next, keys) = self.scan(shard, &self.names.all_users(), cursor).await?;
            self.users += keys.len();
            let mut of_living: BTreeMap<String, Vec<(String, SeatInfo)>> = BTreeMap::new();
            let hashes = self.link.hashes(&keys).await?;
            let seats: Vec<_> = keys.iter().zip(&hashes).flat_map(|(key, fields)| self.seats_of(key, fields)).collect();
            self.seats += seats.len();
            for (key, seat) in seats {
                if self.roll.is_live(&seat.node) {
                    of_living.entry(seat.node.to_string()).or_default().push((key, seat));
                } else {
                    let is_known = self.roll.runs_of(&seat.node).next().is_some();
                    let kind = if is_known { Kind::Lapsed } else { Kind::Unknown };
                    self.note(kind, &seat.node, Some((key, seat.device.to_string(), seat.connection)));
                }
            }
            for seats in of_living.into_values() {
                self.compare_with_online(&seats).await?;
                self.compare_with_list(seats).await?;
            }
            if next == 0 || self.users >= USERS {
                return Ok(());
            }
            cursor = next;
        }
    }

    fn seats_of(&self, key: &str, fields: &Fields) -> Vec<(String, SeatInfo)> {
        let Some(user) = self.names.user_of(key) else { return Vec::new() };
        let seats = fields.iter().filter_map(|(device, text)| decode(&user, device, text));
        seats.map(|seat| (key.to_owned(), seat)).collect()
    }

    async fn compare_with_online(&mut self, seats: &[(String, SeatInfo)]) -> RedisResult<()> {
        let sets: Vec<_> =
            seats.iter().map(|(_, seat)| (self.names.online(&seat.user), vec![seat.user.as_str()])).collect();
        let found = self.link.members(&sets).await?.into_iter().flatten();
        for ((key, seat), _) in seats.iter().zip(found).filter(|(_, is_in)| !is_in) {
            self.note(Kind::Unseen, &seat.node, Some((key.clone(), seat.device.to_string(), seat.connection)));
        }
        Ok(())
    }

    /// Of one node.
    async fn compare_with_list(&mut self, seats: Vec<(String, SeatInfo)>) -> RedisResult<()> {
        let Some((_, first)) = seats.first() else { return Ok(()) };
        let connections: Vec<_> = seats.iter().map(|(_, seat)| seat.connection).collect();
        let mut command = redis::cmd("HMGET");
        command.arg(self.names.held(&first.node)).arg(connections);
        let listed: Vec<Option<String>> = self.link.run(&command).await?;
        for ((key, seat), listed) in seats.into_iter().zip(listed) {
            if listed != Some(format!("{}\n{}", seat.user, seat.device)) {
                self.note(Kind::Unlisted, &seat.node, Some((key, seat.device.to_string(), seat.connection)));
            }
        }
        Ok(())
    }

    /// Every entry of a node's list has its seat.
    async fn scan_lists(&mut self, shard: &str) -> RedisResult<()> {
        let mut cursor = 0;
        loop {
            let (next, keys) = self.scan(shard, &self.names.all_lists(), cursor).await?;
            for (key, node) in keys.iter().filter_map(|key| Some((key, self.names.node_of(key)?))) {
                self.scan_list(key, &node).await?;
            }
            if next == 0 {
                return Ok(());
            }
            cursor = next;
        }
    }

    async fn scan_list(&mut self, key: &str, node: &NodeId) -> RedisResult<()> {
        let (mut cursor, mut seen) = (0_u64, 0);
        loop {
            let mut command = redis::cmd("HSCAN");
            command.arg(key).arg(cursor).arg("COUNT").arg(BITE);
            let (next, entries): (u64, HashMap<u64, String>) = self.link.run(&command).await?;
            seen += entries.len();
            let entries: Vec<_> = entries.into_iter().filter_map(|(n, text)| Some((n, entry(&text)?))).collect();
            let keys: Vec<_> = entries.iter().map(|(_, (user, _))| self.names.user(user)).collect();
            let hashes = self.link.hashes(&keys).await?;
            for ((key, fields), (connection, (_, device))) in keys.into_iter().zip(hashes).zip(entries) {
                let seat = fields.get(device.as_str());
                if !seat.is_some_and(|seat| seat.starts_with(&holder(node, connection))) {
                    self.note(Kind::Surplus, node, Some((key, device.to_string(), connection)));
                }
            }
            if next == 0 || seen >= USERS {
                return Ok(());
            }
            cursor = next;
        }
    }

    /// Everybody who is said to be online has a seat.
    async fn scan_online(&mut self, shard: &str) -> RedisResult<()> {
        let mut cursor = 0;
        loop {
            let (next, sets) = self.scan(shard, &self.names.all_online(), cursor).await?;
            for set in sets {
                self.scan_set(&set).await?;
            }
            if next == 0 || self.online >= USERS {
                return Ok(());
            }
            cursor = next;
        }
    }

    async fn scan_set(&mut self, set: &str) -> RedisResult<()> {
        let mut cursor = 0_u64;
        loop {
            let mut command = redis::cmd("SSCAN");
            command.arg(set).arg(cursor).arg("COUNT").arg(BITE);
            let (next, members): (u64, Vec<String>) = self.link.run(&command).await?;
            self.online += members.len();
            let users: Vec<_> = members.iter().filter_map(|name| UserId::parse(name).ok()).collect();
            let keys: Vec<_> = users.iter().map(|user| self.names.user(user)).collect();
            let hashes = self.link.hashes(&keys).await?;
            for (key, fields) in keys.into_iter().zip(hashes) {
                if self.seats_of(&key, &fields).is_empty() {
                    self.remember(Amiss { kind: Kind::Away, node: String::new(), seat: Some((key, String::new(), 0)) });
                }
            }
            if next == 0 || self.online >= USERS {
                return Ok(());
            }
            cursor = next;
        }
    }

    fn findings(&self) -> Vec<Finding> {
        let part = if self.users < USERS { "" } else { ", of the users that were looked at" };
        let mut findings =
            vec![Finding::well(ABOUT, format!("living nodes: {}, seats: {}{part}", self.nodes, self.seats))];
        let mut counts: BTreeMap<(Kind, &str), usize> = BTreeMap::new();
        for Amiss { kind, node, .. } in &self.amiss {
            *counts.entry((*kind, node)).or_default() += 1;
        }
        findings.extend(counts.into_iter().map(|((kind, node), count)| kind.finding(node, count)));
        findings
    }
}

fn entry(text: &str) -> Option<(UserId, DeviceId)> {
    let (user, device) = text.split_once('\n')?;
    Some((UserId::parse(user).ok()?, DeviceId::parse(device).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str =
        "# Server\r\nredis_version:7.0.15\r\nused_memory:95\r\nmaxmemory:100\r\nmaxmemory_policy:allkeys-lru\r\n";

    #[test]
    fn what_may_forget_is_told() {
        let levels = |info: &str| server("", info).iter().map(|finding| finding.level).collect::<Vec<_>>();
        assert_eq!(levels(INFO), [Level::Well, Level::Error, Level::Warning]);
        assert_eq!(levels(&INFO.replace("maxmemory:100", "maxmemory:0")), [Level::Well]);
        let kind = INFO.replace("allkeys-lru", "noeviction").replace("used_memory:95", "used_memory:5");
        assert_eq!(levels(&kind), [Level::Well]);
        assert!(server("a:1", INFO)[0].found.starts_with("a:1: version 7.0.15"));
    }

    #[test]
    fn a_buffer_that_cuts_nodes_off_is_told() {
        let told = |limits: &str| pubsub_buffer(&HashMap::from([("l".to_owned(), limits.to_owned())])).is_some();
        assert!(told("normal 0 0 0 slave 268435456 67108864 60 pubsub 1048576 8388608 60"));
        assert!(!told("normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60"));
        assert!(!told("normal 0 0 0 slave 1 1 60 pubsub 0 0 0"));
        assert!(!told(""));
    }
}
