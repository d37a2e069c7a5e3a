//! Reading Server-Sent Events, as the HTML standard has it (section 9.2.6), from chunks that may end anywhere.

use std::time::Duration;

/// One event, as its blank line completed it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Event {
    /// `event:`, or `message`.
    pub(super) name: String,
    /// The `data:` lines, joined by line feeds.
    pub(super) data: String,
}

/// The state of one stream. A new connection needs a new one.
#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    /// The last byte was a CR: an LF right after it ends no second line.
    after_cr: bool,
    past_first_line: bool,
    name: String,
    data: String,
    id: Option<String>,
    last_id: Option<String>,
    retry: Option<Duration>,
}

impl Parser {
    /// Takes the next bytes and returns the events that they complete.
    pub(super) fn push(&mut self, chunk: &[u8]) -> Vec<Event> {
        chunk.iter().filter_map(|&byte| self.byte(byte)).collect()
    }

    /// The id to resume after. It counts only once its event is complete.
    pub(super) fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref()
    }

    /// How long the server wants clients to wait before they come again.
    pub(super) fn retry(&self) -> Option<Duration> {
        self.retry
    }

    fn byte(&mut self, byte: u8) -> Option<Event> {
        let after_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
        match byte {
            b'\n' if after_cr => None,
            b'\r' | b'\n' => self.end_line(),
            _ => {
                self.line.push(byte);
                None
            }
        }
    }

    fn end_line(&mut self) -> Option<Event> {
        let bytes = std::mem::take(&mut self.line);
        let text = String::from_utf8_lossy(&bytes);
        let first = !std::mem::replace(&mut self.past_first_line, true);
        let line = if first { text.strip_prefix('\u{feff}').unwrap_or(&text) } else { &text };
        if line.is_empty() {
            return self.end_event();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        self.field(field, value.strip_prefix(' ').unwrap_or(value));
        None
    }

    /// A comment is a field without a name, so it falls through like any unknown one.
    fn field(&mut self, field: &str, value: &str) {
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            "retry" if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) => {
                self.retry = value.parse().ok().map(Duration::from_millis).or(self.retry);
            }
            _ => {}
        }
    }

    fn end_event(&mut self) -> Option<Event> {
        self.last_id.clone_from(&self.id);
        let (mut name, mut data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
        // Without a `data:` line there is no event, only its id.
        data.pop()?;
        if name.is_empty() {
            "message".clone_into(&mut name);
        }
        Some(Event { name, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(name: &str, data: &str) -> Event {
        Event { name: name.into(), data: data.into() }
    }

    fn parse(chunks: &[&[u8]]) -> (Vec<Event>, Option<String>, Option<u128>) {
        let mut parser = Parser::default();
        let events = chunks.iter().flat_map(|chunk| parser.push(chunk)).collect();
        (events, parser.last_id().map(str::to_owned), parser.retry().map(|d| d.as_millis()))
    }

    const STREAM: &str = "\u{feff}: hi\nretry: 2000\nevent: ready\ndata: {\"ü\":1}\n\n:\n\nevent: message\nid: 17\ndata: a\ndata:  b\n\
        data\n\nid: 18\n\ndata: c\nid: 9\u{0}\nretry: 1x\nnonsense: x\nevent:e\n\nid: 19\ndata: cut off";

    fn expected() -> (Vec<Event>, Option<String>, Option<u128>) {
        let events = vec![event("ready", "{\"ü\":1}"), event("message", "a\n b\n"), event("e", "c")];
        (events, Some("18".to_owned()), Some(2_000))
    }

    #[test]
    fn a_stream_reads_the_same_however_its_lines_end_and_its_chunks_are_cut() {
        for line_end in ["\n", "\r", "\r\n"] {
            let text = STREAM.replace('\n', line_end);
            let bytes = text.as_bytes();
            assert_eq!(parse(&[bytes]), expected(), "{line_end:?} whole");
            assert_eq!(parse(&bytes.chunks(1).collect::<Vec<_>>()), expected(), "{line_end:?} by bytes");
            for cut in 0..=bytes.len() {
                let (a, b) = bytes.split_at(cut);
                assert_eq!(parse(&[a, b]), expected(), "{line_end:?} cut at {cut}");
                assert_eq!(parse(&[a, b"", b]), expected());
            }
        }
    }

    #[test]
    fn the_examples_of_the_standard_read_as_it_says() {
        let (events, ..) = parse(&[b"data: YHOO\ndata: +2\ndata: 10\n\n"]);
        assert_eq!(events, [event("message", "YHOO\n+2\n10")]);
        let (events, id, _) =
            parse(&[b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n"]);
        assert_eq!(events, [event("message", "first event"), event("message", "second event")]);
        assert_eq!(id.as_deref(), Some(""));
        let (events, ..) = parse(&[b"data\n\ndata\ndata\n\ndata:"]);
        assert_eq!(events, [event("message", ""), event("message", "\n")]);
        let (events, ..) = parse(&[b"data:test\n\ndata: test\n\n"]);
        assert_eq!(events, [event("message", "test"), event("message", "test")]);
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_chunks_give_what_they_give_whole(
            bytes in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b':'), Just(b'd'), any::<u8>()], 0..200),
            size in 1_usize..20,
        ) {
            prop_assert_eq!(parse(&bytes.chunks(size).collect::<Vec<_>>()), parse(&[&bytes]));
        }
    }
}
