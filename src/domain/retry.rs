//! When a failed callback is tried again, and how an endpoint fares. Pure: time is an argument.

use super::time::Timestamp;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// No endpoint can pause itself for longer (CONTRACT.md 8).
pub const LONGEST_PAUSE: Duration = Duration::from_hours(1);

/// How many failures of an endpoint's own kind in a row open its breaker.
const FAILURES_TO_OPEN: u32 = 5;
/// Probes of an open breaker are never further apart.
const LONGEST_PROBE_WAIT: Duration = Duration::from_mins(1);

/// The waits between the attempts of one event. After the last of them it is dead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Schedule(Arc<[Duration]>);

impl Default for Schedule {
    /// CONTRACT.md 8: 5 s, 30 s, 2 min, 10 min, 30 min, 2 h, 5 h, 10 h, 24 h.
    fn default() -> Self {
        Self::new([5, 30, 120, 600, 1_800, 7_200, 18_000, 36_000, 86_400].map(Duration::from_secs))
    }
}

impl Schedule {
    /// A schedule of other steps.
    pub fn new(steps: impl Into<Arc<[Duration]>>) -> Self {
        Self(steps.into())
    }

    /// How long to wait after `attempts` attempts have failed, or `None` if that was the last.
    ///
    /// `luck` is any random number. It moves the wait by up to a fifth, so that what failed together does not come back together.
    pub fn wait(&self, attempts: u32, luck: u32) -> Option<Duration> {
        let step = usize::try_from(attempts.saturating_sub(1)).ok().and_then(|i| self.0.get(i))?;
        Some(step.mul_f64(0.8 + 0.4 * f64::from(luck) / f64::from(u32::MAX)))
    }
}

/// Reads a `Retry-After` header: seconds or an HTTP date, at most [`LONGEST_PAUSE`]. `None` for anything else.
pub fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    let wait = if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than fit are still a number, only a very large one.
        value.parse().map_or(LONGEST_PAUSE, Duration::from_secs)
    } else {
        let until = httpdate::parse_http_date(value).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
        Timestamp::from_ms(i64::try_from(until.as_millis()).ok()?).since(now)
    };
    Some(wait.min(LONGEST_PAUSE))
}

/// What an attempt says about the endpoint, as opposed to the event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sign {
    /// It is there: it took the event, or refused this very event.
    Alive,
    /// It could not be reached, or is not able to take any event.
    Down,
    /// It says that it is gone for good.
    Gone,
}

/// The permission for one attempt; give it back with [`Health::end`] or [`Health::cancel`].
#[derive(PartialEq, Eq, Debug)]
#[must_use = "a permission that isn't given back is lost for good"]
pub struct Pass {
    epoch: u64,
}

/// How one endpoint fares, and so how many attempts it may get: a breaker, a ramp and a pause.
///
/// Failures of its own kind in a row open the breaker. Then one attempt at a time probes it, ever more seldom, and no failure counts
/// against an event: nothing dies because a receiver was away (CONTRACT.md 10.6). The first sign of life closes it, and the number of
/// attempts at a time doubles with each round of successes until it is back at what is configured.
#[derive(Debug)]
pub struct Health {
    concurrency: usize,
    state: State,
    /// Grows when the breaker opens or closes. What began in an earlier epoch is old news when it fails.
    epoch: u64,
    /// Attempts under way that began in this epoch.
    current: usize,
    /// All attempts under way.
    in_flight: usize,
    paused_until: Option<Instant>,
}

#[derive(Debug)]
enum State {
    Closed { failures: u32, permits: usize, streak: usize },
    Open { failed_probes: u32, probe_at: Instant },
}

impl Health {
    /// An endpoint about which nothing bad is known, and how many attempts it may get at a time.
    pub fn new(concurrency: usize) -> Self {
        let concurrency = concurrency.max(1);
        let state = State::Closed { failures: 0, permits: concurrency, streak: 0 };
        Self { concurrency, state, epoch: 0, current: 0, in_flight: 0, paused_until: None }
    }

