//! What was sent, answered and received, and whether it adds up.

use super::world::User;
use crate::harness::{Event, Value};
use crate::support::text;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a sender heard of an online-only message.
pub enum Fate {
    Answered(Value),
    /// Presence was unknown.
    Refused,
    /// The connection ended before.
    Unanswered,
}

/// An online-only message.
pub struct Whisper {
    /// Which no other has.
    pub canary: String,
    pub to: Vec<usize>,
    pub every_device: bool,
    pub fate: Fate,
    /// No device left after it was delivered.
    pub is_to_arrive: bool,
}

/// A persisted message that was answered 201.
pub struct Chat {
    pub id: String,
    /// User and cursor.
    pub places: Vec<(usize, usize)>,
}

pub struct Ledger {
    whispers: Mutex<Vec<Whisper>>,
    chats: Mutex<Vec<Chat>>,
    /// Which devices saw an online-only message.
    seen: Mutex<HashMap<String, Vec<usize>>>,
    /// Per device, the ids of persisted messages in the order in which they came; their cursors are 1, 2, 3 …
    inboxes: Vec<Mutex<Vec<String>>>,
    streams: AtomicUsize,
    tries_again: AtomicUsize,
    flaws: Mutex<Vec<String>>,
}

impl Ledger {
    pub fn new(devices: usize) -> Self {
        Self {
            whispers: Mutex::default(),
            chats: Mutex::default(),
            seen: Mutex::default(),
            inboxes: (0..devices).map(|_| Mutex::default()).collect(),
            streams: AtomicUsize::new(0),
            tries_again: AtomicUsize::new(0),
            flaws: Mutex::default(),
        }
    }

    /// What must not be.
    pub fn flaw(&self, text: String) {
        self.flaws.lock().push(text);
    }

    pub fn sent(&self, whisper: Whisper) {
        self.whispers.lock().push(whisper);
    }

    pub fn stored_as(&self, chat: Chat) {
        self.chats.lock().push(chat);
    }

    /// A device has come.
    pub fn opened(&self) {
        self.streams.fetch_add(1, Ordering::Relaxed);
    }

    /// A persisted send had no 201.
    pub fn tried_again(&self) {
        self.tries_again.fetch_add(1, Ordering::Relaxed);
    }

    /// The last cursor that a device saw; 0 if none.
    pub fn last_seen(&self, device: usize) -> usize {
        self.inboxes[device].lock().len()
    }

    /// A device received a message.
    pub fn take(&self, device: usize, event: &Event) {
        let message = event.json();
        let Some(cursor) = &event.id else {
            self.seen.lock().entry(text(&message["payload"]["canary"])).or_default().push(device);
            return;
        };
        let mut inbox = self.inboxes[device].lock();
        if *cursor == (inbox.len() + 1).to_string() {
            inbox.push(text(&message["id"]));
        } else {
            self.flaw(format!("device {device} got {cursor} after {}", inbox.len()));
        }
    }

    /// The ids of all that was answered 201.
    pub fn stored(&self) -> HashSet<String> {
        self.chats.lock().iter().map(|chat| chat.id.clone()).collect()
    }

    /// Per user, what must be in the inbox.
    fn wanted(&self, users: &[User]) -> Vec<BTreeMap<usize, String>> {
        let mut wanted = vec![BTreeMap::new(); users.len()];
        for chat in self.chats.lock().iter() {
            for (user, cursor) in &chat.places {
                if wanted[*user].insert(*cursor, chat.id.clone()).is_some() {
                    self.flaw(format!("cursor {cursor} of {} was given twice", users[*user].name));
                }
            }
        }
        wanted
    }

