//! A connection to the server that takes writes, and what is asked of it before it is used.

use std::{borrow::Cow, time::Duration};

use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, PgConnection, Row, SqlSafeStr,
    migrate::{Migration, MigrationType, Migrator},
    postgres::{PgConnectOptions, PgRow},
};

use super::address::{self, Address};
use crate::store::{
    Revision,
    engine::{Error, check_migrations},
};

/// The oldest version that has what is used: lz4 for values.
const VERSION_MIN: i32 = 14;
/// How long a server gets to answer before the connection is given up. Nothing is cancelled: what was sent may still commit.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// The last batch that this process knows to be in the journal.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub prev: Revision,
    pub last: Revision,
    pub batch: i64,
}

/// What the database says of itself.
pub(super) struct Identity {
    pub head: Revision,
    /// Which batch stands where [`Seen`] has its own.
    batch: Option<i64>,
    /// The server and WAL timeline that last carried the store, and that of now.
    timeline: Option<String>,
    timeline_now: String,
    /// Commits wait for a standby.
    pub is_synchronous: bool,
}

pub(super) fn database(error: sqlx::Error) -> Error {
    Error::Database(error.to_string())
}

/// The answer of the server, if it comes in time.
pub(super) async fn answer<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Error> {
    match tokio::time::timeout(ANSWER_WITHIN, work).await {
        Ok(answer) => answer.map_err(database),
        Err(_) => Err(Error::Database(format!("no answer within {} s", ANSWER_WITHIN.as_secs()))),
    }
}

/// Connects to the first host that takes writes; returns its place among the hosts too.
pub(super) async fn connect(address: &Address) -> Result<(PgConnection, usize), Error> {
    let mut errors = Vec::new();
    for (place, host) in address.hosts.iter().enumerate() {
        match connect_to(host, address).await {
            Ok(connection) => return Ok((connection, place)),
            Err(error) => errors.push(error),
        }
    }
    let text = errors.iter().map(Error::to_string).collect::<Vec<_>>().join("; ");
    Err(if errors.iter().all(|it| matches!(it, Error::Unfit(_))) { Error::Unfit(text) } else { Error::Database(text) })
}

async fn connect_to(host: &PgConnectOptions, address: &Address) -> Result<PgConnection, Error> {
    let name = address::shown(host);
    let opened = tokio::time::timeout(CONNECT_WITHIN, host.connect()).await;
    let opened = opened.map_err(|_| Error::Database(format!("{name}: no connection within {} s", CONNECT_WITHIN.as_secs())))?;
    let mut connection = opened.map_err(|why| match why {
        sqlx::Error::Io(why) if why.kind() == std::io::ErrorKind::InvalidData => Error::Unfit(format!("{name}: {why}{TRUST}")),
        other => Error::Database(format!("{name}: {other}")),
    })?;
    let row = answer(sqlx::query(FITNESS).fetch_one(&mut connection)).await?;
    check_fitness(&row).map_err(|why| Error::Unfit(format!("{name}: {why}")))?;
    let settings = SETTINGS.replace("SCHEMA", &address.schema);
    answer(sqlx::raw_sql(AssertSqlSafe(settings)).execute(&mut connection)).await?;
    // All that this server shows is replicated, where it replicates at all, before it is believed.
    answer(sqlx::query(BARRIER).execute(&mut connection)).await?;
    Ok(connection)
}

/// What helps against a certificate that is not trusted.
const TRUST: &str = "; sslrootcert=FILE in the address names the authority to trust, and sslmode=verify-ca lets the host's name be another";

/// A commit that writes no row; it is durable when it answers, and with it all before it.
pub(super) const BARRIER: &str = "SELECT pg_logical_emit_message(true, 'howdah'::text, ''::text)";

/// `remote_apply` is more than `on`.
const SETTINGS: &str = "SET search_path TO SCHEMA;
    SET default_transaction_isolation TO 'read committed';
    SET idle_in_transaction_session_timeout TO '5s';
    SET statement_timeout TO 0;
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') <> 'remote_apply'";

const FITNESS: &str = "SELECT current_setting('server_version_num')::int AS version, current_setting('fsync')::bool AS fsync,
    current_setting('full_page_writes')::bool AS pages, current_setting('server_encoding') AS encoding,
    pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool AS read_only";

fn check_fitness(row: &PgRow) -> Result<(), String> {
    let failed = |why: sqlx::Error| why.to_string();
    let version: i32 = row.try_get("version").map_err(failed)?;
    if version / 10_000 < VERSION_MIN {
        return Err(format!("Postgres {VERSION_MIN} or newer is needed; this is {}", version / 10_000));
    }
    if row.try_get("read_only").map_err(failed)? {
        return Err("this server takes no writes (a standby, or default_transaction_read_only is on)".to_owned());
    }
    if !row.try_get("fsync").map_err(failed)? {
        return Err("fsync is off: a crash would lose what was acknowledged. Set fsync = on in postgresql.conf".to_owned());
    }
    if !row.try_get("pages").map_err(failed)? {
        return Err("full_page_writes is off: a crash would damage the tables. Set full_page_writes = on in postgresql.conf".to_owned());
    }
    match row.try_get::<&str, _>("encoding").map_err(failed)? {
        "UTF8" => Ok(()),
        other => Err(format!("the database has the encoding {other}; create it with ENCODING 'UTF8'")),
    }
}

