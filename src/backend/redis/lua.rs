//! What Redis does in one step. Each script works on one key, so that it runs in a Cluster too; or on a user's hash and the set of who is
//! online in the user's shard, which are in one slot.
//!
//! A user who has a seat is always in that set: a message to many is offered only to those who are. So it is joined before the seat is
//! written, and left after the last one has gone: whatever else becomes of a script, a name too many costs a look-up, one too few is a user
//! who is taken for offline.
//!
//! A seat is kept as `connection \n node \n state \n connected_at \n last_active_at` (names have no control characters). The first two lines
//! say whose it is, and are what a compare-and-set compares. A user's version stands in the same hash under the empty name, followed by
//! ` said` while the operator has been told, or is about to be, that the user is here.

use super::link::Link;
use super::names::Names;
use crate::domain::seat::UserId;
use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, Script, ServerErrorKind, ToRedisArgs};
use std::sync::OnceLock;

/// A script, run by its hash and sent whole where it isn't known yet.
pub(super) struct Lua {
    code: &'static str,
    hash: OnceLock<String>,
}

impl Lua {
    const fn new(code: &'static str) -> Self {
        Self { code, hash: OnceLock::new() }
    }

    /// On this key.
    pub fn on(&'static self, key: String) -> Call {
        Call { lua: self, key, online: None, arguments: vec![] }
    }

    /// On the hash of this user and the set of who is online; the user is the first argument.
    pub fn on_user(&'static self, names: &Names, user: &UserId) -> Call {
        let call = Call { online: Some(names.online(user)), ..self.on(names.user(user)) };
        call.arg(user.as_str())
    }
}

/// A script with what it is to work on.
pub(super) struct Call {
    lua: &'static Lua,
    key: String,
    online: Option<String>,
    arguments: Vec<Vec<u8>>,
}

impl Call {
    pub fn arg(mut self, argument: impl ToRedisArgs) -> Self {
        self.arguments.extend(argument.to_redis_args());
        self
    }

    pub async fn run<T: FromRedisValue>(&self, link: &Link) -> RedisResult<T> {
        self.run_on(self.online.as_deref(), link).await
    }

    /// Runs a script that gives the user a seat.
    ///
    /// While a slot goes over to another master, a Cluster refuses what needs two keys of which one is there already and the other isn't, be
    /// it that it is new. Then the set is joined by itself, and once more afterwards: a script elsewhere that found both keys may meanwhile
    /// have taken the user out.
    pub async fn run_joining<T: FromRedisValue>(&self, link: &Link) -> RedisResult<T> {
        match (self.run(link).await, &self.online, self.arguments.first()) {
            (Err(error), Some(online), Some(user)) if is_torn(&error) => {
                let join = redis::cmd("SADD").arg(online).arg(user).clone();
                link.run::<()>(&join).await?;
                let done = self.run_on(None, link).await?;
                link.run::<()>(&join).await?;
                Ok(done)
            }
            (done, ..) => done,
        }
    }

    /// Runs a script that takes a seat away. While a slot goes over to another master, the user stays in the set.
    pub async fn run_leaving<T: FromRedisValue>(&self, link: &Link) -> RedisResult<T> {
        match self.run(link).await {
            Err(error) if is_torn(&error) => self.run_on(None, link).await,
            done => done,
        }
    }

    async fn run_on<T: FromRedisValue>(&self, online: Option<&str>, link: &Link) -> RedisResult<T> {
        let hash = self.lua.hash.get_or_init(|| Script::new(self.lua.code).get_hash().to_owned());
        match link.run(&self.command("EVALSHA", hash, online)).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                link.run(&self.command("EVAL", self.lua.code, online)).await
            }
            done => done,
        }
    }

    fn command(&self, verb: &str, script: &str, online: Option<&str>) -> Cmd {
        let mut command = redis::cmd(verb);
        command.arg(script).arg(1 + usize::from(online.is_some())).arg(&self.key).arg(online).arg(&self.arguments);
        command
    }
}

/// Of the keys of one slot, some have gone over to another master and others haven't.
fn is_torn(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::TryAgain)
}