    /// Whether devices have seen as many persisted messages as there are, and what must still arrive has.
    pub fn all_seen(&self, users: &[User]) -> Result<(), String> {
        let wanted = self.wanted(users);
        let behind = users.iter().zip(&wanted).flat_map(|(user, wanted)| {
            user.devices.iter().filter(move |device| self.last_seen(**device) < wanted.len())
        });
        let behind = behind.count();
        let seen = self.seen.lock();
        let whispers = self.whispers.lock();
        let missing = whispers.iter().filter(|whisper| whisper.is_to_arrive && !seen.contains_key(&whisper.canary));
        let missing = missing.count();
        if (behind, missing) == (0, 0) {
            return Ok(());
        }
        Err(format!("{behind} devices are behind, {missing} online-only messages are missing"))
    }

    /// Fails unless it adds up; gives the table.
    #[track_caller]
    pub fn settle(&self, users: &[User]) -> String {
        let wanted = self.wanted(users);
        let mut received_chats = 0;
        for (user, wanted) in users.iter().zip(&wanted) {
            if wanted.keys().copied().ne(1..=wanted.len()) {
                self.flaw(format!("cursors of {}: {:?}", user.name, wanted.keys()));
            }
            for device in &user.devices {
                let inbox = self.inboxes[*device].lock();
                received_chats += inbox.len();
                if !inbox.iter().eq(wanted.values()) {
                    self.flaw(format!("{}, device {device}: {} of {}", user.name, inbox.len(), wanted.len()));
                }
            }
        }
        let places: usize = wanted.iter().map(BTreeMap::len).sum();

        let mut seen = self.seen.lock();
        let whispers = self.whispers.lock();
        let mut sum = BTreeMap::<&str, [usize; 2]>::new();
        for whisper in whispers.iter() {
            let receivers = seen.remove(&whisper.canary).unwrap_or_default();
            self.settle_one(whisper, &receivers, users, &mut sum);
        }
        if !seen.is_empty() {
            self.flaw(format!("nobody sent what came: {seen:?}"));
        }
        let flaws = self.flaws.lock();
        assert!(flaws.is_empty(), "{} flaws, such as {:#?}", flaws.len(), &flaws[..flaws.len().min(20)]);

        let mut table = String::from("| | recipients | of those: received on a device |\n| --- | --- | --- |\n");
        let total = sum.values().fold([0, 0], |[a, b], [c, d]| [a + c, b + d]);
        let _ = writeln!(table, "| online-only, sent ({} messages) | {} | {} |", whispers.len(), total[0], total[1]);
        for outcome in ["delivered", "offline", "unconfirmed", "expired", "superseded", "503", "no answer"] {
            let [recipients, received] = sum.get(outcome).copied().unwrap_or_default();
            let _ = writeln!(table, "| … {outcome} | {recipients} | {received} |");
        }
        let chats = self.chats.lock().len();
        let _ = writeln!(table, "| persisted, answered 201 ({chats} messages) | {places} | all, on every device |\n");
        let _ = writeln!(
            table,
            "| | |\n| --- | --- |\n| persisted messages received, over all devices | {received_chats} |"
        );
        let again = self.tries_again.load(Ordering::Relaxed);
        let _ = writeln!(table, "| persisted sends repeated for want of an answer 201 | {again} |");
        table
    }

