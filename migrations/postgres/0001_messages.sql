-- Persisted messages, inboxes, devices and callbacks (MECHANISMS.md, "The way of a persisted message").
-- Times are milliseconds since the Unix epoch. States: 0 off, 1 waiting, 2 sent, 3 failing, 4 dead, 5 not needed.

-- `user` is a reserved word. `newest`: the greatest number given out. Whoever gives numbers out locks the row until the commit, so that
-- the order of numbers is the order of committing. The row is rewritten with each message: room on its page keeps its indexes untouched.
CREATE TABLE users (
    id     BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name   TEXT COLLATE "C" NOT NULL UNIQUE,
    newest BIGINT NOT NULL DEFAULT 0
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

-- Messages and inbox rows are partitioned by the message's id: a UUIDv7 begins with its time, so a partition is a span of time that is
-- dropped as a whole, and the id alone is still the unique key. Which partitions there are stands in `span`.
-- `brief`: the expiry of a message that is kept for less than the retention, until it has left the inboxes. `kept`: it has left them and
-- is kept for its storage callback alone. `push`: NULL no push, empty a plain one, else the sender's JSON. `recipients`: pairs of user id
-- and cursor as LEB128. `synced`: the last of the recipients is the sender, who only wanted it in its own inbox too.
-- `trace`: the W3C trace context of the send, if it had one.
CREATE TABLE message (
    id               UUID NOT NULL PRIMARY KEY,
    sent_at          BIGINT NOT NULL,
    expires_at       BIGINT NOT NULL,
    brief            BIGINT,
    kept             BOOLEAN NOT NULL DEFAULT FALSE,
    storage_state    SMALLINT NOT NULL,
    storage_attempts INTEGER NOT NULL DEFAULT 0,
    sender           TEXT NOT NULL,
    grp              TEXT,
    kind             TEXT NOT NULL,
    push             BYTEA,
    recipients       BYTEA NOT NULL,
    payload          BYTEA NOT NULL,
    synced           BOOLEAN NOT NULL,
    trace            TEXT
) PARTITION BY RANGE (id);
CREATE INDEX message_brief ON message (brief) WHERE brief IS NOT NULL;

-- A key of a partitioned table must hold what it is partitioned by. That a user has each number once comes from the lock on its row.
-- `expires_at`: 0 if the message was recalled. Such a row is kept, so that its number isn't taken for one that was lost.
CREATE TABLE inbox (
    user_id       BIGINT NOT NULL,
    cursor        BIGINT NOT NULL,
    message       UUID NOT NULL,
    expires_at    BIGINT NOT NULL,
    push_state    SMALLINT NOT NULL,
    push_attempts INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (user_id, cursor, message)
) PARTITION BY RANGE (message);

-- The spans of time that have partitions: `message_p<starts_at>` and `inbox_p<starts_at>`.
CREATE TABLE span (
    starts_at BIGINT PRIMARY KEY,
    ends_at   BIGINT NOT NULL UNIQUE
);

-- The nodes that hold callbacks. A node says again and again that it is alive; what a dead one held is freed by another.
CREATE TABLE holder (
    id         UUID PRIMARY KEY,
    alive_till BIGINT NOT NULL
) WITH (fillfactor = 50);

-- Endpoint: 1 storage, 2 push. `recalled`: it tells that its message was recalled. `holder`: who has leased it. A row that is leased from the beginning and then done with, which most are,
-- is never in the index of those that are due.
CREATE TABLE outbox (
    id           UUID PRIMARY KEY,
    endpoint     SMALLINT NOT NULL,
    due_at       BIGINT NOT NULL,
    message      UUID NOT NULL,
    user_id      BIGINT,
    cursor       BIGINT,
    state        SMALLINT NOT NULL DEFAULT 1,
    attempts     INTEGER NOT NULL DEFAULT 0,
    error_status INTEGER,
    error_detail TEXT,
    recalled     BOOLEAN NOT NULL DEFAULT FALSE,
    holder       UUID
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX outbox_due ON outbox (endpoint, due_at, id) WHERE holder IS NULL;

CREATE TABLE dead (
    id           UUID PRIMARY KEY,
    endpoint     SMALLINT NOT NULL,
    due_at       BIGINT NOT NULL,
    message      UUID NOT NULL,
    user_id      BIGINT,
    cursor       BIGINT,
    attempts     INTEGER NOT NULL,
    error_status INTEGER,
    error_detail TEXT,
    recalled     BOOLEAN NOT NULL
);

CREATE TABLE device (
    user_id BIGINT NOT NULL,
    device  TEXT COLLATE "C" NOT NULL,
    acked   BIGINT,
    seen_at BIGINT NOT NULL,
    PRIMARY KEY (user_id, device)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

-- Runs of cursors that were handed to a device's stream. `noted_at`: the end of the day on which the run was last added to.
CREATE TABLE delivery (
    user_id  BIGINT NOT NULL,
    device   TEXT COLLATE "C" NOT NULL,
    first    BIGINT NOT NULL,
    last     BIGINT NOT NULL,
    noted_at BIGINT NOT NULL,
    PRIMARY KEY (user_id, device, first)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX delivery_noted ON delivery (noted_at);

-- An idempotency key and the answer that a repeat gets.
CREATE TABLE idempotency (
    key                TEXT COLLATE "C" PRIMARY KEY,
    body               BYTEA NOT NULL,
    expires_at         BIGINT NOT NULL,
    message            UUID NOT NULL,
    sent_at            BIGINT NOT NULL,
    message_expires_at BIGINT NOT NULL,
    recipients         BYTEA NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX idempotency_expiry ON idempotency (expires_at);

CREATE TABLE member (
    grp  TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (grp, name)
);

-- A group while it has members. Its version is drawn anew at every change, so that a copy of the members in memory can be told from a stale
-- one.
CREATE TABLE grp (
    name    TEXT COLLATE "C" PRIMARY KEY,
    members BIGINT NOT NULL,
    version BIGINT NOT NULL
);
CREATE SEQUENCE grp_version;
