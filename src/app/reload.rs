//! SIGHUP: the configuration is read anew, and what of it can take effect now, does; all or nothing of it.

use crate::config::{ConfigErrors, Loaded, Reload};
use crate::http::{Keys, RateLimits};
use crate::logging::Level;
use crate::relay::handle::Relay;
use crate::webhook::Webhooks;
use actix_web::web::Data;
use std::io;
use std::sync::Arc;
use tokio::signal::unix::Signal;

/// What the program was started with.
pub struct Start {
    /// The configuration in force.
    pub loaded: Loaded,
    /// Its credentials were made just now.
    pub first_start: bool,
    /// Reads it anew, from where it came.
    pub read: Box<dyn Fn() -> Result<Loaded, ConfigErrors>>,
    /// How much is logged.
    pub level: Level,
}

/// What can be changed while it serves.
#[derive(Clone)]
pub(super) struct Live {
    pub(super) relay: Relay,
    pub(super) keys: Data<Keys>,
    pub(super) rates: Arc<RateLimits>,
}

impl Start {
    /// Goes on for as long as it is polled.
    pub(super) async fn reload_at(&self, hangup: io::Result<Signal>, live: Live) -> ! {
        let Ok(mut hangup) = hangup else {
            tracing::error!("SIGHUP can't be listened for: the configuration is not read anew");
            std::future::pending().await
        };
        let mut in_force = self.loaded.clone();
        loop {
            hangup.recv().await;
            match self.reload(&in_force, &live).await {
                Ok(effective) => in_force = effective,
                Err(error) => {
                    let error = format!("{error:#}").replace('\n', "; ");
                    tracing::error!(error, "the configuration was read anew, and nothing is changed");
                }
            }
        }
    }

    /// First all that can fail, then all that can't.
    async fn reload(&self, in_force: &Loaded, live: &Live) -> anyhow::Result<Loaded> {
        let Live { relay, keys, rates } = live;
        let Reload { effective, mut changed, at_restart } = in_force.reload(&(self.read)()?)?;
        let accepted = keys.prepare(&effective.config).await?;
        let webhooks = Webhooks::of(&effective.config.callbacks)?;
        // The same files may hold other keys.
        let public_keys = "auth.device_public_keys";
        let has_secrets_of_old = !changed.contains(&"auth.device_secrets") && !changed.contains(&public_keys);
        if has_secrets_of_old && !accepted.has_keys_of(keys) {
            changed.push(public_keys);
        }
        keys.replace(accepted, relay);
        relay.set_callbacks(webhooks, &effective.config.callbacks);
        relay.set_limits(effective.config.limits);
        rates.set(&effective.config.limits);
        self.level.set(&effective.config.log.level);
        for warning in &effective.warnings {
            tracing::warn!("{warning}");
        }
        if !at_restart.is_empty() {
            tracing::warn!(keys = ?at_restart, "these keys have changed, and take effect at the next start");
        }
        tracing::info!(?changed, "the configuration was read anew");
        Ok(effective)
    }
}
