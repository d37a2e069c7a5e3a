//! The connection to Redis, watched: made, checked, renewed, and made anew for as long as the process lasts.
//!
//! A session is one connection for commands and one that is subscribed to this node's channel. If either fails, both are made anew: then
//! there is one state to be in, and one way back into it.

use super::bus::{DEAF_AFTER, probe};
use super::lease::{Roll, Run};
use super::link::{Link, LinkError, Server, check, in_time};
use super::lua::LEASE;
use super::names::Names;
use super::{Plane, SLOW, away};
use crate::ports::Away;
use rand::RngExt;
use redis::RedisResult;
use redis::aio::MultiplexedConnection;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// How often the lease is renewed, the other nodes are looked at and the own channel is tried: one script and one PUBLISH.
const TICK: Duration = Duration::from_secs(1);
/// When the nodes are asked for in between, it is not more often than this.
const ASK_PAUSE: Duration = Duration::from_millis(20);
/// Between two attempts to connect, at most.
const BACK_OFF: Duration = Duration::from_millis(500);
/// A new subscription has so long to hear its first probe.
const FIRST_PROBE: Duration = Duration::from_millis(1_500);
/// So many renewals in a row may be slow.
const SLOW_RENEWALS: u32 = 2;

/// See the module's text.
pub(super) struct Session {
    link: Link,
    subscription: MultiplexedConnection,
    lost: Arc<Notify>,
}

impl Session {
    pub fn link(&self) -> &Link {
        &self.link
    }
}

/// Connects once, to learn whether Redis is there and fit; what is wrong for good is told at once, the rest after `patience`.
pub(super) async fn first_contact(server: &Server, patience: Duration) -> Result<(), LinkError> {
    let until = Instant::now() + patience;
    loop {
        match server.reach().await {
            Ok(_) => return Ok(()),
            Err(error @ LinkError::Unusable(_)) => return Err(error),
            Err(error) if Instant::now() > until => return Err(error),
            Err(_) => sleep(BACK_OFF).await,
        }
    }
}

impl Plane {
    /// A new session, in which this node hears itself and holds its lease.
    pub(super) async fn establish(self: &Arc<Self>) -> Result<Session, LinkError> {
        let session = self.subscribe().await?;
        self.begin(session).await
    }

    /// Connected and subscribed, not more.
    pub(super) async fn subscribe(self: &Arc<Self>) -> Result<Session, LinkError> {
        let reached = self.server.reach().await?;
        let lost = Arc::new(Notify::new());
        let channel = self.names.channel(&self.run.node);
        let subscription = self.server.subscribe(&reached, &channel, self.on_push(lost.clone())).await?;
        Ok(Session { link: reached.link, subscription, lost })
    }

    /// Only a node that hears what is published to it has a lease.
    pub(super) async fn begin(&self, session: Session) -> Result<Session, LinkError> {
        let mut heard = self.inbox.heard.subscribe();
        if !self.publish(&session.link, &self.run.node, probe(&self.run.node)).await? {
            return Err(LinkError::Unfit("Redis does not know of this node's subscription".to_owned()));
        }
        in_time(FIRST_PROBE, async { heard.changed().await.map_err(|_| LinkError::Slow) }).await?;
        self.renew(&session.link).await?;
        *self.link.write() = Some(session.link.clone());
        Ok(session)
    }

    /// Keeps a session up until the process ends.
    pub(super) async fn keep(self: Arc<Self>, first: Session) {
        let mut session = Ok(first);
        loop {
            let why = match session {
                Ok(session) => tokio::select! {
                    biased;
                    // The connection for commands stays, for giving back what this node has.
                    () = self.ended() => return,
                    why = self.watch(&session) => why,
                },
                Err(why) => why,
            };
            let was_up = self.link.write().take().is_some();
            if was_up {
                tracing::warn!(error = %why, "Redis is away: presence is unknown until it is back");
            }
            let pause = BACK_OFF.mul_f64(rand::rng().random_range(0.1..=1.0));
            session = tokio::select! {
                biased;
                () = self.ended() => return,
                session = async { sleep(pause).await; self.establish().await } => session,
            };
            match &session {
                Ok(_) => {
                    tracing::info!("Redis is back");
                    self.metrics.reconnects.inc();
                    // What was published meanwhile is lost, and Redis may have forgotten anything.
                    self.reconcile.notify_one();
                }
                Err(error) => tracing::debug!(%error, "Redis can't be used yet"),
            }
        }
    }

