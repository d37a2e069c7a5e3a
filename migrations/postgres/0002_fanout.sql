-- Sends to many recipients, which are written part by part.

-- A message that hasn't reached all of its recipients yet. Until it has, its `recipients` show no places, and the row of its `key` is empty.
-- `storage`: a storage callback is to be made. The first `pushed` recipients get a push; `push_due` is for those made after a crash.
-- `holder`: the node that writes it. When that is dead, another takes it over.
CREATE TABLE fanout (
    message  UUID PRIMARY KEY,
    key      TEXT COLLATE "C",
    storage  BOOLEAN NOT NULL,
    pushed   INTEGER NOT NULL,
    push_due BIGINT NOT NULL,
    holder   UUID NOT NULL
);

-- The places of a part's recipients. `first`: the index of its first one.
CREATE TABLE fanout_part (
    message UUID NOT NULL,
    first   INTEGER NOT NULL,
    spots   BYTEA NOT NULL,
    PRIMARY KEY (message, first)
);
