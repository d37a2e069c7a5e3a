//! What happens, step by step: drawn from a seed, told in words, and made shorter.

use super::plane::Weather;
use crate::domain::seat::DeviceState;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::fmt;

pub const NODES: [&str; 3] = ["n1", "n2", "n3"];
pub const USERS: [&str; 2] = ["bob", "carol"];
pub const DEVICES: [&str; 4] = ["phone", "tv", "laptop", "watch"];

/// A device by its user and its kind, by number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Device {
    pub user: usize,
    pub kind: usize,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}'s {}", USERS[self.user], DEVICES[self.kind])
    }
}

/// An online-only message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sending {
    /// To this user, or to both.
    pub to: Option<usize>,
    pub every_device: bool,
    pub ttl_ms: u64,
    /// With a collapse key, the same for all.
    pub collapses: bool,
    /// So much is added to the payload.
    pub filling: usize,
}

/// Something that happens. What can't happen now does nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    Opens {
        device: Device,
        node: usize,
        state: DeviceState,
    },
    /// Of a device's streams, the oldest one.
    Closes(Device),
    Stalls(Device),
    Reads(Device),
    /// One that stalls takes one piece of what waits.
    Takes(Device),
    Sends {
        node: usize,
        sending: Sending,
    },
    /// The last message is sent once more with its key.
    Repeats {
        node: usize,
    },
    Says {
        device: Device,
        node: usize,
        state: DeviceState,
    },
    Kicks {
        device: Device,
        node: usize,
    },
    Passes {
        ms: u64,
    },
    Weathers {
        node: usize,
        weather: Weather,
    },
    Pauses {
        node: usize,
    },
    Resumes {
        node: usize,
    },
    Dies {
        node: usize,
    },
    Starts {
        node: usize,
    },
    Lapses {
        node: usize,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Opens { device, node, state } => write!(f, "{device} opens a stream on {}, {state:?}", NODES[node]),
            Self::Closes(device) => write!(f, "{device} closes its oldest stream"),
            Self::Stalls(device) => write!(f, "{device} stops reading"),
            Self::Reads(device) => write!(f, "{device} reads again"),
            Self::Takes(device) => write!(f, "{device} takes one piece"),
            Self::Sends { node, sending } => {
                let Sending { to, every_device, ttl_ms, collapses, filling } = sending;
                let to = to.map_or("both", |user| USERS[user]);
                let devices = if every_device { "every device" } else { "one device" };
                write!(f, "{} sends to {to}, {devices}, ttl {ttl_ms} ms", NODES[node])?;
                write!(f, "{}", if collapses { ", with the collapse key" } else { "" })?;
                if filling > 0 { write!(f, ", {filling} bytes more") } else { Ok(()) }
            }
            Self::Repeats { node } => write!(f, "{} is sent the last message again", NODES[node]),
            Self::Says { device, node, state } => write!(f, "{device} says on {} that it is {state:?}", NODES[node]),
            Self::Kicks { device, node } => write!(f, "{device} is kicked on {}", NODES[node]),
            Self::Passes { ms } => write!(f, "{ms} ms pass"),
            Self::Weathers { node, weather } => write!(f, "the weather at {} is {weather:?}", NODES[node]),
            Self::Pauses { node } => write!(f, "{} is paused", NODES[node]),
            Self::Resumes { node } => write!(f, "{} is resumed", NODES[node]),
            Self::Dies { node } => write!(f, "{} dies", NODES[node]),
            Self::Starts { node } => write!(f, "{} is started again", NODES[node]),
            Self::Lapses { node } => write!(f, "the lease of {} runs out", NODES[node]),
        }
    }
}

/// The story of a seed.
pub fn draw(seed: u64, steps: usize) -> Vec<Step> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..steps).map(|_| step(&mut random)).collect()
}