    /// Returns why the session is over.
    async fn watch(self: &Arc<Self>, session: &Session) -> LinkError {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut slow = 0;
        // `None`: one of them can't be asked.
        let mut masters = session.link.masters().await.ok();
        loop {
            let is_tick = tokio::select! {
                biased;
                () = session.lost.notified() => return LinkError::Unfit("the subscription was lost".to_owned()),
                _ = tick.tick() => true,
                () = self.nodes_wanted.notified() => false,
            };
            if is_tick {
                if !self.inbox.hears(DEAF_AFTER) {
                    return LinkError::Unfit("this node does not hear what is published to it".to_owned());
                }
                self.send(&self.run.node, super::wire::Part::Probe);
                // The subscribed connection has nothing else to say; and one that isn't at a master any more hears little.
                if let Err(error) = check(&mut session.subscription.clone(), self.server.is_cluster()).await
                    && !is_timeout(&error)
                {
                    return error;
                }
            }
            match self.renew(&session.link).await {
                Ok(()) => slow = 0,
                Err(error) if is_timeout(&error) && slow + 1 < SLOW_RENEWALS => slow += 1,
                Err(error) => return error,
            }
            if !is_tick {
                sleep(ASK_PAUSE).await;
                continue;
            }
            let before = std::mem::replace(&mut masters, session.link.masters().await.ok());
            if masters.is_some() && masters != before {
                self.standing.lock().doubt_till(Instant::now() + self.lease);
                self.reconcile.notify_one();
            }
        }
    }

    /// Renews the lease, and looks at all nodes.
    async fn renew(&self, link: &Link) -> Result<(), LinkError> {
        let is_new = self.call_the_roll(link, self.lease).await?;
        if is_new {
            // The others may have given up this node's seats, or Redis has lost them.
            self.reconcile.notify_one();
        }
        Ok(())
    }

    /// Looks at all nodes, and takes a lease of this length, if it has one. True if it is a new one.
    pub(super) async fn call_the_roll(&self, link: &Link, lease: Duration) -> Result<bool, LinkError> {
        let number = self.rolls_begun.fetch_add(1, Ordering::Relaxed) + 1;
        let asked = Instant::now();
        let length = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
        let (is_new, now_ms, leases) = leases(link, &self.names, &self.run.to_string(), length).await?;
        let round_trip = asked.elapsed();
        self.metrics.round_trip_seconds.observe(round_trip.as_secs_f64());
        if !lease.is_zero() {
            self.standing.lock().renew(lease, asked, now_ms, is_new);
        }
        let roll = Roll::new(leases, now_ms, asked + round_trip / 2, number);
        self.roll.send_if_modified(|known| {
            let is_newer = roll.number > known.number;
            if is_newer {
                *known = roll;
            }
            is_newer
        });
        Ok(is_new)
    }

    /// Waits until the nodes have been asked for after this call. Callers share one question.
    pub(super) async fn ask_for_nodes(&self) -> Result<(), Away> {
        self.link()?;
        let begun = self.rolls_begun.load(Ordering::Relaxed);
        let mut rolls = self.roll.subscribe();
        self.nodes_wanted.notify_one();
        let asked = timeout(2 * SLOW, rolls.wait_for(|roll| roll.number > begun)).await;
        asked.map_err(|_| away("Redis did not say in time which nodes there are"))?.map_err(away)?;
        Ok(())
    }
}

/// Takes a lease of this length in milliseconds (0: only looks): whether the one before had run out, the time in Redis, and all leases with
/// their ends.
pub(super) async fn leases(
    link: &Link,
    names: &Names,
    run: &str,
    length: u64,
) -> RedisResult<(bool, i64, Vec<(Run, i64)>)> {
    let call = LEASE.on(names.nodes()).arg(run).arg(length);
    let (is_new, now_ms, leases): (bool, i64, Vec<(String, f64)>) = call.run(link).await?;
    #[expect(clippy::cast_possible_truncation, reason = "milliseconds since 1970, as Redis keeps scores")]
    let leases = leases.iter().filter_map(|(run, end)| Some((Run::parse(run)?, *end as i64)));
    Ok((is_new, now_ms, leases.collect()))
}

fn is_timeout(error: &LinkError) -> bool {
    match error {
        LinkError::Redis(error) => error.is_timeout(),
        LinkError::Slow => true,
        LinkError::Unfit(_) | LinkError::Unusable(_) => false,
    }
}