    /// From now on it may get so many attempts at a time. Those under way beyond that end as they were begun.
    pub fn set_concurrency(&mut self, concurrency: usize) {
        let concurrency = concurrency.max(1);
        if let State::Closed { permits, .. } = &mut self.state {
            // One that still ramps up goes on from where it is.
            *permits = if *permits == self.concurrency { concurrency } else { concurrency.min(*permits) };
        }
        self.concurrency = concurrency;
    }

    /// Takes the permission for an attempt, if there may be one now.
    pub fn begin(&mut self, now: Instant) -> Option<Pass> {
        let permits = match self.state {
            State::Closed { permits, .. } => permits,
            State::Open { probe_at, .. } => usize::from(probe_at <= now),
        };
        let paused = self.paused_until.is_some_and(|until| now < until);
        if paused || self.current >= permits || self.in_flight >= self.concurrency {
            return None;
        }
        self.current += 1;
        self.in_flight += 1;
        Some(Pass { epoch: self.epoch })
    }

    /// Gives back the permission for an attempt that was not made after all.
    pub fn cancel(&mut self, pass: Pass) {
        self.leave(pass);
    }

    /// Heeds the result of an attempt. Returns whether it counts against the event, if it failed.
    pub fn end(&mut self, pass: Pass, sign: Sign, now: Instant) -> bool {
        let current = self.leave(pass);
        if sign == Sign::Alive {
            self.alive(current);
            return true;
        }
        if !current {
            return false;
        }
        match &mut self.state {
            State::Closed { failures, .. } => {
                *failures += 1;
                if sign == Sign::Gone || *failures >= FAILURES_TO_OPEN {
                    self.turn(State::Open { failed_probes: 0, probe_at: now + probe_wait(0) });
                }
                true
            }
            State::Open { failed_probes, probe_at } => {
                *failed_probes = failed_probes.saturating_add(1);
                *probe_at = now + probe_wait(*failed_probes);
                false
            }
        }
    }

    /// No attempts until then: the endpoint has asked for it.
    pub fn pause(&mut self, until: Instant) {
        self.paused_until = self.paused_until.max(Some(until));
    }

    /// Whether the breaker is open.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// How many attempts are under way.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The time that has to come before an attempt may begin; `None` if it is not time that is lacking.
    pub fn waits_until(&self, now: Instant) -> Option<Instant> {
        let probe = match self.state {
            State::Closed { .. } => None,
            State::Open { probe_at, .. } => Some(probe_at),
        };
        probe.max(self.paused_until).filter(|&at| at > now)
    }

    fn alive(&mut self, current: bool) {
        match &mut self.state {
            State::Open { .. } => self.turn(State::Closed { failures: 0, permits: 1, streak: 0 }),
            State::Closed { failures, permits, streak } => {
                *failures = 0;
                *streak += usize::from(current);
                if *streak >= *permits {
                    *permits = permits.saturating_mul(2).min(self.concurrency);
                    *streak = 0;
                }
            }
        }
    }

    fn turn(&mut self, state: State) {
        self.state = state;
        self.epoch += 1;
        self.current = 0;
    }

    /// Returns whether the attempt belongs to this epoch.
    fn leave(&mut self, Pass { epoch }: Pass) -> bool {
        let current = epoch == self.epoch;
        self.current -= usize::from(current);
        self.in_flight -= 1;
        current
    }
}

