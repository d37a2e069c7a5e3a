//! Where a message stands in a trace that began elsewhere: the W3C's trace context, as two headers and as one column.

use std::fmt;
use std::sync::Arc;

/// A `tracestate` that is longer is dropped, as the W3C allows.
const STATE_BYTES: usize = 512;
const STATE_MEMBERS: usize = 32;

/// The trace that something belongs to, and the span in it that caused it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TraceContext {
    /// Never 0.
    pub trace: u128,
    /// Never 0.
    pub span: u64,
    /// 1: sampled.
    pub flags: u8,
    /// What tracing systems pass along, never empty.
    pub state: Option<Arc<str>>,
}

impl TraceContext {
    /// Reads the two headers. `None` if the first is malformed; a malformed second is as none.
    pub fn of_headers(traceparent: &str, tracestate: Option<&str>) -> Option<Self> {
        let mut fields = traceparent.trim_ascii().split('-');
        let [version, trace, span, flags] = std::array::from_fn(|_| fields.next());
        let version = hex(version?, 2)?;
        // Later versions may only add fields.
        if version == 0xff || (version == 0 && fields.next().is_some()) {
            return None;
        }
        let (trace, span) = (hex(trace?, 32)?, u64::try_from(hex(span?, 16)?).ok()?);
        let flags = u8::try_from(hex(flags?, 2)?).ok()?;
        (trace != 0 && span != 0).then(|| Self { trace, span, flags, state: tracestate.and_then(state) })
    }

    /// Reads what [`TraceContext::to_column`] wrote.
    pub fn of_column(text: &str) -> Option<Self> {
        match text.split_once(' ') {
            Some((traceparent, tracestate)) => Self::of_headers(traceparent, Some(tracestate)),
            None => Self::of_headers(text, None),
        }
    }

    /// As a store keeps it: the `traceparent`, and after a space the `tracestate` if there is one.
    pub fn to_column(&self) -> String {
        match &self.state {
            Some(state) => format!("{self} {state}"),
            None => self.to_string(),
        }
    }
}

/// The value of `traceparent`.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

/// So many digits, small ones only.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    (text.len() == digits && text.bytes().all(is_digit)).then(|| u128::from_str_radix(text, 16).ok())?
}

/// The members, without the spaces that may stand around them.
fn state(text: &str) -> Option<Arc<str>> {
    let members: Vec<&str> = text.split(',').map(str::trim_ascii).filter(|member| !member.is_empty()).collect();
    let state = members.join(",");
    let is_sane = members.len() <= STATE_MEMBERS
        && (1..=STATE_BYTES).contains(&state.len())
        && state.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
        && members
            .iter()
            .all(|member| member.split_once('=').is_some_and(|(key, value)| is_key(key) && !value.contains('=')));
    is_sane.then(|| state.into())
}

fn is_key(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-*/@".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01";

    #[test]
    fn a_context_comes_out_of_headers_and_column_as_it_went_in() {
        let bare = TraceContext::of_headers(PARENT, None).unwrap();
        assert_eq!((bare.trace, bare.span), (0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, 0x00f0_67aa_0ba9_02b7));
        assert_eq!((bare.flags, bare.state.as_ref(), bare.to_string()), (1, None, PARENT.to_owned()));
        let full = TraceContext::of_headers(PARENT, Some("congo=t61 rcWkgMzE , rojo=00f0,")).unwrap();
        assert_eq!(full.state.as_deref(), Some("congo=t61 rcWkgMzE,rojo=00f0"));
        for context in [bare, full] {
            assert_eq!(TraceContext::of_column(&context.to_column()), Some(context));
        }
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        let later = TraceContext::of_headers(&format!("cc{}-more", &PARENT[2..]), None).unwrap();
        assert_eq!(later.to_string(), PARENT);
    }

    #[test]
    fn what_is_malformed_is_no_context() {
        for text in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7",
            "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01-more",
            "00-0AF7651916CD43DD8448EB211C80319C-00f067aa0ba902b7-01",
            "00-0af7651916cd43dd8448eb211c80319-00f067aa0ba902b7-01",
            "00-+af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-0g",
            "ff-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::of_headers(text, None), None, "{text:?}");
        }
    }

    #[test]
    fn a_malformed_state_is_as_none() {
        let long = format!("a={}", "x".repeat(STATE_BYTES));
        let many = vec!["a=b"; STATE_MEMBERS + 1].join(",");
        for text in ["", " , ", "novalue", "=x", "A=x", "a=b=c", "a=\u{e4}", "a=\r\nx: y", &long, &many] {
            let context = TraceContext::of_headers(PARENT, Some(text)).unwrap();
            assert_eq!(context.state, None, "{text:?}");
        }
    }
}
