-- Groups, recall, and the sender's own copy of a message.

-- 1: the row tells that its message was recalled.
ALTER TABLE outbox ADD COLUMN recalled INTEGER NOT NULL DEFAULT 0;
ALTER TABLE dead ADD COLUMN recalled INTEGER NOT NULL DEFAULT 0;

-- 1: the last of the recipients is the sender, who only wanted it in its own inbox too.
ALTER TABLE message ADD COLUMN synced INTEGER NOT NULL DEFAULT 0;

CREATE TABLE member (
    grp  TEXT NOT NULL,
    user TEXT NOT NULL,
    PRIMARY KEY (grp, user)
) STRICT, WITHOUT ROWID;

-- A group while it has members. Its version is drawn anew at every change, so that a copy of the members in memory can be told from a stale one.
CREATE TABLE grp (
    name    TEXT NOT NULL PRIMARY KEY,
    members INTEGER NOT NULL,
    version INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE grp_version (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    latest INTEGER NOT NULL
) STRICT;
INSERT INTO grp_version VALUES (1, 0);
