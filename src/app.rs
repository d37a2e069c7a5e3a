//! The roof: builds everything from the configuration, runs it, and takes it down in order.

mod backup;
mod reload;
mod welcome;

pub use backup::backup;
use reload::Live;
pub use reload::Start;

use crate::backend::memory::MemoryPlane;
use crate::backend::postgres::{self, PostgresStore};
use crate::backend::redis::RedisPlane;
use crate::backend::sqlite::{self, SqliteStore};
use crate::config::{self, Config};
use crate::domain::retry::Schedule;
use crate::http::{self, Admin, Certificate, Doors, Front, Keys, RateLimits};
use crate::ports::{Ephemeral, Store};
use crate::relay::before_send::BeforeSend;
use crate::relay::callbacks::Callbacks;
use crate::relay::handle::{Parts, Relay};
use crate::relay::metrics::Metrics;
use crate::relay::presence_news::PresenceNews;
use crate::tasks::Tasks;
use crate::traces::Exporter;
use crate::webhook::Webhooks;
use actix_web::dev::{Server, ServerHandle};
use actix_web::web::Data;
use actix_web::{App as Actix, HttpServer};
use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Beside streams, so many connections of backends are taken.
const API_CONNECTIONS: usize = 10_000;

/// A relay with its doors, bound and ready to run.
pub struct App {
    relay: Relay,
    store: Arc<dyn Store>,
    plane: Arc<dyn Ephemeral>,
    tasks: Tasks,
    drain: Duration,
    api: Server,
    address: SocketAddr,
    admin: Option<AdminDoor>,
    live: Live,
}

struct AdminDoor {
    handle: ServerHandle,
    address: SocketAddr,
    thread: std::thread::JoinHandle<()>,
}

/// Serves until a signal ends the process, and exports traces meanwhile. On the first start the credentials are shown once.
pub async fn run(start: Start, exporter: Option<Exporter>) -> anyhow::Result<()> {
    let mut registry = Registry::with_prefix("herenow");
    if let Some(exporter) = &exporter {
        exporter.register(&mut registry);
    }
    let serve = Box::pin(serve(start, registry));
    match exporter {
        Some(exporter) => exporter.during(serve).await,
        None => serve.await,
    }
}

async fn serve(start: Start, registry: Registry) -> anyhow::Result<()> {
    // From here on a signal is heeded: one that comes while all is being opened ends the process in order, too.
    let signals = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
    let hangup = signal(SignalKind::hangup());
    let config = &start.loaded.config;
    let app = match App::build(config, &Schedule::default(), registry).await {
        // They would not be shown at the next start.
        Err(error) if start.first_start => {
            return Err(error.context(format!("the first start made credentials in {}", config.data_dir.display())));
        }
        built => built?,
    };
    welcome::print(config, app.address, start.first_start);
    let (stop, halt) = (CancellationToken::new(), app.tasks.halt.clone());
    let reloads = start.reload_at(hangup, app.live.clone());
    tokio::select! {
        ended = app.run_until(stop.clone().cancelled_owned()) => ended,
        never = obey_signals(signals, &stop, &halt) => never,
        never = reloads => never,
    }
}