/// Makes the schema and its tables, or brings them up to date. Servers that start at the same time wait for one another; an older
/// server does not mind migrations that it does not know, as long as they only add.
pub(super) async fn migrate(connection: &mut PgConnection, schema: &str) -> Result<(), Error> {
    let exists = sqlx::query("SELECT 1 FROM pg_namespace WHERE nspname = $1").bind(schema);
    if answer(exists.fetch_optional(&mut *connection)).await?.is_none() {
        let create = AssertSqlSafe(format!("CREATE SCHEMA IF NOT EXISTS {schema}"));
        match sqlx::raw_sql(create).execute(&mut *connection).await {
            // Where two make it at the same moment the second is refused, and it is there.
            Err(sqlx::Error::Database(why)) if why.is_unique_violation() => (),
            other => _ = other.map_err(|why| lacks_rights(&why.to_string(), schema))?,
        }
    }
    migrator().run(&mut *connection).await.map_err(|why| lacks_rights(&why.to_string(), schema))?;
    check(connection).await
}

/// Whether no newer server has taken away what this one needs.
pub(super) async fn check(connection: &mut PgConnection) -> Result<(), Error> {
    let carried_out = answer(sqlx::query_as("SELECT version, description FROM _sqlx_migrations ORDER BY version").fetch_all(connection)).await?;
    check_migrations(MIGRATIONS.len(), carried_out)
}

fn lacks_rights(why: &str, schema: &str) -> Error {
    if !why.contains("permission denied") {
        return Error::Database(why.to_owned());
    }
    Error::Unfit(format!(
        "{why}. The role must own the schema or be allowed to make it: CREATE SCHEMA {schema} AUTHORIZATION its-name, or GRANT CREATE ON DATABASE"
    ))
}

/// The migrations in their order: name and text.
pub(super) const MIGRATIONS: [(&str, &str); 1] = [("journal", include_str!("../../../migrations/postgres/0001_journal.sql"))];

fn migrator() -> Migrator {
    let migration = |(number, (name, sql))| Migration::new(number, Cow::Borrowed(name), MigrationType::Simple, AssertSqlSafe(sql).into_sql_str(), false);
    Migrator { migrations: (1..).zip(MIGRATIONS).map(migration).collect(), ignore_missing: true, ..Migrator::DEFAULT }
}

const IDENTITY: &str = "SELECT coalesce((SELECT last FROM journal ORDER BY prev DESC LIMIT 1), 0) AS head,
    (SELECT batch FROM journal WHERE prev = $1) AS batch, timeline,
    (SELECT system_identifier FROM pg_control_system())::text || '/' || left(pg_walfile_name(pg_current_wal_lsn()), 8) AS now,
    current_setting('synchronous_standby_names') <> '' AS synchronous FROM fold";

impl Identity {
    pub async fn of(connection: &mut PgConnection, seen: &Seen) -> Result<Self, Error> {
        let query = sqlx::query(IDENTITY).bind(seen.prev as i64);
        let row = answer(query.fetch_optional(connection)).await?;
        let row = row.ok_or_else(|| Error::Damaged("the table fold is empty".to_owned()))?;
        let read = || {
            Ok(Self {
                head: row.try_get::<i64, _>("head")? as u64,
                batch: row.try_get("batch")?,
                timeline: row.try_get("timeline")?,
                timeline_now: row.try_get("now")?,
                is_synchronous: row.try_get("synchronous")?,
            })
        };
        read().map_err(database)
    }

    /// Whether the journal still holds what was seen.
    pub fn continues(&self, seen: &Seen) -> bool {
        seen.last == 0 || self.batch == Some(seen.batch)
    }

    /// Whether the database was restored, or failed over to another server, since a howdah last wrote so.
    pub fn has_moved(&self) -> bool {
        self.timeline.as_ref().is_some_and(|it| *it != self.timeline_now)
    }

    /// Writes down which server carries the store now.
    pub async fn keep_timeline(&self, connection: &mut PgConnection) -> Result<(), Error> {
        if self.timeline.as_ref() == Some(&self.timeline_now) {
            return Ok(());
        }
        answer(sqlx::query("UPDATE fold SET timeline = $1").bind(&self.timeline_now).execute(connection)).await.map(|_| ())
    }
}

pub(super) async fn run(connection: &mut PgConnection, sql: &'static str) -> Result<(), Error> {
    answer(sqlx::raw_sql(sql).execute(connection)).await.map(|_| ())
}

/// Ends a connection politely, so that the server's log stays quiet.
pub(super) async fn close(connection: PgConnection) {
    let _ = tokio::time::timeout(CONNECT_WITHIN, connection.close()).await;
}