macro_rules! with_version {
    ($code:literal) => {
        concat!(
            r"
            local function bump(said)
                local t = redis.call('TIME')
                local version = t[1] * 1000000 + t[2]
                local last, before = string.match(redis.call('HGET', KEYS[1], '') or '0', '^(%d+)(.*)$')
                if version <= tonumber(last) then version = last + 1 end
                redis.call('HSET', KEYS[1], '', string.format('%.0f', version) .. (said or before))
                return version, before ~= ''
            end
            local function is_held_by(seat, holder) return string.sub(seat, 1, #holder) == holder end
            local function devices() return redis.call('HLEN', KEYS[1]) - redis.call('HEXISTS', KEYS[1], '') end
            local function join() if KEYS[2] then redis.call('SADD', KEYS[2], ARGV[1]) end end
            ",
            $code
        )
    };
}

/// user, device, seat, how many devices are allowed → 0, the seat that was replaced, and the version if the user has just come; or 1 and all
/// there are.
pub(super) static SEAT: Lua = Lua::new(with_version!(
    r"
    local old = redis.call('HGET', KEYS[1], ARGV[2])
    if not old and devices() >= tonumber(ARGV[4]) then return {1, redis.call('HGETALL', KEYS[1]), false} end
    join()
    redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
    redis.call('PERSIST', KEYS[1])
    local version, was_said = bump(' said')
    return {0, old, not was_said and version}
    "
));

/// user, device, seat, holder, a seat that may be replaced → nothing if the holder has the seat now, else who has it.
pub(super) static SEAT_AGAIN: Lua = Lua::new(with_version!(
    r"
    join()
    local old = redis.call('HGET', KEYS[1], ARGV[2])
    if old and is_held_by(old, ARGV[4]) then return false end
    if old and old ~= ARGV[5] then return old end
    redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
    redis.call('PERSIST', KEYS[1])
    bump(' said')
    return false
    "
));

/// user, device, holder, how long the version is remembered after the last one → 0: it wasn't there; 1: others are; else the version since
/// the last has gone.
pub(super) static UNSEAT: Lua = Lua::new(with_version!(
    r"
    local old = redis.call('HGET', KEYS[1], ARGV[2])
    local was_there = old and is_held_by(old, ARGV[3])
    if was_there then redis.call('HDEL', KEYS[1], ARGV[2]) end
    local is_last = devices() == 0
    if is_last and KEYS[2] then redis.call('SREM', KEYS[2], ARGV[1]) end
    if not was_there then return 0 end
    local version = bump()
    if not is_last then return 1 end
    redis.call('PEXPIRE', KEYS[1], ARGV[4])
    return version
    "
));

/// version → whether the user has gone since then, nothing else has happened, and the operator is still to be told.
pub(super) static TAKE_DEPARTURE: Lua = Lua::new(
    r"
    if redis.call('HGET', KEYS[1], '') ~= ARGV[1] .. ' said' or redis.call('HLEN', KEYS[1]) > 1 then return 0 end
    redis.call('HSET', KEYS[1], '', ARGV[1])
    return 1
    ",
);

/// device, state or nothing, time → the seat as it is now.
pub(super) static TOUCH: Lua = Lua::new(with_version!(
    r"
    local seat = redis.call('HGET', KEYS[1], ARGV[1])
    if not seat then return false end
    local holder, state, connected, active = string.match(seat, '^(%d+\n[^\n]*\n)(%l+)\n(%d+)\n(%d+)$')
    if not holder then return false end
    if ARGV[2] ~= '' then state = ARGV[2] end
    if tonumber(ARGV[3]) > tonumber(active) then active = ARGV[3] end
    seat = holder .. state .. '\n' .. connected .. '\n' .. active
    redis.call('HSET', KEYS[1], ARGV[1], seat)
    bump()
    return seat
    "
));

/// node, length of its lease (0: only look) → whether the lease had run out, the time, all nodes with the ends of their leases.
pub(super) static LEASE: Lua = Lua::new(
    r"
    local t = redis.call('TIME')
    local now = t[1] * 1000 + math.floor(t[2] / 1000)
    local lapsed = 0
    if tonumber(ARGV[2]) > 0 then
        local till = redis.call('ZSCORE', KEYS[1], ARGV[1])
        if not till or tonumber(till) <= now then lapsed = 1 end
        -- A script that has removed something may go on though Redis is full: who is here is to be known then too.
        redis.call('ZREM', KEYS[1], ARGV[1])
        redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), ARGV[1])
    end
    return {lapsed, now, redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')}
    ",
);