impl App {
    /// Opens the planes, binds the sockets and starts the relay's own tasks. To be called on a tokio runtime; `schedule` is that of failed
    /// callbacks; what can be measured is put into `registry`.
    pub async fn build(config: &Config, schedule: &Schedule, mut registry: Registry) -> anyhow::Result<Self> {
        raise_open_files(config.stream.max);
        let tasks = Tasks::on_this_runtime();
        let store = durable_plane(config, &tasks, &mut registry).await?;
        let plane = ephemeral_plane(config, &tasks, &mut registry).await?;
        let webhooks = Webhooks::of(&config.callbacks)?;
        let relay = Relay::new(Parts {
            node: config.cluster.node.clone(),
            plane: plane.clone(),
            store: store.clone(),
            callbacks: Callbacks::start(&store, schedule, &tasks, &mut registry),
            before_send: BeforeSend::new(&mut registry),
            presence_news: PresenceNews::start(&tasks, &mut registry),
            limits: config.limits,
            stream: config.stream.clone(),
            retention: config.store.retention,
            confirm_timeout: config.cluster.confirm_timeout,
            tasks: tasks.clone(),
            metrics: Metrics::new(&mut registry),
        });
        relay.set_callbacks(webhooks, &config.callbacks);
        relay.start().await.context("this node can't join the others")?;
        let rates = Arc::new(RateLimits::new(&config.limits));
        tasks.spawn_essential("rates", rates.clone().forget_idle(tasks.drain.clone()));
        let keys = Data::new(Keys::new(config)?);
        let (fresh, of_relay) = (keys.clone(), relay.clone());
        let drain = tasks.drain.clone();
        tasks.spawn_essential("keys", async move {
            tokio::select! {
                () = drain.cancelled() => {}
                () = fresh.keep_fresh(&of_relay) => {}
            }
        });
        let certificate = Certificate::load(&config.server.tls).context("server.tls")?;
        let tls = certificate.as_ref().map(Certificate::acceptor).transpose().context("server.tls")?;
        if let Some(certificate) = certificate {
            let drain = tasks.drain.clone();
            tasks.spawn_essential("certificate", async move {
                tokio::select! {
                    () = drain.cancelled() => {}
                    () = certificate.keep_fresh() => {}
                }
            });
        }
        let (api, address) = api_server(config, &relay, &keys, &rates, tls)?;
        let live = Live { relay: relay.clone(), keys, rates };
        let admin = Admin { registry: Arc::new(Mutex::new(registry)) };
        let admin = config.server.admin_listen.map(|at| admin_server(at, &config.stream, &relay, admin)).transpose()?;
        let drain = config.server.drain;
        Ok(Self { relay, store, plane, tasks, drain, api, address, admin, live })
    }

    /// Where the API listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the admin listener is, if there is one.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|admin| admin.address)
    }

    /// Serves until `stop`, then drains (CONTRACT.md 9). An essential task that dies ends the process too, and with an error.
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let Self { relay, store, plane, tasks, drain, api, admin, address, .. } = self;
        tracing::info!(%address, admin = ?admin.as_ref().map(|a| a.address), node.id = %relay.node(), "serving");
        let handle = api.handle();
        let mut server = tokio::task::JoinSet::new();
        server.spawn(api);
        let failed = tokio::select! {
            () = stop => None,
            () = tasks.drain.cancelled() => Some("a task that should never end has ended: see the log"),
            _ = server.join_next() => Some("the server has ended by itself: see the log"),
        };
        tracing::info!("draining");
        tokio::select! {
            () = tasks.halt.cancelled() => tracing::warn!("stopping at once"),
            () = take_down(&relay, &*plane, &tasks, &handle, drain) => {}
        }
        tasks.halt.cancel();
        handle.stop(false).await;
        if timeout(LAST_WAIT, tasks.finished()).await.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
        if let Some(AdminDoor { handle, thread, .. }) = admin {
            handle.stop(false).await;
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        plane.leave(relay.node()).await;
        store.close().await;
        failed.map_or(Ok(()), |why| Err(anyhow::anyhow!(why)))
    }
}

async fn ephemeral_plane(
    config: &Config,
    tasks: &Tasks,
    registry: &mut Registry,
) -> anyhow::Result<Arc<dyn Ephemeral>> {
    if config.redis.url.is_none() {
        return Ok(Arc::new(MemoryPlane::default()));
    }
    let plane = RedisPlane::open(&config.redis, &config.cluster, tasks, registry).await;
    Ok(Arc::new(plane.context("Redis can't be used (redis.url)")?))
}

async fn durable_plane(config: &Config, tasks: &Tasks, registry: &mut Registry) -> anyhow::Result<Arc<dyn Store>> {
    let (retention, inbox_max) = (config.store.retention, config.store.inbox_max);
    if let Some(url) = &config.store.url {
        let lease = config.cluster.lease;
        let options = postgres::Options { lease, ..postgres::Options::new(retention, inbox_max) };
        return Ok(PostgresStore::open(url, &options, tasks, registry).await.context("the store can't be opened")?);
    }
    let options = sqlite::Options::new(retention, inbox_max);
    Ok(SqliteStore::open(&config.data_dir, &options, registry).context("the store can't be opened")?)
}