fn step(random: &mut StdRng) -> Step {
    let node = random.random_range(0..NODES.len());
    // Two devices of one user meet more often than any two.
    let user = usize::from(random.random_range(0..4) == 0);
    let device = Device { user, kind: random.random_range(0..DEVICES.len()) };
    let state = if random.random_range(0..3) == 0 { DeviceState::Background } else { DeviceState::Active };
    match random.random_range(0..120) {
        0..18 => Step::Opens { device, node, state },
        18..23 => Step::Closes(device),
        23..29 => Step::Stalls(device),
        29..34 => Step::Reads(device),
        34..42 => Step::Takes(device),
        42..74 => Step::Sends { node, sending: sending(random) },
        74..77 => Step::Repeats { node },
        77..80 => Step::Says { device, node, state },
        80..81 => Step::Kicks { device, node },
        81..99 => Step::Passes { ms: pick(random, &[1, 5, 20, 60, 200, 1_000]) },
        99..109 => Step::Weathers { node, weather: weather(random) },
        109..111 => Step::Pauses { node },
        111..114 => Step::Resumes { node },
        114..115 => Step::Dies { node },
        115..118 => Step::Starts { node },
        _ => Step::Lapses { node },
    }
}

fn sending(random: &mut StdRng) -> Sending {
    Sending {
        to: pick(random, &[Some(0), Some(0), Some(0), Some(1), None]),
        every_device: random.random_range(0..3) == 0,
        ttl_ms: pick(random, &[10, 100, 5_000]),
        collapses: random.random_range(0..4) == 0,
        filling: pick(random, &[0, 0, 0, 600]),
    }
}

fn weather(random: &mut StdRng) -> Weather {
    let late = Weather::Late(pick(random, &[1, 10, 100, 400]));
    let others = [Weather::LosesOffers, Weather::LosesReplies, Weather::Doubles, Weather::Away];
    pick(random, &[Weather::Fine, Weather::Fine, Weather::Fine, late, late, others[0], others[1], others[2], others[3]])
}

fn pick<T: Copy>(random: &mut StdRng, from: &[T]) -> T {
    from[random.random_range(0..from.len())]
}

/// The same story with less in it, as long as it still ends badly: first fewer steps, then simpler ones.
pub fn shrink(mut story: Vec<Step>, ends_badly: impl Fn(&[Step]) -> bool) -> Vec<Step> {
    let mut bite = story.len().div_ceil(2);
    loop {
        let before = story.len();
        let mut at = 0;
        while at < story.len() {
            let mut shorter = story.clone();
            shorter.drain(at..(at + bite).min(story.len()));
            if ends_badly(&shorter) {
                story = shorter;
            } else {
                at += bite;
            }
        }
        if bite == 1 && story.len() == before {
            break;
        }
        bite = bite.div_ceil(2);
    }
    for at in 0..story.len() {
        for simpler in simpler(story[at]) {
            let mut other = story.clone();
            other[at] = simpler;
            if ends_badly(&other) {
                story = other;
            }
        }
    }
    story
}

fn simpler(step: Step) -> Vec<Step> {
    match step {
        Step::Sends { node, sending } => {
            let plain = Sending { filling: 0, collapses: false, ttl_ms: 5_000, ..sending };
            let sends = |sending| Step::Sends { node, sending };
            vec![sends(plain), sends(Sending { to: Some(0), ..plain }), sends(Sending { to: Some(1), ..plain })]
        }
        Step::Opens { device, node, .. } => vec![Step::Opens { device, node, state: DeviceState::Active }],
        Step::Passes { .. } => [1, 5, 20, 60, 200].into_iter().rev().map(|ms| Step::Passes { ms }).collect(),
        Step::Weathers { node, weather: Weather::Late(_) } => {
            [1, 10, 100].into_iter().rev().map(|ms| Step::Weathers { node, weather: Weather::Late(ms) }).collect()
        }
        Step::Closes(_)
        | Step::Stalls(_)
        | Step::Reads(_)
        | Step::Takes(_)
        | Step::Repeats { .. }
        | Step::Says { .. }
        | Step::Kicks { .. }
        | Step::Weathers { .. }
        | Step::Pauses { .. }
        | Step::Resumes { .. }
        | Step::Dies { .. }
        | Step::Starts { .. }
        | Step::Lapses { .. } => vec![],
    }
}
