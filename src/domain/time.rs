//! Points in time as the wire shows them: RFC 3339 in UTC with milliseconds (CONTRACT.md 1).

use jiff::Timestamp as Instant;
use jiff::fmt::temporal::DateTimePrinter;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::time::{Duration, SystemTime};

/// A wall-clock time in milliseconds since the Unix epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Timestamp(i64);

/// `+` and `-` of durations saturate here: a day before the end of the year 9999, which is the last that jiff and RFC 3339 can write in any time zone.
const LAST_MS: i64 = 253_402_207_200_000;

impl Timestamp {
    /// The time now, by this machine's clock.
    pub fn now() -> Self {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self::from_ms(i64::try_from(since_epoch.as_millis()).unwrap_or(LAST_MS))
    }

    /// From milliseconds since the Unix epoch, held within the years that RFC 3339 can write.
    pub fn from_ms(ms: i64) -> Self {
        Self(ms.clamp(0, LAST_MS))
    }

    /// Milliseconds since the Unix epoch.
    pub fn as_ms(self) -> i64 {
        self.0
    }

    /// Whole seconds since the Unix epoch, as `webhook-timestamp` and JWT claims count.
    pub fn as_s(self) -> i64 {
        self.0 / 1000
    }

    /// This much later.
    #[must_use]
    pub fn plus(self, d: Duration) -> Self {
        Self::from_ms(self.0.saturating_add(i64::try_from(d.as_millis()).unwrap_or(LAST_MS)))
    }

    /// This much earlier.
    #[must_use]
    pub fn minus(self, d: Duration) -> Self {
        Self::from_ms(self.0.saturating_sub(i64::try_from(d.as_millis()).unwrap_or(LAST_MS)))
    }

    /// How long after `earlier` this is; zero if it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0 - earlier.0).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(3));
        let at = Instant::from_millisecond(self.0).map_err(|_| fmt::Error)?;
        PRINTER.print_timestamp(&at, jiff::fmt::StdFmtWrite(f)).map_err(|_| fmt::Error)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        let at: Instant = text.parse().map_err(serde::de::Error::custom)?;
        Ok(Self::from_ms(at.as_millisecond()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_written_in_utc_with_milliseconds_and_read_back() {
        let t = Timestamp::from_ms(1_763_942_400_007);
        assert_eq!(t.to_string(), "2025-11-24T00:00:00.007Z");
        assert_eq!(serde_json::from_str::<Timestamp>(&serde_json::to_string(&t).unwrap()).unwrap(), t);
        assert_eq!(Timestamp::from_ms(0).to_string(), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn arithmetic_saturates_at_what_can_be_written() {
        let far = Timestamp::now().plus(Duration::from_secs(u64::MAX / 2000));
        assert_eq!(far.to_string(), "9999-12-30T22:00:00.000Z");
        assert_eq!(Timestamp::from_ms(5).minus(Duration::from_secs(1)).as_ms(), 0);
    }
}