/// What a killed task or a closed connection may take to end.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// In this order: nothing new; goodbye to the streams; what is in flight is answered, and other nodes are left; then callbacks are finished.
async fn take_down(relay: &Relay, plane: &dyn Ephemeral, tasks: &Tasks, server: &ServerHandle, time: Duration) {
    relay.refuse_new();
    tasks.drain.cancel();
    relay.end_streams(time).await;
    server.stop(true).await;
    relay.flush_notes().await;
    plane.leave(relay.node()).await;
    if timeout(time, tasks.finished()).await.is_err() {
        tracing::warn!("some callbacks were still in flight and will be repeated at the next start");
    }
}

/// At the first SIGTERM or SIGINT the process is to end in order, at the second at once. It goes on for as long as it is polled: as a task
/// it would be one of those that a drain waits for.
async fn obey_signals(signals: [io::Result<Signal>; 2], stop: &CancellationToken, halt: &CancellationToken) -> ! {
    let [Ok(mut term), Ok(mut int)] = signals else {
        tracing::error!("signals can't be listened for: only SIGKILL ends this process");
        std::future::pending().await
    };
    for token in [stop, halt] {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        token.cancel();
    }
    std::future::pending().await
}

fn api_server(
    config: &Config,
    relay: &Relay,
    keys: &Data<Keys>,
    rates: &Arc<RateLimits>,
    tls: Option<TlsAcceptor>,
) -> anyhow::Result<(Server, SocketAddr)> {
    let listen = config.server.listen;
    let listener = http::listener(listen, &config.stream).with_context(|| format!("can't listen on {listen}"))?;
    let address = listener.local_addr()?;
    let doors = Doors {
        relay: Data::new(relay.clone()),
        keys: keys.clone(),
        rates: Data::from(rates.clone()),
        cors_origins: config.server.cors_origins.clone(),
        // Anybody may mint tokens there: only where everybody who gets there may read the credentials anyway.
        examples: serves_examples(config, address),
    };
    let workers = config.server.workers;
    let server = Server::build()
        .workers(workers)
        .max_concurrent_connections((config.stream.max + API_CONNECTIONS).div_ceil(workers))
        .disable_signals()
        .shutdown_timeout(1)
        .listen("api", listener, move || Front::new(doors.clone(), tls.clone()))?;
    Ok((server.run(), address))
}

/// It is for who tries herenow on their own machine. With TLS it isn't: its check of origins knows `http://` and `Host` alone.
fn serves_examples(config: &Config, address: SocketAddr) -> bool {
    config.auth.self_made && address.ip().is_loopback() && config.server.tls.cert.is_none()
}

/// On a thread and a runtime of its own, so that it answers under load.
fn admin_server(at: SocketAddr, stream: &config::Stream, relay: &Relay, admin: Admin) -> anyhow::Result<AdminDoor> {
    let listener = http::listener(at, stream).with_context(|| format!("can't listen on {at} (server.admin_listen)"))?;
    let address = listener.local_addr()?;
    let relay = Data::new(relay.clone());
    let admin = Data::new(admin);
    let (send, receive) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("admin".into()).spawn(move || {
        let run = async move {
            let app =
                move || Actix::new().app_data(relay.clone()).app_data(admin.clone()).configure(http::admin_routes);
            let server = HttpServer::new(app).workers(1).disable_signals().shutdown_timeout(1).listen(listener)?.run();
            let _ = send.send(server.handle());
            server.await
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        if let Err(error) = runtime.and_then(|runtime| runtime.block_on(run)) {
            tracing::error!(%error, "the admin listener has failed");
        }
    })?;
    let handle = receive.recv().context("the admin listener could not be started")?;
    Ok(AdminDoor { handle, address, thread })
}

/// How many files may have to be open with so many streams. Each takes two descriptors: its connection, and the hub's own handle on it.
pub fn open_files_for(streams: usize) -> u64 {
    (streams as u64).saturating_add(API_CONNECTIONS as u64).saturating_mul(2)
}

fn raise_open_files(streams: usize) {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let wanted = open_files_for(streams);
    if soft < wanted.min(hard) && setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard).is_err() {
        tracing::warn!(soft, "the limit of open files could not be raised");
    }
    if hard < wanted {
        tracing::warn!(open_files = hard, "fewer files may be open than `stream.max` streams need: see `ulimit -n`");
    }
}
