//! Who there is, and where the nodes are.

use super::ledger::Ledger;
use crate::harness::Cluster;
use crate::harness::node::{DEVICE_SECRET, Secrets};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use parking_lot::Mutex;
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::json;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// What devices and callers do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Devices come and go, callers send.
    Roam,
    /// Devices come and stay, callers finish what they have begun.
    Stay,
    /// All end.
    End,
}

pub struct User {
    pub name: String,
    /// Which of [`World::devices`].
    pub devices: Vec<usize>,
}

pub struct Device {
    pub user: usize,
    pub name: String,
    pub token: String,
    /// Its stream is open and ready.
    pub is_on: AtomicBool,
}

/// What all share.
pub struct World {
    pub users: Vec<User>,
    pub devices: Vec<Device>,
    pub ledger: Ledger,
    pub secrets: Secrets,
    phase: watch::Sender<Phase>,
    /// `None` while a node is dead: another program may get its port.
    nodes: Mutex<Vec<Option<SocketAddr>>>,
}

impl World {
    /// Users with one to three devices each, none of them on yet.
    pub fn new(cluster: &Cluster, devices: usize, random: &mut StdRng) -> Self {
        let mut world = Self {
            users: vec![],
            devices: vec![],
            ledger: Ledger::new(devices),
            secrets: cluster[0].secrets(),
            phase: watch::Sender::new(Phase::Roam),
            nodes: Mutex::new(cluster.nodes().iter().map(|node| Some(node.address())).collect()),
        };
        while world.devices.len() < devices {
            let user = world.users.len();
            let mut user_of = User { name: format!("user{user}"), devices: vec![] };
            for name in ["phone", "laptop", "tv"].into_iter().take(random.random_range(1..=3)) {
                if world.devices.len() < devices {
                    user_of.devices.push(world.devices.len());
                    let token = token(&user_of.name, name);
                    let name = name.to_owned();
                    world.devices.push(Device { user, name, token, is_on: AtomicBool::new(false) });
                }
            }
            world.users.push(user_of);
        }
        world
    }

    pub fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    pub fn node_is_at(&self, node: usize, address: Option<SocketAddr>) {
        self.nodes.lock()[node] = address;
    }

    /// One of those that live, as far as is known.
    pub fn some_node(&self, random: &mut StdRng) -> SocketAddr {
        let living: Vec<SocketAddr> = self.nodes.lock().iter().flatten().copied().collect();
        living[random.random_range(0..living.len())]
    }

    pub fn some_users(&self, random: &mut StdRng) -> Vec<usize> {
        let mut users: Vec<usize> =
            (0..random.random_range(1..=3)).map(|_| random.random_range(0..self.users.len())).collect();
        users.sort_unstable();
        users.dedup();
        users
    }

    /// How many devices are.
    pub fn away(&self) -> usize {
        self.devices.iter().filter(|device| !device.is_on.load(Ordering::Acquire)).count()
    }
}

/// Not one of those that [`Secrets`] looks for in every line of everything: of thousands that would take minutes.
fn token(user: &str, device: &str) -> String {
    let expires = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(24 * 3_600);
    let claims = json!({"sub": user, "device": device, "exp": expires.as_secs()});
    let key = EncodingKey::from_secret(DEVICE_SECRET.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap()
}