/// node → strikes it off if its lease has run out.
pub(super) static STRIKE_OFF: Lua = Lua::new(
    r"
    local t = redis.call('TIME')
    local till = redis.call('ZSCORE', KEYS[1], ARGV[1])
    if till and tonumber(till) <= t[1] * 1000 + math.floor(t[2] / 1000) then return redis.call('ZREM', KEYS[1], ARGV[1]) end
    return 0
    ",
);

/// token → gives a lock back, unless somebody else has it by now.
pub(super) static UNLOCK: Lua =
    Lua::new("if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0");

/// token, milliseconds → whether the lock is still held, and then for so long again.
pub(super) static STILL_LOCKED: Lua = Lua::new(
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0",
);

/// envelope → -1 if nobody listens, which is certain. Any other number proves nothing: the receiver's word is to be waited for.
pub(super) static PUBLISH: Lua = Lua::new(
    r"
    if redis.call('PUBSUB', 'NUMSUB', KEYS[1])[2] == 0 then return -1 end
    local t = redis.call('TIME')
    local now = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
    return redis.call('PUBLISH', KEYS[1], now .. ' ' .. ARGV[1])
    ",
);

/// The same in a Cluster.
pub(super) static SPUBLISH: Lua = Lua::new(
    r"
    if redis.call('PUBSUB', 'SHARDNUMSUB', KEYS[1])[2] == 0 then return -1 end
    local t = redis.call('TIME')
    local now = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
    return redis.call('SPUBLISH', KEYS[1], now .. ' ' .. ARGV[1])
    ",
);

/// → how many listen on the channel.
pub(super) static LISTENERS: Lua = Lua::new("return redis.call('PUBSUB', 'NUMSUB', KEYS[1])[2]");

/// The same in a Cluster.
pub(super) static SLISTENERS: Lua = Lua::new("return redis.call('PUBSUB', 'SHARDNUMSUB', KEYS[1])[2]");

/// body, message id, when it was accepted, node, life, least life → nothing if the key is yours, else body, id, time, node and answer.
pub(super) static CLAIM: Lua = Lua::new(
    r"
    local left = redis.call('PTTL', KEYS[1])
    if left > tonumber(ARGV[6]) then
        return redis.call('HMGET', KEYS[1], 'body', 'id', 'at', 'by', 'answer')
    end
    -- Not else: a script that has removed something isn't refused when Redis is full.
    if left ~= -2 then redis.call('DEL', KEYS[1]) end
    redis.call('HSET', KEYS[1], 'body', ARGV[1], 'id', ARGV[2], 'at', ARGV[3], 'by', ARGV[4])
    redis.call('PEXPIRE', KEYS[1], ARGV[5])
    return false
    ",
);

/// answer → remembers it for as long as the key is.
pub(super) static SETTLE: Lua = Lua::new(
    r"
    if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
    -- A script that has removed something isn't refused when Redis is full: the message is out, and the sender may ask again.
    redis.call('HDEL', KEYS[1], 'answer')
    return redis.call('HSET', KEYS[1], 'answer', ARGV[1])
    ",
);

/// message id → gives the key back, if it was claimed for this message.
pub(super) static UNCLAIM: Lua =
    Lua::new("if redis.call('HGET', KEYS[1], 'id') == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0");

/// least life → what stood there, once.
pub(super) static TAKE: Lua = Lua::new(
    r"
    local found, life = redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])
    redis.call('DEL', KEYS[1])
    if life > tonumber(ARGV[1]) then return found end
    return false
    ",
);
