-- Persisted messages, inboxes, devices and callbacks (MECHANISMS.md, "The way of a persisted message").
-- Times are milliseconds since the Unix epoch. States: 0 off, 1 waiting, 2 sent, 3 failing, 4 dead, 5 not needed.

-- `newest`: the greatest number given out whose inbox row is gone; the greatest of all is the greater of it and the inbox's.
-- `lost_from`: the least number that went by expiry or by `inbox_max`. Users are never removed, so an id is never used twice.
CREATE TABLE user (
    id        INTEGER PRIMARY KEY,
    name      TEXT NOT NULL UNIQUE,
    newest    INTEGER NOT NULL DEFAULT 0,
    lost_from INTEGER
) STRICT;

-- `seq` is the order of committing, and so nearly that of expiry. `brief`: the expiry of a message that is kept for less than the
-- retention, until it has left the inboxes. `kept`: 1 if it has left them and is kept for its storage callback alone.
-- `push`: NULL no push, empty a plain one, else the sender's JSON. `recipients`: pairs of user id and cursor as LEB128.
CREATE TABLE message (
    seq              INTEGER PRIMARY KEY,
    id               BLOB NOT NULL UNIQUE,
    sent_at          INTEGER NOT NULL,
    expires_at       INTEGER NOT NULL,
    brief            INTEGER,
    kept             INTEGER NOT NULL DEFAULT 0,
    storage_state    INTEGER NOT NULL,
    storage_attempts INTEGER NOT NULL DEFAULT 0,
    sender           TEXT NOT NULL,
    grp              TEXT,
    kind             TEXT NOT NULL,
    push             BLOB,
    recipients       BLOB NOT NULL,
    payload          BLOB NOT NULL
) STRICT;
CREATE INDEX message_brief ON message (brief) WHERE brief IS NOT NULL;

CREATE TABLE inbox (
    user          INTEGER NOT NULL,
    cursor        INTEGER NOT NULL,
    message       INTEGER NOT NULL,
    expires_at    INTEGER NOT NULL,
    push_state    INTEGER NOT NULL,
    push_attempts INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (user, cursor)
) STRICT, WITHOUT ROWID;

-- Clustered by what a dispatcher asks for, so that a fresh row costs one append and no further index. Endpoint: 1 storage, 2 push.
CREATE TABLE outbox (
    endpoint     INTEGER NOT NULL,
    due_at       INTEGER NOT NULL,
    id           BLOB NOT NULL,
    message      BLOB NOT NULL,
    user         INTEGER,
    cursor       INTEGER,
    state        INTEGER NOT NULL DEFAULT 1,
    attempts     INTEGER NOT NULL DEFAULT 0,
    error_status INTEGER,
    error_detail TEXT,
    PRIMARY KEY (endpoint, due_at, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX outbox_failing ON outbox (id) WHERE state = 3;

CREATE TABLE dead (
    id           BLOB NOT NULL PRIMARY KEY,
    endpoint     INTEGER NOT NULL,
    due_at       INTEGER NOT NULL,
    message      BLOB NOT NULL,
    user         INTEGER,
    cursor       INTEGER,
    attempts     INTEGER NOT NULL,
    error_status INTEGER,
    error_detail TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE device (
    user    INTEGER NOT NULL,
    device  TEXT NOT NULL,
    acked   INTEGER,
    seen_at INTEGER NOT NULL,
    PRIMARY KEY (user, device)
) STRICT, WITHOUT ROWID;

-- Runs of cursors that were handed to a device's stream; neither overlapping nor adjacent.
CREATE TABLE delivery (
    user   INTEGER NOT NULL,
    device TEXT NOT NULL,
    first  INTEGER NOT NULL,
    last   INTEGER NOT NULL,
    PRIMARY KEY (user, device, first)
) STRICT, WITHOUT ROWID;

-- An idempotency key and the answer that a repeat gets.
CREATE TABLE idempotency (
    key                TEXT NOT NULL PRIMARY KEY,
    body               BLOB NOT NULL,
    expires_at         INTEGER NOT NULL,
    message            BLOB NOT NULL,
    sent_at            INTEGER NOT NULL,
    message_expires_at INTEGER NOT NULL,
    recipients         BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_expiry ON idempotency (expires_at);

-- One row that is written to learn whether writing works.
CREATE TABLE health (
    id      INTEGER PRIMARY KEY CHECK (id = 1),
    checked INTEGER NOT NULL
) STRICT;
INSERT INTO health VALUES (1, 0);
