-- All names are found by search_path: the schema is a parameter, so that several clusters share a database.

-- The journal: append only. The chain prev -> last is the order, its primary key the lock.
CREATE TABLE journal (
  prev  bigint PRIMARY KEY,
  last  bigint NOT NULL CHECK (prev < last),
  batch bigint NOT NULL,
  at    timestamptz NOT NULL DEFAULT clock_timestamp(),
  data  bytea NOT NULL
);
-- The data is compressed already.
ALTER TABLE journal ALTER data SET STORAGE EXTERNAL;

-- The fold: every object as it was at fold.rev. `res` is group/resource (core: resource).
CREATE TABLE object (
  res    text COLLATE "C" NOT NULL,
  ns     text COLLATE "C" NOT NULL,
  name   text COLLATE "C" NOT NULL,
  rev    bigint NOT NULL,
  schema bigint NOT NULL,
  val    text NOT NULL,
  PRIMARY KEY (res, ns, name)
) WITH (fillfactor = 85);

-- lz4 where the server is built with it.
DO $$ BEGIN
  ALTER TABLE object ALTER val SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN NULL;
END $$;

-- `store` is the cluster's identity, `timeline` the server and WAL timeline that last carried it.
CREATE TABLE fold (
  one      boolean PRIMARY KEY DEFAULT true CHECK (one),
  rev      bigint NOT NULL DEFAULT 0,
  store    uuid NOT NULL DEFAULT gen_random_uuid(),
  timeline text
) WITH (fillfactor = 10);

INSERT INTO fold DEFAULT VALUES;