/// 1 s, 2 s, 4 s ... 60 s.
fn probe_wait(failed_probes: u32) -> Duration {
    Duration::from_secs(1 << failed_probes.min(6)).min(LONGEST_PROBE_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Opens the breaker of a fresh endpoint at `now`.
    fn opened(concurrency: usize, now: Instant) -> Health {
        let mut health = Health::new(concurrency);
        for _ in 0..FAILURES_TO_OPEN {
            let pass = health.begin(now).unwrap();
            assert!(health.end(pass, Sign::Down, now), "an attempt counts while the breaker is closed");
        }
        assert!(health.is_open());
        health
    }

    #[test]
    fn the_schedule_is_the_contracts() {
        let plain: Vec<u64> = (1..=9)
            .map(|n| Schedule::default().wait(n, u32::MAX / 2).unwrap().as_secs_f64().round())
            .map(|s| format!("{s}").parse().unwrap())
            .collect();
        assert_eq!(plain, [5, 30, 120, 600, 1_800, 7_200, 18_000, 36_000, 86_400]);
        assert_eq!(Schedule::default().wait(10, 0), None, "the tenth failure is the last");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_nonsense_is_ignored() {
        let now = Timestamp::from_ms(784_111_777_000); // Sun, 06 Nov 1994 08:49:37 GMT
        assert_eq!(retry_after("120", now), Some(120 * SECOND));
        assert_eq!(retry_after(" 0 ", now), Some(Duration::ZERO));
        assert_eq!(retry_after("86400", now), Some(LONGEST_PAUSE));
        assert_eq!(retry_after("99999999999999999999999999", now), Some(LONGEST_PAUSE));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:50:07 GMT", now), Some(30 * SECOND));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:00:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(retry_after("Fri, 31 Dec 9999 23:59:59 GMT", now), Some(LONGEST_PAUSE));
        for nonsense in ["", " ", "-1", "+5", "1.5", "soon", "1e3", "120 s", "１２０"] {
            assert_eq!(retry_after(nonsense, now), None, "{nonsense:?}");
        }
    }

    #[test]
    fn one_probe_at_a_time_after_1_2_4_and_at_most_60_seconds_and_none_counts() {
        let mut now = Instant::now();
        let mut health = opened(16, now);
        for wait in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            let almost = now + Duration::from_millis(u64::from(wait) * 1_000 - 1);
            assert!(health.begin(almost).is_none());
            assert_eq!(health.waits_until(almost), Some(now + SECOND * wait));
            now += SECOND * wait;
            let probe = health.begin(now).unwrap();
            assert!(health.begin(now).is_none(), "one event probes");
            assert!(!health.end(probe, Sign::Down, now), "a probe does not count");
        }
    }

    #[test]
    fn back_up_it_ramps_from_one_to_the_concurrency() {
        let mut now = Instant::now();
        let mut health = opened(10, now);
        now += SECOND;
        let probe = health.begin(now).unwrap();
        assert!(health.end(probe, Sign::Alive, now));
        assert!(!health.is_open());
        for width in [1, 2, 4, 8, 10, 10] {
            let round: Vec<Pass> = std::iter::from_fn(|| health.begin(now)).collect();
            assert_eq!(round.len(), width);
            for pass in round {
                health.end(pass, Sign::Alive, now);
            }
        }
    }

    #[test]
    fn another_concurrency_holds_at_once_but_spares_no_ramp() {
        let now = Instant::now();
        let mut health = Health::new(4);
        let mut passes: Vec<Pass> = std::iter::from_fn(|| health.begin(now)).collect();
        health.set_concurrency(6);
        passes.extend(std::iter::from_fn(|| health.begin(now)));
        assert_eq!(passes.len(), 6);
        health.set_concurrency(2);
        for left in (0..6).rev() {
            health.end(passes.pop().unwrap(), Sign::Alive, now);
            let again = health.begin(now);
            assert_eq!(again.is_some(), left < 2, "{left}");
            if let Some(pass) = again {
                health.cancel(pass);
            }
        }
        let mut health = opened(4, now);
        health.set_concurrency(8);
        let probe = health.begin(now + SECOND).unwrap();
        health.end(probe, Sign::Alive, now);
        health.set_concurrency(16);
        assert_eq!(std::iter::from_fn(|| health.begin(now)).count(), 1);
    }

    #[test]
    fn gone_opens_at_once_and_an_events_own_fault_never_does() {
        let now = Instant::now();
        let mut health = Health::new(4);
        for _ in 0..100 {
            let pass = health.begin(now).unwrap();
            assert!(health.end(pass, Sign::Alive, now), "its own fault counts");
        }
        assert!(!health.is_open());
        let pass = health.begin(now).unwrap();
        assert!(health.end(pass, Sign::Gone, now));
        assert!(health.is_open());
    }

    #[test]
    fn a_success_between_failures_starts_the_count_anew() {
        let now = Instant::now();
        let mut health = Health::new(4);
        for sign in [[Sign::Down; 4].as_slice(), &[Sign::Alive], &[Sign::Down; 4]].concat() {
            let pass = health.begin(now).unwrap();
            health.end(pass, sign, now);
        }
        assert!(!health.is_open());
    }

    #[test]
    fn what_began_before_the_breaker_opened_neither_counts_nor_slows_the_probe() {
        let now = Instant::now();
        let mut health = Health::new(8);
        let mut passes: Vec<Pass> = std::iter::from_fn(|| health.begin(now)).collect();
        for pass in passes.drain(..5) {
            health.end(pass, Sign::Down, now);
        }
        let late = passes.pop().unwrap();
        assert!(!health.end(late, Sign::Down, now));
        assert!(health.begin(now + SECOND).is_some(), "two old ones hang, and the probe comes in time");
        let revived = passes.pop().unwrap();
        assert!(health.end(revived, Sign::Alive, now));
        assert!(!health.is_open(), "any sign of life closes");
    }

    #[test]
    fn a_pause_holds_everything_back_and_the_longest_holds() {
        let now = Instant::now();
        let mut health = Health::new(4);
        health.pause(now + 5 * SECOND);
        health.pause(now + 3 * SECOND);
        assert!(health.begin(now + 4 * SECOND).is_none());
        assert_eq!(health.waits_until(now), Some(now + 5 * SECOND));
        assert!(health.begin(now + 5 * SECOND).is_some());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Begin,
        End(usize, Sign),
        Cancel(usize),
        Pause(u64),
        Pass(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let sign = prop_oneof![1 => Just(Sign::Alive), 4 => Just(Sign::Down), 1 => Just(Sign::Gone)];
        let step = prop_oneof![
            4 => Just(Step::Begin),
            4 => (0_usize..20, sign).prop_map(|(i, s)| Step::End(i, s)),
            1 => (0_usize..20).prop_map(Step::Cancel),
            1 => (0_u64..10_000).prop_map(Step::Pause),
            2 => (0_u64..5_000).prop_map(Step::Pass),
        ];
        proptest::collection::vec(step, 0..300)
    }

    proptest! {
        #[test]
        fn a_wait_is_within_a_fifth_of_its_step(n in 1_u32..=9, luck: u32) {
            let schedule = Schedule::default();
            let (wait, step) = (schedule.wait(n, luck).unwrap(), schedule.0[n as usize - 1]);
            prop_assert!(wait >= step.mul_f64(0.799) && wait <= step.mul_f64(1.201));
        }

        #[test]
        fn retry_after_never_panics_nor_exceeds_an_hour(text in "\\PC{0,40}", ms in 0_i64..253_402_300_799_999) {
            let wait = retry_after(&text, Timestamp::from_ms(ms));
            prop_assert!(wait.is_none_or(|w| w <= LONGEST_PAUSE));
        }

        #[test]
        fn an_endpoint_is_never_overrun_and_never_forgotten(concurrency in 1_usize..12, steps in steps()) {
            let mut now = Instant::now();
            let mut health = Health::new(concurrency);
            let mut passes: Vec<Pass> = Vec::new();
            for step in steps {
                let open = health.is_open();
                match step {
                    Step::Begin => passes.extend(health.begin(now)),
                    Step::End(i, sign) if i < passes.len() => {
                        let counts = health.end(passes.remove(i), sign, now);
                        prop_assert!(!(open && sign != Sign::Alive && counts), "a failure counted while open");
                    }
                    Step::Cancel(i) if i < passes.len() => health.cancel(passes.remove(i)),
                    Step::End(..) | Step::Cancel(_) => {}
                    Step::Pause(ms) => health.pause(now + Duration::from_millis(ms)),
                    Step::Pass(ms) => now += Duration::from_millis(ms),
                }
                prop_assert_eq!(health.in_flight(), passes.len());
                prop_assert!(passes.len() <= concurrency);
                let probes = passes.iter().filter(|p| p.epoch == health.epoch).count();
                prop_assert!(!health.is_open() || probes <= 1);
            }
            for pass in passes {
                health.cancel(pass);
            }
            let at = health.waits_until(now).unwrap_or(now);
            prop_assert!(at <= now + Duration::from_mins(1));
            prop_assert!(health.begin(at).is_some());
        }
    }
}