    /// Counts recipients by outcome, and those that received it.
    fn settle_one<'a>(
        &self,
        whisper: &Whisper,
        receivers: &[usize],
        users: &[User],
        sum: &mut BTreeMap<&'a str, [usize; 2]>,
    ) {
        let canary = &whisper.canary;
        let outcomes: Vec<&'a str> = match &whisper.fate {
            Fate::Refused => vec!["503"; whisper.to.len()],
            Fate::Unanswered => vec!["no answer"; whisper.to.len()],
            Fate::Answered(answer) => {
                let summary: u64 = answer["summary"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
                let recipients = answer["recipients"].as_array().unwrap();
                let told = recipients.iter().map(|recipient| recipient["user"].as_str().unwrap());
                if summary != whisper.to.len() as u64 || told.ne(whisper.to.iter().map(|user| &*users[*user].name)) {
                    self.flaw(format!("it doesn't add up: {answer}"));
                }
                recipients.iter().map(|recipient| outcome(&recipient["outcome"])).collect()
            }
        };
        let mut others: BTreeSet<usize> = receivers.iter().copied().collect();
        if others.len() != receivers.len() {
            self.flaw(format!("{canary} came twice to one device: {receivers:?}"));
        }
        for (user, outcome) in whisper.to.iter().map(|user| &users[*user]).zip(outcomes) {
            let received = user.devices.iter().filter(|device| others.remove(device)).count();
            if received > 1 && !whisper.every_device {
                self.flaw(format!("{canary}, for one device, came to {received} of {}", user.name));
            }
            if received > 0 && !matches!(outcome, "delivered" | "unconfirmed" | "no answer") {
                self.flaw(format!("{canary} is {outcome}, and came to {}", user.name));
            }
            let count = sum.entry(outcome).or_default();
            count[0] += 1;
            count[1] += usize::from(received > 0);
        }
        if !others.is_empty() {
            self.flaw(format!("{canary} came to who is no recipient: {others:?}"));
        }
    }
}

fn outcome(value: &Value) -> &'static str {
    const ALL: [&str; 5] = ["delivered", "offline", "unconfirmed", "expired", "superseded"];
    ALL.into_iter().find(|outcome| value == outcome).unwrap_or_else(|| panic!("no outcome: {value}"))
}

/// It finds what it is there to find.
mod holds {
    use super::*;
    use crate::harness::json;

    /// One user with two devices, to whom one message was sent.
    fn told(outcome: &str, receivers: &[usize]) {
        let ledger = Ledger::new(2);
        let mut summary = json!({"delivered": 0, "offline": 0, "unconfirmed": 0, "expired": 0, "superseded": 0});
        summary[outcome] = json!(1);
        let answer = json!({"summary": summary, "recipients": [{"user": "bob", "outcome": outcome, "devices": []}]});
        ledger.sent(Whisper {
            canary: "message".to_owned(),
            to: vec![0],
            every_device: false,
            fate: Fate::Answered(answer),
            is_to_arrive: false,
        });
        for device in receivers {
            let data = json!({"payload": {"canary": "message"}}).to_string();
            ledger.take(*device, &Event { data, ..Event::default() });
        }
        ledger.settle(&users());
    }

    fn users() -> [User; 1] {
        [User { name: "bob".to_owned(), devices: vec![0, 1] }]
    }

    /// The same user, whose first message is stored, and then comes to the devices with these cursors.
    fn stored(arrivals: &[(usize, &str)]) {
        let ledger = Ledger::new(2);
        ledger.stored_as(Chat { id: "message".to_owned(), places: vec![(0, 1)] });
        for (device, cursor) in arrivals {
            let data = json!({"id": "message"}).to_string();
            ledger.take(*device, &Event { data, id: Some((*cursor).to_owned()), ..Event::default() });
        }
        ledger.settle(&users());
    }

    #[test]
    fn what_adds_up() {
        told("delivered", &[1]);
        told("unconfirmed", &[]);
        stored(&[(0, "1"), (1, "1")]);
    }

    #[test]
    #[should_panic(expected = "came twice to one device")]
    fn one_that_comes_twice() {
        told("delivered", &[0, 0]);
    }

    #[test]
    #[should_panic(expected = "for one device, came to 2")]
    fn one_that_comes_to_two_devices() {
        told("delivered", &[0, 1]);
    }

    #[test]
    #[should_panic(expected = "is offline, and came to bob")]
    fn an_outcome_that_is_not_so() {
        told("offline", &[0]);
    }

    #[test]
    #[should_panic(expected = "bob, device 1: 0 of 1")]
    fn one_that_a_device_lacks() {
        stored(&[(0, "1")]);
    }

    #[test]
    #[should_panic(expected = "device 0 got 2 after 0")]
    fn a_gap() {
        stored(&[(0, "2"), (1, "1")]);
    }
}
