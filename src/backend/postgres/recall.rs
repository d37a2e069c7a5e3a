//! Taking a message back (CONTRACT.md 7): it leaves every inbox in one transaction, and its numbers become holes.

use super::columns::{Result, spots, state};
use super::connect::end;
use super::read::named;
use crate::backend::durable::fanout::BITE;
use crate::backend::durable::forms::{endpoint_number, number};
use crate::domain::callback::{CallbackState, Endpoint};
use crate::domain::seat::UserId;
use crate::domain::time::Timestamp;
use deadpool_postgres::Object;
use uuid::Uuid;

/// A recall, however often it is run.
pub(super) struct Recall {
    pub id: Uuid,
    pub now: Timestamp,
    /// To be made, and for whom it is leased.
    pub callback: Option<(Uuid, Option<Uuid>)>,
    /// Whose inboxes it left by an earlier run of which isn't known whether it was committed.
    pub in_doubt: Option<Vec<UserId>>,
}

impl Recall {
    /// See [`crate::ports::Store::recall`]: whose inboxes it was in.
    pub async fn run(&mut self, db: &Object) -> Result<Option<Vec<UserId>>> {
        db.batch_execute("BEGIN").await?;
        let recipients = match self.write(db).await {
            Ok(Some(recipients)) => recipients,
            // The lock waited for the end of the earlier run: as the message is gone now, that was it.
            Ok(None) => return end(db, Ok(self.in_doubt.take())).await,
            Err(failure) => return end(db, Err(failure)).await,
        };
        self.in_doubt = Some(recipients.clone());
        end(db, Ok(Some(recipients))).await
    }

    async fn write(&self, db: &Object) -> Result<Option<Vec<UserId>>> {
        let found = db
            .query_opt(
                "SELECT recipients, storage_state FROM message WHERE id = $1 AND NOT kept AND expires_at > $2
                 FOR UPDATE",
                &[&self.id, &self.now.as_ms()],
            )
            .await?;
        let Some(row) = found else { return Ok(None) };
        let spots = spots(&row, 0)?;
        let take_out = db
            .prepare_cached(
                "UPDATE inbox i SET expires_at = 0
                 FROM unnest($1::bigint[], $2::bigint[], $3::uuid[]) AS t (user_id, cursor, message)
                 WHERE i.user_id = t.user_id AND i.cursor = t.cursor AND i.message = t.message",
            )
            .await?;
        for part in spots.chunks(BITE) {
            let (users, cursors): (Vec<i64>, Vec<i64>) = part.iter().map(|&(user, at)| (user, number(at))).unzip();
            // A list too, though it is one: a server that expects few rows of a message would find those first, and look through the parts
            // for each.
            db.execute(&take_out, &[&users, &cursors, &vec![self.id; part.len()]]).await?;
        }
        // One that is dead may be tried again by the operator.
        let wanted = matches!(state(&row, 1)?, CallbackState::Waiting | CallbackState::Failing | CallbackState::Dead);
        let forget = if wanted {
            "UPDATE message SET kept = TRUE, brief = NULL WHERE id = $1"
        } else {
            "DELETE FROM message WHERE id = $1"
        };
        db.execute(forget, &[&self.id]).await?;
        if let Some((callback, holder)) = self.callback {
            db.execute(
                "INSERT INTO outbox (id, endpoint, due_at, message, recalled, holder) VALUES ($1, $2, $3, $4, TRUE, $5)",
                &[&callback, &endpoint_number(Endpoint::Storage), &self.now.as_ms(), &self.id, &holder],
            )
            .await?;
        }
        Ok(Some(named(db, &spots).await?.into_iter().map(|(user, _)| user).collect()))
    }
}
