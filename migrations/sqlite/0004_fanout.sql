-- Sends to many recipients, which are written part by part, and recalls of them.

-- A message that hasn't reached all of its recipients yet. Until it has, its `recipients` show no places, and the row of its `key` is empty.
-- `storage`: 1 if a storage callback is to be made. The first `pushed` recipients get a push; `push_due` is for those made after a crash.
CREATE TABLE fanout (
    message  INTEGER PRIMARY KEY,
    key      TEXT,
    storage  INTEGER NOT NULL,
    pushed   INTEGER NOT NULL,
    push_due INTEGER NOT NULL
) STRICT;

-- The places of a part's recipients. `first`: the index of its first one.
CREATE TABLE fanout_part (
    message INTEGER NOT NULL,
    first   INTEGER NOT NULL,
    spots   BLOB NOT NULL,
    PRIMARY KEY (message, first)
) STRICT, WITHOUT ROWID;

-- A message that was recalled, while its inbox rows are taken out part by part. Nobody sees them any more.
CREATE TABLE recalled (
    message INTEGER PRIMARY KEY
) STRICT;
