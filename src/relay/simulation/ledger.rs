//! What was sent, what devices took and what senders were told, and whether these agree (CONTRACT.md 10.2, 10.3).

use super::story::{DEVICES, Device, Sending, USERS};
use crate::domain::message::Outcome;
use crate::relay::handle::Error;
use crate::relay::online_only::{RecipientReport, Report};
use std::collections::BTreeMap;

/// How often what was answered.
pub type Answers = BTreeMap<&'static str, u64>;

const PRESENCE_UNAVAILABLE: &str = "presence_unavailable";

/// One message.
struct Sent {
    node: usize,
    sending: Sending,
    taken: Vec<Device>,
    /// Nobody will ever get it there, said an answer: the user, and in which word.
    ruled_out: Vec<(usize, String)>,
    is_answered: bool,
    /// It was sent with its key more than once: what one of the calls did not do, another may have done.
    is_repeated: bool,
    /// The node that was to answer has died.
    is_orphan: bool,
}

/// See the module's text.
#[derive(Default)]
pub struct Ledger {
    messages: Vec<Sent>,
    pub answers: Answers,
    /// The first disagreement.
    pub broken: Option<String>,
}

impl Ledger {
    /// A message begins its way; its number.
    pub fn sent(&mut self, node: usize, sending: Sending) -> usize {
        let sent = Sent {
            node,
            sending,
            taken: vec![],
            ruled_out: vec![],
            is_answered: false,
            is_repeated: false,
            is_orphan: false,
        };
        self.messages.push(sent);
        self.messages.len() - 1
    }

    /// The last message.
    pub fn last(&self) -> Option<(usize, Sending)> {
        self.messages.last().map(|sent| (self.messages.len() - 1, sent.sending))
    }

    /// What this node has not answered by now, it never will.
    pub fn orphaned(&mut self, node: usize) {
        self.messages.iter_mut().filter(|sent| sent.node == node && !sent.is_answered).for_each(|s| s.is_orphan = true);
    }

    /// A device got a message whole.
    pub fn took(&mut self, number: usize, device: Device) {
        let sent = &mut self.messages[number];
        let before = sent.taken.iter().find(|other| {
            let same_device = other.kind == device.kind;
            other.user == device.user && (same_device || !sent.sending.every_device)
        });
        let flaw = if !sent.sending.users().contains(&device.user) {
            Some(format!("{device} got message {number}, which was not for it"))
        } else if let Some(before) = before {
            Some(format!("message {number} was taken by {before} and then by {device}"))
        } else if let Some((_, word)) = sent.ruled_out.iter().find(|(user, _)| *user == device.user) {
            Some(format!("message {number} was answered `{word}` and then taken by {device}"))
        } else {
            None
        };
        sent.taken.push(device);
        self.note(flaw);
    }

    /// A message is sent once more with its key.
    pub fn repeated(&mut self, number: usize) {
        let sent = &mut self.messages[number];
        sent.is_repeated = true;
        sent.ruled_out.retain(|(_, word)| word != PRESENCE_UNAVAILABLE);
    }

    /// The sender was told.
    pub fn answered(&mut self, number: usize, answer: Result<Report, Error>) {
        let sent = &mut self.messages[number];
        sent.is_answered = true;
        match answer {
            Ok(report) => self.reported(number, &report),
            Err(Error::PresenceUnavailable(_)) => {
                if !sent.is_repeated {
                    for user in sent.sending.users() {
                        self.ruled_out(number, user, PRESENCE_UNAVAILABLE);
                    }
                }
                self.count(PRESENCE_UNAVAILABLE);
            }
            Err(Error::KeyInProgress) if sent.is_repeated => self.count("in_progress"),
            Err(error) => self.note(Some(format!("message {number} was answered: {error}"))),
        }
    }

    /// How many devices of a user have it.
    pub fn takers(&self, number: usize, user: usize) -> usize {
        self.messages[number].taken.iter().filter(|device| device.user == user).count()
    }

    /// All messages that were to be answered by the end of the story are.
    pub fn close(&mut self) {
        let silent = self.messages.iter().position(|sent| !sent.is_answered && !sent.is_orphan);
        self.note(silent.map(|number| format!("message {number} was never answered")));
    }

    /// The first disagreement counts.
    pub fn note(&mut self, flaw: Option<String>) {
        self.broken = self.broken.take().or(flaw);
    }

    fn reported(&mut self, number: usize, report: &Report) {
        let users = self.messages[number].sending.users();
        let named: Vec<_> = report.recipients.iter().flatten().map(|recipient| recipient.user.as_str()).collect();
        let counted: u32 = Outcome::ALL.iter().map(|outcome| report.summary.of(*outcome)).sum();
        if counted as usize != users.len() || !named.iter().eq(users.iter().map(|user| &USERS[*user])) {
            self.note(Some(format!("message {number} to {users:?} was reported as {report:?}")));
        }
        for (user, recipient) in users.into_iter().zip(report.recipients.iter().flatten()) {
            self.count(recipient.outcome.as_str());
            self.recipient_reported(number, user, recipient);
        }
    }

    fn recipient_reported(&mut self, number: usize, user: usize, recipient: &RecipientReport) {
        let sent = &self.messages[number];
        let word = recipient.outcome.as_str();
        let kind = |device: &str| DEVICES.iter().position(|kind| *kind == device).unwrap();
        let devices: Vec<_> = recipient.devices.iter().map(|d| Device { user, kind: kind(d.as_str()) }).collect();
        match recipient.outcome {
            Outcome::Delivered => {
                let liar = devices.iter().find(|device| !sent.taken.contains(device));
                let flaw =
                    liar.map(|device| format!("message {number} was answered `{word}` to {device}, which lacks it"));
                let is_named = if sent.sending.every_device { !devices.is_empty() } else { devices.len() == 1 };
                self.note(flaw);
                self.note((!is_named).then(|| format!("message {number} was answered `{word}` to {devices:?}")));
            }
            Outcome::Unconfirmed => {}
            Outcome::Offline | Outcome::Expired | Outcome::Superseded => self.ruled_out(number, user, word),
        }
    }

    fn ruled_out(&mut self, number: usize, user: usize, word: &str) {
        let sent = &mut self.messages[number];
        let taker = sent.taken.iter().find(|device| device.user == user);
        let flaw = taker.map(|device| format!("message {number} was taken by {device} and then answered `{word}`"));
        sent.ruled_out.push((user, word.to_owned()));
        self.note(flaw);
    }

    fn count(&mut self, answer: &'static str) {
        *self.answers.entry(answer).or_default() += 1;
    }
}

impl Sending {
    /// To whom it goes, by number.
    pub fn users(&self) -> Vec<usize> {
        self.to.map_or((0..USERS.len()).collect(), |user| vec![user])
    }
}
