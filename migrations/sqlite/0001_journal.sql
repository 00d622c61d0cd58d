-- The journal: append only. The chain prev -> last is the order, its primary key the lock.
CREATE TABLE journal (
  prev  INTEGER PRIMARY KEY,
  last  INTEGER NOT NULL CHECK (prev < last),
  batch INTEGER NOT NULL,
  at    INTEGER NOT NULL DEFAULT (unixepoch()),
  data  BLOB NOT NULL
) STRICT;

-- The fold: every object as it was at fold.rev. `res` is group/resource (core: resource).
CREATE TABLE object (
  res    TEXT NOT NULL,
  ns     TEXT NOT NULL,
  name   TEXT NOT NULL,
  rev    INTEGER NOT NULL,
  schema INTEGER NOT NULL,
  val    TEXT NOT NULL,
  PRIMARY KEY (res, ns, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE fold (
  one INTEGER PRIMARY KEY DEFAULT 1 CHECK (one = 1),
  rev INTEGER NOT NULL DEFAULT 0
) STRICT;

INSERT INTO fold DEFAULT VALUES;
